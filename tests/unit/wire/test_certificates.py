"""The profile of certificates: what is built, what is read, what is not."""

from __future__ import annotations

import datetime
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pcompute.model import limits
from p2pcompute.model.errors import PeerError, ProtocolError, UsageError
from p2pcompute.model.peer import Role
from p2pcompute.wire.certificates import (
    NOTES_OID,
    Notes,
    Window,
    build_certificate,
    check_name,
    read_certificate,
    serial_from,
)
from p2pcompute.wire.codec import pack
from p2pcompute.wire.identity import SigningKey
from tests.support.networks import DAY_S, NOW, make_member, make_network

MEMBER = make_member(make_network(), "anna")
LEAF, INVITATION = MEMBER.membership.leaf, MEMBER.membership.chain[0]
KEY = SigningKey(b"k" * 32)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])


def _odd(
    *, ca: bool = False, critical: bool = True, usage: bool = True, notes: bytes | None = None, extra: bool = False
) -> bytes:
    """A certificate that leaves the profile somewhere."""
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    public = KEY.private.public_key()
    builder = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(public).serial_number(1)
    builder = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=critical)
    if usage:
        flags = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=ca, **flags), critical=True)
    if notes is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(NOTES_OID, notes), critical=False)
    if extra:
        oid = x509.ObjectIdentifier("2.25.1")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, b""), critical=True)
    return builder.sign(KEY.private, None).public_bytes(serialization.Encoding.DER)


def test_what_is_built_is_read_again() -> None:
    window = Window(1_000_000, 2_000_000)
    notes = Notes(roles=frozenset({Role.SUBMIT, Role.OBSERVE}), label="for Änna")
    der = build_certificate(
        name="küche",
        public_key=KEY.public_key,
        signer=KEY,
        issuer=None,
        window=window,
        serial=7,
        path_length=2,
        notes=notes,
    )
    read = read_certificate(der)
    assert (read.name, read.public_key, read.window, read.path_length, read.notes) == (
        "küche",
        KEY.public_key,
        window,
        2,
        notes,
    )
    assert read.signed_by(read)
    again = build_certificate(
        name="küche",
        public_key=KEY.public_key,
        signer=KEY,
        issuer=None,
        window=window,
        serial=7,
        path_length=2,
        notes=notes,
    )
    assert again == der


def test_leaf_and_invitation_fit_into_one_datagram() -> None:
    assert len(LEAF) + len(INVITATION) < 800


def test_who_signed_what() -> None:
    leaf, invitation = read_certificate(LEAF), read_certificate(INVITATION)
    assert leaf.path_length is None
    assert leaf.peer == MEMBER.key.peer_id
    assert invitation.invitation == MEMBER.invitation.id
    assert leaf.signed_by(invitation)
    assert not invitation.signed_by(leaf)
    assert not leaf.signed_by(leaf)
    assert not leaf.signed_by(read_certificate(make_member(make_network(), "bert").membership.chain[0]))


def test_roles_and_fields_of_later_versions_are_kept_out_of_the_way() -> None:
    later = {"roles": ["submit", "emperor"], "label": "x", "colour": "blue"}
    read = read_certificate(_odd(notes=pack(later)))
    assert read.notes.roles == {Role.SUBMIT}
    assert read.notes.unknown == {"colour": "blue"}


def _elliptic() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(key.public_key()).serial_number(1)
    )
    builder = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("der", "words"),
    [
        (b"", "not a certificate"),
        (b"hello", "not a certificate"),
        (LEAF[:-1], "not a certificate"),
        (LEAF + b"\0", "not a certificate"),
        (bytes(limits.CERTIFICATE_BYTES_MAX + 1), "at most"),
        (_elliptic(), "Ed25519"),
        (_odd(usage=False), "used for"),
        (_odd(ca=True), "neither or both"),
        (_odd(extra=True), "critical"),
        (_odd(notes=b"\xc1"), "not a valid message"),
        (_odd(notes=pack({"label": "\x1b[2J"})), "cannot be printed"),
        (_odd(notes=pack({"roles": "submit"})), "Notes.roles"),
    ],
)
def test_what_leaves_the_profile_is_refused_in_words(der: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read_certificate(der)


def test_damaged_certificates_never_raise_anything_else_and_never_hold() -> None:
    rng = random.Random(5)
    invitation = read_certificate(INVITATION)
    for _ in range(3_000):
        damaged = bytearray(LEAF)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(0, len(damaged))] = rng.randrange(0, 256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(0, len(damaged)) :]
        if bytes(damaged) == LEAF:
            continue
        try:
            read = read_certificate(bytes(damaged))
        except PeerError:
            continue
        assert not read.signed_by(invitation)


def test_windows() -> None:
    window = Window.starting(NOW, 10 * DAY_S)
    assert window.not_before_s == NOW - DAY_S
    assert window.not_after_s == NOW + 10 * DAY_S
    assert window.within(Window(0, int(NOW))) == Window(int(NOW - DAY_S), int(NOW))
    assert Window.starting(NOW, 1e300).not_after_s < 10**12
    assert Window.starting(5.0, 10.0).not_before_s == 0
    for nothing in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="at least one"):
            Window.starting(NOW, nothing)


@pytest.mark.parametrize("name", ["ok", "Ännas Küche", "", "x" * 64])
def test_names(name: str) -> None:
    assert check_name("a name", name) == name


@pytest.mark.parametrize("name", [" x", "x ", "x" * 65, "ä" * 33, "a\nb", "\x1b[2J", "\ud800"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        check_name("a name", name)


def test_serial_numbers_are_positive_and_differ() -> None:
    serials = {serial_from(bytes([number])) for number in range(200)}
    assert len(serials) == 200
    assert all(0 < serial < 1 << 63 for serial in serials)
