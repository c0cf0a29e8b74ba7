"""When in the week a peer lends: windows such as "mon-fri 18:00-08:00" or "sat-sun", in local time.

A window is days, hours, or both. Hours that end before they begin, or at the same time, go on into the next day, so "fri 22:00-06:00" is the
night from Friday to Saturday. Windows add up; no window at all is always. Refuses to know the time: whoever asks says the minute of
the week, 0 for Monday 00:00.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
_DAYS = re.compile(r"(?P<first>[a-z]{3})(-(?P<last>[a-z]{3}))?")
_HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Windows as (first minute of the week, length in minutes, from 1 up); empty: always."""

    windows: tuple[tuple[int, int], ...] = ()
    #: As they were written.
    texts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Schedule:
        """The schedule of these windows. Raises UsageError."""
        if len(texts) > limits.SCHEDULE_WINDOWS_MAX:
            raise UsageError(f"{len(texts)} windows in a schedule: {limits.SCHEDULE_WINDOWS_MAX} at most")
        return cls(tuple(window for text in texts for window in _windows(text)), tuple(texts))

    def is_open(self, minute: int) -> bool:
        """Whether the peer lends in this minute of the week."""
        return not self.windows or any((minute - first) % WEEK_MINUTES < length for first, length in self.windows)

    def next_open(self, minute: int) -> int | None:
        """Minutes until it lends, 0 where it does."""
        if self.is_open(minute):
            return 0
        return min((first - minute) % WEEK_MINUTES for first, _ in self.windows)


ALWAYS = Schedule()


def minute_text(minute: int) -> str:
    """A minute of the week for people: "mon 18:00"."""
    day, rest = divmod(minute % WEEK_MINUTES, DAY_MINUTES)
    return f"{DAYS[day]} {rest // 60:02d}:{rest % 60:02d}"


def _windows(text: str) -> list[tuple[int, int]]:
    words = text.lower().split()
    days, hours = list(range(7)), (0, DAY_MINUTES)
    if not 1 <= len(words) <= 2:
        raise _wrong(text)
    if _DAYS.fullmatch(words[0]):
        days = _days(text, words.pop(0))
    if len(words) > 1:
        raise _wrong(text)
    if words:
        hours = _hours(text, words[0])
    first, length = hours
    return [(day * DAY_MINUTES + first, length) for day in days]


def _days(text: str, word: str) -> list[int]:
    match = _DAYS.fullmatch(word)
    assert match is not None
    first, last = match["first"], match["last"] or match["first"]
    if first not in DAYS or last not in DAYS:
        raise _wrong(text)
    begin, count = DAYS.index(first), (DAYS.index(last) - DAYS.index(first)) % 7 + 1
    return [(begin + number) % 7 for number in range(count)]


def _hours(text: str, word: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(word)
    if match is None:
        raise _wrong(text)
    first_hour, first_minute, last_hour, last_minute = map(int, match.groups())
    first, last = first_hour * 60 + first_minute, last_hour * 60 + last_minute
    if first >= DAY_MINUTES or last > DAY_MINUTES or first_minute > 59 or last_minute > 59:
        raise _wrong(text)
    return first, (last - first) % DAY_MINUTES or DAY_MINUTES


def _wrong(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is no window of a schedule: write days (mon to sun), hours, or both, such as 'mon-fri 18:00-08:00', 'sat-sun' or "
        "'22:00-06:00'"
    )
