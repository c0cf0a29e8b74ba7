"""How many handshakes one address may begin: a bucket of one second's worth for each.

Private, link-local and loopback addresses get more, since thirty peers behind one campus address must work. An IPv6 network of 64 bits counts as
one address: whoever has one address there has all of them. Providers hand out networks of 56 and 48 bits, so these are counted as well, and
get a little more. Pure: takes `now`, refuses to know sockets.
"""

from __future__ import annotations

from collections import OrderedDict

from p2pcompute.net.address_ranges import is_near, parsed

#: Addresses that are counted; beyond it the one that was quiet longest is forgotten, which lets it begin with a full bucket.
_COUNTED_MAX = 4_096
#: IPv6 networks that are counted, by their bits, and how many times the rate of one address each has.
_NETWORKS = ((64, 1), (56, 2), (48, 4))


class Gate:
    """Token buckets by address."""

    def __init__(self, per_second: int, private_factor: int) -> None:
        self._per_second = float(per_second)
        self._private_factor = private_factor
        #: Tokens left and time of the last refill, longest quiet first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, host: str, now: float) -> bool:
        """Whether a handshake from `host` may begin at `now` (seconds, any zero); counts it."""
        levels: list[tuple[str, float]] = []
        for key, factor in self._counted_as(host):
            rate = self._per_second * factor
            level, since = self._buckets.get(key, (rate, now))
            levels.append((key, min(rate, level + (now - since) * rate)))
        admitted = all(level >= 1 for _, level in levels)
        for key, level in levels:
            self._buckets[key] = (level - 1 if admitted else level, now)
            self._buckets.move_to_end(key)
        while len(self._buckets) > _COUNTED_MAX:
            self._buckets.popitem(last=False)
        return admitted

    def _counted_as(self, host: str) -> list[tuple[str, int]]:
        """The names of the buckets of `host`, and how many times the rate each has."""
        key, is_private = counted_as(host)
        address = parsed(host)
        if address is None or is_private or address.version == 4:
            return [(key, self._private_factor if is_private else 1)]
        return [(f"{int(address) >> (128 - bits):x}/{bits}", factor) for bits, factor in _NETWORKS]


def counted_as(host: str) -> tuple[str, bool]:
    """Which one source `host` is of, and whether it is of this site: whoever has one address of an IPv6 network of 64 bits has all."""
    address = parsed(host)
    if address is None:
        return host, False
    is_private = is_near(address)
    if address.version == 6 and not is_private:
        return f"{int(address) >> 64:x}/64", False
    return str(address), is_private
