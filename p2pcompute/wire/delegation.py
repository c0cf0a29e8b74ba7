"""What an origin signs when somebody else hands out its work: the manifest of a job, and the delegation of a share of it.

The manifest says what may run in the origin's name: one program under fixed limits. A delegation gives one share of that job to
one coordinator; it names the manifest by its digest. Both are signed by the origin's key and travel in one piece with its
papers, so whoever gets them needs no word of the coordinator, and no link to the origin.

On the wire: msgpack [version, [leaf, invitations …], manifest, signature, delegation, signature]; each signature is over a
prefix, the version and the document's bytes as received, so fields of later versions survive. Refuses to know: what the origin
may do (the caller asks for its roles), and which delegation has superseded which (`jobs/fencing.py`).

A peer's bytes can cause only AdmissionError and ProtocolError here (fuzzed in tests/fuzz).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, ProtocolError
from p2pcompute.model.ids import (
    BLOB_ID_BYTES,
    JOB_ID_BYTES,
    NETWORK_ID_BYTES,
    PEER_ID_BYTES,
    JobId,
    NetworkId,
    PeerId,
    ProgramId,
    short_peer_id,
)
from p2pcompute.wire.chain import INVITATIONS_MAX
from p2pcompute.wire.codec import Maybe, Raw, Real, Schema, Whole, pack, unpack
from p2pcompute.wire.identity import SIGNATURE_BYTES, PeerKey, verify_signature
from p2pcompute.wire.membership import Admitted, Membership, Trust

#: Prefixes of what is signed: neither document passes for the other, nor for anything else.
MANIFEST_CONTEXT = b"p2pc-manifest-v1\0"
DELEGATION_CONTEXT = b"p2pc-delegation-v1\0"

_VERSION = 1
_DIGEST_BYTES = 32
_WALL = Real(0, 1e12)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one job of an origin may run: its program and its limits. `expires_wall`: seconds since 1970."""

    job: Annotated[JobId, Raw(JOB_ID_BYTES, JOB_ID_BYTES)]
    network: Annotated[NetworkId, Raw(NETWORK_ID_BYTES, NETWORK_ID_BYTES)]
    program: Annotated[ProgramId, Raw(BLOB_ID_BYTES, BLOB_ID_BYTES)]
    program_bytes: Annotated[int, Whole(0, limits.PROGRAM_BYTES_MAX)]
    priority: Annotated[int, Whole(0, 9)]
    timeout_s: Annotated[float | None, Maybe(Real(0, 1e9))]
    memory_bytes: Annotated[int | None, Maybe(Whole(0, 1 << 60))]
    expires_wall: Annotated[float, _WALL]


@dataclass(frozen=True, slots=True)
class Delegation:
    """Who hands out one share of a job. `share`: the id under which it does; `tasks_max`: how many tasks the share has at most.

    `epoch`: rises within one job whenever work goes to another coordinator than before. `expires_wall`: seconds since 1970.
    """

    share: Annotated[JobId, Raw(JOB_ID_BYTES, JOB_ID_BYTES)]
    coordinator: Annotated[PeerId, Raw(PEER_ID_BYTES, PEER_ID_BYTES)]
    epoch: Annotated[int, Whole()]
    tasks_max: Annotated[int, Whole(1)]
    expires_wall: Annotated[float, _WALL]


@dataclass(frozen=True, slots=True)
class _Bound:
    """A delegation with the SHA-256 digest of its manifest's bytes, as it is signed."""

    manifest: Annotated[bytes, Raw(_DIGEST_BYTES, _DIGEST_BYTES)]
    share: Annotated[bytes, Raw(JOB_ID_BYTES, JOB_ID_BYTES)]
    coordinator: Annotated[bytes, Raw(PEER_ID_BYTES, PEER_ID_BYTES)]
    epoch: Annotated[int, Whole()]
    tasks_max: Annotated[int, Whole(1)]
    expires_wall: Annotated[float, _WALL]


_MANIFEST = Schema(Manifest)
_BOUND = Schema(_Bound)


@dataclass(frozen=True, slots=True)
class Delegated:
    """A delegation that was checked, with its manifest. `origin`: who signed both, and what its papers allow it."""

    origin: Admitted
    manifest: Manifest
    delegation: Delegation


def delegate(key: PeerKey, papers: Membership, manifest: Manifest, delegation: Delegation) -> bytes:
    """Both documents signed by `key`, with the origin's `papers`: at most `limits.DELEGATION_BYTES_MAX` bytes."""
    assert papers.public_key == key.public_key, "an origin shows its own papers"
    assert papers.network == manifest.network, "an origin delegates within its own network"
    said = pack(_MANIFEST.to_fields(manifest))
    bound = _Bound(
        hashlib.sha256(said).digest(),
        delegation.share,
        delegation.coordinator,
        delegation.epoch,
        delegation.tasks_max,
        delegation.expires_wall,
    )
    given = pack(_BOUND.to_fields(bound))
    version = bytes([_VERSION])
    data = pack(
        [
            _VERSION,
            [papers.leaf, *papers.chain],
            said,
            key.sign(MANIFEST_CONTEXT + version, said),
            given,
            key.sign(DELEGATION_CONTEXT + version, given),
        ]
    )
    assert len(data) <= limits.DELEGATION_BYTES_MAX, "three certificates at their limit and both documents fit"
    return data


def read_delegation(data: bytes, trust: Trust, now_wall: float) -> Delegated:
    """The delegation in `data`, all that can be checked without asking anybody checked by `trust`.

    Raises AdmissionError where its origin is not let in, it is another network's or it has ended; ProtocolError where it makes
    no sense or a signature is wrong.
    """
    version, papers, said, said_signature, given, given_signature = _parts(data)
    manifest = _MANIFEST.from_fields(unpack(said, bytes_max=limits.DELEGATION_BYTES_MAX))
    bound = _BOUND.from_fields(unpack(given, bytes_max=limits.DELEGATION_BYTES_MAX))
    if bound.manifest != hashlib.sha256(said).digest():
        raise ProtocolError("a delegation of another job than the manifest beside it")
    if manifest.network != trust.network:
        raise AdmissionError(
            AdmissionReason.OTHER_NETWORK, "a delegation for another network than this peer's: submit the job there"
        )
    _check_end("manifest", manifest.expires_wall, now_wall)
    _check_end("delegation", bound.expires_wall, now_wall)
    origin = trust.admit(papers[0], papers[1:], now_wall, expected=None)
    signed = (
        ("manifest", MANIFEST_CONTEXT, said, said_signature),
        ("delegation", DELEGATION_CONTEXT, given, given_signature),
    )
    for what, context, document, signature in signed:
        if not verify_signature(origin.public_key, context + bytes([version]), document, signature):
            raise ProtocolError(
                f"a {what} that the peer whose papers are beside it has not signed",
                f"peer {short_peer_id(origin.peer)}",
            )
    delegation = Delegation(
        JobId(bound.share), PeerId(bound.coordinator), bound.epoch, bound.tasks_max, bound.expires_wall
    )
    return Delegated(origin, manifest, delegation)


def _parts(data: bytes) -> tuple[int, list[bytes], bytes, bytes, bytes, bytes]:
    """Version, certificates, and both documents with their signatures, none of them read yet. Raises ProtocolError."""
    parts: Any = unpack(data, bytes_max=limits.DELEGATION_BYTES_MAX)
    if (
        type(parts) is not list
        or len(parts) != 6
        or type(parts[0]) is not int
        or type(parts[1]) is not list
        or not 1 <= len(parts[1]) <= 1 + INVITATIONS_MAX
        or any(type(each) is not bytes for each in (*parts[1], *parts[2:]))
        or len(parts[3]) != SIGNATURE_BYTES
        or len(parts[5]) != SIGNATURE_BYTES
    ):
        raise ProtocolError("a delegation is [version, certificates, manifest, signature, delegation, signature]")
    if parts[0] != _VERSION:
        raise ProtocolError(f"a delegation of version {parts[0]}, this peer reads {_VERSION}: upgrade the older one")
    return parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]


def _check_end(what: str, expires_wall: float, now_wall: float) -> None:
    late_s = now_wall - expires_wall - limits.DELEGATION_SKEW_MAX_S
    if late_s > 0:
        raise AdmissionError(
            AdmissionReason.EXPIRED,
            f"the {what} of a job ended {now_wall - expires_wall:.0f} s ago by this machine's clock: submit the job again, "
            "or set the clock",
        )
