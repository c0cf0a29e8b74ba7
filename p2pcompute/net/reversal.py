"""Reversed dials: a public peer that cannot dial another one asks, through a peer linked to both, to be dialled by it.

The peer between passes the wish on only for whom it is linked to, only with addresses that are public or where it sees the asker, and not
too often. Who is asked dials private addresses only where the peer between sits in a private network as well: nobody out in the internet can have
it knock at the doors of its own. In whose name a wish comes is only the word of the peer between, so that one has turns of its own, and does not learn
why a dial failed. It has several at once: whoever becomes known as one that cannot be dialled is wished for by everybody who can, in the same moment and
through the same relay. What comes of a dial is an ordinary link, proven like any other. Refuses to know: when to ask.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError, P2PComputeError, ProtocolError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock
from p2pcompute.net.address_ranges import is_near, is_private, parsed
from p2pcompute.net.dial_back import PORT_MIN, Turns, may_try
from p2pcompute.net.link import Link
from p2pcompute.net.link_life import REVERSED, Route
from p2pcompute.net.relay_door import RelayDoor
from p2pcompute.wire.reaching import REACHING_PROTOCOL, PleaseDial

#: What whoever wished for a dial that failed is told, whatever the reason: it would tell an open port from a closed one.
_NOT_REACHED = "it tried, and did not reach this peer there"
#: Wishes that were passed on and may still be refused; the oldest is forgotten, and its asker waits in vain.
_PASSED_ON_MAX = 1_024
#: How long the asker waits: the wish travels, and the other side dials both addresses one after the other.
REVERSAL_TIMEOUT_S = limits.DIAL_TIMEOUT_S * limits.DIAL_BACK_ADDRESSES_MAX + limits.HANDSHAKE_TIMEOUT_S


class Reversals:
    """Asks for reversed dials, passes wishes on, and fulfils them. `outer`: the link on which a peer can be asked."""

    def __init__(
        self,
        door: RelayDoor,
        outer: Callable[[PeerId], Link],
        clock: Clock,
        *,
        interval_s: float = limits.DIAL_BACK_INTERVAL_S,
    ) -> None:
        #: The hub, which dials.
        self._door = door
        #: Finds the peer between, or says why not.
        self._outer = outer
        #: For turns.
        self._clock = clock
        #: Links that are awaited, by peer, with the peer between.
        self._wished: dict[PeerId, tuple[PeerId, asyncio.Future[Link]]] = {}
        #: Turns of pairs, known by the bytes of both ids: an asker has one for each target.
        self._passed_on = Turns(interval_s)
        #: Wishes that were passed on and not refused, (target, source), oldest first: each may be refused once.
        self._open_wishes: OrderedDict[tuple[PeerId, PeerId], None] = OrderedDict()
        #: Turns of those for whom this peer dials, and of those who pass wishes on to it.
        self._dialled = Turns(interval_s)
        self._heard_from = Turns(interval_s, at_once=limits.DIAL_BACKS_AT_ONCE_MAX)
        #: Dials for others that run now.
        self._running = 0

    async def ask(self, via: PeerId, target: PeerId, addresses: Sequence[Address]) -> Link:
        """Have `target` dial this peer at `addresses` (the first two count), asked through `via`; the link that comes of it.

        Raises LinkClosedError where it cannot or does not, BusyError where it is asked already.
        """
        known = self._door.link(target)
        if known is not None and not known.relayed:
            return known
        if target in self._wished:
            raise BusyError(f"{short_peer_id(target)} has been asked to dial this peer already")
        between = self._outer(via)
        whom = short_peer_id(target)
        future = self._door.expect(target, Route(REVERSED, via))
        self._wished[target] = (via, future)
        try:
            between.send(PleaseDial(target, self._door.peer, tuple(addresses[: limits.DIAL_BACK_ADDRESSES_MAX])))
            async with asyncio.timeout(REVERSAL_TIMEOUT_S):
                return await future
        except TimeoutError as error:
            raise LinkClosedError(
                f"{whom} was asked through {short_peer_id(via)} to dial this peer, and did not"
            ) from error
        finally:
            del self._wished[target]
            self._door.unexpect(target)

    def heard(self, between: Link, message: PleaseDial) -> None:
        """A wish, its way on, or its way back. Raises ProtocolError for a wish in another's name."""
        target, source = PeerId(message.target), PeerId(message.source)
        if message.refused:
            self._refused(between, message, target, source)
        elif target == self._door.peer:
            self._wanted(between, message, source)
        elif source != between.peer:
            raise ProtocolError(f"asks for a dial in the name of {short_peer_id(source)}", between.named())
        else:
            self._pass_on(between, message, target, source)

    # --- the asker ------------------------------------------------------------------------------------------------------

    def _refused(self, between: Link, message: PleaseDial, target: PeerId, source: PeerId) -> None:
        if source == self._door.peer:
            via, future = self._wished.get(target, (None, None))
            if future is not None and via == between.peer and not future.done():
                future.set_exception(
                    LinkClosedError(f"{short_peer_id(target)} does not dial this peer: {message.refused}")
                )
        elif between.peer == target and (target, source) in self._open_wishes:
            del self._open_wishes[target, source]
            back = self._door.link(source)
            if back is not None and not back.relayed:
                back.send(PleaseDial(target, source, (), message.refused))

    # --- the peer between -----------------------------------------------------------------------------------------------

    def _pass_on(self, asker: Link, message: PleaseDial, target: PeerId, source: PeerId) -> None:
        onward = self._door.link(target)
        seen_host = "" if asker.relayed else asker.remote.host
        allowed = tuple(address for address in message.addresses if may_try(address, seen_host))
        refused = ""
        if onward is None or onward.relayed:
            refused = f"{short_peer_id(target)} is not linked to the peer that was to pass the wish on"
        elif onward.version < REACHING_PROTOCOL:
            refused = f"{short_peer_id(target)} speaks an older protocol that knows no such wish"
        elif not allowed:
            refused = "none of your addresses is public, or where you are seen"
        elif not self._passed_on.take(PeerId(source + target), self._clock.monotonic()):
            refused = f"it was asked less than {limits.DIAL_BACK_INTERVAL_S:.0f} s ago"
        if refused or onward is None:
            asker.send(PleaseDial(target, source, (), refused))
        else:
            self._open_wishes[target, source] = None
            self._open_wishes.move_to_end((target, source))
            if len(self._open_wishes) > _PASSED_ON_MAX:
                self._open_wishes.popitem(last=False)
            onward.send(PleaseDial(target, source, allowed))

    # --- the one who is asked -------------------------------------------------------------------------------------------

    def _wanted(self, between: Link, message: PleaseDial, source: PeerId) -> None:
        allowed = [address for address in message.addresses if self._may_dial(address, between)]
        refused = ""
        if not allowed:
            refused = "it does not dial such addresses for somebody out there"
        elif self._running >= limits.DIAL_BACKS_AT_ONCE_MAX:
            refused = "it dials for others already: ask again"
        elif not self._has_turn(between.peer, source):
            refused = f"it was asked less than {limits.DIAL_BACK_INTERVAL_S:.0f} s ago"
        if refused:
            between.send(PleaseDial(self._door.peer, source, (), refused))
            return
        self._running += 1
        self._door.spawn("reversed dial", self._dial(between, source, allowed))

    def _has_turn(self, between: PeerId, source: PeerId) -> bool:
        now = self._clock.monotonic()
        return self._heard_from.take(between, now) and self._dialled.take(source, now)

    @staticmethod
    def _may_dial(address: Address, between: Link) -> bool:
        if may_try(address, ""):
            return True
        host, seen = parsed(address.host), parsed(between.remote.host)
        if between.relayed or host is None or seen is None or address.port < PORT_MIN:
            return False
        # Its own services, and those of its links, are no business of others; who passes wishes on from this machine is at home here.
        return host == seen or (is_private(host) and (is_near(seen) or is_private(seen)))

    async def _dial(self, between: Link, source: PeerId, addresses: list[Address]) -> None:
        try:
            for address in addresses:
                try:
                    await self._door.dial(address, source, route=Route(REVERSED, between.peer))
                    return
                except P2PComputeError:
                    continue  # nobody is told why, and the next one may do
            if not between.closed:
                between.send(PleaseDial(self._door.peer, source, (), _NOT_REACHED))
        finally:
            self._running -= 1
