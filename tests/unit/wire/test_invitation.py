"""Invitations and their tokens."""

from __future__ import annotations

import base64
import hashlib

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, ProtocolError, UsageError
from p2pcompute.model.peer import DEFAULT_ROLES, Address, Role
from p2pcompute.wire.authority import open_network
from p2pcompute.wire.certificates import Notes, Window, build_certificate, read_certificate
from p2pcompute.wire.codec import pack
from p2pcompute.wire.invitation import Invitation
from tests.support.networks import DAY_S, NOW, SeededEntropy, make_network

ENTROPY = SeededEntropy("invitation")
NETWORK = make_network()
ADDRESSES = (Address("192.168.1.20", 9876), Address("fe80::1", 9876), Address("peer.example", 9880))
INVITATION = NETWORK.invite(now_wall=NOW, entropy=ENTROPY, addresses=ADDRESSES, label="Anna's laptop")
TOKEN = INVITATION.token()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def unreadable(text: str, words: str) -> None:
    with pytest.raises(AdmissionError, match=words) as caught:
        Invitation.from_token(text, NOW)
    assert caught.value.reason is AdmissionReason.UNREADABLE


def spell(fields: dict[str, object]) -> str:
    """A token with these fields and a right checksum."""
    body = pack(fields)
    framed = len(body).to_bytes(2) + body
    check = hashlib.sha256(b"p2pc-token" + framed).digest()[:6]
    return "p2pc1-" + base64.urlsafe_b64encode(framed + check).decode().rstrip("=")


def fields_of(invitation: Invitation) -> dict[str, object]:
    return {"key": invitation.key.raw, "chain": list(invitation.chain), "owner": invitation.owner}


def test_a_token_holds_the_whole_invitation() -> None:
    read = Invitation.from_token(TOKEN, NOW)
    assert read == INVITATION
    assert read.network == NETWORK.network
    assert read.network_name == "home"
    assert read.roles == DEFAULT_ROLES
    assert read.expires_wall == NOW + 365 * DAY_S
    assert read.addresses == ADDRESSES
    assert read.label == "Anna's laptop"
    assert read.id == INVITATION.id
    assert not read.is_open
    assert read.token() == TOKEN


def test_a_token_is_one_line_of_bearable_length() -> None:
    assert TOKEN.startswith("p2pc1-")
    assert set(TOKEN) <= set(LETTERS)
    assert len(TOKEN) < 1_300
    full = NETWORK.invite(now_wall=NOW, entropy=ENTROPY, addresses=(Address("f" * 39, 65535),) * limits.ADDRESSES_MAX)
    assert len(full.token()) < limits.TOKEN_CHARS_MAX


@pytest.mark.parametrize("wrap", ["  {}\n", '"{}"', "`{}`", "<{}>", "\u201c{}\u201d"])
def test_what_pasting_adds_does_not_matter(wrap: str) -> None:
    assert Invitation.from_token(wrap.format(TOKEN), NOW) == INVITATION


def test_a_token_broken_into_lines_is_whole_again() -> None:
    lines = "\r\n  ".join(TOKEN[start : start + 76] for start in range(0, len(TOKEN), 76))
    assert Invitation.from_token(lines, NOW) == INVITATION


def test_no_token_with_one_letter_changed_is_taken() -> None:
    for place in range(len(TOKEN)):
        old = TOKEN[place]
        for new in (LETTERS[(LETTERS.index(old) + 1) % 64], "A" if old != "A" else "B", old.swapcase(), "!"):
            if new == old:
                continue
            with pytest.raises(AdmissionError) as caught:
                Invitation.from_token(TOKEN[:place] + new + TOKEN[place + 1 :], NOW)
            assert caught.value.reason is AdmissionReason.UNREADABLE


def test_every_last_letter_but_one_is_refused() -> None:
    # Base64 has letters whose last bits mean nothing.
    taken = []
    for letter in LETTERS:
        try:
            Invitation.from_token(TOKEN[:-1] + letter, NOW)
        except AdmissionError:
            continue
        taken.append(letter)
    assert taken == [TOKEN[-1]]


def test_no_cut_off_token_is_taken_and_its_end_is_missed() -> None:
    for length in range(len("p2pc1-") + 4, len(TOKEN)):
        unreadable(TOKEN[:length], "end is missing")


def test_a_token_with_something_behind_it_is_refused() -> None:
    for more in ("A", "AAAA", TOKEN):
        unreadable(TOKEN + more, "mistyped|end is missing")
    unreadable(TOKEN * 9, "longer than")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "whole line"),
        ("hello", "whole line"),
        (TOKEN[1:], "whole line"),
        ("p2pc1-", "end is missing"),
        ("p2pc2-" + TOKEN[6:], "later version"),
        ("p2pc0-" + TOKEN[6:], "whole line"),
        (TOKEN[:50] + "*" + TOKEN[50:], "no token does"),
        (TOKEN[:50] + "é" + TOKEN[50:], "no token does"),
        (TOKEN[:50] + TOKEN[51] + TOKEN[50] + TOKEN[52:], "mistyped"),
    ],
)
def test_what_is_wrong_with_a_token_is_said(text: str, words: str) -> None:
    unreadable(text, words)


def test_a_token_with_the_right_checksum_and_a_wrong_content_is_refused() -> None:
    other = NETWORK.invite(now_wall=NOW, entropy=ENTROPY)
    true = fields_of(INVITATION)
    assert Invitation.from_token(spell(true), NOW).id == INVITATION.id
    unreadable(spell({**true, "key": other.key.raw}), "belong together")
    unreadable(spell({**true, "chain": [b"x"]}), "makes no sense")
    unreadable(spell({**true, "owner": INVITATION.chain[0]}), "not the certificate of a network's owner")
    unreadable(spell({**true, "addresses": ["nowhere"]}), "makes no sense")
    unreadable(spell({**true, "addresses": ["a:1"] * 17}), "makes no sense")
    unreadable(spell({"key": INVITATION.key.raw}), "missing")
    stranger = make_network("elsewhere")
    for fields, reason in [
        ({**true, "owner": stranger.certificate}, AdmissionReason.OTHER_NETWORK),
        ({**true, "chain": []}, AdmissionReason.NO_CERTIFICATE),
        ({**true, "chain": [INVITATION.chain[0], other.chain[0]]}, AdmissionReason.INVITATION_SIGNS),
    ]:
        with pytest.raises(AdmissionError) as caught:
            Invitation.from_token(spell(fields), NOW)
        assert caught.value.reason is reason


def test_a_later_version_may_add_fields() -> None:
    assert Invitation.from_token(spell({**fields_of(INVITATION), "colour": "blue"}), NOW).id == INVITATION.id


def test_time() -> None:
    for now, reason in [(NOW + 366 * DAY_S, AdmissionReason.EXPIRED), (NOW - 2 * DAY_S, AdmissionReason.NOT_YET_VALID)]:
        with pytest.raises(AdmissionError, match="clock") as caught:
            Invitation.from_token(TOKEN, now)
        assert caught.value.reason is reason
    # A clock that is wrong by less than a day does not matter.
    assert Invitation.from_token(TOKEN, NOW - 0.9 * DAY_S).id == INVITATION.id
    with pytest.raises(AdmissionError, match="no calendar"):
        Invitation.from_token(TOKEN, 1e30)


def test_an_admin_invites_within_its_own_roles_and_time() -> None:
    admin = NETWORK.invite(
        roles=frozenset({Role.SUBMIT}), valid_s=10 * DAY_S, now_wall=NOW, entropy=ENTROPY, may_invite=True
    )
    assert admin.roles == {Role.SUBMIT, Role.ADMIN}
    guest = admin.invite(roles=frozenset({Role.SUBMIT}), now_wall=NOW, entropy=ENTROPY, label="guest")
    assert guest.chain[1:] == admin.chain
    assert guest.roles == {Role.SUBMIT}
    assert guest.expires_wall == admin.expires_wall
    assert guest.network == NETWORK.network
    assert Invitation.from_token(guest.token(), NOW) == guest
    for asked, words in [({Role.COMPUTE}, "lacks the role compute"), ({Role.SUBMIT, Role.OBSERVE}, "observe")]:
        with pytest.raises(AdmissionError, match=words) as caught:
            admin.invite(roles=frozenset(asked), now_wall=NOW, entropy=ENTROPY)
        assert caught.value.reason is AdmissionReason.NOT_ALLOWED
    with pytest.raises(AdmissionError, match="only the network's owner"):
        admin.invite(roles=frozenset({Role.SUBMIT}), now_wall=NOW, entropy=ENTROPY, may_invite=True)
    with pytest.raises(UsageError, match="expired itself"):
        admin.invite(roles=frozenset({Role.SUBMIT}), now_wall=NOW + 20 * DAY_S, entropy=ENTROPY)


def test_an_ordinary_invitation_invites_nobody() -> None:
    with pytest.raises(AdmissionError, match="ask the network's owner") as caught:
        INVITATION.invite(roles=DEFAULT_ROLES, now_wall=NOW, entropy=ENTROPY)
    assert caught.value.reason is AdmissionReason.NOT_ALLOWED
    with pytest.raises(AdmissionError):
        INVITATION.renew(INVITATION.chain[0], NOW, DAY_S, ENTROPY)


def test_admins_are_made_knowingly() -> None:
    with pytest.raises(UsageError, match="knowingly"):
        NETWORK.invite(roles=frozenset({Role.ADMIN}), now_wall=NOW, entropy=ENTROPY)


def test_bad_wishes() -> None:
    with pytest.raises(UsageError, match="at most 16 addresses"):
        NETWORK.invite(now_wall=NOW, entropy=ENTROPY, addresses=ADDRESSES * 6)
    with pytest.raises(UsageError, match="label"):
        NETWORK.invite(now_wall=NOW, entropy=ENTROPY, label="\x1b[2J")
    with pytest.raises(UsageError, match="at least one"):
        NETWORK.invite(now_wall=NOW, entropy=ENTROPY, valid_s=-1)
    long = NETWORK.invite(now_wall=NOW, entropy=ENTROPY, addresses=(Address("x" * 600, 1),) * 16)
    with pytest.raises(UsageError, match="fewer addresses"):
        long.token()


def test_renewal_keeps_all_but_the_end() -> None:
    der = NETWORK.renew(INVITATION.chain[0], NOW + 300 * DAY_S, 365 * DAY_S, ENTROPY)
    renewed = INVITATION.renewed(der)
    assert (renewed.id, renewed.roles, renewed.label, renewed.key) == (
        INVITATION.id,
        INVITATION.roles,
        INVITATION.label,
        INVITATION.key,
    )
    assert renewed.expires_wall == NOW + 665 * DAY_S
    assert Invitation.from_token(renewed.token(), NOW + 600 * DAY_S) == renewed
    with pytest.raises(AdmissionError, match="no later"):
        renewed.renewed(INVITATION.chain[0])
    other = NETWORK.invite(now_wall=NOW, entropy=ENTROPY)
    with pytest.raises(AdmissionError, match="another invitation"):
        other.renewed(der)
    for nonsense in (b"", b"x", NETWORK.certificate):
        with pytest.raises((AdmissionError, ProtocolError)):
            INVITATION.renewed(nonsense)


def test_a_renewal_by_somebody_else_is_refused() -> None:
    thief = make_network("thief")
    forged = NETWORK.renew(INVITATION.chain[0], NOW + 9 * DAY_S, 365 * DAY_S, ENTROPY)
    read = read_certificate(forged)
    changed = forged.replace(read.signature, thief.key.sign(b"", read.signed_part))
    with pytest.raises(AdmissionError) as caught:
        INVITATION.renewed(changed)
    assert caught.value.reason is AdmissionReason.FOREIGN_AUTHORITY


def test_a_renewal_does_not_lead_into_another_network() -> None:
    other = make_network("elsewhere")
    later = Window.starting(NOW, 900 * DAY_S)
    der = build_certificate(
        name="moved",
        public_key=INVITATION.key.public_key,
        signer=other.key,
        issuer=other.owner,
        window=later,
        serial=1,
        path_length=0,
        notes=Notes(roles=DEFAULT_ROLES),
    )
    for owners in ((), (other.certificate,)):
        with pytest.raises(AdmissionError) as caught:
            INVITATION.renewed(der, owners)
        assert caught.value.reason is AdmissionReason.OTHER_NETWORK


def test_an_admins_guest_is_renewed_by_both_in_any_order() -> None:
    admin = NETWORK.invite(now_wall=NOW, entropy=ENTROPY, may_invite=True)
    guest = admin.invite(roles=DEFAULT_ROLES, now_wall=NOW, entropy=ENTROPY)
    later = NOW + 100 * DAY_S
    of_admin = NETWORK.renew(admin.chain[0], later, 365 * DAY_S, ENTROPY)
    renewed_admin = admin.renewed(of_admin)
    of_guest = renewed_admin.renew(guest.chain[0], later, 365 * DAY_S, ENTROPY)
    assert guest.renewed(of_admin).expires_wall == guest.expires_wall
    for first, second in [(of_admin, of_guest), (of_guest, of_admin)]:
        renewed = guest.renewed(first).renewed(second)
        assert renewed.expires_wall == later + 365 * DAY_S
        assert renewed.id == guest.id
    with pytest.raises(AdmissionError, match="whoever made it"):
        NETWORK.renew(guest.chain[0], later, DAY_S, ENTROPY)


def test_what_is_no_invitation_is_not_renewed() -> None:
    with pytest.raises(ProtocolError):
        NETWORK.renew(NETWORK.certificate, NOW, DAY_S, ENTROPY)
    with pytest.raises(ProtocolError):
        NETWORK.renew(b"nonsense", NOW, DAY_S, ENTROPY)


def test_in_an_open_network_no_role_counts_whatever_is_asked_for() -> None:
    invitation = open_network("playground").invite(now_wall=NOW, entropy=ENTROPY, may_invite=True)
    assert invitation.is_open
    assert invitation.roles == frozenset()
    assert Invitation.from_token(invitation.token(), NOW).is_open


def test_the_private_key_is_in_no_representation() -> None:
    assert INVITATION.key.raw.hex() not in repr(INVITATION)
    assert repr(INVITATION.key.raw) not in repr(INVITATION)
