"""Owning a network: making it, keeping it, handing it on, and the list of the revoked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, CorruptFileError, ProtocolError, UsageError
from p2pcompute.model.ids import InvitationId, PeerId, network_id_of
from p2pcompute.wire.authority import Authority, open_network
from p2pcompute.wire.certificates import Notes, Window, build_certificate
from p2pcompute.wire.chain import network_of, read_owner
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.revocation import RevocationList
from tests.support.networks import DAY_S, NOW, SeededEntropy, make_member, make_network

NETWORK = make_network()
PASSPHRASE = "correct horse"
EXPORTED = NETWORK.export(PASSPHRASE, SeededEntropy("export"))
SOMEBODY, SOMEBODY_ELSE = InvitationId(bytes(32)), InvitationId(b"\1" * 32)


# --- making and keeping -----------------------------------------------------------------------------------------------


def test_a_network_is_its_owners_key() -> None:
    assert NETWORK.network == network_id_of(NETWORK.key.public_key)
    assert NETWORK.name == "home"
    assert not NETWORK.is_open
    assert NETWORK.expires_wall > NOW + 20 * 365 * DAY_S
    assert make_network("other").network != NETWORK.network


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "tab\there", "\x1b[2J"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        Authority.create(name, SeededEntropy("x"), NOW)


def test_an_authority_survives_its_file() -> None:
    again = Authority.from_bytes(NETWORK.to_bytes())
    assert again == NETWORK
    assert again.certificate == NETWORK.certificate


def test_a_damaged_file_says_so_and_what_to_do() -> None:
    content = NETWORK.to_bytes()
    other = make_network("other").to_bytes()
    key_and_wrong_certificate = content[:-300] + other[-300:]
    for broken in (b"", b"x", content[:-1], content[:60], content + b"x", key_and_wrong_certificate):
        with pytest.raises(CorruptFileError, match="left as it is"):
            Authority.from_bytes(broken)


def test_an_export_opens_with_its_passphrase_only() -> None:
    assert NETWORK.key.raw not in EXPORTED
    assert Authority.import_(EXPORTED, PASSPHRASE) == NETWORK
    with pytest.raises(UsageError, match="wrong passphrase"):
        Authority.import_(EXPORTED, PASSPHRASE + " ")


def test_letters_written_in_two_ways_are_one_passphrase() -> None:
    exported = NETWORK.export("caf\u00e9 cr\u00e8me", SeededEntropy("export"))
    assert Authority.import_(exported, "cafe\u0301 cre\u0300me") == NETWORK


def test_a_damaged_export_is_told_apart_from_a_wrong_passphrase() -> None:
    for broken in (EXPORTED[:-1], EXPORTED[:50], EXPORTED[:-20] + b"x" + EXPORTED[-19:], EXPORTED + b"x"):
        with pytest.raises(CorruptFileError, match="damaged"):
            Authority.import_(broken, PASSPHRASE)
    for other in (b"", b"x" * 200, NETWORK.to_bytes()):
        with pytest.raises(CorruptFileError, match="not an exported"):
            Authority.import_(other, PASSPHRASE)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 8"):
        NETWORK.export("short", SeededEntropy("x"))


# --- open networks ----------------------------------------------------------------------------------------------------


def test_an_open_network_is_the_same_in_another_process() -> None:
    code = "import sys; from p2pcompute.wire.authority import open_network; sys.stdout.write(open_network('Zürich').certificate.hex())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert open_network("Zürich").certificate.hex() == there


def test_an_open_network_is_its_name() -> None:
    one, other = open_network("playground"), open_network("playgrounds")
    assert one.is_open
    assert one.network != other.network
    assert open_network("Zu\u0308rich").network == open_network("Zürich").network
    # Written down: every machine, version and library must build these bytes.
    assert one.network.hex() == "27fa08da6cf5f022d9c0905f710586a530205a8f234441f849519914a36fc0c4"
    with pytest.raises(UsageError):
        open_network("")


def test_whoever_calls_a_network_like_an_open_one_has_not_opened_it() -> None:
    assert not Authority.create("playground", SeededEntropy("x"), NOW).is_open


def test_nobody_is_revoked_nor_replaced_in_an_open_network() -> None:
    with pytest.raises(UsageError, match="open network"):
        open_network("playground").revoke(None, invitations=[SOMEBODY], now_wall=NOW)
    with pytest.raises(UsageError, match="open network"):
        open_network("playground").successor(SeededEntropy("x"), NOW)


# --- succession -------------------------------------------------------------------------------------------------------


def test_a_network_keeps_its_id_through_all_its_owners() -> None:
    owner = NETWORK
    for number in range(limits.SUCCESSIONS_MAX):
        owner = owner.successor(SeededEntropy(f"successor {number}"), NOW)
        assert owner.network == NETWORK.network
        assert owner.name == NETWORK.name
        assert Authority.from_bytes(owner.to_bytes()) == owner
    assert len(owner.certificate) < limits.CERTIFICATE_BYTES_MAX
    with pytest.raises(UsageError, match="new network"):
        owner.successor(SeededEntropy("one more"), NOW)


def test_nobody_appoints_himself() -> None:
    thief = make_network("thief")
    for proof in (
        bytes(64),
        thief.key.sign(b"", thief.key.public_key),
        thief.key.sign(b"p2pc-succession-v1\0", thief.key.public_key),
    ):
        forged = build_certificate(
            name="home",
            public_key=thief.key.public_key,
            signer=thief.key,
            issuer=None,
            window=Window.starting(NOW, DAY_S),
            serial=1,
            path_length=2,
            notes=Notes(succession=((NETWORK.key.public_key, proof),)),
        )
        with pytest.raises(ProtocolError, match="appoint"):
            read_owner(forged)


def test_an_invitation_is_no_owner() -> None:
    member = make_member(NETWORK, "anna", may_invite=True)
    for der in (member.membership.leaf, member.membership.chain[0], b""):
        with pytest.raises(ProtocolError):
            read_owner(der)
    assert network_of(read_owner(NETWORK.certificate)) == NETWORK.network


# --- revocation -------------------------------------------------------------------------------------------------------


def test_revocations_add_up_under_rising_numbers() -> None:
    first = NETWORK.revoke(None, invitations=[SOMEBODY], now_wall=NOW)
    second = NETWORK.revoke(first, invitations=[SOMEBODY_ELSE], peers=[PeerId(bytes(32))], now_wall=NOW)
    third = NETWORK.revoke(second, now_wall=NOW - 900 * DAY_S)
    assert first.number < second.number < third.number
    assert second.invitations == third.invitations == {SOMEBODY, SOMEBODY_ELSE}
    assert third.peers == {bytes(32)}
    assert second.newer_than(first)
    assert not first.newer_than(second)
    assert not first.newer_than(first)
    assert first.newer_than(None)


def test_numbers_rise_even_where_the_list_was_lost() -> None:
    first = NETWORK.revoke(None, invitations=[SOMEBODY], now_wall=NOW)
    assert NETWORK.revoke(None, invitations=[SOMEBODY], now_wall=NOW + 1).newer_than(first)


def test_two_lists_of_one_number_have_one_winner() -> None:
    one = NETWORK.revoke(None, invitations=[SOMEBODY], now_wall=NOW)
    other = NETWORK.revoke(None, invitations=[SOMEBODY_ELSE], now_wall=NOW)
    assert one.number == other.number
    assert one.newer_than(other) != other.newer_than(one)


def test_a_list_is_opened_by_what_its_owner_signed_only() -> None:
    signed = NETWORK.revoke(None, invitations=[SOMEBODY], peers=[PeerId(b"\2" * 32)], now_wall=NOW)
    assert RevocationList.open(signed.wire, [NETWORK.certificate]) == signed
    assert RevocationList.open(signed.wire, [make_network("x").certificate, NETWORK.certificate]) == signed
    for owners in ([], [make_network("x").certificate]):
        with pytest.raises(ProtocolError, match="no owner"):
            RevocationList.open(signed.wire, owners)
    for place in range(len(signed.wire)):
        damaged = bytearray(signed.wire)
        damaged[place] ^= 1
        with pytest.raises(ProtocolError):
            RevocationList.open(bytes(damaged), [NETWORK.certificate])


def test_a_successors_list_counts_and_follows_its_predecessors() -> None:
    owner = NETWORK.successor(SeededEntropy("successor"), NOW)
    first = NETWORK.revoke(None, invitations=[SOMEBODY], now_wall=NOW)
    second = owner.revoke(first, invitations=[SOMEBODY_ELSE], now_wall=NOW)
    opened = RevocationList.open(second.wire, [NETWORK.certificate, owner.certificate])
    assert opened.newer_than(first)
    assert opened.invitations == {SOMEBODY, SOMEBODY_ELSE}


def test_a_true_signature_under_a_list_of_another_network_or_version_is_refused() -> None:
    signed = NETWORK.revoke(None, invitations=[SOMEBODY], now_wall=NOW)
    elsewhere = RevocationList.sign(NETWORK.key, make_network("x").network, 1, [SOMEBODY], [])
    with pytest.raises(ProtocolError, match="another network"):
        RevocationList.open(elsewhere.wire, [NETWORK.certificate])
    version, *rest = unpack(signed.wire)
    with pytest.raises(ProtocolError, match="upgrade"):
        RevocationList.open(pack([version + 1, *rest]), [NETWORK.certificate])
    with pytest.raises(UsageError, match="another network"):
        make_network("x").revoke(signed, invitations=[SOMEBODY], now_wall=NOW)


def test_the_longest_list_fits_into_a_frame_and_one_more_is_refused() -> None:
    many = [InvitationId(number.to_bytes(32)) for number in range(limits.REVOCATIONS_MAX)]
    peers = [PeerId(entry) for entry in many]
    longest = NETWORK.revoke(None, invitations=many, peers=peers, now_wall=NOW)
    assert len(longest.wire) < limits.FRAME_BYTES_MAX
    assert RevocationList.open(longest.wire, [NETWORK.certificate]) == longest
    with pytest.raises(UsageError, match="more than"):
        NETWORK.revoke(longest, invitations=[InvitationId(b"\xff" * 32)], now_wall=NOW)


def test_a_renewed_invitation_stays_revoked() -> None:
    member = make_member(NETWORK, "anna")
    other = make_member(NETWORK, "bert")
    revoked = NETWORK.revoke(None, invitations=[member.invitation.id], now_wall=NOW)
    renewed = member.membership.renewed(NETWORK.renew(member.invitation.chain[0], NOW, 400 * DAY_S, SeededEntropy("r")))
    with pytest.raises(AdmissionError, match="revoked"):
        other.trust(revoked).admit(renewed.leaf, renewed.chain, NOW, expected=None)
