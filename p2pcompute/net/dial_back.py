"""Dial-back: a peer asks another one, of another network, whether it can be dialled; the other tries and says what it found.

What is tried is little: two addresses, three seconds, once in ten seconds for each asker, and only where the asker itself is seen, or
public addresses with ports of ordinary programs. So nobody can have this peer knock at doors of its own network, or scan others'. A try is a handshake that proves
the asker's id, and hangs up with a word, so that no link comes of it. Refuses to know: what is made of the answer.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError, P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock
from p2pcompute.net.address_ranges import is_public, parsed
from p2pcompute.net.link import Link
from p2pcompute.net.relay_door import RelayDoor
from p2pcompute.wire.reaching import REACHING_PROTOCOL, DialBack, DialedBack

#: Below it are the ports of a machine's own services, at which nobody's peer listens without asking for it.
PORT_MIN = 1_024
#: Peers whose turns are remembered; beyond it the longest ago is forgotten, whose turn it is again anyway in most cases.
_TURNS_MAX = 4_096


def may_try(address: Address, seen_host: str) -> bool:
    """Whether `address` may be dialled for a peer that is seen at `seen_host`: it is there, or the address is public."""
    host = parsed(address.host)
    if host is None or address.port == 0:
        return False
    if host == parsed(seen_host):
        return True
    return is_public(host) and address.port >= PORT_MIN


class Turns:
    """Says whether it is a peer's turn again: once in `pause_s` in the mean, `at_once` times after a long pause. Pure: takes `now`.

    The generic cell rate algorithm (ITU-T I.371), a moment for each peer.
    """

    def __init__(self, pause_s: float, at_once: int = 1) -> None:
        #: Between two turns of one peer, in the mean.
        self._pause_s = pause_s
        #: How far ahead of that a peer may be, seconds.
        self._ahead_s = pause_s * (at_once - 1)
        #: When each peer's turn would be next were it never ahead, the one that had its turn longest ago first; bounded.
        self._next: OrderedDict[PeerId, float] = OrderedDict()

    def take(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` has its turn at `now`; if so it is counted."""
        at = max(self._next.get(peer, now), now)
        if at - now > self._ahead_s:
            return False
        self._next[peer] = at + self._pause_s
        self._next.move_to_end(peer)
        while len(self._next) > _TURNS_MAX:
            self._next.popitem(last=False)
        return True


@dataclass(frozen=True, slots=True)
class DialBackResult:
    """What another peer found: where it reached this one, where it sees this one's link come from, and why it did not try more."""

    reached: tuple[Address, ...]
    seen: Address | None
    refused: str


class DialBacks:
    """Asks for dial-backs, and makes them for others."""

    def __init__(self, door: RelayDoor, clock: Clock, *, interval_s: float = limits.DIAL_BACK_INTERVAL_S) -> None:
        #: The hub, which probes.
        self._door = door
        #: For turns.
        self._clock = clock
        #: Whose turn it is.
        self._turns = Turns(interval_s)
        #: Tries for others that run now.
        self._running = 0
        #: What is asked and not answered: link and number.
        self._asked: dict[tuple[Link, int], asyncio.Future[DialedBack]] = {}
        #: The number of the next question; never used twice.
        self._next = 1

    async def ask(self, link: Link, addresses: Sequence[Address]) -> DialBackResult:
        """Have the other side of `link` dial this peer at `addresses` (the first two count). Raises LinkClosedError."""
        if link.version < REACHING_PROTOCOL:
            raise LinkClosedError(f"{link.named()} speaks an older protocol that knows no dial-back: ask another peer")
        wanted = tuple(addresses[: limits.DIAL_BACK_ADDRESSES_MAX])
        key = (link, self._next)
        self._next += 1
        future = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            link.send(DialBack(key[1], wanted))
            async with asyncio.timeout(2 * limits.DIAL_BACK_TIMEOUT_S):
                answer = await future
        except TimeoutError as error:
            raise LinkClosedError(
                f"{link.named()} does not say whether it could dial this peer: ask another one"
            ) from error
        finally:
            self._asked.pop(key, None)
            if not future.done():
                future.cancel()
        return DialBackResult(
            tuple(address for address in wanted if address in answer.reached), answer.seen, answer.refused
        )

    def answered(self, link: Link, message: DialedBack) -> None:
        """The other side has tried."""
        future = self._asked.get((link, message.nonce))
        if future is not None and not future.done():
            future.set_result(message)

    def link_gone(self, link: Link, error: P2PComputeError) -> None:
        """Nothing more is heard on `link`."""
        for (asked, _), future in self._asked.items():
            if asked is link and not future.done():
                future.set_exception(error)

    def asked(self, link: Link, message: DialBack) -> None:
        """A linked peer wants to be dialled, or, where it names no address, only to know from where it is seen."""
        if not message.addresses:
            # It costs no more than a ping, so it takes no turn: whoever asks this first may ask for a dial at once.
            link.send(DialedBack(message.nonce, (), _seen(link)))
            return
        refused = ""
        if self._running >= limits.DIAL_BACKS_AT_ONCE_MAX:
            refused = "this peer dials for others already: ask again, or another peer"
        elif not self._turns.take(link.peer, self._clock.monotonic()):
            refused = f"once in {limits.DIAL_BACK_INTERVAL_S:.0f} s is enough: ask again later, or another peer"
        if refused:
            link.send(DialedBack(message.nonce, (), _seen(link), refused))
            return
        self._running += 1
        self._door.spawn("dial back", self._try(link, message))

    async def _try(self, link: Link, message: DialBack) -> None:
        try:
            seen = _seen(link)
            allowed = [each for each in message.addresses if may_try(each, seen.host if seen is not None else "")]
            refused = (
                ""
                if len(allowed) == len(message.addresses)
                else "only public addresses, and where you are seen, are dialled"
            )
            reached: dict[Address, None] = {}
            async with asyncio.TaskGroup() as group:
                for address in allowed:
                    group.create_task(self._probe(address, link.peer, reached))
            if not link.closed:
                found = tuple(address for address in allowed if address in reached)
                link.send(DialedBack(message.nonce, found, seen, refused))
        finally:
            self._running -= 1

    async def _probe(self, address: Address, peer: PeerId, reached: dict[Address, None]) -> None:
        try:
            async with asyncio.timeout(limits.DIAL_BACK_TIMEOUT_S):
                await self._door.probe(address, peer)
        except (P2PComputeError, TimeoutError):
            return  # that it was not reached is the answer
        reached[address] = None


def _seen(link: Link) -> Address | None:
    """Where the other side of `link` is."""
    return link.remote if not link.relayed and link.remote.is_numeric else None
