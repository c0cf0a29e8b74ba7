"""Processes seen from outside: kill a group, reap children without racing for their number, weigh a family's memory."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence


def kill_group(pid: int) -> None:
    """SIGKILL to the process group that `pid` leads, or, before it leads one, to `pid`. A group that is gone is no error."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    except PermissionError:
        return  # macOS says so of a group of zombies


def reap_ended() -> Iterator[tuple[int, int]]:
    """(pid, exit code) of each child of this process that has ended; its process group is killed first.

    The child is looked at before it is reaped, where the system allows, so that its number cannot belong to anybody
    else when its group is killed.
    """
    while True:
        try:
            if hasattr(os, "waitid"):
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if seen is None:
                    return
                kill_group(seen.si_pid)
                pid, status = os.waitpid(seen.si_pid, 0)
            else:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                kill_group(pid)
        except ChildProcessError:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def children_of(pid: int) -> list[int]:
    """The children of a process, oldest first; none where it is gone. Linux only."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(each) for each in file.read().split()]
    except FileNotFoundError:
        # Gone, or a kernel without this file.
        return sorted(child for child, parent in _all_processes()[0].items() if parent == pid)
    except OSError:
        return []


def innermost_pid(pid: int) -> int | None:
    """The number by which a process knows itself, in a namespace of numbers perhaps; None where it is gone. Linux only."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        return None
    return pid


def family_memory_bytes(leaders: Sequence[int], limits_bytes: Sequence[int]) -> list[int]:
    """Resident bytes of each of `leaders` and all its descendants; 0 for one that is gone. Reads files: call it off the loop.

    One pass over all processes of the machine, however many families. Pages that a family shares are counted once where its plain
    sum is above its limit and the system tells; a family that forks large tables would else look many times its weight.
    """
    parents, resident = _all_processes()
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    weights = []
    for leader, limit_bytes in zip(leaders, limits_bytes, strict=True):
        family = [leader] if leader in parents else []
        for member in family:  # grows while it is walked
            family.extend(children.get(member, ()))
        weight = sum(resident[member] for member in family)
        if weight > limit_bytes and len(family) > 1:
            weight = sum(_own_bytes(member) for member in family)
        weights.append(weight)
    return weights


def _all_processes() -> tuple[dict[int, int], dict[int, int]]:
    """(parent, resident bytes) by pid."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    if sys.platform == "linux":
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    words = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            parents[int(name)] = int(words[1])
            resident[int(name)] = int(words[21]) * page_bytes
    else:
        import psutil  # here, because the template imports this module and forks what it holds

        for process in psutil.process_iter(["ppid", "memory_info"]):
            memory = process.info["memory_info"]
            parents[process.pid] = process.info["ppid"] or 0
            resident[process.pid] = memory.rss if memory else 0
    return parents, resident


def _own_bytes(pid: int) -> int:
    """Memory of one process with shared pages divided among those that share them, or plain resident bytes."""
    import psutil  # here, see above

    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", 0) or memory.rss)


def describe_exit(status: int | None) -> str:
    """How a process ended, for people; `status` as `subprocess` counts it, None where nobody saw it end."""
    if status is None:
        return "the worker process is gone"
    if status >= 0:
        return f"the worker process exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "an unnamed signal"
    return f"the worker process was killed by signal {-status} ({name})"
