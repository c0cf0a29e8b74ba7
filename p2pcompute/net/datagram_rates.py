"""How many datagrams are looked at: by address, and strangers' all together.

Near addresses (private, loopback, link-local) have more, and bounds of their own, so that a flood from the internet never keeps
the peers of one room apart. An IPv6 network of 64 bits counts as one address: whoever has one address there has all of
them. What belongs to a session and comes from where its peer is passes by the common bounds, and so do that peer's further
handshakes and the answers to ours, so that a flood of strangers does not starve peers that know each other. Refuses to know what a datagram says.
"""

from __future__ import annotations

from collections import OrderedDict

from p2pcompute.model import limits
from p2pcompute.net.address_ranges import is_near, parsed
from p2pcompute.net.gate import Gate


class Bucket:
    """Tokens that flow at `per_second`, at most a second's worth kept."""

    __slots__ = ("_at", "_tokens", "is_near", "per_second")

    def __init__(self, per_second: float, now: float, is_near: bool = False) -> None:
        #: The flow, and the most that is kept.
        self.per_second = per_second
        #: Whose bucket it is: of this site or not.
        self.is_near = is_near
        self._tokens = per_second
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more passes at `now` (seconds, any zero); takes its token if so."""
        tokens = self._tokens
        if now > self._at:
            tokens += (now - self._at) * self.per_second
            if tokens > self.per_second:
                tokens = self.per_second
            self._at = now
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True


class DatagramRates:
    """See the module. `now` never goes back."""

    def __init__(self) -> None:
        #: By host as it stands in addresses, so that no address is parsed twice; hosts of one IPv6 network share a bucket.
        self._by_host: OrderedDict[str, Bucket] = OrderedDict()
        #: Buckets of IPv6 networks, by the network.
        self._by_network: OrderedDict[int, Bucket] = OrderedDict()
        #: Datagrams of strangers, far and near.
        self._strange = (
            Bucket(limits.STRANGE_DATAGRAMS_PER_SECOND, 0.0),
            Bucket(limits.STRANGE_DATAGRAMS_PER_SECOND, 0.0),
        )
        #: Handshakes that are checked, far and near.
        self._handshakes = (Bucket(limits.HANDSHAKES_PER_SECOND, 0.0), Bucket(limits.HANDSHAKES_PER_SECOND, 0.0))
        #: Handshakes of one address.
        self._handshake_gate = Gate(limits.HANDSHAKES_PER_SECOND_PER_ADDRESS, limits.NEAR_RATE_FACTOR)

    def admits(self, host: str, now: float) -> bool:
        """Whether a datagram from `host` is looked at at all; counts it."""
        bucket = self._by_host.get(host)
        if bucket is None:
            bucket = self._bucket(host, now)
        else:
            self._by_host.move_to_end(host)
        return bucket.take(now)

    def admits_strange(self, host: str, now: float) -> bool:
        """Whether one that belongs to no session at its known address is; `admits` has let it pass."""
        bucket = self._by_host.get(host)
        return self._strange[bucket is not None and bucket.is_near].take(now)

    def admits_handshake(self, host: str, now: float, *, is_known: bool) -> bool:
        """Whether the certificates of somebody at `host`, who has shown a cookie, are checked now; `is_known`: where a peer is."""
        if not self._handshake_gate.admits(host, now):
            return False
        if is_known:
            return True
        bucket = self._by_host.get(host)
        return self._handshakes[bucket is not None and bucket.is_near].take(now)

    def __len__(self) -> int:
        return len(self._by_host)

    def _bucket(self, host: str, now: float) -> Bucket:
        network, is_near = _place(host)
        bucket = None if network is None else self._by_network.get(network)
        if bucket is None:
            per_second = limits.DATAGRAMS_PER_SECOND_PER_ADDRESS * (limits.NEAR_RATE_FACTOR if is_near else 1)
            bucket = Bucket(float(per_second), now, is_near)
            if network is not None:
                self._by_network[network] = bucket
                if len(self._by_network) > limits.ADDRESSES_COUNTED_MAX:
                    self._by_network.popitem(last=False)
        self._by_host[host] = bucket
        if len(self._by_host) > limits.ADDRESSES_COUNTED_MAX:
            self._by_host.popitem(last=False)
        return bucket


def _place(host: str) -> tuple[int | None, bool]:
    """The IPv6 network (its upper 64 bits) that `host` is counted with, None where it stands alone; whether it is near."""
    address = parsed(host)
    if address is None:
        return None, False  # no numeric address: counted like any stranger
    if is_near(address):
        return None, True
    return (int(address) >> 64, False) if address.version == 6 else (None, False)
