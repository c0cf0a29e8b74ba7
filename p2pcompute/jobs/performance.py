"""How peers did lately: counts, mean times and rates over a sliding window, per function and peer and per peer.

A window is a row of buckets, each a `WINDOW_BUCKETS`th of the window long, and running totals over them; so a read
costs the same however much was recorded, and times are exact to one bucket. Times are summed as whole nanoseconds,
since sums of floats from which old values are taken away drift. Everything is bounded; what was written longest ago is
forgotten first.

Refuses to know the clock (`now` is monotonic seconds), files, and what strategies make of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import NOT_COUNTED, SERVED, FunctionKey, PerformanceRecord, Summary

#: Buckets of a window: two minutes each where the window is an hour; 10 KiB where every one is full.
WINDOW_BUCKETS = 32
_NS = 1_000_000_000


class Window:
    """The outcomes of the last `window_s` seconds, give or take a bucket. A `now` before the last one counts as that."""

    __slots__ = (
        "_buckets",
        "_counted",
        "_now",
        "_queue_ns",
        "_resolution_s",
        "_served",
        "_succeeded",
        "_wall_ns",
        "window_s",
    )

    def __init__(self, window_s: float = limits.PERFORMANCE_WINDOW_S) -> None:
        #: Length in seconds, above 0.
        self.window_s = window_s
        #: Length of a bucket in seconds.
        self._resolution_s = window_s / WINDOW_BUCKETS
        #: (start, counted, served, succeeded, wall_ns, queue_ns), starts rising by at least a bucket's length.
        self._buckets: deque[list[float | int]] = deque()
        #: The latest time that was told.
        self._now = float("-inf")
        #: Sums over the buckets: tasks.
        self._counted = 0
        #: Tasks that ran to their end.
        self._served = 0
        #: Tasks that returned a value.
        self._succeeded = 0
        #: Nanoseconds of served tasks.
        self._wall_ns = 0
        #: Nanoseconds that served tasks waited.
        self._queue_ns = 0

    def observe(self, record: PerformanceRecord, now: float) -> None:
        """Count the tasks of `record`, which ended at `now`."""
        self._expire(now)
        if record.outcome in NOT_COUNTED:
            return
        tasks = record.tasks
        served = tasks if record.outcome in SERVED else 0
        succeeded = tasks if record.outcome is Outcome.RETURNED else 0
        wall_ns = int(record.wall_s * _NS) * served
        queue_ns = int(record.queue_s * _NS) * served
        last = self._buckets[-1] if self._buckets else None
        if last is None or self._now - last[0] >= self._resolution_s:
            self._buckets.append([self._now, tasks, served, succeeded, wall_ns, queue_ns])
        else:
            for place, amount in enumerate((tasks, served, succeeded, wall_ns, queue_ns), 1):
                last[place] += amount
        self._counted += tasks
        self._served += served
        self._succeeded += succeeded
        self._wall_ns += wall_ns
        self._queue_ns += queue_ns

    def counted(self, now: float) -> int:
        """Tasks in the window."""
        self._expire(now)
        return self._counted

    def lately(self, now: float) -> tuple[float | None, float]:
        """Mean seconds of a served task (None: there is none), and (served + 1) / (counted + 1), the share served.

        Both in one call, since an ordering asks every candidate.
        """
        self._expire(now)
        served = self._served
        return (self._wall_ns / served / _NS if served else None), (served + 1) / (self._counted + 1)

    def mean_s(self, now: float) -> float | None:
        """Mean seconds of a served task; None where there is none."""
        self._expire(now)
        return self._wall_ns / self._served / _NS if self._served else None

    def summary(self, now: float) -> Summary:
        """All of it; without percentiles, which only the database knows."""
        self._expire(now)
        response_s = (self._wall_ns + self._queue_ns) / self._served / _NS if self._served else None
        return Summary(self._counted, self._served, self._succeeded, self.mean_s(now), response_s)

    def check_invariants(self) -> None:
        """Raise AssertionError where totals and buckets contradict each other."""
        totals = [self._counted, self._served, self._succeeded, self._wall_ns, self._queue_ns]
        assert totals == [sum(bucket[place] for bucket in self._buckets) for place in range(1, 6)]
        assert self._counted >= self._served >= self._succeeded >= 0
        assert len(self._buckets) <= WINDOW_BUCKETS + 1

    def _expire(self, now: float) -> None:
        if now <= self._now:
            return
        self._now = now
        buckets = self._buckets
        oldest = now - self.window_s
        while buckets and buckets[0][0] <= oldest:
            _, counted, served, succeeded, wall_ns, queue_ns = buckets.popleft()
            self._counted -= int(counted)
            self._served -= int(served)
            self._succeeded -= int(succeeded)
            self._wall_ns -= int(wall_ns)
            self._queue_ns -= int(queue_ns)


_NOBODY: Mapping[PeerId, Window] = {}


class PerformanceBook:
    """Windows by function and peer, and by peer over all functions."""

    def __init__(self, window_s: float = limits.PERFORMANCE_WINDOW_S) -> None:
        #: Length of every window, seconds.
        self.window_s = window_s
        #: By function, then peer; at most `limits.PERFORMANCE_FUNCTIONS_MAX` and `PERFORMANCE_PEERS_MAX` each; the last
        #: written last.
        self._functions: dict[FunctionKey, dict[PeerId, Window]] = {}
        #: Over all peers, by function: the same functions as in `_functions`.
        self._overall: dict[FunctionKey, Window] = {}
        #: By peer, at most `limits.PERFORMANCE_PEERS_MAX`; the last written last.
        self._peers: dict[PeerId, Window] = {}

    def observe(self, record: PerformanceRecord, now: float) -> None:
        """Count `record`, whose tasks ended at `now`."""
        rows = self._functions.pop(record.function, None)
        if rows is None:
            rows = {}
        self._functions[record.function] = rows
        if record.function not in self._overall:
            self._overall[record.function] = Window(self.window_s)
        self._overall[record.function].observe(record, now)
        if len(self._functions) > limits.PERFORMANCE_FUNCTIONS_MAX:
            oldest = next(iter(self._functions))
            del self._functions[oldest], self._overall[oldest]
        for table in (rows, self._peers):
            window = table.pop(record.peer, None) or Window(self.window_s)
            table[record.peer] = window
            if len(table) > limits.PERFORMANCE_PEERS_MAX:
                del table[next(iter(table))]
            window.observe(record, now)

    def windows(self, function: FunctionKey) -> Mapping[PeerId, Window]:
        """The windows of a function by peer: one look-up for a whole ordering. Not to be changed, nor kept."""
        return self._functions.get(function, _NOBODY)

    def of(self, function: FunctionKey, peer: PeerId, now: float) -> Summary | None:
        """How `peer` did with `function`; None where nothing was ever told."""
        window = self.windows(function).get(peer)
        return None if window is None else window.summary(now)

    def of_peer(self, peer: PeerId, now: float) -> Summary | None:
        """How `peer` did with all functions; None where nothing was ever told."""
        window = self._peers.get(peer)
        return None if window is None else window.summary(now)

    def functions_of(self, peer: PeerId, now: float) -> tuple[tuple[FunctionKey, Summary], ...]:
        """The functions of which `peer` has tasks in its windows, by name and program."""
        rows = ((function, self.of(function, peer, now)) for function in sorted(self._functions))
        return tuple((function, summary) for function, summary in rows if summary is not None and summary.counted)

    def peers(self, now: float) -> tuple[tuple[PeerId, Summary], ...]:
        """Every known peer with its summary, by id."""
        return tuple((peer, window.summary(now)) for peer, window in sorted(self._peers.items()))

    def mean_function_s(self, function: FunctionKey, now: float) -> float | None:
        """Mean seconds of a task of `function`, over all peers. None where nothing is known."""
        window = self._overall.get(function)
        return None if window is None else window.mean_s(now)

    def check_invariants(self) -> None:
        """Raise AssertionError where a table or a window is not what it should be."""
        assert len(self._functions) <= limits.PERFORMANCE_FUNCTIONS_MAX
        assert set(self._functions) == set(self._overall)
        tables: list[dict[PeerId, Window]] = [self._peers, *self._functions.values()]
        for table in tables:
            assert len(table) <= limits.PERFORMANCE_PEERS_MAX
        for window in (*self._overall.values(), *(window for table in tables for window in table.values())):
            window.check_invariants()
