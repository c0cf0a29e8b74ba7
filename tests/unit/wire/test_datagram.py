"""The layouts of datagrams, byte for byte, and papers."""

from __future__ import annotations

import random
import zlib

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.ids import NetworkId
from p2pcompute.model.peer import DEFAULT_ROLES, Role
from p2pcompute.wire import datagram
from p2pcompute.wire.datagram import (
    Accept,
    Cookie,
    Hello,
    Kind,
    Proof,
    Unknown,
    datagram_tag,
    decode_handshake,
    decode_papers,
    pack_papers,
    write_accept,
    write_cookie,
    write_hello,
    write_proof,
    write_unknown,
)
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Membership
from tests.support.networks import NOW, SeededEntropy, make_member, make_network

TAG = bytes(range(8))
SHARE = bytes(range(32))
COOKIE = bytes(range(16))
SIGNATURE = bytes(64)


def test_layouts_are_what_is_written_down() -> None:
    common = bytes([0xD1, 1]) + TAG
    assert write_hello(TAG, 0x01020304, SHARE) == common + b"\1\2\3\4" + SHARE + bytes(18)
    assert write_cookie(TAG, 5, COOKIE) == bytes([0xD2, 1]) + TAG + bytes([0, 0, 0, 5]) + COOKIE
    assert write_proof(TAG, 5, SHARE, COOKIE, 7, b"papers") == (
        bytes([0xD3, 1]) + TAG + bytes([0, 0, 0, 5]) + SHARE + COOKIE + bytes([0, 0, 0, 7]) + b"papers"
    )
    assert write_accept(TAG, 5, 6, SHARE, 7, b"papers") == (
        bytes([0xD4, 1]) + TAG + bytes([0, 0, 0, 5, 0, 0, 0, 6]) + SHARE + bytes([0, 0, 0, 7]) + b"papers"
    )
    assert write_unknown(TAG, 5, 1 << 40) == bytes([0xD5, 1]) + TAG + bytes([0, 0, 0, 5]) + (1 << 40).to_bytes(8)


def test_what_is_written_is_read() -> None:
    assert decode_handshake(write_hello(TAG, 9, SHARE)) == Hello(9, SHARE)
    assert decode_handshake(write_cookie(TAG, 9, COOKIE)) == Cookie(9, COOKIE)
    assert decode_handshake(write_unknown(TAG, 9, 77)) == Unknown(9, 77)
    signed = write_proof(TAG, 9, SHARE, COOKIE, 3, b"papers")
    assert decode_handshake(signed + SIGNATURE) == Proof(9, SHARE, COOKIE, 3, b"papers", signed, SIGNATURE)
    signed = write_accept(TAG, 9, 8, SHARE, 3, b"papers")
    assert decode_handshake(signed + SIGNATURE) == Accept(9, 8, SHARE, 3, b"papers", signed, SIGNATURE)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize(
    "data",
    [write_hello(TAG, 9, SHARE), write_cookie(TAG, 9, COOKIE), write_unknown(TAG, 9, 77)],
    ids=["hello", "cookie", "unknown"],
)
def test_fixed_layouts_have_one_length(data: bytes, change: int) -> None:
    with pytest.raises(ProtocolError):
        decode_handshake(data[:change] if change < 0 else data + b"\0")


@pytest.mark.parametrize("kind", [Kind.PROOF, Kind.ACCEPT])
def test_signed_layouts_hold_papers_and_fit_a_datagram(kind: Kind) -> None:
    head = write_proof(TAG, 9, SHARE, COOKIE, 3, b"") if kind is Kind.PROOF else write_accept(TAG, 9, 8, SHARE, 3, b"")
    with pytest.raises(ProtocolError):
        decode_handshake(head + SIGNATURE)
    room = limits.DATAGRAM_BYTES_MAX - len(head) - len(SIGNATURE)
    decode_handshake(head + bytes(room) + SIGNATURE)
    with pytest.raises(ProtocolError):
        decode_handshake(head + bytes(room + 1) + SIGNATURE)


def test_padding_is_zeros_and_nothing_else_is_one_of_ours() -> None:
    hello = bytearray(write_hello(TAG, 9, SHARE))
    hello[-1] = 1
    for data in (bytes(hello), b"", bytes(64), bytes([Kind.SEALED]) + bytes(63)):
        with pytest.raises(ProtocolError):
            decode_handshake(data)


def test_no_answer_before_the_cookie_is_longer_than_its_question() -> None:
    assert datagram.COOKIE_DATAGRAM_BYTES <= datagram.HELLO_BYTES
    assert datagram.UNKNOWN_BYTES <= datagram.SEALED_BYTES_MIN


def test_the_tag_does_not_name_the_network() -> None:
    network = NetworkId(bytes(range(32)))
    assert datagram_tag(network) != network[:8]
    assert datagram_tag(network) != datagram_tag(NetworkId(bytes(32)))


# --- papers -----------------------------------------------------------------------------------------------------------


def test_papers_come_back_as_they_were() -> None:
    anna = make_member(make_network(), "anna").membership
    assert decode_papers(pack_papers(anna.leaf, anna.chain)) == (anna.leaf, anna.chain)


def test_the_longest_papers_fit() -> None:
    """Names and labels that cannot be deflated, as long as they may be, on a chain of two invitations."""
    dice = random.Random(7)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def noise() -> str:
        return "".join(dice.choice(letters) for _ in range(limits.NAME_BYTES_MAX))

    entropy = SeededEntropy("longest")
    owner = make_network("longest", name=noise())
    admin = owner.invite(now_wall=NOW, entropy=entropy, roles=frozenset(Role), may_invite=True, label=noise())
    guest = admin.invite(now_wall=NOW, entropy=entropy, roles=DEFAULT_ROLES, label=noise())
    membership = Membership.mint(PeerKey.generate(entropy), guest, NOW, entropy)
    certificates = (membership.leaf, *membership.chain)
    assert len(certificates) == 3
    assert sum(map(len, certificates)) > limits.DATAGRAM_BYTES_MAX
    papers = pack_papers(membership.leaf, membership.chain)
    proof = write_proof(TAG, 1, SHARE, COOKIE, 0, papers) + SIGNATURE
    assert len(proof) <= limits.DATAGRAM_BYTES_MAX
    assert decode_papers(papers) == (membership.leaf, membership.chain)


def test_papers_that_fit_nowhere_are_refused_where_they_are_made() -> None:
    noise = random.Random(7).randbytes(1_500)
    with pytest.raises(UsageError):
        pack_papers(noise, ())
    with pytest.raises(UsageError):
        pack_papers(bytes(5_000), ())
    with pytest.raises(UsageError):
        pack_papers(b"leaf", (b"a", b"b", b"c"))
    with pytest.raises(UsageError):
        pack_papers(b"", ())


def _deflated(plain: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(plain) + deflate.flush()


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0",
        b"\4" + b"\0\1x" * 4,
        b"\1",
        b"\1\0",
        b"\1\0\0",
        b"\1\0\5abc",
        b"\1\0\1xy",
        b"\2\0\1x",
        bytes(1_000_000),
    ],
)
def test_papers_that_make_no_sense_are_refused(plain: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_papers(_deflated(plain))


def test_papers_cut_off_or_followed_by_something_are_refused() -> None:
    papers = _deflated(b"\1\0\3abc")
    assert decode_papers(papers) == (b"abc", ())
    for wrong in (papers[:-1], papers + b"\0", b"\xff" + papers, b""):
        with pytest.raises(ProtocolError):
            decode_papers(wrong)
