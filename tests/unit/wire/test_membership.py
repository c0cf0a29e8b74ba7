"""Membership of one peer, and its judgement of others. The refusals themselves: tests/unit/net/test_admission.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pcompute.model.errors import AdmissionError, AdmissionReason, PeerError, UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.wire.authority import open_network
from p2pcompute.wire.certificates import read_certificate
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Membership, Trust
from p2pcompute.wire.revocation import RevocationList
from tests.support.networks import DAY_S, NOW, SeededEntropy, make_member, make_network

ENTROPY = SeededEntropy("membership")
NETWORK = make_network()
ANNA = make_member(NETWORK, "anna")
BERT = make_member(NETWORK, "bert")


def test_a_leaf_is_over_the_peers_own_key_and_ends_with_the_invitation() -> None:
    leaf = read_certificate(ANNA.membership.leaf)
    assert leaf.peer == ANNA.key.peer_id
    assert leaf.window == ANNA.invitation.lineage.window
    assert leaf.notes.roles == frozenset(), "a leaf says nothing about roles"
    assert ANNA.membership.expires_wall == ANNA.invitation.expires_wall
    assert ANNA.membership.invitation == ANNA.invitation.id
    assert ANNA.membership.network_name == "home"
    assert ANNA.invitation.key.raw.hex() not in repr(ANNA.membership)


def test_one_invitation_makes_many_peers_that_count_as_one() -> None:
    trust = BERT.trust()
    admitted = []
    for _ in range(3):
        key = PeerKey.generate(ENTROPY)
        membership = Membership.mint(key, ANNA.invitation, NOW, ENTROPY)
        admitted.append(trust.admit(membership.leaf, membership.chain, NOW, expected=key.peer_id))
    assert len({each.peer for each in admitted}) == 3
    assert {each.invitation for each in admitted} == {ANNA.invitation.id}


def test_an_ended_invitation_makes_no_member() -> None:
    with pytest.raises(AdmissionError) as caught:
        Membership.mint(ANNA.key, ANNA.invitation, NOW + 366 * DAY_S, ENTROPY)
    assert caught.value.reason is AdmissionReason.EXPIRED


def test_renewal_is_due_from_a_third_of_the_life() -> None:
    life_s = 365 * DAY_S  # the day before, from which on it is valid, does not count
    end = ANNA.membership.expires_wall
    assert not ANNA.membership.needs_renewal(NOW)
    assert not ANNA.membership.needs_renewal(end - life_s / 3 - 1)
    assert ANNA.membership.needs_renewal(end - life_s / 3 + 1)
    assert ANNA.membership.needs_renewal(end + 1)


def test_a_renewed_membership_lasts_as_long_as_its_renewal() -> None:
    later = NOW + 300 * DAY_S
    der = NETWORK.renew(ANNA.membership.chain[0], later, 365 * DAY_S, ENTROPY)
    renewed = ANNA.membership.renewed(der)
    assert renewed.expires_wall == later + 365 * DAY_S
    assert renewed.public_key == ANNA.key.public_key
    assert renewed.leaf != ANNA.membership.leaf
    for now in (later, later + 364 * DAY_S):
        admitted = BERT.trust().admit(renewed.leaf, renewed.chain, now, expected=ANNA.key.peer_id)
        assert admitted.expires_wall == renewed.expires_wall
    # The old leaf still ends when it said.
    with pytest.raises(AdmissionError, match="expired"):
        BERT.trust().admit(ANNA.membership.leaf, renewed.chain, NOW + 370 * DAY_S, expected=None)


def test_trust_reads_renewals_of_its_own_network_only() -> None:
    der = NETWORK.renew(ANNA.membership.chain[0], NOW, 400 * DAY_S, ENTROPY)
    renewal = BERT.trust().renewal(der, NOW)
    assert (renewal.invitation, renewal.expires_wall) == (ANNA.invitation.id, NOW + 400 * DAY_S)
    revoked = NETWORK.revoke(None, invitations=[ANNA.invitation.id], now_wall=NOW)
    stranger = make_network("elsewhere").invite(now_wall=NOW, entropy=ENTROPY)
    for trust, wrong, now, reason in [
        (BERT.trust(), stranger.chain[0], NOW, AdmissionReason.OTHER_NETWORK),
        (BERT.trust(), der, NOW + 401 * DAY_S, AdmissionReason.EXPIRED),
        (BERT.trust(revoked), der, NOW, AdmissionReason.REVOKED),
        (BERT.trust(), ANNA.membership.leaf, NOW, AdmissionReason.LEAF_SIGNS),
    ]:
        with pytest.raises(AdmissionError) as caught:
            trust.renewal(wrong, now)
        assert caught.value.reason is reason
    with pytest.raises(PeerError):
        BERT.trust().renewal(b"nonsense", NOW)


def test_a_member_moves_to_an_appointed_owner_and_to_no_other() -> None:
    owner = NETWORK.successor(SeededEntropy("successor"), NOW)
    third = owner.successor(SeededEntropy("third"), NOW)
    both = ANNA.membership.trusting(owner.certificate)
    assert both.owners == (NETWORK.certificate, owner.certificate)
    assert both.trusting(owner.certificate) is both
    moved = both.renewed(owner.renew(ANNA.membership.chain[0], NOW, 400 * DAY_S, ENTROPY))
    assert moved.invited.owner == owner.certificate
    assert moved.network == NETWORK.network
    # At most two are trusted: the first owner's time is over.
    assert moved.trusting(third.certificate).owners == (owner.certificate, third.certificate)
    for wrong in (make_network("elsewhere"), open_network("home")):
        with pytest.raises(AdmissionError, match="not appointed"):
            ANNA.membership.trusting(wrong.certificate)


def test_during_a_succession_guests_of_both_owners_are_admitted() -> None:
    owner = NETWORK.successor(SeededEntropy("successor"), NOW)
    new = make_member(owner, "new")
    with pytest.raises(AdmissionError) as caught:
        ANNA.trust().admit(new.membership.leaf, new.membership.chain, NOW, expected=None)
    assert caught.value.reason is AdmissionReason.OTHER_NETWORK
    trust = ANNA.membership.trusting(owner.certificate).trust(None)
    for member in (new, BERT):
        assert (
            trust.admit(member.membership.leaf, member.membership.chain, NOW, expected=None).peer == member.key.peer_id
        )


def test_trust_takes_newer_lists_only() -> None:
    first = NETWORK.revoke(None, invitations=[ANNA.invitation.id], now_wall=NOW)
    second = NETWORK.revoke(first, invitations=[BERT.invitation.id], now_wall=NOW)
    trust = BERT.trust().with_revocations(second)
    assert trust.revocations == second
    assert trust.with_revocations(first) is trust
    elsewhere = make_network("x")
    stranger = elsewhere.revoke(None, invitations=[ANNA.invitation.id], now_wall=NOW + DAY_S)
    assert trust.with_revocations(stranger) is trust


def test_in_an_open_network_no_list_counts() -> None:
    network = open_network("playground")
    anna, bert = make_member(network, "anna"), make_member(network, "bert")
    forged = RevocationList.sign(network.key, network.network, 10**15, [anna.invitation.id], [anna.key.peer_id])
    for trust in (bert.trust().with_revocations(forged), bert.trust(forged)):
        admitted = trust.admit(anna.membership.leaf, anna.membership.chain, NOW, expected=None)
        assert admitted.roles == frozenset()


def test_trust_is_of_one_network_with_one_or_two_owners() -> None:
    other = make_network("elsewhere")
    for owners in ((), (other.certificate,), (NETWORK.certificate,) * 3, (NETWORK.certificate, other.certificate)):
        with pytest.raises(UsageError):
            Trust(NETWORK.network, owners, None, False)


def test_each_end_counts_and_every_refusal_names_the_peer() -> None:
    trust = BERT.trust()
    for now, reason in [(NOW + 366 * DAY_S, AdmissionReason.EXPIRED), (NOW - 2 * DAY_S, AdmissionReason.NOT_YET_VALID)]:
        with pytest.raises(AdmissionError, match="clock") as caught:
            trust.admit(ANNA.membership.leaf, ANNA.membership.chain, now, expected=None)
        assert caught.value.reason is reason
        assert caught.value.origin.startswith("peer ")


@pytest.mark.parametrize(
    ("leaf", "chain", "reason"),
    [
        (b"", ANNA.membership.chain, AdmissionReason.NO_CERTIFICATE),
        (b"noise", ANNA.membership.chain, AdmissionReason.UNREADABLE),
        (ANNA.membership.leaf, (b"noise",), AdmissionReason.UNREADABLE),
        (ANNA.membership.leaf, (), AdmissionReason.NO_CERTIFICATE),
        (ANNA.membership.leaf, BERT.membership.chain, AdmissionReason.FOREIGN_AUTHORITY),
        (ANNA.membership.leaf, (ANNA.membership.leaf,), AdmissionReason.LEAF_SIGNS),
        (ANNA.membership.leaf, (*ANNA.membership.chain, *BERT.membership.chain), AdmissionReason.INVITATION_SIGNS),
        (ANNA.membership.leaf, ANNA.membership.chain * 50, AdmissionReason.INVITATION_SIGNS),
        (NETWORK.certificate, (NETWORK.certificate,), AdmissionReason.NOT_ALLOWED),
        (ANNA.membership.leaf, (NETWORK.certificate,), AdmissionReason.FOREIGN_AUTHORITY),
    ],
)
def test_nonsense_is_refused_with_a_reason(leaf: bytes, chain: tuple[bytes, ...], reason: AdmissionReason) -> None:
    with pytest.raises(AdmissionError) as caught:
        BERT.trust().admit(leaf, chain, NOW, expected=None)
    assert caught.value.reason is reason


def test_who_was_dialled_must_answer() -> None:
    with pytest.raises(AdmissionError) as caught:
        BERT.trust().admit(ANNA.membership.leaf, ANNA.membership.chain, NOW, expected=PeerId(bytes(32)))
    assert caught.value.reason is AdmissionReason.WRONG_PEER


def test_an_equal_membership_is_equal() -> None:
    assert replace(ANNA.membership) == ANNA.membership
    assert ANNA.membership != BERT.membership
