"""How many handshakes one address may begin: a bucket of one second's worth for each.

Private, link-local and loopback addresses get more, since thirty peers behind one campus address must work. An IPv6 network of 64 bits counts as
one address: whoever has one address there has all of them. Pure: takes `now`, refuses to know sockets.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

#: Addresses that are counted; beyond it the one that was quiet longest is forgotten, which lets it begin with a full bucket.
_COUNTED_MAX = 4_096


class Gate:
    """Token buckets by address."""

    def __init__(self, per_second: int, private_factor: int) -> None:
        self._per_second = float(per_second)
        self._private_factor = private_factor
        #: Tokens left and time of the last refill, longest quiet first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, host: str, now: float) -> bool:
        """Whether a handshake from `host` may begin at `now` (seconds, any zero); counts it."""
        key, is_private = counted_as(host)
        rate = self._per_second * (self._private_factor if is_private else 1)
        level, since = self._buckets.pop(key, (rate, now))
        level = min(rate, level + (now - since) * rate)
        admitted = level >= 1
        self._buckets[key] = (level - 1 if admitted else level, now)
        while len(self._buckets) > _COUNTED_MAX:
            self._buckets.popitem(last=False)
        return admitted


def counted_as(host: str) -> tuple[str, bool]:
    """Under which name `host` is counted, and whether it is of this site."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host, False  # no numeric address: counted like any stranger
    is_private = address.is_private or address.is_loopback or address.is_link_local
    if address.version == 6 and not is_private:
        return str(ipaddress.ip_network((int(address), 64), strict=False)), False
    return str(address), is_private
