"""Sealed datagrams of one peer: gossip and the address book share one UDP port, told apart by their channel.

Turns effects of the peer book into datagrams or frames, and what comes back into its events. A peer without a session is
greeted at the addresses of its record, nearest first. Refuses to decide anything: machines do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pcompute.membership import book
from p2pcompute.membership.locality import Network, locality
from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, LinkClosedError, P2PComputeError, ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, PeerRecord
from p2pcompute.net.link import Link
from p2pcompute.net.udp import UdpEndpoint
from p2pcompute.wire.families import GOSSIP_CODEC, GOSSIP_ONLY
from p2pcompute.wire.membership import Admitted
from p2pcompute.wire.messages import Message, Records

#: Channels of sealed datagrams.
GOSSIP_CHANNEL = 1
DHT_CHANNEL = 2
#: The first protocol version in which gossip goes in datagrams.
GOSSIP_PROTOCOL = 2


class Gossiping:
    """Carries gossip; implements `net.udp.UdpEvents`.

    `feed`: hands an event to the peer book; `record(peer)`: the newest record of a peer; `link(peer)`: the open link to it;
    `trouble(whom, what, times)`: notes what went wrong; `misdeed(peer, what)`: and what a member did.
    """

    def __init__(
        self,
        feed: Callable[[book.Event], None],
        record: Callable[[PeerId], PeerRecord | None],
        link: Callable[[PeerId], Link | None],
        wall: Callable[[], float],
        trouble: Callable[[str, str, int], None],
        misdeed: Callable[[PeerId, str], None],
    ) -> None:
        self._feed = feed
        self._record = record
        self._link = link
        self._wall = wall
        self._trouble = trouble
        self._misdeed = misdeed
        #: None where this peer has no UDP port.
        self._udp: UdpEndpoint | None = None
        #: Takes what comes for the address book; None where there is none.
        self._dht: Callable[[PeerId, Address, bytes], None] | None = None
        #: This machine's own networks: what is near is greeted first.
        self.networks: tuple[Network, ...] = ()

    def attach(self, udp: UdpEndpoint, dht: Callable[[PeerId, Address, bytes], None] | None) -> None:
        """Use `udp`, which is about to open its port."""
        self._udp, self._dht = udp, dht

    # --- out ------------------------------------------------------------------------------------------------------------

    def send(self, effect: book.SendGossip) -> None:
        """Perform one effect of the peer book."""
        if effect.way is book.Way.LINK:
            link = self._link(effect.to)
            if link is not None and link.version >= GOSSIP_PROTOCOL:
                link.send(effect.message)
        else:
            self.send_datagram(effect.to, GOSSIP_CHANNEL, GOSSIP_CODEC.encode(effect.message))

    def send_datagram(
        self, peer: PeerId, channel: int, payload: bytes, addresses: Sequence[Address] | None = None
    ) -> None:
        """Send `payload` to `peer` on its session, or greet it at `addresses` (by default those of its record) first."""
        if self._udp is None or len(payload) >= limits.DATAGRAM_PAYLOAD_BYTES_MAX:
            return
        if self._udp.session(peer) is not None:
            self._udp.send(peer, (), channel, payload)
        elif addresses := self.addresses_of(peer) if addresses is None else addresses:
            self._udp.send(peer, addresses, channel, payload)

    def addresses_of(self, peer: PeerId) -> tuple[Address, ...]:
        """Where `peer` says that it is, nearest first."""
        record, link = self._record(peer), self._link(peer)
        if record is None or (link is not None and link.relayed):
            # Whom only a relay reaches has no address at which it could be greeted: others' machines may be there instead.
            return ()
        return tuple(sorted(record.addresses, key=lambda address: locality(address.host, self.networks)))

    # --- in -------------------------------------------------------------------------------------------------------------

    def heard_on_link(self, peer: PeerId, message: Message) -> bool:
        """Whether `message`, which came over a link, was gossip; it has been dealt with then."""
        if isinstance(message, GOSSIP_ONLY):
            self._feed(book.GossipHeard(peer, message, self._wall(), book.Way.LINK))
            return True
        return False

    def datagram(self, peer: PeerId, channel: int, payload: bytes, source: Address) -> None:
        """Called by the endpoint."""
        if channel == DHT_CHANNEL:
            if self._dht is not None:
                self._dht(peer, source, payload)
            return
        if channel != GOSSIP_CHANNEL:
            return  # of a later version
        try:
            message = GOSSIP_CODEC.decode(payload, bytes_max=limits.DATAGRAM_PAYLOAD_BYTES_MAX)
        except ProtocolError:
            # Not what of it cannot be read: there are as many texts as there are ways to write nonsense.
            self._misdeed(peer, "sent gossip that cannot be read")
            return
        if isinstance(message, Records):
            self._feed(book.RecordsHeard(peer, message.records, self._wall()))
        elif message is not None:
            self._feed(book.GossipHeard(peer, message, self._wall(), book.Way.DATAGRAM))

    def session_up(self, peer: PeerId, address: Address, admission: Admitted) -> None:
        """Called by the endpoint: who wants to send has been waiting for it there."""

    def refused(self, address: Address, error: P2PComputeError, times: int) -> None:
        """Called by the endpoint: what came from `address` was refused, or nobody answers there."""
        if isinstance(error, AdmissionError) and error.reason is AdmissionReason.SELF:
            return  # two homes may have the same private addresses; that is nobody's fault
        if isinstance(error, LinkClosedError):
            return  # nobody answers: a hint of the address book was old, or the address is behind a router
        # Without its port, which in a flood is another one each time.
        self._trouble(address.host, f"datagrams refused: {error}".replace(str(address), address.host), times)
