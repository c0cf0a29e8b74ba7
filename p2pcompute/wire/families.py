"""Families of messages: what may cross a link, a sealed datagram and a control socket, and the codec of each.

Refuses to know: what any message means (`messages.py`, `gossip.py`, `reaching.py`).
"""

from __future__ import annotations

from typing import Any

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.wire.codec import Schema, pack, unpack
from p2pcompute.wire.gossip import Ack, Digest, Piece, Probe, ProbeVia, Rumours, Versions, ViaAck, Want
from p2pcompute.wire.messages import (
    Answer,
    BlobMissing,
    BlobWant,
    Call,
    CommunityGrant,
    EchoWant,
    Fault,
    Feed,
    Goodbye,
    Grant,
    Hangup,
    Hello,
    JobAccept,
    JobClose,
    JobOpen,
    JobRefuse,
    Message,
    Notice,
    Partial,
    Ping,
    Pong,
    Records,
    Renewals,
    Results,
    Revocations,
    ShareOpen,
    SuspectAnswer,
    SuspectQuery,
    TaskNews,
    Tasks,
    TasksCancel,
    TasksRecall,
)
from p2pcompute.wire.reaching import REACHING_MESSAGES

#: Gossip that came with the second protocol version; it goes in datagrams, or over a link where they do not get through.
GOSSIP_ONLY: tuple[type[Message], ...] = (Probe, Ack, ProbeVia, ViaAck, Rumours, Digest, Versions, Want, Piece)
#: What may cross a sealed datagram.
GOSSIP_MESSAGES: tuple[type[Message], ...] = (Records, *GOSSIP_ONLY)
#: What may cross a link between peers.
LINK_MESSAGES: tuple[type[Message], ...] = (
    Hello, Goodbye, Ping, Pong, Records, Revocations, Renewals, SuspectQuery, SuspectAnswer, JobOpen, JobAccept, JobRefuse,
    Grant, Tasks, Results, TasksCancel, TasksRecall, JobClose, TaskNews, ShareOpen, CommunityGrant, Partial,
    BlobWant, BlobMissing, EchoWant, *GOSSIP_ONLY, *REACHING_MESSAGES,
)  # fmt: skip
#: What may cross a control socket.
CONTROL_MESSAGES: tuple[type[Message], ...] = (Call, Feed, Notice, Answer, Fault, Hangup, Goodbye, Ping, Pong)


class MessageCodec:
    """Turns messages of one family into frame payloads and back. Immutable once built, safe to share."""

    def __init__(self, family: tuple[type[Message], ...]) -> None:
        self._by_kind = {cls.kind: Schema(cls) for cls in family}
        self._by_class: dict[type[Message], Schema[Any]] = {schema.cls: schema for schema in self._by_kind.values()}

    def encode(self, message: Message) -> bytes:
        """The payload of the frame that carries `message`."""
        return pack([message.kind, self._by_class[type(message)].to_fields(message)])

    def decode(
        self, payload: bytes | bytearray | memoryview, *, bytes_max: int = limits.FRAME_BYTES_MAX
    ) -> Message | None:
        """The message, or None for a kind that this version does not know. Raises ProtocolError."""
        value = unpack(payload, bytes_max=bytes_max)
        if type(value) is not list or len(value) != 2 or type(value[0]) is not int:
            raise ProtocolError("a frame holds [kind, fields]")
        schema = self._by_kind.get(value[0])
        if schema is None:
            return None
        message: Message = schema.from_fields(value[1])
        return message


LINK_CODEC = MessageCodec(LINK_MESSAGES)
CONTROL_CODEC = MessageCodec(CONTROL_MESSAGES)
GOSSIP_CODEC = MessageCodec(GOSSIP_MESSAGES)
