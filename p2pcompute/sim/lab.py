"""One run of the laboratory: a loop, a network, dice and a trace, and the scenario that uses them.

A scenario is an async function of a `Lab`. The run fails with whatever it raises, with whatever reaches the loop's exception handler, when
nothing can happen any more, and when it takes more virtual time than it is given. Same seed, same sources: same run,
event for event, which `RunReport.digest` says in one hash.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.dice import Dice
from p2pcompute.sim.failure import SimFailure
from p2pcompute.sim.fence import fenced
from p2pcompute.sim.loop import SimLoop, SimulationError
from p2pcompute.sim.network import SimNetwork
from p2pcompute.sim.seams import InlineOffload, SimClock, SimEntropy
from p2pcompute.sim.trace import Detail, Field, Trace

#: Virtual seconds after which a run that has not ended is called stuck: a day.
_TIME_MAX_S: Final = 86_400.0
#: Virtual seconds that what still runs may take to end after it was cancelled.
_CLEAN_UP_MAX_S: Final = 600.0
#: Virtual seconds between two looks of `Lab.until`.
_LOOK_S: Final = 0.05


class ExpectationError(SimulationError):
    """What a scenario waited for did not come true, or did not stay true."""


@dataclass(frozen=True, slots=True)
class LabSettings:
    """How to run, apart from the scenario and the seed."""

    #: What the trace is told of the network; less is faster.
    detail: Detail = Detail.FULL
    #: Whether what is ready at one time runs in an order of the dice.
    shuffles: bool = True
    #: Whether the real machine is fenced off (`fence.py`).
    is_fenced: bool = True
    #: Ways of which a scenario says nothing.
    conditions: Conditions = field(default_factory=Conditions.lan)
    #: Virtual seconds that a run may take.
    time_max_s: float = _TIME_MAX_S
    #: Scenarios that have machines check themselves do so at every so many events of each, and once a virtual second. Changes no run.
    check_every: int = 32


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run went that did not fail."""

    scenario: str
    seed: int
    #: Hash of all events, and how many they were.
    digest: str
    events: int
    #: Virtual seconds that it took, and real ones.
    virtual_s: float
    real_s: float
    #: Datagrams that arrived, and that did not.
    delivered: int
    lost: int


class Lab:
    """What a scenario gets."""

    def __init__(self, seed: int, settings: LabSettings | None = None) -> None:
        self.seed = seed
        self.settings = settings or LabSettings()
        self.dice = Dice(seed)
        self.loop = SimLoop(self.dice.of("loop") if self.settings.shuffles else None)
        self.trace = Trace(self.settings.detail)
        self.network = SimNetwork(self.loop, self.dice, self.trace, self.settings.conditions)
        self.offload = InlineOffload()

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the run."""
        return self.loop.time()

    def clock(self, *machine: str | int, skew_max_s: float = 0.0, drift_max: float = 0.0) -> SimClock:
        """The clock of a machine: its monotonic one begins anywhere in its first month, its wall clock is wrong by up to `skew_max_s` either way and drifts by up to `drift_max`."""
        rng = self.dice.of("clock", *machine)
        return SimClock(
            self.loop,
            offset_s=rng.uniform(0.0, 30 * 86_400.0),
            skew_s=rng.uniform(-skew_max_s, skew_max_s),
            drift=rng.uniform(-drift_max, drift_max),
        )

    def entropy(self, *machine: str | int) -> SimEntropy:
        """The entropy of a machine."""
        return SimEntropy(self.dice.of("entropy", *machine))

    def note(self, kind: str, *fields: Field) -> None:
        """Put something into the trace: part of the hash, and a line of a report."""
        self.trace.event((self.loop.time(), kind, *fields))

    async def until(
        self, condition: Callable[[], object], what: str, within_s: float, look_s: float = _LOOK_S
    ) -> float:
        """Wait until `condition()` holds, looking every `look_s` virtual seconds; how long it took. Raises ExpectationError after `within_s`."""
        begun = self.loop.time()
        while not condition():
            if self.loop.time() - begun >= within_s:
                raise ExpectationError(f"within {within_s} s it did not come true that {what}")
            await asyncio.sleep(look_s)
        return self.loop.time() - begun

    async def always(self, condition: Callable[[], object], what: str, for_s: float, look_s: float = _LOOK_S) -> None:
        """See to it that `condition()` holds for `for_s` virtual seconds, looking every `look_s`. Raises ExpectationError."""
        begun = self.loop.time()
        while True:
            if not condition():
                raise ExpectationError(
                    f"after {self.loop.time() - begun:.3f} of {for_s} s it was no longer true that {what}"
                )
            if self.loop.time() - begun >= for_s:
                return
            await asyncio.sleep(look_s)


#: What is run.
Scenario = Callable[[Lab], Awaitable[None]]


def run(scenario: Scenario, seed: int, settings: LabSettings | None = None, *, name: str = "") -> RunReport:
    """Run `scenario` with `seed`. Raises SimFailure with the report where it fails."""
    with _gc_by_turns():
        return _run(scenario, seed, settings, name or getattr(scenario, "__name__", "scenario").replace("_", "-"))


def _run(scenario: Scenario, seed: int, settings: LabSettings | None, name: str) -> RunReport:
    lab = Lab(seed, settings)
    further: list[str] = []
    failed: BaseException | None = None
    began = time.perf_counter()
    try:
        _run_in(lab, scenario, further)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        failed = error
    if failed is not None:
        raise SimFailure(name, seed, lab.now, failed, lab.trace.last(), further) from failed
    return RunReport(
        name, seed, lab.trace.digest(), lab.trace.events, lab.now, time.perf_counter() - began,
        lab.network.delivered, lab.network.lost,
    )  # fmt: skip


def _run_in(lab: Lab, scenario: Scenario, further: list[str]) -> None:
    """Run and clean up; what goes wrong while cleaning up after a failure goes to `further`."""
    loop = lab.loop

    async def whole() -> None:
        await scenario(lab)

    loop.time_max_s = lab.settings.time_max_s
    with _fence(lab):
        try:
            loop.run_until_complete(whole())
        except BaseException:
            _clean_up(loop, further)
            raise
        left: list[str] = []
        _clean_up(loop, left)
    if left:
        raise SimulationError(f"the scenario is over, but not everything in it: {left[0]}")


@contextmanager
def _fence(lab: Lab) -> Iterator[None]:
    if lab.settings.is_fenced:
        with fenced(lab.loop, lab.dice):
            yield
    else:
        yield


def _clean_up(loop: SimLoop, found: list[str]) -> None:
    """Cancel what still runs, close generators, and see what only the collector finds."""
    loop.time_max_s = loop.time() + _CLEAN_UP_MAX_S
    try:
        for task in sorted(asyncio.all_tasks(loop), key=hash):
            task.cancel()

        async def rest() -> None:
            own = asyncio.current_task()
            while others := [task for task in sorted(asyncio.all_tasks(loop), key=hash) if task is not own]:
                await asyncio.wait(others)
                errors = [task.exception() for task in others if not task.cancelled()]
                found.extend(f"{type(error).__name__}: {error}" for error in errors if error is not None)
            await loop.shutdown_asyncgens()

        loop.run_until_complete(rest())
        gc.collect()
    except SimulationError as error:
        found.append(f"{type(error).__name__}: {error}")
    finally:
        found.extend(str(each) for each in loop.uncaught())
        loop.close()


@contextmanager
def _gc_by_turns() -> Iterator[None]:
    """The collector looks when the loop says so, so that finalizers run at the same turn in each run.

    It looks at nothing that was there before: that may be a hundred times what a short run makes. A process that had frozen something
    itself finds it frozen.
    """
    was_enabled, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        # What is left of the run, while it is little to look at.
        gc.collect()
        if not was_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
