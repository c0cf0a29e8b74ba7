"""Groups of processes whose memory, number and cores the kernel itself limits, where this user may make them.

Version 2 where the peer's own group is delegated to it, version 1 where its controllers can be written. Each worker gets a group of its own,
which is removed with it. What a controller does not offer here is named. Refuses to know: sandboxes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
#: Period of the limit of cores, microseconds, the kernel's own default.
PERIOD_US = 100_000
#: Files that some kernels do not have.
_OPTIONAL = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"})
CONTROLLERS = ("memory", "pids", "cpu")


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """`memory_bytes`: None for none; `processes`: processes and threads; `cores`: of time, 0 for no limit."""

    memory_bytes: int | None
    processes: int
    cores: float = 0.0


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where groups can be made. `kind`: "v1", "v2" or empty; `bases`: a folder to make groups in, by controller."""

    kind: str
    bases: Mapping[str, Path]
    text: str

    def make(self, name: str, limits: GroupLimits) -> Group | None:
        """A group with these limits, or None where none can be made now."""
        if not self.kind:
            return None
        folders = tuple(dict.fromkeys(base / name for base in self.bases.values()))
        group = Group(folders)
        try:
            for folder in folders:
                folder.mkdir()
            for controller, base in self.bases.items():
                for file, value in _settings(self.kind, controller, limits):
                    target = base / name / file
                    if target.exists() or file not in _OPTIONAL:
                        target.write_text(value)
        except OSError:
            group.remove()
            return None
        return group


@dataclass(slots=True)
class Group:
    """One group. `folders`: one a controller, or one for all."""

    folders: tuple[Path, ...]

    def add(self, pid: int) -> bool:
        """Put a process in, with all that it starts from now on; False where that was refused or it is gone."""
        try:
            for folder in self.folders:
                (folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            return False
        return True

    def was_out_of_memory(self) -> bool:
        """Whether the kernel has killed in here for want of memory."""
        for folder in self.folders:
            for file in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (folder / file).read_text().splitlines():
                        name, _, count = line.partition(" ")
                        if name == "oom_kill" and count.strip() not in ("", "0"):
                            return True
        return False

    def remove(self) -> bool:
        """Remove it; False while a process in it still ends."""
        gone = True
        for folder in self.folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


def find(root: Path = ROOT, memberships: str | None = None) -> Cgroups:
    """Where this process can make groups. `memberships`: /proc/self/cgroup."""
    if sys.platform != "linux":
        return Cgroups("", {}, "control groups are of Linux only")
    if memberships is None:
        try:
            memberships = Path("/proc/self/cgroup").read_text()
        except OSError as error:
            return Cgroups("", {}, f"the own control group cannot be read: {error}")
    rows = [line.split(":", 2) for line in memberships.splitlines() if line.count(":") >= 2]
    by_name = {name: path for _, names, path in rows for name in names.split(",")}
    if "" in by_name:
        found = _version_2(root, by_name[""])
        if found is not None:
            return found
    bases = {}
    for controller in CONTROLLERS:
        base = root / controller / by_name.get(controller, "").lstrip("/")
        if controller in by_name and _can_make(base):
            bases[controller] = base
    if bases:
        lacking = [each for each in CONTROLLERS if each not in bases]
        text = f"version 1: {', '.join(bases)} limited for each worker"
        return Cgroups("v1", bases, text + (f"; {', '.join(lacking)} cannot be written" if lacking else ""))
    return Cgroups(
        "",
        {},
        "control groups cannot be made here; memory is watched instead, which notices later. Run the peer as a service with Delegate=yes, or "
        "by `systemd-run --user --scope -p Delegate=yes`",
    )


def _version_2(root: Path, own: str) -> Cgroups | None:
    base = root / own.lstrip("/")
    with contextlib.suppress(OSError):
        has = (base / "cgroup.controllers").read_text().split()
        wanted = [each for each in CONTROLLERS if each in has]
        if not wanted or not _can_make(base):
            return None
        on = (base / "cgroup.subtree_control").read_text().split()
        if not set(wanted) <= set(on) and not _switch_on(base, wanted):
            return None
        lacking = [each for each in CONTROLLERS if each not in wanted]
        text = f"version 2: {', '.join(wanted)} limited for each worker"
        return Cgroups(
            "v2", dict.fromkeys(wanted, base), text + (f"; {', '.join(lacking)} not delegated" if lacking else "")
        )
    return None


def _switch_on(base: Path, controllers: list[str]) -> bool:
    """Have groups within `base` limited: its own processes must move into one of them first, and all must be this process's."""
    try:
        members = [int(line) for line in (base / "cgroup.procs").read_text().split()]
        if any(pid != os.getpid() for pid in members):
            return False  # others' processes are not ours to move
        own = base / f"p2pcompute-peer-{os.getpid()}"
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text(str(os.getpid()))
        (base / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers))
    except (OSError, ValueError):
        return False
    return True


def _sweep(base: Path) -> None:
    """Remove groups of processes that are gone: a peer that was killed left them."""
    with contextlib.suppress(OSError):
        for folder in base.glob("p2pcompute-[0-9]*"):
            number = folder.name.split("-")[1]
            if number.isdecimal() and not Path("/proc", number).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _can_make(base: Path) -> bool:
    _sweep(base)
    trial = base / f"p2pcompute-trial-{os.getpid()}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return True


def _settings(kind: str, controller: str, limits: GroupLimits) -> list[tuple[str, str]]:
    memory = None if limits.memory_bytes is None else str(limits.memory_bytes)
    quota = int(limits.cores * PERIOD_US)
    match kind, controller:
        case "v1", "memory":
            return (
                [] if memory is None else [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)]
            )
        case "v2", "memory":
            return (
                [] if memory is None else [("memory.max", memory), ("memory.swap.max", "0"), ("memory.oom.group", "1")]
            )
        case _, "pids":
            return [("pids.max", str(limits.processes))]
        case "v1", "cpu":
            return [] if not quota else [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
        case "v2", "cpu":
            return [] if not quota else [("cpu.max", f"{quota} {PERIOD_US}")]
    return []
