"""When a peer lends less, because its machine is its owner's first.

Reasons, each by itself enough:

- owner: the owner has paused it, for a while or until told otherwise;
- schedule: the hours in which it lends are over (`schedule.py`);
- battery: the machine runs on its battery;
- load: processes that are not the peer's own need the cores.

The first two are exact. A battery has to be off duty for `SETTLED_S` before it counts no more. Load lowers the slots to the cores
that are left, only after it has been above the owner's bound for `SHRINK_AFTER_S`, by no more than all of that time asked for, and raises
them after `GROW_AFTER_S` in which there was room, to what there was all along: so neither a compiler's short run nor its pauses
move work about.

What is lent concerns guests alone: the own user's jobs keep all slots, whatever the reason, since nobody else can know which of an owner's
works is the more important; to stop them the owner cancels them. Refuses to know where figures come from (`node/yielding.py`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.jobs.schedule import ALWAYS, Schedule, minute_text

#: Load has to be too high for so long before slots are taken back.
SHRINK_AFTER_S = 10.0
#: There has to be room for so long before slots are lent again.
GROW_AFTER_S = 60.0
#: A machine that was plugged in so long ago stays so.
SETTLED_S = 15.0


class Why(enum.StrEnum):
    """Why less is lent; also in records."""

    OWNER = "owner"
    SCHEDULE = "schedule"
    BATTERY = "battery"
    LOAD = "load"


@dataclass(frozen=True, slots=True)
class YieldSettings:
    """What the owner wants. `load_max`: part of the machine's cores, above 0 to 1, that others' processes may use before slots are lowered,
    None: they may use all; `battery_slots`: slots on battery at most, None: all; `schedule`: when it lends.
    """

    load_max: float | None = None
    battery_slots: int | None = None
    schedule: Schedule = ALWAYS


@dataclass(frozen=True, slots=True)
class Seen:
    """The machine at one look. `others_cores`: busy with processes that are not the peer's, None where that is not known; `cores`: of the
    machine; `on_battery`: None where it has none; `minute`: of the week, local time; `wall`: seconds since 1970.
    """

    others_cores: float | None
    cores: int
    on_battery: bool | None
    minute: int
    wall: float


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner's own word. `until_wall`: seconds since 1970, None: until told otherwise."""

    until_wall: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is lent. `slots`: to guests at most, None: all there are; `why`: reasons, the strongest first; `text`: the same for people."""

    slots: int | None = None
    why: tuple[Why, ...] = ()
    text: str = ""


class Yielding:
    """The policy of one peer. `slots`: tasks that it runs at a time when nothing is in the way."""

    def __init__(self, settings: YieldSettings, slots: int, pause: Pause | None = None) -> None:
        #: What the owner wants.
        self._settings = settings
        #: All slots of the peer, from 0 up.
        self._slots = slots
        #: The owner's pause, None where there is none; over once its time has come.
        self.pause = pause
        #: When the machine was last seen on battery.
        self._battery_at = -math.inf
        #: Slots that load leaves, from 0 to `_slots`.
        self._left = slots
        #: (when, slots that load left) of looks, since it last left as many as are lent.
        self._asked: list[tuple[float, int]] = []

    def resize(self, slots: int) -> None:
        """The peer has so many slots from now on."""
        if slots == self._slots:
            return
        self._left = slots if self._left >= self._slots else min(self._left, slots)
        self._slots = slots
        self._asked = []

    def look(self, seen: Seen, now: float) -> Verdict:
        """What is lent from now on. `now`: monotonic seconds, never falling."""
        bounds: list[tuple[int, Why, str]] = []
        if self.pause is not None and self.pause.until_wall is not None and seen.wall >= self.pause.until_wall:
            self.pause = None
        if self.pause is not None:
            bounds.append((0, Why.OWNER, "its owner has paused it"))
        opens = self._settings.schedule.next_open(seen.minute)
        if opens:
            text = f"by its schedule it lends again at {minute_text(seen.minute + opens)}"
            bounds.append((0, Why.SCHEDULE, text))
        if seen.on_battery:
            self._battery_at = now
        if self._settings.battery_slots is not None and now - self._battery_at < SETTLED_S:
            bounds.append((min(self._settings.battery_slots, self._slots), Why.BATTERY, "it runs on battery"))
        self._weigh(seen, now)
        if self._left < self._slots:
            bounds.append(
                (self._left, Why.LOAD, f"other programs of its machine need {self._slots - self._left} slots")
            )
        return _verdict(bounds, self._slots)

    def _weigh(self, seen: Seen, now: float) -> None:
        """Move the slots that load leaves, where it has asked for it long enough."""
        asked = self._slots
        if self._settings.load_max is not None and seen.others_cores is not None:
            asked = slots_left(self._slots, seen.cores, seen.others_cores, self._settings.load_max)
        before = self._asked[-1][1] if self._asked else self._left
        if asked == self._left or (asked < self._left) != (before < self._left):
            # A look that asks for nothing, or for the opposite, ends what was under way.
            self._asked = []
        if asked == self._left:
            return
        self._asked.append((now, asked))
        wait_s = SHRINK_AFTER_S if asked < self._left else GROW_AFTER_S
        if now - self._asked[0][0] < wait_s:
            return
        asks = [slots for _, slots in self._asked]
        self._left = max(asks) if asked < self._left else min(asks)
        self._asked = []


def slots_left(slots: int, cores: int, others_cores: float, load_max: float) -> int:
    """Slots, 0 to `slots`: all where others use at most `load_max` of the cores, else the whole cores that they leave free."""
    if others_cores <= load_max * cores:
        return slots
    return max(0, min(slots, math.floor(cores - others_cores)))


def _verdict(bounds: Sequence[tuple[int, Why, str]], slots: int) -> Verdict:
    if not bounds:
        return Verdict()
    least = min(bound for bound, _, _ in bounds)
    ordered = sorted(bounds, key=lambda row: row[0])
    state = "lends nothing" if least == 0 else f"lends {least} of {slots} slots"
    return Verdict(least, tuple(why for _, why, _ in ordered), f"{state}: {'; '.join(text for _, _, text in ordered)}")
