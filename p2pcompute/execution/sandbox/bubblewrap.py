"""The command line of bubblewrap: a view of the machine made of nothing but what a worker needs.

User, process, mount, network, host name, message and cgroup namespaces of its own; no capabilities, none to be had by making more
user namespaces; system folders, the interpreter and granted folders read only; scratch folders in memory, each with a size.

Measured, as root: a process of root's number owns the machine's files even without any capability, so `/proc` (with `/proc/sys` in it)
and every device file are read only, too: else it may write settings of the kernel, or change the rights of `/dev/null`.

Refuses to know: pools, workers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pcompute.execution.sandbox.grants import NO_GRANTS, Grants
from p2pcompute.execution.sandbox.interpreter import NETWORK_FILES, SYSTEM_FILES, SYSTEM_FOLDERS, Interpreter

PROGRAM = "bwrap"
#: The first with --disable-userns and --size.
VERSION_MIN = (0, 8, 0)
#: Number of the user and group inside; nobody's on most machines, and nobody's rights in any case.
USER = 1000
#: Small shared memory: semaphores between processes.
SHARED_BYTES = 16 << 20
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
#: Files of the machine as a whole that are of no use to a worker.
HIDDEN = (
    "/proc/cmdline", "/proc/config.gz", "/proc/consoles", "/proc/crypto", "/proc/iomem", "/proc/ioports", "/proc/kallsyms", "/proc/kcore",
    "/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats",
    "/proc/locks", "/proc/modules", "/proc/mtrr", "/proc/pagetypeinfo", "/proc/partitions", "/proc/sched_debug", "/proc/slabinfo",
    "/proc/sysrq-trigger", "/proc/timer_list", "/proc/vmallocinfo",
)  # fmt: skip
#: What numeric libraries look at to count cores.
_CORES = ("/sys/devices/system/cpu", "/sys/devices/system/node")
_GPU_NODES = ("/dev/nvidia", "/dev/dri", "/dev/kfd")
GPU_FILES = (
    "/sys/bus/pci",
    "/sys/devices/pci0000:00",
    "/sys/class/drm",
    "/sys/module/nvidia",
    "/etc/vulkan",
    "/etc/OpenCL",
)


@dataclass(frozen=True, slots=True)
class View:
    """What a sandbox shows. `scratch`: folders in memory of `scratch_bytes` each."""

    interpreter: Interpreter
    grants: Grants = NO_GRANTS
    scratch: tuple[str, ...] = ()
    scratch_bytes: int = 0
    environment: tuple[tuple[str, str], ...] = field(default=())


def find() -> str | None:
    """The program, or None."""
    return shutil.which(PROGRAM)


def version(program: str) -> tuple[int, ...]:
    """Of the program; empty where it does not say."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        return tuple(int(part) for part in text.split()[-1].split("."))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ()


def arguments(view: View) -> list[str]:
    """All arguments but the program and the command to run."""
    grants = view.grants
    made = [
        "--unshare-user",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--disable-userns",
    ]
    if not grants.network:
        made.append("--unshare-net")
    made += ["--cap-drop", "ALL", "--uid", str(USER), "--gid", str(USER), "--hostname", "worker"]
    made += ["--die-with-parent", "--new-session"]
    for folder in SYSTEM_FOLDERS:
        made += _system_folder(folder)
    made += _binds("--ro-bind-try", (*SYSTEM_FILES, *(NETWORK_FILES if grants.network else ()), *_CORES))
    made += _binds("--ro-bind", view.interpreter.paths)
    made += ["--proc", "/proc"]
    for file in HIDDEN:
        if os.path.exists(file):
            made += ["--ro-bind", "/dev/null", file]
    made += ["--dev", "/dev"]
    if grants.gpu:
        made += _gpu()
    made += ["--size", str(SHARED_BYTES), "--tmpfs", "/dev/shm"]
    for folder in view.scratch:
        made += ["--size", str(view.scratch_bytes), "--tmpfs", folder]
    for granted in grants.folders:
        made += ["--bind" if granted.writable else "--ro-bind", str(granted.path), str(granted.path)]
    made += ["--remount-ro", "/dev/pts", "--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/"]
    for name, value in view.environment:
        made += ["--setenv", name, value]
    if view.scratch:
        made += ["--chdir", view.scratch[0]]
    return made


def gpu_nodes() -> list[str]:
    """The device files of this machine's accelerators."""
    return sorted(f"/dev/{name}" for name in os.listdir("/dev") if f"/dev/{name}".startswith(_GPU_NODES))


def _system_folder(folder: str) -> list[str]:
    if os.path.islink(folder):
        return ["--symlink", os.readlink(folder), folder]
    return ["--ro-bind", folder, folder] if os.path.isdir(folder) else []


def _binds(option: str, paths: Iterable[str]) -> list[str]:
    made: list[str] = []
    for path in paths:
        made += [option, path, path]
    return made


def _gpu() -> list[str]:
    return [*_binds("--dev-bind", gpu_nodes()), *_binds("--ro-bind-try", GPU_FILES)]


def as_data(words: Sequence[str]) -> bytes:
    """Arguments as `--args` reads them: the command line, which everybody may read, then tells no paths."""
    return b"".join(word.encode(errors="surrogateescape") + b"\0" for word in words)
