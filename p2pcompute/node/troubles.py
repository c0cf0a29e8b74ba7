"""What went wrong lately, with whom: for people, in `peers`, `doctor` and the log.

Rules. One row for each address or peer, with the few newest things that went wrong there and how often each did. Somebody who can be
made to see a trouble ten thousand times writes a few lines of log, not ten thousand: the same trouble is said again only after a pause,
all together no faster than a person reads, and each line says how many it stands for. What has not happened again for an hour is
forgotten, and so are, where there is no room, rows that were quiet longest; misdeeds of members are forgotten last, since addresses can
be forged and memberships cannot.

Takes `now` (monotonic seconds); refuses to know why anything is a trouble.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pcompute.membership.rate import TokenBucket
from p2pcompute.model import limits

#: Different things kept of one address or peer; the longest quiet one goes first.
_KINDS_MAX = 6
#: Lines of the log that one address or peer may cause at once.
_LINES_AT_ONCE = 3
#: Seconds between two lines of the log about one address or peer, once it had the first few.
_ROW_PAUSE_S = 10.0


@dataclass(slots=True)
class _Kind:
    """One thing that went wrong, at first `since`, last `at`, `count` times; `told` of them are in the log, the last at `told_at`."""

    since: float
    at: float
    count: int = 0
    told: int = 0
    told_at: float = float("-inf")


@dataclass(slots=True)
class Trouble:
    """What went wrong lately with one address or peer."""

    #: Whether it is no address but a member that did what no honest one does; a new link does not clear it.
    is_misdeed: bool = False
    #: Lines of the log that it has had, and when the last one was, monotonic seconds.
    lines: int = 0
    told_at: float = float("-inf")
    #: By its description, the one that happened last at the end; at most `_KINDS_MAX`.
    kinds: OrderedDict[str, _Kind] = field(default_factory=OrderedDict)

    @property
    def at(self) -> float:
        """When the last of it happened, monotonic seconds."""
        return max(kind.at for kind in self.kinds.values())

    @property
    def count(self) -> int:
        """How often anything did."""
        return sum(kind.count for kind in self.kinds.values())

    @property
    def what(self) -> str:
        """In words, the newest first."""
        return "; ".join(
            what if kind.count == 1 else f"{what} ({kind.count:,} times)" for what, kind in reversed(self.kinds.items())
        )


@dataclass(frozen=True, slots=True)
class Line:
    """A line for the log: `times`: how often it happened since it was last said."""

    whom: str
    what: str
    times: int


class Troubles:
    """See the module."""

    def __init__(self) -> None:
        #: By address or short peer id, the longest quiet first; at most `limits.TROUBLES_MAX`.
        self._rows: OrderedDict[str, Trouble] = OrderedDict()
        #: Lines of the log that may still be written.
        self._lines = TokenBucket(limits.TROUBLE_LINES_PER_SECOND, limits.TROUBLE_LINES_PER_SECOND, 0.0)

    def note(self, whom: str, what: str, now: float, *, times: int = 1, is_misdeed: bool = False) -> Line | None:
        """`what` went wrong with `whom`, `times` times; the line to log, None where it was said not long ago."""
        row = self._rows.get(whom)
        if row is None:
            if len(self._rows) >= limits.TROUBLES_MAX:
                self._make_room(now)
            row = self._rows[whom] = Trouble()
        row.is_misdeed = row.is_misdeed or is_misdeed
        self._rows.move_to_end(whom)
        kind = row.kinds.get(what)
        if kind is None:
            if len(row.kinds) >= _KINDS_MAX:
                row.kinds.popitem(last=False)
            kind = row.kinds[what] = _Kind(now, now)
        kind.count += times
        kind.at = now
        row.kinds.move_to_end(what)
        # Who makes up a new text for each misdeed has a few lines at once, and the others theirs.
        is_soon = row.lines >= _LINES_AT_ONCE and now - row.told_at < _ROW_PAUSE_S
        if is_soon or now - kind.told_at < limits.TROUBLE_SAID_AGAIN_S or not self._lines.take(now):
            return None
        line = Line(whom, what, kind.count - kind.told)
        kind.told, kind.told_at = kind.count, now
        row.lines, row.told_at = row.lines + 1, now
        return line

    def forgive(self, whom: str) -> None:
        """All is well with `whom` now: forget it, unless it was a misdeed."""
        row = self._rows.get(whom)
        if row is not None and not row.is_misdeed:
            del self._rows[whom]

    def lately(self, now: float) -> Mapping[str, Trouble]:
        """Every row that is not forgotten, the longest quiet first."""
        self._forget(now)
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def _forget(self, now: float) -> None:
        while self._rows:
            whom, row = next(iter(self._rows.items()))
            if now - row.at < limits.TROUBLE_KEPT_S:
                return
            del self._rows[whom]

    def _make_room(self, now: float) -> None:
        self._forget(now)
        if len(self._rows) >= limits.TROUBLES_MAX:
            quiet = next((whom for whom, row in self._rows.items() if not row.is_misdeed), next(iter(self._rows)))
            del self._rows[quiet]
