"""Identifiers and how people write them.

A peer is an Ed25519 key; its id is SHA-256(context || public key), 32 bytes. People see base32 in groups of seven with
a check character after every thirteen (Luhn mod 32), so that a mistyped id is noticed rather than simply
unknown, and a short form of eight characters in tables. Nothing here reads entropy: random ids are made from bytes
that the caller drew from `seams.Entropy`.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NewType

from p2pcompute.model.errors import InvalidIdError

PeerId = NewType("PeerId", bytes)
NetworkId = NewType("NetworkId", bytes)
InvitationId = NewType("InvitationId", bytes)
JobId = NewType("JobId", bytes)
ProgramId = NewType("ProgramId", bytes)
BlobId = NewType("BlobId", bytes)
#: Number of a task within its job, from 0 for the first input; numbers from `REDUCE_BASE` up are reductions.
TaskIndex = NewType("TaskIndex", int)

PEER_ID_BYTES = 32
NETWORK_ID_BYTES = 32
INVITATION_ID_BYTES = 32
JOB_ID_BYTES = 12
BLOB_ID_BYTES = 32
REDUCE_BASE = 1 << 48

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_SEGMENT = 13
#: Behind the id of a coordinator, it makes the id of its seat.
_SEAT = b"\x01"
_GROUP = 7


def peer_id_of(public_key: bytes) -> PeerId:
    """The id of the peer that holds `public_key` (32 bytes, raw Ed25519)."""
    return PeerId(hashlib.sha256(b"p2pc-id" + public_key).digest())


def borrower_id_of(origin: PeerId, coordinator: PeerId) -> PeerId:
    """The id under which a lending peer keeps what `coordinator` sends in the name of `origin`: that of no peer."""
    return PeerId(hashlib.sha256(b"p2pc-borrower" + origin + coordinator).digest())


def network_id_of(owner_public_key: bytes) -> NetworkId:
    """The id of the network whose owner holds `owner_public_key` (32 bytes, raw Ed25519)."""
    return NetworkId(hashlib.sha256(b"p2pc-network" + owner_public_key).digest())


def invitation_id_of(invitation_public_key: bytes) -> InvitationId:
    """The id of an invitation: renewing it signs the same key again, so the id outlives the certificate."""
    return InvitationId(hashlib.sha256(b"p2pc-invitation" + invitation_public_key).digest())


def seat_of(coordinator: PeerId) -> PeerId:
    """The id under which an origin's machine knows `coordinator` as the seat of its whole community, beside itself as one lender of it."""
    return PeerId(coordinator + _SEAT)


def is_seat(peer: PeerId) -> bool:
    """Whether `peer` is the seat of a community rather than a peer."""
    return len(peer) > PEER_ID_BYTES


def coordinator_of(seat: PeerId) -> PeerId:
    """Who has this seat; a peer that is none, itself."""
    return PeerId(seat[:PEER_ID_BYTES])


def luhn32(text: str) -> str:
    """The check character of `text`, which is written in the base32 alphabet (Luhn algorithm, modulus 32)."""
    total = 0
    factor = 1
    for character in text:
        addend = factor * _ALPHABET.index(character)
        factor = 3 - factor
        total += addend // 32 + addend % 32
    return _ALPHABET[(32 - total % 32) % 32]


def format_peer_id(peer: PeerId) -> str:
    """`peer` as people read and type it: eight groups of seven characters, check characters included."""
    plain = base64.b32encode(peer).decode().rstrip("=")
    checked = "".join(
        plain[start : start + _SEGMENT] + luhn32(plain[start : start + _SEGMENT])
        for start in range(0, len(plain), _SEGMENT)
    )
    return "-".join(checked[start : start + _GROUP] for start in range(0, len(checked), _GROUP))


def short_peer_id(peer: PeerId) -> str:
    """The first eight characters of the id: for tables and logs, never for deciding."""
    return base64.b32encode(peer[:5]).decode()


def parse_peer_id(text: str) -> PeerId:
    """The id that `text` writes, spaces and dashes and case ignored, 0/1/8 read as O/I/B.

    Raises InvalidIdError, which names the group that is mistyped.
    """
    plain = "".join(text.upper().split()).replace("-", "")
    plain = plain.replace("0", "O").replace("1", "I").replace("8", "B")
    if len(plain) != 56 or any(character not in _ALPHABET for character in plain):
        raise InvalidIdError(f"a peer id has 56 letters and digits 2 to 7, this has {len(plain)}: {text!r}")
    segments = [plain[start : start + _SEGMENT + 1] for start in range(0, 56, _SEGMENT + 1)]
    for number, segment in enumerate(segments, 1):
        if luhn32(segment[:-1]) != segment[-1]:
            raise InvalidIdError(f"part {number} of 4 of this peer id is mistyped: {segment[:7]}-{segment[7:]}")
    return PeerId(base64.b32decode("".join(segment[:-1] for segment in segments) + "===="))


def format_job_id(job: JobId) -> str:
    """`job` as people type it: lower-case base32, 20 characters."""
    return base64.b32encode(job).decode().rstrip("=").lower()


def parse_job_id(text: str) -> JobId:
    """The id that `text` writes. Raises InvalidIdError."""
    plain = text.strip().upper()
    try:
        raw = base64.b32decode(plain + "=" * (-len(plain) % 8))
    except ValueError as error:
        raise InvalidIdError(f"a job id has 20 letters and digits 2 to 7: {text!r}") from error
    if len(raw) != JOB_ID_BYTES:
        raise InvalidIdError(f"a job id has 20 letters and digits 2 to 7: {text!r}")
    return JobId(raw)
