"""The one place that feeds the pure machines and performs their effects.

A `Pump` owns one machine: events go in through `feed`, effects go out through handlers by type, the machine's one
deadline becomes one timer of the loop; a timer that comes too early, since the deadline has moved on, is set again and tells nobody. Feeding from inside a handler queues the event, so a machine is
never entered twice and effects are performed in the order of their causes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from p2pcompute.model.seams import Clock

Event = TypeVar("Event")
Effect = TypeVar("Effect")
Event_contra = TypeVar("Event_contra", contravariant=True)
Effect_co = TypeVar("Effect_co", covariant=True)


class Machine(Protocol[Event_contra, Effect_co]):
    """The one shape of every pure machine."""

    def handle(self, event: Event_contra, now: float) -> Sequence[Effect_co]:
        """What to do about `event`; never awaits, never reads a clock."""

    def deadline(self) -> float | None:
        """When a Tick is due, in the seconds of `now`; None: nothing is waited for."""


#: Called with a machine, the event that it was fed and the effects that it answered.
Observe = Callable[[object, object, Sequence[object]], None]


class Pump(Generic[Event, Effect]):
    """Feeds one machine and performs what it says.

    `handlers`: effect class to function; an effect without one is a programming error. `tick`: the Tick event. `drained`
    is called each time all queued events have been handled. `observe`: is shown the machine, each event and what it
    answered: the laboratory checks invariants and writes its trace there.
    """

    def __init__(
        self,
        machine: Machine[Event, Effect],
        handlers: Mapping[type, Callable[[Any], None]],
        tick: Event,
        clock: Clock,
        drained: Callable[[], None] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._machine = machine
        self._handlers = handlers
        self._tick = tick
        self._clock = clock
        self._drained = drained
        self._observe = observe
        #: Events that wait for the machine, oldest first.
        self._events: deque[Event] = deque()
        #: Whether `feed` is on the stack.
        self._busy = False
        #: Calls `_ring`; None where nothing is due.
        self._timer: asyncio.TimerHandle | None = None
        #: The deadline for which `_timer` was set; not after the machine's.
        self._timer_at = 0.0
        self._stopped = False

    def feed(self, event: Event) -> None:
        """Hand `event` to the machine, now or after the events before it."""
        if self._stopped:
            return
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                event = self._events.popleft()
                effects = self._machine.handle(event, self._clock.monotonic())
                if self._observe is not None:
                    self._observe(self._machine, event, effects)
                for effect in effects:
                    self._perform(effect)
        finally:
            self._busy = False
            if self._drained is not None:
                self._drained()
            self._arm()

    def _perform(self, effect: Effect) -> None:
        handler = self._handlers[type(effect)]
        try:
            handler(effect)
        except Exception as error:
            # A bug, and told as one; the other effects, and whoever fed the event, have nothing to do with it.
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"an effect of a machine failed: {type(effect).__name__}", "exception": error}
            )

    def stop(self) -> None:
        """Take no more events, cancel the timer."""
        self._stopped = True
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        deadline = None if self._stopped else self._machine.deadline()
        if self._timer is not None:
            # Deadlines move at almost every event, mostly away: a new timer each time would cost more than one that comes early.
            if deadline is not None and self._timer_at <= deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            delay_s = max(deadline - self._clock.monotonic(), 0.0)
            self._timer_at = deadline
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        deadline = self._machine.deadline()
        if deadline is not None and deadline > self._timer_at:
            self._arm()
        else:
            self.feed(self._tick)
