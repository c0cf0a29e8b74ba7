"""Yielding to the owner: looks at the machine and the clock, and tells the lender and the record what `jobs/yielding.py` decides.

Keeps the owner's pause over restarts. Refuses to decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.probes import OthersProbe, machine_cores, on_battery
from p2pcompute.jobs.schedule import DAY_MINUTES
from p2pcompute.jobs.yielding import Pause, Seen, Verdict, Yielding, YieldSettings
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.seams import Clock, Offload
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.lender import Lender
from p2pcompute.node.own_record import OwnRecord
from p2pcompute.storage.peer_database import PeerDatabase
from p2pcompute.wire.codec import pack, unpack

#: Between two looks at the machine.
LOOK_INTERVAL_S = 2.0
_PAUSE_KEY = "pause"


class YieldsToOwner:
    """See the module. `local`: minute of the week (0: Monday 00:00, local time) of seconds since 1970."""

    def __init__(
        self,
        config: PeerConfig,
        database: PeerDatabase,
        clock: Clock,
        offload: Offload,
        lender: Lender,
        own: OwnRecord,
        log: FilteringBoundLogger,
        *,
        local: Callable[[float], int] | None = None,
    ) -> None:
        self._config = config
        self._database = database
        self._clock = clock
        self._offload = offload
        self._lender = lender
        self._own = own
        self._log = log
        self._local = local or minute_of_week
        self._others = OthersProbe(clock)
        self._settings = YieldSettings(config.yield_to_load, config.on_battery, config.schedule)
        self._machine = Yielding(self._settings, lender.slots, self._kept_pause())
        #: What was told last.
        self.verdict = Verdict()

    @property
    def pause_until_wall(self) -> float | None:
        """When the owner's pause ends; None where there is none, or it has no end."""
        return None if self._machine.pause is None else self._machine.pause.until_wall

    def document(self) -> dict[str, Any]:
        """For `status`: also what the record will say in a moment."""
        slots = self.verdict.slots
        return {
            "slots": self._lender.slots if slots is None else min(slots, self._lender.slots),
            "slots_total": self._lender.slots,
            "yields": [why.value for why in self.verdict.why],
            "yields_because": self.verdict.text,
            "paused_until_wall": self.pause_until_wall,
            "schedule": list(self._settings.schedule.texts),
        }

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def pause(self, for_s: float | None) -> None:
        """Lend nothing from now on, for so long or until `resume`. Raises UsageError."""
        if for_s is not None and not 0 < for_s < float("inf"):
            raise UsageError(
                f"a pause of {for_s:g} s: give a duration above 0, or none to pause until `p2pcompute resume`"
            )
        self._set_pause(Pause(None if for_s is None else self._clock.wall() + for_s))
        await self.look()

    async def resume(self) -> None:
        """End the owner's pause; what else is in the way stays."""
        self._set_pause(None)
        await self.look()

    def resize(self, slots: int) -> None:
        """The peer has so many slots from now on."""
        self._lender.resize(slots)
        self._machine.resize(slots)
        self._tell(self.verdict)

    async def look(self) -> None:
        """Look once, and tell what is new."""
        others_cores, battery = await self._offload.run(self._sample)
        wall = self._clock.wall()
        seen = Seen(others_cores, machine_cores(), battery, self._local(wall), wall)
        verdict = self._machine.look(seen, self._clock.monotonic())
        if verdict != self.verdict:
            self._log.info("lends", slots=verdict.slots, cause=verdict.text or "nothing is in the way")
            self._tell(verdict)

    def _sample(self) -> tuple[float | None, bool | None]:
        """What is not asked for is not measured."""
        others_cores = self._others.sample() if self._settings.load_max is not None else None
        return others_cores, on_battery() if self._settings.battery_slots is not None else None

    def _tell(self, verdict: Verdict) -> None:
        before, self.verdict = self.verdict, verdict
        if verdict.slots != before.slots or verdict.text != before.text:
            self._lender.yield_slots(verdict.slots, self._config.yield_grace_s, verdict.text)
        slots = self._lender.slots if verdict.slots is None else min(verdict.slots, self._lender.slots)
        self._own.set_slots(slots, [why.value for why in verdict.why])

    def _set_pause(self, pause: Pause | None) -> None:
        self._machine.pause = pause
        self._database.put(_PAUSE_KEY, b"" if pause is None else pack([pause.until_wall]))

    def _kept_pause(self) -> Pause | None:
        content = self._database.get(_PAUSE_KEY)
        if not content:
            return None
        try:
            (until_wall,) = unpack(content)
        except (ProtocolError, TypeError, ValueError):
            # Written by another release; the owner wanted it, so it stays.
            return Pause()
        return Pause(float(until_wall) if isinstance(until_wall, (int, float)) else None)


def minute_of_week(wall: float) -> int:
    """Of seconds since 1970, in this machine's local time."""
    at = time.localtime(wall)
    return at.tm_wday * DAY_MINUTES + at.tm_hour * 60 + at.tm_min
