"""Signed delegations: whole, the origin's own, in time, and of one job."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, ProtocolError
from p2pcompute.model.ids import JobId, PeerId, ProgramId
from p2pcompute.model.peer import Role
from p2pcompute.wire.authority import open_network
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.delegation import (
    DELEGATION_CONTEXT,
    MANIFEST_CONTEXT,
    Delegation,
    Manifest,
    delegate,
    read_delegation,
)
from p2pcompute.wire.families import LINK_CODEC
from p2pcompute.wire.messages import Grant, JobOpen
from tests.support.networks import DAY_S, NOW, Member, make_member, make_network

NETWORK = make_network()
ANNA = make_member(NETWORK, "anna")
BERT = make_member(NETWORK, "bert")
MANIFEST = Manifest(JobId(b"j" * 12), NETWORK.network, ProgramId(b"p" * 32), 1_000, 5, 2.5, 1 << 30, NOW + 3_600)
DELEGATION = Delegation(JobId(b"s" * 12), BERT.key.peer_id, 3, 500, NOW + 3_600)


def given(manifest: Manifest = MANIFEST, delegation: Delegation = DELEGATION, origin: Member = ANNA) -> bytes:
    return delegate(origin.key, origin.membership, manifest, delegation)


def changed(place: int, change: Callable[[Any], Any], data: bytes | None = None) -> bytes:
    """A delegation one of whose parts is another: 0 version, 1 papers, 2 and 3 manifest, 4 and 5 delegation, with signatures."""
    parts = unpack(given() if data is None else data)
    parts[place] = change(parts[place])
    return pack(parts)


def resigned(manifest: dict[str, Any] | None = None, share: dict[str, Any] | None = None) -> bytes:
    """A delegation with other fields that the origin itself has signed."""
    version, papers, said, _, bound, _ = unpack(given())
    said = pack({**unpack(said), **(manifest or {})})
    bound = pack({**unpack(bound), "manifest": hashlib.sha256(said).digest(), **(share or {})})
    end = bytes([version])
    signed = ANNA.key.sign(MANIFEST_CONTEXT + end, said), ANNA.key.sign(DELEGATION_CONTEXT + end, bound)
    return pack([version, papers, said, signed[0], bound, signed[1]])


def reason_of(data: bytes, now_wall: float = NOW, **trust: Any) -> AdmissionReason:
    with pytest.raises(AdmissionError) as caught:
        read_delegation(data, BERT.trust(**trust), now_wall)
    return caught.value.reason


@pytest.mark.parametrize("manifest", [MANIFEST, dataclasses.replace(MANIFEST, timeout_s=None, memory_bytes=None)])
def test_a_delegation_comes_back_whole(manifest: Manifest) -> None:
    read = read_delegation(given(manifest), BERT.trust(), NOW)
    assert (read.manifest, read.delegation) == (manifest, DELEGATION)
    assert (read.origin.peer, read.origin.roles) == (ANNA.key.peer_id, ANNA.membership.roles)


def test_the_longest_papers_fit() -> None:
    admin = make_member(NETWORK, "admin", roles=frozenset(Role), may_invite=True)
    guest = make_member(admin.invitation, "guest", roles=frozenset({Role.SUBMIT}))
    assert len(guest.membership.chain) == 2
    data = given(origin=guest)
    assert len(data) < limits.DELEGATION_BYTES_MAX / 4
    read = read_delegation(data, BERT.trust(), NOW)
    assert (read.origin.peer, read.origin.roles) == (guest.key.peer_id, {Role.SUBMIT})


def test_fields_of_later_versions_do_no_harm() -> None:
    read = read_delegation(resigned({"colour": "green"}, {"depth": [1, {"x": 2}]}), BERT.trust(), NOW)
    assert (read.manifest, read.delegation) == (MANIFEST, DELEGATION)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(3, lambda signature: bytes(64)), "manifest that the peer"),
        (changed(5, lambda signature: bytes(64)), "delegation that the peer"),
        (changed(3, lambda _: BERT.key.sign(MANIFEST_CONTEXT + b"\1", unpack(given())[2])), "manifest that the peer"),
        (
            changed(5, lambda _: BERT.key.sign(DELEGATION_CONTEXT + b"\1", unpack(given())[4])),
            "delegation that the peer",
        ),
        (changed(5, lambda _: ANNA.key.sign(MANIFEST_CONTEXT + b"\1", unpack(given())[4])), "delegation that the peer"),
        (changed(4, lambda body: pack({**unpack(body), "tasks_max": 501})), "delegation that the peer"),
        (changed(2, lambda body: pack({**unpack(body), "priority": 9})), "another job"),
        (changed(2, lambda body: unpack(given(dataclasses.replace(MANIFEST, job=JobId(b"k" * 12))))[2]), "another job"),
        (changed(1, lambda _: [BERT.membership.leaf, *BERT.membership.chain]), "manifest that the peer"),
    ],
    ids=["blank", "blank-2", "other-key", "other-key-2", "other-context", "tasks", "priority", "job", "papers"],
)
def test_nobody_else_can_write_it(data: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        read_delegation(data, BERT.trust(), NOW)


def test_only_who_is_let_in_delegates() -> None:
    stranger = make_member(make_network("elsewhere"), "stranger")
    foreign = given(dataclasses.replace(MANIFEST, network=stranger.membership.network), origin=stranger)
    assert reason_of(foreign) is AdmissionReason.OTHER_NETWORK
    assert reason_of(resigned({"network": stranger.membership.network})) is AdmissionReason.OTHER_NETWORK
    papers = [stranger.membership.leaf, *stranger.membership.chain]
    assert reason_of(changed(1, lambda _: papers)) is AdmissionReason.OTHER_NETWORK
    assert reason_of(changed(1, lambda found: found[:1])) is AdmissionReason.NO_CERTIFICATE
    assert reason_of(changed(1, lambda found: [b"nonsense", *found[1:]])) is AdmissionReason.UNREADABLE
    revoked = NETWORK.revoke(None, invitations=[ANNA.invitation.id], now_wall=NOW)
    assert reason_of(given(), revocations=revoked) is AdmissionReason.REVOKED
    late = dataclasses.replace(MANIFEST, expires_wall=NOW + 800 * DAY_S)
    ended = given(late, dataclasses.replace(DELEGATION, expires_wall=NOW + 800 * DAY_S))
    assert reason_of(ended, NOW + 366 * DAY_S) is AdmissionReason.EXPIRED, "the membership has"


@pytest.mark.parametrize("which", ["manifest", "delegation"])
def test_a_delegation_ends_with_patience_for_clocks(which: str) -> None:
    end = NOW + 60.0
    data = (
        given(dataclasses.replace(MANIFEST, expires_wall=end))
        if which == "manifest"
        else given(delegation=dataclasses.replace(DELEGATION, expires_wall=end))
    )
    last = end + limits.DELEGATION_SKEW_MAX_S
    assert read_delegation(data, BERT.trust(), last).delegation.epoch == 3
    with pytest.raises(AdmissionError, match=which) as caught:
        read_delegation(data, BERT.trust(), last + 1)
    assert caught.value.reason is AdmissionReason.EXPIRED


@pytest.mark.parametrize(
    ("manifest", "share", "said"),
    [
        ({"priority": 10}, None, "priority"),
        ({"program_bytes": limits.PROGRAM_BYTES_MAX + 1}, None, "program_bytes"),
        ({"expires_wall": float("nan")}, None, "expires_wall"),
        ({"network": b"short"}, None, "network"),
        (None, {"tasks_max": 0}, "tasks_max"),
        (None, {"epoch": -1}, "epoch"),
        (None, {"coordinator": b"x" * 31}, "coordinator"),
        (None, {"manifest": b"x" * 32}, "another job"),
    ],
)
def test_what_makes_no_sense_is_refused_whoever_signed_it(
    manifest: dict[str, Any] | None, share: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(ProtocolError, match=said):
        read_delegation(resigned(manifest, share), BERT.trust(), NOW)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pack({}),
        pack([1]),
        changed(0, lambda _: "1"),
        changed(0, lambda _: 2),
        changed(1, lambda _: []),
        changed(1, lambda found: [*found, *found, *found]),
        changed(1, lambda found: [1, *found[1:]]),
        changed(3, lambda signature: signature[:-1]),
        pack([1, [], *[b"x" * limits.DELEGATION_BYTES_MAX] * 4]),
    ],
    ids=["empty", "map", "short", "version", "later", "bare", "papers", "number", "signature", "long"],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_delegation(data, BERT.trust(), NOW)


def test_in_an_open_network_an_origin_has_no_role() -> None:
    network = open_network("playground")
    anna, bert = make_member(network, "anna"), make_member(network, "bert")
    data = given(dataclasses.replace(MANIFEST, network=network.network), origin=anna)
    assert read_delegation(data, bert.trust(), NOW).origin.roles == frozenset()


def test_messages_carry_it_and_say_nothing_where_there_is_none() -> None:
    opened = JobOpen(b"s" * 12, b"p" * 32, 10, "name", 5)
    for message in (dataclasses.replace(opened, delegation=given()), Grant(3, bytes(PeerId(b"o" * 32)))):
        assert LINK_CODEC.decode(LINK_CODEC.encode(message)) == message
    assert set(unpack(LINK_CODEC.encode(Grant(3)))[1]) == {"slots"}, "the former version's words"
    assert not {"delegation"} & set(unpack(LINK_CODEC.encode(opened))[1])
    with pytest.raises(ProtocolError, match="delegation"):
        LINK_CODEC.decode(
            LINK_CODEC.encode(dataclasses.replace(opened, delegation=bytes(limits.DELEGATION_BYTES_MAX + 1)))
        )
    with pytest.raises(ProtocolError, match="origin"):
        LINK_CODEC.decode(LINK_CODEC.encode(Grant(3, b"short")))
