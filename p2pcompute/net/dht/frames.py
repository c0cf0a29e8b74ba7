"""The two kinds of datagrams of the address book, strictly decoded.

As in rpcudp: kind (1: 0 request, 1 reply), message id (20), body. The body is msgpack by the C codec under the limits of
`wire/codec.py`: of a request [method, [flags, argument, padding]], of a reply [flags, …]. Requests are padded, so that a reply is at most
`limits.DHT_REPLY_FACTOR_MAX` times as large. Refuses to know: who sent it, and whether it is true.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NewType

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.net.dht.contacts import Told, read_contacts
from p2pcompute.wire.codec import Check, Maybe, Raw, Row, Text, Truth, Whole, pack, unpack
from p2pcompute.wire.pointer import KEY_BYTES

REQUEST = 0
REPLY = 1
MESSAGE_ID_BYTES = 20
#: What ties a reply to its request, 20 bytes.
MessageId = NewType("MessageId", bytes)
HEAD_BYTES = 1 + MESSAGE_ID_BYTES
#: One byte of the sealed datagram tells this from gossip.
PAYLOAD_BYTES_MAX = limits.DATAGRAM_PAYLOAD_BYTES_MAX - 1


class Method(enum.StrEnum):
    """What may be asked, by the package's names."""

    PING = "ping"
    FIND_NODE = "find_node"
    FIND_VALUE = "find_value"
    STORE = "store"


class Flag(enum.IntFlag):
    """What a sender says of itself with each message."""

    #: It cannot be dialled from elsewhere: it asks, and is not to be asked.
    CLIENT = 1
    #: Families that it can use.
    IPV4 = 2
    IPV6 = 4


_FLAGS = Whole(0, 255)
_PADDING = Raw(PAYLOAD_BYTES_MAX)
_KEY = Raw(KEY_BYTES, KEY_BYTES)
_ARGUMENT: dict[Method, Check] = {
    Method.PING: Raw(0),
    Method.FIND_NODE: _KEY,
    Method.FIND_VALUE: _KEY,
    Method.STORE: Raw(limits.POINTER_BYTES_MAX, 1),
}
_REQUESTS: dict[str, Check] = {
    method.value: Row((Text(16), Row((_FLAGS, argument, _PADDING)))) for method, argument in _ARGUMENT.items()
}
_REPLY_PING = Row((_FLAGS,))
_REPLY_FIND = Row((_FLAGS, Maybe(Raw(limits.POINTER_BYTES_MAX, 1)), Raw(PAYLOAD_BYTES_MAX)))
_REPLY_STORE = Row((_FLAGS, Truth()))


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. `argument`: the key that is looked for, the pointer to keep, nothing for a ping."""

    method: Method
    flags: int
    argument: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered. `pointer`: what find_value found; `kept`: whether store was taken; `told`: nearer contacts."""

    flags: int
    pointer: bytes | None = None
    told: tuple[Told, ...] = ()
    kept: bool = False


def request_frame(message_id: MessageId, request: Request) -> bytes:
    """The datagram that asks, padded to `limits.DHT_REQUEST_BYTES`."""

    def body(padding: int) -> bytes:
        return pack([request.method.value, [int(request.flags), request.argument, bytes(padding)]])

    plain = body(0)
    missing = limits.DHT_REQUEST_BYTES - HEAD_BYTES - len(plain)
    return bytes([REQUEST]) + message_id + (body(missing) if missing > 0 else plain)


def read_request(body: bytes) -> Request:
    """The request in the bytes behind the head. Raises ProtocolError."""
    value = unpack(body, bytes_max=PAYLOAD_BYTES_MAX)
    name = value[0] if type(value) is list and value else None
    check = _REQUESTS.get(name) if type(name) is str else None
    if check is None:
        raise ProtocolError("a request for nothing that is known")
    method, (flags, argument, _) = check.load(value)
    return Request(Method(method), flags, argument)


def find_reply_frame(message_id: MessageId, flags: int, pointer: bytes | None, contacts: bytes) -> bytes:
    """The reply to find_node and find_value. `contacts`: see `contacts.pack_contacts`."""
    return _reply(message_id, [int(flags), pointer, contacts])


def find_reply_room(bytes_max: int, pointer: bytes | None) -> int:
    """Bytes for contacts in a find reply of at most `bytes_max`; below zero where not even the pointer fits."""
    return bytes_max - len(_reply(MessageId(bytes(MESSAGE_ID_BYTES)), [255, pointer, b""])) - 2


def ping_reply_frame(message_id: MessageId, flags: int) -> bytes:
    """The reply to ping."""
    return _reply(message_id, [int(flags)])


def store_reply_frame(message_id: MessageId, flags: int, *, kept: bool) -> bytes:
    """The reply to store."""
    return _reply(message_id, [int(flags), kept])


def _reply(message_id: MessageId, fields: list[Any]) -> bytes:
    return bytes([REPLY]) + message_id + pack(fields)


def read_reply(body: bytes, method: Method) -> Reply:
    """The reply to `method` in the bytes behind the head. Raises ProtocolError."""
    value = unpack(body, bytes_max=PAYLOAD_BYTES_MAX)
    if method is Method.PING:
        (flags,) = _REPLY_PING.load(value)
        return Reply(flags)
    if method is Method.STORE:
        flags, kept = _REPLY_STORE.load(value)
        return Reply(flags, kept=kept)
    flags, pointer, contacts = _REPLY_FIND.load(value)
    if method is Method.FIND_NODE and pointer is not None:
        raise ProtocolError("a pointer in the reply to find_node")
    return Reply(flags, pointer, read_contacts(contacts))
