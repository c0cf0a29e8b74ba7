"""Owning a network: its key makes invitations, renews and revokes them, and names its successor.

A network is this key. It is kept in a file of mode 0600 (`to_bytes`) and can be exported under a passphrase, so that
a lost machine is not a lost network. Open networks have a key that anybody can derive from the name. Refuses to know:
files, and the clock (`now_wall` is passed in).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from p2pcompute.model import limits
from p2pcompute.model.errors import CorruptFileError, ProtocolError, UsageError
from p2pcompute.model.ids import InvitationId, NetworkId, PeerId
from p2pcompute.model.peer import DEFAULT_ROLES, Address, Role
from p2pcompute.model.seams import Entropy
from p2pcompute.wire.certificates import (
    OWNER_PATH_LENGTH,
    Certificate,
    Notes,
    Window,
    build_certificate,
    check_name,
    serial_from,
)
from p2pcompute.wire.chain import (
    is_open_owner,
    network_of,
    open_owner_certificate,
    open_owner_key,
    owner_keys,
    read_owner,
)
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.identity import SUCCESSION_CONTEXT, SigningKey
from p2pcompute.wire.invitation import VALID_S, Invitation, Issuer
from p2pcompute.wire.revocation import RevocationList

#: An owner's certificate ends all memberships with it, so it lasts longer than people keep machines.
OWNER_VALID_S = 30 * 365 * 86_400.0
PASSPHRASE_CHARS_MIN = 8
_FILE_MAGIC = b"p2pcompute network owner 1\n"
_EXPORT_MAGIC = b"p2pcompute network owner, encrypted 1\n"
#: 128 MiB and about half a second a guess (RFC 7914's n for files, r = 8, p = 1).
_SCRYPT_N = 1 << 17
_SCRYPT_R = 8
_SALT_BYTES = 16
_NONCE_BYTES = 12
_CHECKSUM_BYTES = 8


@dataclass(frozen=True, slots=True)
class Authority:
    """The owner of one network. `certificate`: DER, self-signed, what every member trusts."""

    key: SigningKey = field(repr=False)
    owner: Certificate = field(repr=False)

    @classmethod
    def create(cls, name: str, entropy: Entropy, now_wall: float) -> Authority:
        """A new network called `name`. Raises UsageError where the name cannot be one."""
        name = _network_name(name)
        key = SigningKey.generate(entropy)
        return cls(key, _self_signed(key, name, now_wall, entropy, Notes()))

    @property
    def certificate(self) -> bytes:
        """The owner's certificate as DER."""
        return self.owner.der

    @property
    def name(self) -> str:
        """What the network is called; not unique."""
        return self.owner.name

    @property
    def network(self) -> NetworkId:
        """The network's id, made of its first owner's key."""
        return network_of(self.owner)

    @property
    def is_open(self) -> bool:
        """Whether anybody can derive this key."""
        return is_open_owner(self.owner)

    @property
    def expires_wall(self) -> float:
        """The end of everything in this network, in seconds since 1970, unless it has a successor by then."""
        return float(self.owner.window.not_after_s)

    def invite(
        self,
        *,
        now_wall: float,
        entropy: Entropy,
        roles: frozenset[Role] = DEFAULT_ROLES,
        valid_s: float = VALID_S,
        addresses: tuple[Address, ...] = (),
        may_invite: bool = False,
        label: str = "",
    ) -> Invitation:
        """A new invitation for one person. `may_invite` makes an admin, who may invite others. Raises UsageError."""
        return self._issuer().invite(
            roles=roles,
            valid_s=valid_s,
            now_wall=now_wall,
            entropy=entropy,
            addresses=addresses,
            may_invite=may_invite,
            label=label,
        )

    def renew(self, invitation_der: bytes, now_wall: float, valid_s: float, entropy: Entropy) -> bytes:
        """An invitation of this owner or a predecessor signed again: same key, roles and path length, new end.

        Raises ProtocolError where it is no invitation, AdmissionError (foreign authority) where it is another's, such
        as an admin's. A revoked invitation stays revoked.
        """
        return self._issuer().renew(invitation_der, now_wall, valid_s, entropy)

    def revoke(
        self,
        previous: RevocationList | None,
        *,
        invitations: Iterable[InvitationId] = (),
        peers: Iterable[PeerId] = (),
        now_wall: float,
    ) -> RevocationList:
        """`previous`, the newest list of the network, with these added; nothing is ever taken off.

        Raises UsageError for an open network, where everybody could sign such a list, and for a list of another
        network.
        """
        if self.is_open:
            raise UsageError(f"nobody can be revoked in the open network {self.name!r}: make a network of your own")
        if previous is not None and previous.network != self.network:
            raise UsageError("the previous revocation list belongs to another network")
        # The time in it lets numbers rise even where the previous list was lost with its machine.
        number = max(previous.number + 1 if previous else 1, int(now_wall * 1000))
        return RevocationList.sign(
            self.key,
            self.network,
            number,
            (previous.invitations if previous else frozenset()) | frozenset(invitations),
            (previous.peers if previous else frozenset()) | frozenset(peers),
        )

    def successor(self, entropy: Entropy, now_wall: float) -> Authority:
        """A new key for the same network, appointed by this one.

        Members that trust this owner take the successor's certificate (`Membership.trusting`) and then trust both,
        until their invitations are renewed by the new one. Raises UsageError for open networks and after too many
        successions.
        """
        if self.is_open:
            raise UsageError("an open network has no owner to be replaced")
        if len(self.owner.notes.succession) >= limits.SUCCESSIONS_MAX:
            raise UsageError(f"a network can change its owner's key {limits.SUCCESSIONS_MAX} times: make a new network")
        key = SigningKey.generate(entropy)
        appointment = (self.key.public_key, self.key.sign(SUCCESSION_CONTEXT, key.public_key))
        notes = Notes(succession=(*self.owner.notes.succession, appointment))
        return Authority(key, _self_signed(key, self.name, now_wall, entropy, notes))

    def to_bytes(self) -> bytes:
        """Key and certificate, unencrypted: for a file of mode 0600."""
        return _FILE_MAGIC + pack([self.key.raw, self.certificate])

    @classmethod
    def from_bytes(cls, data: bytes) -> Authority:
        """What `to_bytes` wrote. Raises CorruptFileError."""
        if not data.startswith(_FILE_MAGIC):
            raise CorruptFileError(
                "this is not the file of a network's owner; it was left as it is. Restore it, or import the exported key"
            )
        return _from_pair(data.removeprefix(_FILE_MAGIC))

    def export(self, passphrase: str, entropy: Entropy) -> bytes:
        """Key and certificate under `passphrase` (scrypt, ChaCha20-Poly1305), for a place off this machine.

        Takes about half a second and 128 MiB. Raises UsageError where the passphrase is too short.
        """
        if len(passphrase) < PASSPHRASE_CHARS_MIN:
            raise UsageError(
                f"the passphrase needs at least {PASSPHRASE_CHARS_MIN} characters: whoever guesses it owns the network"
            )
        salt, nonce = entropy.bytes(_SALT_BYTES), entropy.bytes(_NONCE_BYTES)
        head = _EXPORT_MAGIC + salt + nonce
        sealed = _cipher(passphrase, salt).encrypt(nonce, pack([self.key.raw, self.certificate]), head)
        return head + sealed + _checksum(head + sealed)

    @classmethod
    def import_(cls, data: bytes, passphrase: str) -> Authority:
        """What `export` wrote. Raises CorruptFileError where the file is damaged, UsageError for a wrong passphrase."""
        head_bytes = len(_EXPORT_MAGIC) + _SALT_BYTES + _NONCE_BYTES
        content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if not data.startswith(_EXPORT_MAGIC):
            raise CorruptFileError("this is not an exported network owner: name the file that `network export` wrote")
        if checksum != _checksum(content) or len(content) < head_bytes:
            raise CorruptFileError("this exported network owner is damaged or cut off: use another copy of it")
        head, sealed = content[:head_bytes], content[head_bytes:]
        salt, nonce = head[len(_EXPORT_MAGIC) : -_NONCE_BYTES], head[-_NONCE_BYTES:]
        try:
            plain = _cipher(passphrase, salt).decrypt(nonce, sealed, head)
        except InvalidTag as error:
            raise UsageError("wrong passphrase for this exported network owner: try again") from error
        return _from_pair(plain)

    def _issuer(self) -> Issuer:
        return Issuer(self.owner, self.key, None, owner_keys(self.owner)[1:])


def open_network(name: str) -> Authority:
    """The authority of the open network `name`, the same on every machine: it admits everybody. Raises UsageError."""
    name = _network_name(name)
    return Authority(open_owner_key(name), read_owner(open_owner_certificate(name)))


def _network_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    if not name:
        raise UsageError("a network needs a name")
    return check_name("the name of a network", name)


def _self_signed(key: SigningKey, name: str, now_wall: float, entropy: Entropy, notes: Notes) -> Certificate:
    der = build_certificate(
        name=name,
        public_key=key.public_key,
        signer=key,
        issuer=None,
        window=Window.starting(now_wall, OWNER_VALID_S),
        serial=serial_from(entropy.bytes(16)),
        path_length=OWNER_PATH_LENGTH,
        notes=notes,
    )
    return read_owner(der)


def _from_pair(packed: bytes) -> Authority:
    try:
        pair = unpack(packed)
        if type(pair) is not list or len(pair) != 2 or not all(type(part) is bytes for part in pair):
            raise ProtocolError("not [key, certificate]")
        key, owner = SigningKey(pair[0]), read_owner(pair[1])
    except (ProtocolError, ValueError) as error:
        raise CorruptFileError(
            f"the file of this network's owner is damaged ({error}); it was left as it is. Restore it, or import the exported key"
        ) from error
    if key.public_key != owner.public_key:
        raise CorruptFileError(
            "key and certificate in the file of this network's owner do not belong together; it was left as it is. "
            "Restore it, or import the exported key"
        )
    return Authority(key, owner)


def _cipher(passphrase: str, salt: bytes) -> ChaCha20Poly1305:
    # Normalised, since two keyboards may write one letter in two ways.
    secret = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=1).derive(secret))


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]
