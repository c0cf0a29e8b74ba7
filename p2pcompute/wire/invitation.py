"""Invitations: an intermediate certificate, its private key and a few addresses, as one line that people paste.

Whoever holds a token can mint any number of peers under it, so a token is meant for one person. A token is `p2pc1-`
and, in base64url, the length of the body, the body (msgpack) and a checksum: so a cut-off token, a mistyped one and
one of a later version are told apart in words. The checksum is no protection; the certificates inside are. Refuses to
know: the owner's key (`authority.py`), peers (`membership.py`).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, ProtocolError, UsageError
from p2pcompute.model.ids import InvitationId, NetworkId
from p2pcompute.model.peer import Address, Role
from p2pcompute.model.seams import Entropy
from p2pcompute.wire.certificates import (
    ADMIN_PATH_LENGTH,
    INVITATION_PATH_LENGTH,
    Certificate,
    Notes,
    Window,
    build_certificate,
    check_name,
    read_certificate,
    serial_from,
)
from p2pcompute.wire.chain import INVITATIONS_MAX, Lineage, check_window, is_open_owner, read_owner, trace
from p2pcompute.wire.codec import Converted, Many, Raw, Schema, Text, pack, unpack
from p2pcompute.wire.identity import PRIVATE_KEY_BYTES, SigningKey
from p2pcompute.wire.versions import TOKEN

#: One year: long enough to forget about, short enough that a lost laptop does not stay a member for ever.
VALID_S = 365 * 86_400.0
_PREFIX = f"p2pc{TOKEN}-"
_ANY_PREFIX = re.compile(r"p2pc(\d{1,6})-")
_LENGTH_BYTES = 2
_CHECKSUM_BYTES = 6
_QUOTES = "\"'`<>\u201c\u201d\u2018\u2019"


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Body:
    key: Annotated[bytes, Raw(PRIVATE_KEY_BYTES, PRIVATE_KEY_BYTES)]
    chain: Annotated[tuple[bytes, ...], Many(Raw(limits.CERTIFICATE_BYTES_MAX), INVITATIONS_MAX)]
    owner: Annotated[bytes, Raw(limits.CERTIFICATE_BYTES_MAX)]
    addresses: Annotated[
        tuple[Address, ...], Many(Converted(Text(limits.TEXT_CHARS_MAX), _address, str), limits.ADDRESSES_MAX)
    ] = ()
    unknown: dict[str, Any] = field(default_factory=dict)


_BODY = Schema(_Body)


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation with its private key. Make one with `Authority.invite` or `from_token`, not by hand.

    `chain`: DER, the invitation first, then the admin's invitation that made it, if any. `owner`: the owner's
    certificate as DER. `addresses`: where peers of the network may be found.
    """

    lineage: Lineage = field(repr=False)
    key: SigningKey = field(repr=False)
    addresses: tuple[Address, ...] = ()

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER certificates, this invitation first, without the owner's."""
        return tuple(certificate.der for certificate in self.lineage.invitations)

    @property
    def owner(self) -> bytes:
        """The owner's certificate as DER."""
        return self.lineage.owner.der

    @property
    def network(self) -> NetworkId:
        """The network that it invites to."""
        return self.lineage.network

    @property
    def network_name(self) -> str:
        """What its owner called the network; not unique."""
        return self.lineage.owner.name

    @property
    def is_open(self) -> bool:
        """Whether the network is open: its key can be derived by anybody and no role counts."""
        return is_open_owner(self.lineage.owner)

    @property
    def roles(self) -> frozenset[Role]:
        """What its holder may do; empty in open networks."""
        return self.lineage.roles

    @property
    def expires_wall(self) -> float:
        """Its end, in seconds since 1970, and that of every membership under it until it is renewed."""
        return float(self.lineage.window.not_after_s)

    @property
    def id(self) -> InvitationId:
        """Made of its key: renewing it does not change it."""
        return self.lineage.invitation

    @property
    def label(self) -> str:
        """What its maker wrote on it, usually for whom it is. Every peer of the network can read it."""
        return self.lineage.issuer.notes.label

    def token(self) -> str:
        """The invitation as one line to paste; secret, since it holds the private key."""
        body = pack(_BODY.to_fields(_Body(self.key.raw, self.chain, self.owner, self.addresses)))
        framed = len(body).to_bytes(_LENGTH_BYTES) + body
        text = _PREFIX + base64.urlsafe_b64encode(framed + _checksum(framed)).decode().rstrip("=")
        if len(text) > limits.TOKEN_CHARS_MAX:
            raise UsageError(
                f"this invitation makes a token of {len(text)} characters, at most {limits.TOKEN_CHARS_MAX} are read: "
                "name fewer addresses"
            )
        return text

    @classmethod
    def from_token(cls, text: str, now_wall: float) -> Invitation:
        """The invitation in `text`; white space and quotes around it are ignored. Raises AdmissionError."""
        try:
            body = _BODY.from_fields(unpack(_token_body(text)))
            key = SigningKey(body.key)
            certificates = [read_certificate(der) for der in body.chain]
            owner = read_owner(body.owner)
        except ProtocolError as error:
            raise _unreadable(f"its content makes no sense ({error.reason_text}): ask for a new one") from error
        lineage = trace(certificates, [owner])
        if lineage.issuer.public_key != key.public_key:
            raise _unreadable("its key and its certificate do not belong together: ask for a new one")
        check_window(lineage.window, now_wall, f"this invitation to {owner.name!r}")
        return cls(lineage, key, body.addresses)

    def invite(
        self,
        *,
        roles: frozenset[Role],
        now_wall: float,
        entropy: Entropy,
        addresses: tuple[Address, ...] = (),
        valid_s: float = VALID_S,
        may_invite: bool = False,
        label: str = "",
    ) -> Invitation:
        """A further invitation under this one, which must be an admin's; it ends with this one at the latest.

        Raises AdmissionError (not allowed) where this one is not an admin's or lacks one of `roles`.
        """
        return Issuer(self.lineage.issuer, self.key, self.lineage).invite(
            roles=roles,
            valid_s=valid_s,
            now_wall=now_wall,
            entropy=entropy,
            addresses=addresses,
            may_invite=may_invite,
            label=label,
        )

    def renewed(self, invitation_der: bytes, owners: Sequence[bytes] = ()) -> Invitation:
        """This invitation with one certificate of its chain, or its own, replaced by a renewal over the same key.

        `owners`: owners (DER) that are trusted beside its own, while the network changes hands. Raises AdmissionError
        where it renews nothing of this chain, ends no later, or is not signed by who may; ProtocolError where it is
        no certificate.
        """
        renewal = read_certificate(invitation_der)
        chain = list(self.lineage.invitations)
        place = next((number for number, old in enumerate(chain) if old.public_key == renewal.public_key), None)
        if place is None:
            raise AdmissionError(AdmissionReason.NOT_ALLOWED, f"{renewal.name} renews another invitation than this one")
        if renewal.window.not_after_s <= chain[place].window.not_after_s:
            raise AdmissionError(AdmissionReason.NOT_ALLOWED, f"{renewal.name} ends no later than what it would renew")
        chain[place] = renewal
        trusted = [read_owner(der) for der in dict.fromkeys((self.owner, *owners))]
        lineage = trace(chain, trusted)
        if lineage.network != self.network:
            raise AdmissionError(AdmissionReason.OTHER_NETWORK, f"{renewal.name} is an invitation to another network")
        return Invitation(lineage, self.key, self.addresses)

    def renew(self, invitation_der: bytes, now_wall: float, valid_s: float, entropy: Entropy) -> bytes:
        """An invitation that this one made, signed again with a later end. Raises AdmissionError, ProtocolError."""
        return Issuer(self.lineage.issuer, self.key, self.lineage).renew(invitation_der, now_wall, valid_s, entropy)


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whoever may sign invitations: the owner (`lineage` None), or an admin.

    `former_keys`: public keys of predecessors whose invitations it may renew.
    """

    certificate: Certificate
    key: SigningKey = field(repr=False)
    lineage: Lineage | None = field(repr=False)
    former_keys: Sequence[bytes] = ()

    def invite(
        self,
        *,
        roles: frozenset[Role],
        valid_s: float,
        now_wall: float,
        entropy: Entropy,
        addresses: tuple[Address, ...],
        may_invite: bool,
        label: str,
    ) -> Invitation:
        """A new invitation with a new key. Raises UsageError, AdmissionError (not allowed)."""
        self._check_may_sign()
        if Role.ADMIN in roles and not may_invite:
            raise UsageError("an admin may invite others: say so knowingly, with may_invite")
        if may_invite:
            roles = roles | {Role.ADMIN}
        if self.lineage is not None:
            self._check_may_grant(roles, may_invite)
        if len(addresses) > limits.ADDRESSES_MAX:
            raise UsageError(
                f"an invitation names at most {limits.ADDRESSES_MAX} addresses, these are {len(addresses)}"
            )
        key = SigningKey.generate(entropy)
        der = self._sign(
            public_key=key.public_key,
            window=Window.starting(now_wall, valid_s),
            path_length=ADMIN_PATH_LENGTH if may_invite else INVITATION_PATH_LENGTH,
            notes=Notes(roles=roles, label=check_name("the label of an invitation", label)),
            entropy=entropy,
        )
        if self.lineage is None:
            lineage = trace([read_certificate(der)], [self.certificate])
        else:
            lineage = trace([read_certificate(der), *self.lineage.invitations], [self.lineage.owner])
        return Invitation(lineage, key, addresses)

    def renew(self, invitation_der: bytes, now_wall: float, valid_s: float, entropy: Entropy) -> bytes:
        """The invitation in `invitation_der` signed again: same key, roles and path length, new window.

        Raises ProtocolError where it is no invitation, AdmissionError (foreign authority) where it is another's. A
        revoked invitation stays revoked, since its id is made of its key.
        """
        self._check_may_sign()
        old = read_certificate(invitation_der)
        if old.path_length not in (INVITATION_PATH_LENGTH, ADMIN_PATH_LENGTH):
            raise ProtocolError("another kind of certificate where an invitation should stand")
        if not any(old.signed_with(key) for key in (self.key.public_key, *self.former_keys)):
            raise AdmissionError(
                AdmissionReason.FOREIGN_AUTHORITY,
                f"invitation {old.name} was made by somebody else: whoever made it can renew it",
            )
        return self._sign(
            public_key=old.public_key,
            window=Window.starting(now_wall, valid_s),
            path_length=old.path_length,
            notes=old.notes,
            entropy=entropy,
        )

    def _sign(self, *, public_key: bytes, window: Window, path_length: int, notes: Notes, entropy: Entropy) -> bytes:
        # The end is held to the issuer's: a promise that outlives its issuer would only mislead.
        ceiling = self.certificate.window if self.lineage is None else self.lineage.window
        window = Window(window.not_before_s, min(window.not_after_s, ceiling.not_after_s))
        if window.lifetime_s <= 0:
            raise UsageError(f"{self.certificate.name!r} has expired itself and can sign nothing more: have it renewed")
        return build_certificate(
            name=invitation_name(public_key),
            public_key=public_key,
            signer=self.key,
            issuer=self.certificate,
            window=window,
            serial=serial_from(entropy.bytes(16)),
            path_length=path_length,
            notes=notes,
        )

    def _check_may_sign(self) -> None:
        if (self.certificate.path_length or 0) < ADMIN_PATH_LENGTH:
            raise AdmissionError(
                AdmissionReason.NOT_ALLOWED,
                "this membership does not allow to invite others: ask the network's owner, or an admin",
            )

    def _check_may_grant(self, roles: frozenset[Role], may_invite: bool) -> None:
        if may_invite:
            raise AdmissionError(AdmissionReason.NOT_ALLOWED, "only the network's owner can make admins: ask the owner")
        beyond = sorted(roles - self.certificate.notes.roles)
        if beyond:
            raise AdmissionError(
                AdmissionReason.NOT_ALLOWED,
                f"this membership lacks the role {', '.join(beyond)} and cannot grant it: ask the network's owner",
            )


def invitation_name(public_key: bytes) -> str:
    """What the certificate of an invitation calls it: the start of its key's base32, to be read aloud, not trusted."""
    return base64.b32encode(public_key[:10]).decode()


def _checksum(framed: bytes) -> bytes:
    return hashlib.sha256(b"p2pc-token" + framed).digest()[:_CHECKSUM_BYTES]


def _unreadable(message: str) -> AdmissionError:
    return AdmissionError(AdmissionReason.UNREADABLE, f"this invitation token cannot be used: {message}")


def _token_body(text: str) -> bytes:
    """The body of a token whose checksum is right. Raises AdmissionError that says what is wrong with it."""
    # Mail programs break long lines, people copy quotes along.
    plain = "".join(text[: 2 * limits.TOKEN_CHARS_MAX].split()).strip(_QUOTES)
    if len(plain) > limits.TOKEN_CHARS_MAX:
        raise _unreadable(f"it is longer than {limits.TOKEN_CHARS_MAX} characters: paste the token alone")
    if not plain.startswith(_PREFIX):
        version = _ANY_PREFIX.match(plain)
        if version is not None and int(version[1]) > TOKEN:
            raise _unreadable("it was made by a later version of p2pcompute: upgrade this one")
        raise _unreadable(f"it does not start with {_PREFIX!r}: paste the whole line that `p2pcompute invite` printed")
    letters = plain.removeprefix(_PREFIX)
    wrong = re.search(r"[^A-Za-z0-9_-]", letters)
    if wrong is not None:
        raise _unreadable(f"it holds {wrong[0]!r}, which no token does: copy it again instead of typing it")
    try:
        raw = base64.b64decode(letters + "=" * (-len(letters) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _unreadable("its end is missing: copy the whole line") from error
    length = int.from_bytes(raw[:_LENGTH_BYTES])
    framed, checksum = raw[: _LENGTH_BYTES + length], raw[_LENGTH_BYTES + length :]
    if len(checksum) < _CHECKSUM_BYTES:
        raise _unreadable("its end is missing: copy the whole line")
    # Encoded again, since base64 has letters whose last bits mean nothing: one token, one spelling.
    canonical = base64.urlsafe_b64encode(raw).decode().rstrip("=") == letters
    if checksum != _checksum(framed) or not canonical:
        raise _unreadable("it was mistyped or changed on its way: copy it again, or ask for a new one")
    return framed[_LENGTH_BYTES:]
