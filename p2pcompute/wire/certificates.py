"""The three certificates of a network, as X.509, and how one is built and read.

    owner       self-signed authority, path length 2; whoever holds its key owns the network
    └─ invitation   intermediate, path length 0 (an admin's: 1); roles and label in an extension of ours
       └─ leaf      a peer's own key; no authority, signs nothing

X.509 because both ends of a link are then checked by TLS itself. The profile is narrow: Ed25519 only, basic
constraints and key usage critical, no critical extension that is not known here. The extension of ours is not
critical, since TLS libraries refuse what they do not know. Refuses to know: who trusts what (`chain.py`,
`membership.py`), and the time: windows are passed in.

A peer's bytes can cause only ProtocolError here (fuzzed in tests/fuzz).
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.ids import InvitationId, PeerId, invitation_id_of, peer_id_of
from p2pcompute.model.peer import Role
from p2pcompute.wire.codec import Converted, Many, Raw, Row, Schema, Text, pack, unpack
from p2pcompute.wire.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify_signature

#: Our extension, under the arc that needs no registration (2.25 and a random UUID, ITU-T X.667).
NOTES_OID = x509.ObjectIdentifier("2.25.301983333169884684629034860163099253977")
#: Owner, admin's invitation, invitation: how many authorities may stand between each and a leaf.
OWNER_PATH_LENGTH = 2
ADMIN_PATH_LENGTH = 1
INVITATION_PATH_LENGTH = 0
#: Certificates are valid from a day before they are made: clocks of laptops are wrong.
BACKDATE_S = 86_400.0
#: What X.509 can say, in seconds since 1970: 1970-01-01 and 9999-12-31.
_TIME_MIN_S = 0
_TIME_MAX_S = 253_402_214_400
_X509_ERRORS = (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion, x509.ExtensionNotFound)
_SERIAL_BYTES = 8
_KEY_ID_BYTES = 20


def _roles(names: tuple[str, ...]) -> frozenset[Role]:
    # A role of a later version is one that this peer never grants anything for.
    return frozenset(Role(name) for name in names if name in set(Role))


@dataclass(frozen=True, slots=True)
class Notes:
    """What our extension says.

    `roles`, `label`: an invitation's. `succession`: an owner's predecessors, oldest first, each with its signature
    over the public key of the next one.
    """

    roles: Annotated[
        frozenset[Role], Converted(Many(Text(32), 16), _roles, lambda roles: sorted(role.value for role in roles))
    ] = frozenset()
    label: Annotated[str, Text(limits.NAME_BYTES_MAX)] = ""
    succession: Annotated[
        tuple[tuple[bytes, bytes], ...],
        Many(
            Row((Raw(PUBLIC_KEY_BYTES, PUBLIC_KEY_BYTES), Raw(SIGNATURE_BYTES, SIGNATURE_BYTES))),
            limits.SUCCESSIONS_MAX,
        ),
    ] = ()
    unknown: dict[str, Any] = field(default_factory=dict)


_NOTES = Schema(Notes)
NO_NOTES = Notes()


@dataclass(frozen=True, slots=True)
class Window:
    """When a certificate is valid, in whole seconds since 1970, both ends included."""

    not_before_s: int
    not_after_s: int

    @classmethod
    def starting(cls, now_wall: float, valid_s: float) -> Window:
        """From a day before `now_wall` to `valid_s` after it."""
        if not valid_s >= 1:
            raise UsageError(f"a certificate cannot be valid for {valid_s} seconds: give at least one")
        return cls(_clamped(now_wall - BACKDATE_S), _clamped(now_wall + valid_s))

    def within(self, other: Window) -> Window:
        """The part of this window in which `other` is valid too."""
        return Window(max(self.not_before_s, other.not_before_s), min(self.not_after_s, other.not_after_s))

    @property
    def lifetime_s(self) -> int:
        """Its length."""
        return self.not_after_s - self.not_before_s

    @property
    def promised_s(self) -> float:
        """How long it was made for: its length without the day by which `starting` backdates, at least a second."""
        return max(1.0, self.lifetime_s - BACKDATE_S)


def _clamped(seconds: float) -> int:
    return int(min(max(seconds, _TIME_MIN_S), _TIME_MAX_S))


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of this profile, read but not yet trusted.

    `path_length`: None for a leaf. `key_hint`: the key id that its issuer should have, empty where it names none.
    """

    der: bytes
    public_key: bytes
    subject: x509.Name = field(repr=False)
    issuer: x509.Name = field(repr=False)
    name: str
    window: Window
    path_length: int | None
    notes: Notes
    key_hint: bytes = field(repr=False)
    signed_part: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def peer(self) -> PeerId:
        """The peer whose key this is, for a leaf."""
        return peer_id_of(self.public_key)

    @property
    def invitation(self) -> InvitationId:
        """The invitation whose key this is, for an invitation."""
        return invitation_id_of(self.public_key)

    def names_as_issuer(self, issuer: Certificate) -> bool:
        """Whether it says, rightly or not, that `issuer` made it."""
        return self.issuer == issuer.subject and self.key_hint in (b"", key_id(issuer.public_key))

    def signed_by(self, issuer: Certificate) -> bool:
        """Whether `issuer` made it: by name, key id and signature. Says nothing about whether it might."""
        return self.names_as_issuer(issuer) and self.signed_with(issuer.public_key)

    def signed_with(self, public_key: bytes) -> bool:
        """Whether the signature is that of `public_key`."""
        return verify_signature(public_key, b"", self.signed_part, self.signature)


def key_id(public_key: bytes) -> bytes:
    """What certificates call a key: 20 bytes of its SHA-256 (RFC 7093, method 1)."""
    return hashlib.sha256(public_key).digest()[:_KEY_ID_BYTES]


def serial_from(seed: bytes) -> int:
    """A serial number of 63 bits from any bytes that differ between certificates of one issuer."""
    return (int.from_bytes(hashlib.sha256(b"p2pc-serial" + seed).digest()[:_SERIAL_BYTES]) >> 1) or 1


def check_name(what: str, name: str) -> str:
    """`name` if it may stand in a certificate. Raises UsageError; `what` is what it names."""
    if not name.isprintable() or name != name.strip() or len(name.encode("utf-8", "replace")) > limits.NAME_BYTES_MAX:
        raise UsageError(
            f"{name!r} cannot be {what}: at most {limits.NAME_BYTES_MAX} bytes of printable characters, no spaces at the ends"
        )
    return name


def build_certificate(
    *,
    name: str,
    public_key: bytes,
    signer: SigningKey,
    issuer: Certificate | None,
    window: Window,
    serial: int,
    path_length: int | None,
    notes: Notes = NO_NOTES,
) -> bytes:
    """A certificate over `public_key` as DER, signed by `signer`, the key of `issuer` (None: self-signed).

    `path_length` None makes a leaf. Same arguments, same bytes: Ed25519 signatures are deterministic.
    """
    is_authority = path_length is not None
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(Ed25519PublicKey.from_public_bytes(public_key))
        .serial_number(serial)
        .not_valid_before(_moment(window.not_before_s))
        .not_valid_after(_moment(window.not_after_s))
        .add_extension(x509.BasicConstraints(is_authority, path_length), critical=True)
        .add_extension(_usage(is_authority), critical=True)
    )
    # The strict verification of OpenSSL wants the subject's key id in every authority and the issuer's in all but the root.
    if is_authority:
        builder = builder.add_extension(x509.SubjectKeyIdentifier(key_id(public_key)), critical=False)
    if issuer is not None:
        hint = x509.AuthorityKeyIdentifier(key_id(issuer.public_key), None, None)
        builder = builder.add_extension(hint, critical=False)
    if notes != NO_NOTES:
        said = {key: value for key, value in _NOTES.to_fields(notes).items() if value}
        builder = builder.add_extension(x509.UnrecognizedExtension(NOTES_OID, pack(said)), critical=False)
    return builder.sign(signer.private, None).public_bytes(serialization.Encoding.DER)


def read_certificate(der: bytes) -> Certificate:
    """The certificate in `der`, checked against the profile, not against any issuer. Raises ProtocolError."""
    if len(der) > limits.CERTIFICATE_BYTES_MAX:
        raise ProtocolError(f"a certificate of {len(der)} bytes, at most {limits.CERTIFICATE_BYTES_MAX} are read")
    try:
        return _read(der)
    except ProtocolError:
        raise
    # Warning: the library warns about odd serial numbers and the like, which is an error where warnings are errors.
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm, Warning, *_X509_ERRORS) as error:
        raise ProtocolError(f"not a certificate: {type(error).__name__}: {str(error)[:200]}") from error


def _read(der: bytes) -> Certificate:
    certificate = x509.load_der_x509_certificate(der)
    public_key = certificate.public_key()
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ED25519 or not isinstance(
        public_key, Ed25519PublicKey
    ):
        raise ProtocolError("a certificate with another kind of key than Ed25519")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = names[0].value if len(names) == 1 else ""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ProtocolError("a certificate whose name cannot be printed")
    path_length, notes, key_hint = _read_extensions(certificate.extensions)
    return Certificate(
        der=bytes(der),
        public_key=public_key.public_bytes_raw(),
        subject=certificate.subject,
        issuer=certificate.issuer,
        name=name,
        window=Window(
            int(certificate.not_valid_before_utc.timestamp()), int(certificate.not_valid_after_utc.timestamp())
        ),
        path_length=path_length,
        notes=notes,
        key_hint=key_hint,
        signed_part=certificate.tbs_certificate_bytes,
        signature=certificate.signature,
    )


def _read_extensions(extensions: x509.Extensions) -> tuple[int | None, Notes, bytes]:
    """Path length (None: a leaf), notes and the issuer's key id. Raises ProtocolError where the profile is left."""
    constraints: x509.BasicConstraints | None = None
    usage: x509.KeyUsage | None = None
    notes = NO_NOTES
    key_hint = b""
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            constraints = value
        elif isinstance(value, x509.KeyUsage):
            usage = value
        elif isinstance(value, x509.AuthorityKeyIdentifier):
            key_hint = value.key_identifier or b""
        elif isinstance(value, x509.UnrecognizedExtension) and extension.oid == NOTES_OID:
            notes = _NOTES.from_fields(unpack(value.value, bytes_max=limits.CERTIFICATE_BYTES_MAX))
        elif extension.critical:
            raise ProtocolError(
                f"a certificate with a critical extension that is not known: {extension.oid.dotted_string}"
            )
    if constraints is None or usage is None:
        raise ProtocolError("a certificate that says not what its key may be used for")
    if constraints.ca != usage.key_cert_sign or constraints.ca == usage.digital_signature:
        raise ProtocolError("a certificate is either an authority's or a peer's, this one is neither or both")
    if constraints.ca and constraints.path_length is None:
        raise ProtocolError("an authority without a path length")
    if not notes.label.isprintable():
        raise ProtocolError("a certificate whose label cannot be printed")
    return constraints.path_length if constraints.ca else None, notes, key_hint


def _usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
