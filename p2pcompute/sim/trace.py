"""What happened in a run, as one running hash and the last events in words.

Two runs are the same run when their hashes are the same, so the hash sees every event. That must cost next to nothing: an event is a tuple, its
bytes are made in batches by `marshal`, and its text only where somebody reads it. Version 2 of marshal's format, since later
ones also encode which objects are shared and interned, which differs between two processes with equal events.

Refuses to know what the events mean.
"""

from __future__ import annotations

import enum
import hashlib
import marshal
from collections import deque
from typing import Final

#: What a field may be: what has one representation in bytes.
Field = str | int | float | bytes | bool | None | tuple["Field", ...]
#: Time in virtual seconds, kind, fields.
Event = tuple[Field, ...]

#: Events that are kept as text for a report: two screens.
RING_EVENTS: Final = 80
#: Events that are encoded together; they are kept in memory until then.
_BATCH_EVENTS: Final = 512
_MARSHAL_VERSION: Final = 2
#: Bytes of a field that a line of text shows.
_SHOWN_BYTES: Final = 12


class Detail(enum.IntEnum):
    """How much of a datagram or a piece of a link goes into the trace."""

    #: No event of the network; notes only. For measuring.
    NOTES = 0
    #: Ends and lengths.
    SHORT = 1
    #: The bytes too: two runs that differ in one byte differ.
    FULL = 2


class Trace:
    """The trace of one run."""

    def __init__(self, detail: Detail = Detail.FULL, ring_events: int = RING_EVENTS) -> None:
        #: What the network tells this trace.
        self.detail = detail
        #: Events so far.
        self.count = 0
        self._hash = hashlib.sha256()
        #: Events whose bytes are not yet in the hash, oldest first.
        self._batch: list[Event] = []
        #: The last events.
        self._ring: deque[Event] = deque(maxlen=ring_events)

    def event(self, event: Event) -> None:
        """Add an event: (time in seconds, kind, fields …). Raises TypeError, at the end of its batch, for a field that is no `Field`."""
        self._batch.append(event)
        self._ring.append(event)
        if len(self._batch) >= _BATCH_EVENTS:
            self._flush()

    def digest(self) -> str:
        """The hash of everything so far, hexadecimal."""
        self._flush()
        return self._hash.copy().hexdigest()

    @property
    def events(self) -> int:
        """How many events there were."""
        return self.count + len(self._batch)

    def last(self) -> list[str]:
        """The last events, a line each, oldest first."""
        return [_line(event) for event in self._ring]

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self.count += len(batch)
        try:
            # Joined, not encoded as one list: the hash may not depend on where batches end.
            self._hash.update(b"".join([marshal.dumps(event, _MARSHAL_VERSION) for event in batch]))
        except ValueError as error:
            wrong = next(event for event in batch if not _is_plain(event))
            raise TypeError(
                f"a field of the event {wrong!r} has no bytes of its own: give its name or number"
            ) from error


def _is_plain(value: object) -> bool:
    if type(value) is tuple:
        return all(_is_plain(each) for each in value)
    return value is None or type(value) in (str, int, float, bytes, bool)


def _line(event: Event) -> str:
    now, kind, *fields = event
    time_text = f"{now:12.6f}" if isinstance(now, float) else repr(now)
    return f"{time_text} {_shown(kind)} " + " ".join(_shown(field) for field in fields)


def _shown(field: Field) -> str:
    if isinstance(field, bytes):
        return f"<{len(field)} bytes {field[:_SHOWN_BYTES].hex()}{'…' if len(field) > _SHOWN_BYTES else ''}>"
    if isinstance(field, float):
        return f"{field:.6f}"
    return field if isinstance(field, str) else repr(field)
