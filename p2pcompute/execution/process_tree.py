"""Processes seen from outside: kill a group, reap children without racing for their number, weigh a family's memory."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


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
        return sorted(child for child, process in _all_processes().items() if process.parent == pid)
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


def family_of(pid: int) -> list[int]:
    """A process and all its descendants. Reads files: call it off the loop."""
    children: dict[int, list[int]] = {}
    for each, one in _all_processes().items():
        children.setdefault(one.parent, []).append(each)
    family = [pid]
    for member in family:  # grows while it is walked
        family.extend(children.get(member, ()))
    return family


@dataclass(frozen=True, slots=True)
class Weight:
    """Of a process and all its descendants: resident bytes, and how many threads they have, one at least for each process."""

    memory_bytes: int
    threads: int


def weigh_families(leaders: Sequence[int], limits_bytes: Sequence[int | None]) -> list[Weight]:
    """Weight of each of `leaders` and all its descendants; 0 for one that is gone. Reads files: call it off the loop.

    One pass over all processes of the machine, however many families. Pages that a family shares are counted once where its plain
    sum is above its limit and the system tells; a family that forks large tables would else look many times its weight.
    """
    processes = _all_processes()
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    weights = []
    for leader, limit_bytes in zip(leaders, limits_bytes, strict=True):
        family = [leader] if leader in processes else []
        for member in family:  # grows while it is walked
            family.extend(children.get(member, ()))
        weight = sum(processes[member].resident_bytes for member in family)
        if limit_bytes is not None and weight > limit_bytes and len(family) > 1:
            weight = sum(_own_bytes(member) for member in family)
        weights.append(Weight(weight, sum(processes[member].threads for member in family)))
    return weights


def family_cpu_s(leader: int) -> float:
    """CPU seconds of `leader`, all its descendants, and those that ended and were waited for. Reads files: call it off the loop."""
    spent: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for pid, parent, cpu_s in _cpu_of_all():
        spent[pid] = cpu_s
        children.setdefault(parent, []).append(pid)
    family = [leader]
    for member in family:  # grows while it is walked
        family.extend(children.get(member, ()))
    return sum(spent.get(member, 0.0) for member in family)


def _cpu_of_all() -> Iterator[tuple[int, int, float]]:
    """(pid, parent, CPU seconds with those of children that ended) of every process that can be seen."""
    if sys.platform == "linux":
        ticks = os.sysconf("SC_CLK_TCK")
        for pid, words in _stat_lines():
            yield pid, int(words[1]), sum(map(int, words[11:15])) / ticks
    else:
        import psutil  # here, because the template imports this module and forks what it holds

        for process in psutil.process_iter(["ppid", "cpu_times"]):
            times = process.info["cpu_times"]
            if times is not None:
                waited_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
                yield process.pid, process.info["ppid"] or 0, times.user + times.system + waited_s


def _stat_lines() -> Iterator[tuple[int, list[bytes]]]:
    """(pid, what /proc says of it from its state on) of every process of this Linux."""
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                yield int(name), file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it ended meanwhile


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    resident_bytes: int
    threads: int


def _all_processes() -> dict[int, _Process]:
    """All processes of the machine, by pid."""
    found: dict[int, _Process] = {}
    if sys.platform == "linux":
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        for pid, words in _stat_lines():
            found[pid] = _Process(int(words[1]), int(words[21]) * page_bytes, int(words[17]))
    else:
        import psutil  # here, because the template imports this module and forks what it holds

        for process in psutil.process_iter(["ppid", "memory_info", "num_threads"]):
            memory = process.info["memory_info"]
            found[process.pid] = _Process(
                process.info["ppid"] or 0, memory.rss if memory else 0, process.info["num_threads"] or 1
            )
    return found


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
