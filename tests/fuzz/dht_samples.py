"""Valid bytes of the address book, and how its decoders are fed."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from p2pcompute.model.errors import BusyError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dht import frames
from p2pcompute.net.dht.contacts import Contact, make_contact, pack_contacts
from p2pcompute.net.dht.dht import Dht
from p2pcompute.net.dht.protocol import Asked
from p2pcompute.net.dht.storage import SignedStorage
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.pointer import (
    PRESENCE_NAME,
    Name,
    PointerKey,
    Presence,
    decode_pointer,
    encode_value,
    read_value,
    sign_pointer,
)

NOW_WALL = 1_800_000_000.0
_KEY = PeerKey(bytes(range(32)))
_PEER = PeerId(hashlib.sha256(b"somebody").digest())
_SOURCE = Address("8.8.8.8", 9876)
_ID = frames.MessageId(bytes(range(20)))
_FINDING = (frames.Method.FIND_NODE, frames.Method.FIND_VALUE)


def believing(public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
    """A verifier that accepts every signature, so that the damage gets past it."""
    return True


class _Clock:
    def monotonic(self) -> float:
        return 1.0

    def wall(self) -> float:
        return NOW_WALL


class _Port:
    def send(self, peer: PeerId, addresses: tuple[Address, ...], payload: bytes) -> None:
        assert len(payload) <= frames.PAYLOAD_BYTES_MAX


def _spawn(name: str, work: Coroutine[Any, Any, None]) -> None:
    work.close()


def pointers() -> list[bytes]:
    """Signed pointers, one with a presence and one of an unknown kind."""
    said = Presence(1, (Address("10.0.0.1", 9876), Address("2001:db8::1", 9876)))
    return [
        sign_pointer(_KEY, name, value, version=1, issued_s=int(NOW_WALL), lifetime_s=600).wire
        for name, value in ((PRESENCE_NAME, encode_value(said)), (Name(77, b"label"), b"value"))
    ]


def read_whole(wire: bytes) -> object:
    """A pointer and its value."""
    return read_value(decode_pointer(wire))


def keep(wire: bytes) -> object:
    """A holder's storage; that it is full is no peer's error."""
    storage = SignedStorage(PointerKey(bytes(20)), _Clock(), believing)
    try:
        return storage.keep(wire, "somebody")
    except BusyError:
        return None
    finally:
        storage.check_invariants()


def _contacts() -> list[Contact]:
    places = (Address("8.1.1.1", 9876), Address("10.0.0.1", 9876), Address("2600::1", 9876))
    made = [make_contact(PeerId(bytes([number + 1]) * 32), place) for number, place in enumerate(places)]
    return [contact for contact in made if contact is not None]


def contacts() -> list[bytes]:
    """Contacts as replies hold them."""
    return [b"", pack_contacts(_contacts(), 1_000)]


def addresses() -> list[bytes]:
    """Addresses in binary."""
    return [contact.packed[32:] for contact in _contacts()]


def _requests() -> list[frames.Request]:
    return [
        frames.Request(frames.Method.PING, 6),
        frames.Request(frames.Method.FIND_NODE, 3, bytes(20)),
        frames.Request(frames.Method.FIND_VALUE, 6, bytes(range(20))),
        *(frames.Request(frames.Method.STORE, 6, wire) for wire in pointers()),
    ]


def requests() -> list[bytes]:
    """Datagrams that ask."""
    return [frames.request_frame(_ID, each) for each in _requests()]


def request_bodies() -> list[bytes]:
    """The same, without their heads."""
    return [each[frames.HEAD_BYTES :] for each in requests()]


def replies() -> list[bytes]:
    """Datagrams that answer find_value and find_node."""
    told = contacts()[1]
    return [frames.find_reply_frame(_ID, 6, None, told), frames.find_reply_frame(_ID, 7, pointers()[0], told)]


def reply_bodies() -> list[bytes]:
    """Answers of all kinds, without their heads."""
    all_kinds = [*replies(), frames.ping_reply_frame(_ID, 6), frames.store_reply_frame(_ID, 6, kept=True)]
    return [each[frames.HEAD_BYTES :] for each in all_kinds]


def read_any_reply(body: bytes) -> object:
    """A body as a reply to each method; the errors of all but the fitting one are expected, and the first is raised if none fits."""
    found: list[object] = []
    errors: list[Exception] = []
    for method in frames.Method:
        try:
            found.append(frames.read_reply(body, method))
        except frames.ProtocolError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def _fed(feed: Callable[[Dht, asyncio.AbstractEventLoop], None]) -> None:
    async def main() -> None:
        dht = Dht(_KEY.peer_id, _KEY, _Port(), _Clock(), random.Random(1), _spawn, verify=believing)
        for contact in _contacts():
            dht.server.protocol.welcome_if_new(contact)
        feed(dht, asyncio.get_running_loop())
        dht.server.protocol.router.check_invariants()
        dht.server.storage.check_invariants()

    asyncio.run(main())


def ask(data: bytes) -> None:
    """A datagram that asks, at a whole address book."""
    _fed(lambda dht, loop: dht.received(_PEER, _SOURCE, data))


def answer(data: bytes) -> None:
    """A datagram that answers a question that waits."""

    def feed(dht: Dht, loop: asyncio.AbstractEventLoop) -> None:
        for method in _FINDING:
            waiting = Asked(_PEER, _SOURCE, method, 0.0, loop.create_future())
            dht.server.protocol._outstanding[_ID] = waiting
            dht.received(_PEER, _SOURCE, data)

    _fed(feed)
