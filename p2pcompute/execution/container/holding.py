"""How a container is held: what an engine is told when one is made for a task. Pure: one document from what is known.

The rule is the strictest that ordinary programs bear: nothing of the image can be written, no capability, no way to gain one, no user but one
without rights, no network, no device, memory without swap, few processes; and of the machine's files only the task's own folder. Each thing more is a
grant of the owner's that the program demands. Nothing that a program says can name a path of the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pcompute.execution.container.engine import LABEL_INSTANCE, LABEL_TASK, EngineInfo
from p2pcompute.execution.container.program import FOLDER, ContainerProgram, ContainerTask
from p2pcompute.execution.sandbox.grants import GrantedFolder, folder_variable
from p2pcompute.model import limits

if sys.platform != "win32":
    import resource

#: Who a task is where the peer itself is root: nobody.
_NOBODY = 65_534
#: What podman's service holds itself to; a container's own processes are bounded by its group.
_PODMAN_PROCESSES = 32_768
#: Where granted folders appear.
FOLDERS = "/folders"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one container gets at most. `cpus`: cores; `scratch_bytes`: what its folder may hold, `file_bytes` included."""

    memory_bytes: int
    cpus: float = 1.0
    processes: int = limits.CONTAINER_PROCESSES_MAX
    scratch_bytes: int = limits.CONTAINER_SCRATCH_BYTES_MAX
    tmp_bytes: int = limits.CONTAINER_TMP_BYTES_MAX

    def for_program(self, program: ContainerProgram, memory_bytes: int | None) -> Allowance:
        """The smaller of this and of what a program and its job wish."""
        memory = [each for each in (self.memory_bytes, program.memory_bytes, memory_bytes) if each is not None]
        return Allowance(
            memory_bytes=min(memory),
            cpus=min(self.cpus, program.cpus or self.cpus),
            processes=min(self.processes, program.processes or self.processes),
            scratch_bytes=self.scratch_bytes
            if program.scratch_bytes is None
            else min(self.scratch_bytes, program.scratch_bytes),
            tmp_bytes=self.tmp_bytes,
        )


def user_of(info: EngineInfo) -> tuple[int, int]:
    """(user, group) as which tasks run, by the container's own numbers: without rights, and able to write the task's folder."""
    if info.rootless and info.name != "podman":
        return 0, 0  # it is the peer's own user outside, and nothing else
    if not hasattr(os, "getuid") or os.getuid() == 0:
        return _NOBODY, _NOBODY
    return os.getuid(), os.getgid()


def container_document(
    program: ContainerProgram,
    task: ContainerTask,
    *,
    image: str,
    command: Sequence[str],
    allowance: Allowance,
    folder: Path,
    instance: str,
    name: str,
    info: EngineInfo,
    folders: Sequence[GrantedFolder] = (),
) -> dict[str, Any]:
    """The body of the engine's "create". `image`: its id; `command`: all words; `folder`: the task's, on this machine; `name`: of the task."""
    user, group = user_of(info)
    grants = program.demands.grants
    given = _demanded(folders, grants)
    memory = allowance.memory_bytes
    host: dict[str, Any] = {
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "NetworkMode": "default" if "network" in grants else "none",
        "IpcMode": "private",
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(allowance.cpus * 1e9),
        "PidsLimit": allowance.processes,
        "OomScoreAdj": 500,
        "ShmSize": min(allowance.tmp_bytes, memory),
        "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={min(allowance.tmp_bytes, memory)},mode=1777"},
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": 1_024, "Hard": 1_024},
            {"Name": "fsize", "Soft": allowance.scratch_bytes, "Hard": allowance.scratch_bytes},
        ],
        # What it writes is read from the stream; the engine would keep it on disk without end.
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        "Mounts": [
            _mount(folder, FOLDER, writable=True),
            *(_mount(each.path, f"{FOLDERS}/{each.name}", writable=each.writable) for each in given),
        ],
    }
    if info.name == "podman":
        host["Ulimits"] += _processes()
        if info.rootless:
            host["UsernsMode"] = "keep-id"
    if "gpu" in grants:
        host["DeviceRequests"] = [{"Count": -1, "Capabilities": [["gpu"]]}]
    places = {folder_variable(each.name): f"{FOLDERS}/{each.name}" for each in given}
    environment = {"HOME": FOLDER, "TMPDIR": "/tmp", **places, **dict(program.environment), **dict(task.environment)}
    document: dict[str, Any] = {
        "Image": image,
        "Cmd": list(command),
        "Env": [f"{variable}={value}" for variable, value in environment.items()],
        "WorkingDir": program.folder,
        "User": f"{user}:{group}",
        "Hostname": "task",
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "Labels": {LABEL_INSTANCE: instance, LABEL_TASK: name},
        "HostConfig": host,
    }
    if program.entrypoint is not None:
        document["Entrypoint"] = list(program.entrypoint)
    return document


def _processes() -> list[dict[str, Any]]:
    """podman as root raises this limit as far as the kernel goes, which its service may not where its own is held lower, as in a container."""
    if sys.platform == "win32":
        return []
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = _PODMAN_PROCESSES if hard == resource.RLIM_INFINITY else min(hard, _PODMAN_PROCESSES)
    return [{"Name": "nproc", "Soft": most, "Hard": most}]


def _demanded(folders: Sequence[GrantedFolder], grants: Sequence[str]) -> list[GrantedFolder]:
    """Exactly the folders that are demanded; one that is demanded for reading is given so, whatever the owner would give."""
    found = []
    for folder in folders:
        may_write = folder.writable and f"folder:{folder.name}:rw" in grants
        if may_write or f"folder:{folder.name}" in grants:
            found.append(GrantedFolder(folder.name, folder.path, may_write))
    return found


def _mount(source: Path, target: str, *, writable: bool) -> dict[str, Any]:
    # As a mount, not as a bind: of a source that is missing an engine makes no folder of root's.
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": not writable,
        "BindOptions": {"Propagation": "rprivate"},
    }
