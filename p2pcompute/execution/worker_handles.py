"""The values behind handles in a worker: decoded once, kept for the next task that asks.

All tasks of a worker get the same object, so that a large table is decoded once and not for every task: a task must not change it.
What was used longest ago goes first. Refuses to know: where bytes come from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from p2pcompute.execution import values

#: Values kept in one worker, and the encoded bytes of all of them together.
KEPT_MAX = 64
KEPT_BYTES_MAX = 256 << 20


class HandleValues:
    """The source of handles for the values of one program.

    `fetch`: the bytes behind a handle, or BlobMissingError. `kept_bytes_max`: encoded bytes of what is kept; the newest value is kept
    whatever its size, since the next task is likely to want it too.
    """

    def __init__(
        self,
        fetch: Callable[[values.Handle], bytes | bytearray],
        classes: values.ClassResolver,
        kept_bytes_max: int = KEPT_BYTES_MAX,
    ) -> None:
        self._fetch = fetch
        self._classes = classes
        self._kept_bytes_max = kept_bytes_max
        #: (value, encoded bytes) by blob, least recently used first.
        self._kept: OrderedDict[bytes, tuple[values.Decoded, int]] = OrderedDict()
        self._kept_bytes = 0

    def value(self, handle: values.Handle) -> values.Decoded:
        """The value behind `handle`. Raises BlobMissingError, and ProtocolError for bytes that hold no value."""
        known = self._kept.get(handle.blob)
        if known is not None:
            self._kept.move_to_end(handle.blob)
            return known[0]
        # Before the new one comes: a worker whose memory is limited must not hold both.
        self._make_room(handle.size_bytes)
        data = self._fetch(handle)
        # A handle inside the value leads through here again.
        value = values.decode(data, classes=self._classes, pickles=values.ALLOW, handles=self.value)
        decoded = values.Decoded(value)
        self._make_room(len(data))
        self._kept[handle.blob] = (decoded, len(data))
        self._kept_bytes += len(data)
        return decoded

    def _make_room(self, size_bytes: int) -> None:
        while self._kept and (len(self._kept) >= KEPT_MAX or self._kept_bytes + size_bytes > self._kept_bytes_max):
            _, (_, freed_bytes) = self._kept.popitem(last=False)
            self._kept_bytes -= freed_bytes
