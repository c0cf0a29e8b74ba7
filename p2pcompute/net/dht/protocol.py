"""The package's protocol, with every door that a stranger's bytes come through replaced.

Requests are answered at once, without a task and without awaiting; the only tasks are those that ask whether a hinted contact is there, at most
`limits.DHT_CHECKS_AT_ONCE`, started through the given `spawn`. What a peer sends can cause an entry in `troubles` and its leaving the
tables, and nothing else. Refuses to know: sockets and seals (below), what is looked for and why (`crawl.py`, `server.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach
from p2pcompute.net.dht import frames
from p2pcompute.net.dht.addresses import Scope, family_of, may_be_told, plain_address, scope_of
from p2pcompute.net.dht.checks import Hints
from p2pcompute.net.dht.contacts import Contact, PeerAddress, Told, dht_id, make_contact, pack_contacts
from p2pcompute.net.dht.frames import Flag, MessageId, Method, Reply, Request
from p2pcompute.net.dht.liveness import DeadMemory, RoundTrips
from p2pcompute.net.dht.routing import Tables
from p2pcompute.net.dht.storage import SignedStorage
from p2pcompute.net.dht.surroundings import DhtPort, Surroundings
from p2pcompute.net.gate import Gate
from p2pcompute.wire.pointer import PointerKey

_FAMILY_FLAG = {4: Flag.IPV4, 6: Flag.IPV6}


@dataclass(slots=True)
class Asked:
    """One try of a call: whom, where, what, when (monotonic seconds), and the future of the whole call."""

    peer: PeerId
    address: Address
    method: Method
    at: float
    answer: asyncio.Future[Answer | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that may be used: who sent it from where, and what it says. `told`: sanitised."""

    peer: PeerId
    source: Address
    reply: Reply
    told: tuple[Contact, ...] = ()


class _Rate:
    """So many a second from a peer and from an address; in ranges that anybody may use, several times as many from an invitation."""

    def __init__(self, per_second: int) -> None:
        #: By address; those of a private range of whom no invitation is known get as many as an invitation.
        self._by_address = Gate(per_second, limits.DHT_PRIVATE_ADDRESS_FACTOR)
        #: By peer, from whatever public addresses.
        self._by_peer = Gate(per_second, 1)
        #: By invitation.
        self._by_invitation = Gate(per_second * limits.DHT_PRIVATE_ADDRESS_FACTOR, 1)

    def admits(self, sender: PeerAddress, around: Surroundings) -> bool:
        """Whether one more of `sender` may pass now; counts it."""
        now = around.clock.monotonic()
        if scope_of(plain_address(sender.address)) is not Scope.GLOBAL:
            invitation = around.invitation_of(sender.peer)
            if invitation is not None:
                return self._by_invitation.admits(invitation.hex(), now)
        elif not self._by_peer.admits(sender.peer.hex(), now):
            return False
        return self._by_address.admits(sender.address.host, now)


class PortTransport(asyncio.DatagramTransport):
    """What the package takes for its transport: checks the address and hands the datagram to the port. Never closes by itself."""

    def __init__(self, port: DhtPort, refused: Callable[[PeerId], None]) -> None:
        super().__init__()
        #: Below.
        self._port = port
        #: Told of an address that nothing may be sent to.
        self._refused = refused
        #: After `close`, nothing is sent.
        self._closed = False

    def sendto(self, data: bytes, addr: PeerAddress | None = None) -> None:  # type: ignore[override]
        """Send `data` to the peer in `addr`."""
        assert addr is not None, "every datagram is for somebody"
        assert len(data) <= frames.PAYLOAD_BYTES_MAX, "a datagram of ours fits"
        if self._closed:
            return
        if scope_of(addr.address) is None:
            self._refused(addr.peer)
            return
        self._port.send(addr.peer, (addr.address,), data)

    def close(self) -> None:
        """Send nothing any more."""
        self._closed = True

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed


class HardenedProtocol(KademliaProtocol):  # type: ignore[misc]
    """See the module."""

    #: Annotated here, since the base class is untyped.
    transport: PortTransport
    router: Tables
    storage: SignedStorage
    source_node: Node

    def __init__(self, node: Node, storage: SignedStorage, around: Surroundings) -> None:
        settings = around.settings
        super().__init__(node, storage, settings.k)
        #: Clock, dice, settings and so on.
        self.around = around
        self.router = Tables(
            node, settings.k, settings.families, around.clock.monotonic, around.invitation_of, self._crowded
        )
        #: Tries that wait for a reply, by message id; at most two for each of `limits.DHT_CALLS_MAX` calls.
        self._outstanding: dict[MessageId, Asked] = {}
        #: Calls that wait.
        self._calls = 0
        #: Of the last request. Sessions keep strangers out, so it need not be secret, only different from the others.
        self._message_id = around.rng.randrange(0, 1 << 62) << 64
        #: How long peers take to answer.
        self.round_trips = RoundTrips()
        #: Who is left alone for a while.
        self.dead = DeadMemory()
        #: Who wants to be asked.
        self._hints = Hints(around.invitation_of)
        #: Tasks that ask the hinted.
        self._checkers = 0
        #: Requests, and stores among them, by who counts as one sender.
        self._requests = _Rate(limits.DHT_REQUESTS_PER_SECOND_PER_ADDRESS)
        self._stores = _Rate(limits.DHT_STORES_PER_SECOND_PER_ADDRESS)
        #: Called when a peer has got into a table.
        self.welcomed: Callable[[Contact], None] = lambda contact: None
        self._closed = False

    def __getattr__(self, name: str) -> object:
        # rpcudp answers any unknown name with a remote call: a misspelt one would send a datagram.
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def connection_made(self, transport: PortTransport) -> None:
        """Send through `transport` from now on."""
        self.transport = transport

    # --- what arrives -----------------------------------------------------------------------------------------------------

    def datagram_received(self, data: bytes, addr: PeerAddress) -> None:
        """A datagram of an authenticated peer; raises nothing."""
        if self._closed or addr.peer == self.around.own:
            return
        if not frames.HEAD_BYTES < len(data) <= frames.PAYLOAD_BYTES_MAX or data[0] > frames.REPLY:
            self.trouble("size" if data and data[0] <= frames.REPLY else "kind", addr.peer)
            return
        message_id, body = MessageId(data[1 : frames.HEAD_BYTES]), data[frames.HEAD_BYTES :]
        if data[0] == frames.REPLY:
            self._accept_response(message_id, body, addr)
        else:
            self._accept_request(message_id, body, addr)

    def _accept_request(self, message_id: MessageId, body: bytes, addr: PeerAddress) -> None:
        """Answer a request, within what its size pays for. Not a coroutine as in the package: there is nothing to wait for."""
        if not self._requests.admits(addr, self.around):
            self.trouble("rate", addr.peer)
            return
        try:
            request = frames.read_request(body)
        except ProtocolError:
            self.trouble("request", addr.peer)
            return
        bytes_max = min(frames.PAYLOAD_BYTES_MAX, limits.DHT_REPLY_FACTOR_MAX * (frames.HEAD_BYTES + len(body)))
        match request.method:
            case Method.PING:
                reply = self.rpc_ping(message_id)
            case Method.STORE:
                reply = self.rpc_store(message_id, addr, request.argument)
            case Method.FIND_NODE | Method.FIND_VALUE:
                reply = self.rpc_find(message_id, addr, request, bytes_max)
        self.transport.sendto(reply, addr)
        if not self._is_client(request.flags, addr.address):
            self.hint(addr.peer, (addr.address,))

    def _accept_response(self, message_id: MessageId, body: bytes, addr: PeerAddress) -> None:
        """A reply: to a question that still waits, from the peer that was asked, or nothing."""
        asked = self._outstanding.get(message_id)
        if asked is None:
            # Late ones are ordinary: the call has had its answer, or has given up.
            self.around.troubles.count("late reply")
            return
        if asked.peer != addr.peer:
            self.trouble("reply of another", addr.peer)
            return
        if asked.answer.done():
            return
        self.round_trips.measured(addr.peer, max(0.0, self.around.clock.monotonic() - asked.at))
        try:
            reply = frames.read_reply(body, asked.method)
        except ProtocolError:
            self.lied(addr.peer, "reply")
            asked.answer.set_result(None)
            return
        source = plain_address(addr.address)
        self.handle_call_response((asked, reply.flags), source)
        asked.answer.set_result(Answer(addr.peer, source, reply, tuple(self._sane(reply.told, addr))))

    def _timeout(self, message_id: MessageId) -> None:
        """The package's timer: ours waits in `call`. Forgetting is all that is left to do, and never an error (D12)."""
        self._outstanding.pop(message_id, None)

    # --- requests ---------------------------------------------------------------------------------------------------------

    def rpc_stun(self, sender: PeerAddress) -> None:
        """Nobody is told an address in this way."""

    def rpc_ping(self, message_id: MessageId) -> bytes:
        """The reply to ping."""
        return frames.ping_reply_frame(message_id, self.flags)

    def rpc_store(self, message_id: MessageId, sender: PeerAddress, wire: bytes) -> bytes:
        """Keep a signed pointer; the reply says whether it is kept."""
        kept = False
        if not self._stores.admits(sender, self.around):
            self.trouble("store rate", sender.peer)
        elif self.around.reach is not Reach.PRIVATE or scope_of(plain_address(sender.address)) is not Scope.GLOBAL:
            kept = self._keep(sender, wire)
        return frames.store_reply_frame(message_id, self.flags, kept=kept)

    def _keep(self, sender: PeerAddress, wire: bytes) -> bool:
        contact = make_contact(sender.peer, plain_address(sender.address))
        voice = contact.voice(self.around.invitation_of) if contact is not None else "unknown"
        try:
            return self.storage.keep(wire, voice)
        except ProtocolError:
            self.trouble("store", sender.peer)
        except BusyError:
            self.trouble("store limit", sender.peer)
        return False

    def rpc_find(self, message_id: MessageId, sender: PeerAddress, request: Request, bytes_max: int) -> bytes:
        """The pointer under a key, if it was asked for and is here, and the nearest contacts that fit."""
        key = PointerKey(request.argument)
        pointer = self.storage.get(key) if request.method is Method.FIND_VALUE else None
        room = frames.find_reply_room(bytes_max, pointer)
        if room < 0:
            pointer, room = None, frames.find_reply_room(bytes_max, None)
        listener = scope_of(plain_address(sender.address)) or Scope.GLOBAL
        wanted = [family for family, flag in _FAMILY_FLAG.items() if request.flags & flag]
        contacts = self._to_tell(key, sender.peer, listener, wanted)
        return frames.find_reply_frame(message_id, self.flags, pointer, pack_contacts(contacts, max(room, 0)))

    def _to_tell(self, key: PointerKey, listener: PeerId, scope: Scope, families: Iterable[int]) -> list[Contact]:
        """Contacts near `key` for a reply, the families taking turns, nobody who is dead, few of one network."""
        now, target = self.around.clock.monotonic(), Node(key)
        rows: list[list[Contact]] = []
        for family in families:
            table = self.router.by_family.get(family)
            near = table.find_neighbors(target, 2 * self.around.settings.k, Node(dht_id(listener))) if table else []
            alive = [
                each
                for each in near
                if may_be_told(each.scope, scope) and not self.dead.is_dead(each.peer, each.address, now)
            ]
            rows.append(self.spread(alive, hard=True))
        turns = max((len(row) for row in rows), default=0)
        return [row[turn] for turn in range(turns) for row in rows if turn < len(row)]

    def spread(self, contacts: list[Contact], *, hard: bool) -> list[Contact]:
        """`contacts` with those beyond two of one voice at the back; `hard`: without those beyond two of one network."""
        counts: dict[str, int] = {}
        first, last = [], []
        for contact in contacts:
            voice = contact.voice(self.around.invitation_of)
            counts[voice] = counts.get(voice, 0) + 1
            if counts[voice] <= limits.DHT_SAME_NETWORK_PER_BUCKET_MAX:
                first.append(contact)
            elif contact.scope is not Scope.GLOBAL or not hard:
                last.append(contact)
        return first + last

    # --- calls ------------------------------------------------------------------------------------------------------------

    async def call(
        self,
        contact: Contact,
        method: Method,
        argument: bytes = b"",
        stalled: Callable[[], None] | None = None,
    ) -> Answer | None:
        """Ask `contact`, twice at most; None where it does not answer. `stalled` is called when the first try has lapsed.

        A cancelled call leaves nothing behind.
        """
        if self._closed or self._calls >= limits.DHT_CALLS_MAX:
            return None
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        sent: list[MessageId] = []
        self._calls += 1
        try:
            for number in range(limits.DHT_TRIES):
                sent.append(self._ask(contact, method, argument, answer))
                await asyncio.wait([answer], timeout=self.round_trips.wait_s(contact.peer))
                if answer.done():
                    return answer.result()
                if number == 0 and stalled is not None:
                    stalled()
            if not self._closed:
                self._unanswered(contact)
            return None
        finally:
            self._calls -= 1
            for message_id in sent:
                self._outstanding.pop(message_id, None)

    def _ask(
        self, contact: Contact, method: Method, argument: bytes, answer: asyncio.Future[Answer | None]
    ) -> MessageId:
        self._message_id += 1
        message_id = MessageId(self._message_id.to_bytes(frames.MESSAGE_ID_BYTES, "big"))
        now = self.around.clock.monotonic()
        self._outstanding[message_id] = Asked(contact.peer, contact.address, method, now, answer)
        frame = frames.request_frame(message_id, Request(method, self.flags, argument))
        self.transport.sendto(frame, PeerAddress(contact.peer, contact.address))
        return message_id

    async def call_ping(self, node_to_ask: Contact) -> bool:
        """Whether `node_to_ask` is there."""
        return await self.call(node_to_ask, Method.PING) is not None

    async def call_find_node(
        self, node_to_ask: Contact, node_to_find: Node, stalled: Callable[[], None] | None = None
    ) -> Answer | None:
        """Contacts near `node_to_find`, by `node_to_ask`."""
        return await self.call(node_to_ask, Method.FIND_NODE, node_to_find.id, stalled)

    async def call_find_value(
        self, node_to_ask: Contact, node_to_find: Node, stalled: Callable[[], None] | None = None
    ) -> Answer | None:
        """The pointer under the id of `node_to_find`, not yet opened, and contacts near it."""
        return await self.call(node_to_ask, Method.FIND_VALUE, node_to_find.id, stalled)

    async def call_store(self, node_to_ask: Contact, wire: bytes) -> bool:
        """Whether `node_to_ask` keeps the pointer in `wire` now."""
        answer = await self.call(node_to_ask, Method.STORE, wire)
        return answer is not None and answer.reply.kept

    def handle_call_response(self, result: tuple[Asked, int], source: Address) -> None:
        """A peer has answered from `source`: it goes into the table if that is where it was asked, else it is asked there."""
        asked, flags = result
        now = self.around.clock.monotonic()
        self.dead.answered(asked.peer, source)
        if self._is_client(flags, source):
            for known in self.router.known(asked.peer):
                if known.scope is Scope.GLOBAL:
                    self.router.remove_contact(known)
            return
        if source != plain_address(asked.address):
            self.hint(asked.peer, (source,))
            return
        self.welcome_if_new(make_contact(asked.peer, source, now))

    def welcome_if_new(self, node: Contact | None) -> None:
        """Let in one that has just answered, or move it. Nothing is handed over to it: owners publish again (D17)."""
        if node is None:
            return
        is_new = self.router.at(node.peer, node.address) is None
        if self.router.add_contact(node) and is_new:
            self.welcomed(node)

    def _unanswered(self, contact: Contact) -> None:
        now = self.around.clock.monotonic()
        self.dead.failed(contact.peer, contact.address, now)
        known = self.router.at(contact.peer, contact.address)
        if known is not None:
            known.failures += 1
            if known.failures >= limits.DHT_FAILURES_MAX:
                self.router.remove_contact(known)

    # --- who may be a contact ---------------------------------------------------------------------------------------------

    def hint(self, peer: PeerId, addresses: Iterable[Address]) -> None:
        """`peer` may be at one of `addresses`: ask it, unless it is known there, dead there, or nobody we would take."""
        if self._hints.is_full:
            return  # a thousand new records a minute are no reason to look at each: whoever waits is asked first
        now = self.around.clock.monotonic()
        for address in addresses:
            contact = make_contact(peer, plain_address(address))
            if (
                contact is not None
                and peer != self.around.own
                and self.router.at(peer, contact.address) is None
                and not self.dead.is_dead(peer, contact.address, now)
                and self.router.takes(contact)
            ):
                self._check(contact)

    def _crowded(self, oldest: Contact) -> None:
        if not self.dead.is_dead(oldest.peer, oldest.address, self.around.clock.monotonic()):
            self._check(oldest)

    def _check(self, contact: Contact) -> None:
        if self._closed or self._hints.is_fresh(contact, self.around.clock.monotonic()):
            return
        if self._hints.add(contact) and self._checkers < limits.DHT_CHECKS_AT_ONCE:
            self._checkers += 1
            self.around.spawn("dht check", self._check_hinted())

    async def _check_hinted(self) -> None:
        try:
            while (contact := self._hints.take()) is not None and not self._closed:
                if await self.call_ping(contact):
                    self._hints.answered(contact, self.around.clock.monotonic())
        finally:
            self._checkers -= 1

    @property
    def flags(self) -> Flag:
        """What this peer says of itself."""
        said = Flag.CLIENT if self.around.reach is Reach.PRIVATE else Flag(0)
        for family in self.router.by_family:
            said |= _FAMILY_FLAG[family]
        return said

    def _is_client(self, flags: int, source: Address) -> bool:
        # Within one site a peer behind the site's router is reached like any other.
        return bool(flags & Flag.CLIENT) and scope_of(plain_address(source)) is Scope.GLOBAL

    def _sane(self, told: Iterable[Told], teller: PeerAddress) -> Iterable[Contact]:
        """What of a reply may be used: addresses that may be sent to and mean the same here, few of one network, each peer once."""
        scope = scope_of(plain_address(teller.address)) or Scope.GLOBAL
        seen: dict[tuple[PeerId, int], None] = {}
        networks: dict[str, int] = {}
        for each in told:
            contact = make_contact(each.peer, each.address)
            if contact is None or not may_be_told(contact.scope, scope):
                self.trouble("address", teller.peer)
                continue
            if each.peer == self.around.own or (each.peer, family_of(each.address)) in seen:
                continue
            seen[each.peer, contact.family] = None
            if contact.family not in self.router.by_family:
                continue
            if contact.scope is Scope.GLOBAL:
                networks[contact.network] = networks.get(contact.network, 0) + 1
                if networks[contact.network] > limits.DHT_SAME_NETWORK_PER_BUCKET_MAX:
                    self.trouble("network", teller.peer)
                    continue
            yield contact

    def lied(self, peer: PeerId, reason: str) -> None:
        """`peer` answered what no honest peer answers: it is dropped, and left alone like a dead one."""
        self.trouble(reason, peer)
        now = self.around.clock.monotonic()
        for known in self.router.known(peer):
            self.dead.failed(peer, known.address, now)
            self.router.remove_contact(known)

    def trouble(self, reason: str, peer: PeerId) -> None:
        """Count it."""
        self.around.troubles.count(reason, peer)

    def close(self) -> None:
        """Ask and answer nothing any more; calls that wait end unanswered."""
        self._closed = True
        for asked in self._outstanding.values():
            if not asked.answer.done():
                asked.answer.set_result(None)
        self._outstanding.clear()

    def check_invariants(self) -> None:
        """Raise AssertionError where the state is not what it says; for tests and the laboratory."""
        self.router.check_invariants()
        self.storage.check_invariants()
        assert 0 <= self._calls <= limits.DHT_CALLS_MAX
        assert len(self._outstanding) <= limits.DHT_TRIES * self._calls
        assert 0 <= self._checkers <= limits.DHT_CHECKS_AT_ONCE
