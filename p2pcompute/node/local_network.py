"""One network as this user takes part in it: the own invitation, and the authority where this user owns it.

Owns the files of one network folder. Issued invitations are kept (certificates, no keys) so that the owner's peer can
renew them before they end; the list of revocations is kept so that the next one continues its number.

Refuses to know the other networks (`networks.py`) and the links.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    CorruptFileError,
    NoSuchPeerError,
    ProtocolError,
    UsageError,
)
from p2pcompute.model.ids import InvitationId, PeerId
from p2pcompute.model.peer import Address, Role
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.node.folders import locked_file
from p2pcompute.storage.files import make_private_folder, read_if_there, write_atomically
from p2pcompute.wire.authority import Authority, open_network
from p2pcompute.wire.certificates import Certificate, read_certificate
from p2pcompute.wire.invitation import VALID_S, Invitation
from p2pcompute.wire.membership import renewal_due_wall, window_needs_renewal
from p2pcompute.wire.revocation import RevocationList

OWNER_FILE = "owner"
INVITATION_FILE = "invitation.token"
OPEN_FILE = "open"
_ISSUED = "issued"
_REVOCATIONS = "revocations"
_LOCK = "lock"
ALL_ROLES = frozenset(Role)


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A network that this user may take part in. `authority`: None where this user does not own it, or it is open."""

    name: str
    folder: Path
    invitation: Invitation
    authority: Authority | None = field(repr=False)
    _clock: Clock = field(repr=False)
    _entropy: Entropy = field(repr=False)

    @classmethod
    def load(cls, name: str, folder: Path, clock: Clock, entropy: Entropy) -> LocalNetwork:
        """Read a network's folder; an own invitation that nears its end is replaced, which the owner may do.

        Raises CorruptFileError (with the file), AdmissionError where the membership has ended.
        """
        authority = _read_owner(folder / OWNER_FILE)
        signer = authority
        if signer is None and (folder / OPEN_FILE).exists():
            signer = open_network(_read_open_name(folder / OPEN_FILE))
        try:
            invitation = read_invitation(folder, clock.wall())
            fresh = signer is None or not window_needs_renewal(invitation.lineage.window, clock.wall())
        except AdmissionError as error:
            if signer is None or error.reason not in (AdmissionReason.EXPIRED, AdmissionReason.NOT_YET_VALID):
                raise
            fresh = False
        if not fresh and signer is not None:
            invitation = issue_own(signer, clock.wall(), entropy)
            write_atomically(folder / INVITATION_FILE, invitation.token().encode() + b"\n")
        return cls(name, folder, invitation, authority, clock, entropy)

    @property
    def is_open(self) -> bool:
        """Whether everybody who knows the name belongs to it."""
        return self.invitation.is_open

    def owner(self) -> Authority:
        """The authority. Raises UsageError where this user does not own the network."""
        if self.authority is None:
            raise UsageError(
                f"the network {self.name!r} is not yours: only whoever made it can do this, or somebody who imported its owner"
            )
        return self.authority

    def invite(
        self,
        *,
        roles: frozenset[Role],
        valid_s: float = VALID_S,
        label: str = "",
        may_invite: bool = False,
        addresses: tuple[Address, ...] = (),
    ) -> Invitation:
        """A new invitation, by the owner or under an admin's own one. Raises UsageError, AdmissionError (not allowed)."""
        if self.is_open:
            raise UsageError(
                f"{self.name!r} is an open network and needs no invitation: tell people `p2pcompute network open {self.name}`"
            )
        if not valid_s > 0:
            raise UsageError(f"an invitation cannot be valid for {valid_s:g} s: give more than 0")
        signer = self.authority if self.authority is not None else self.invitation
        invitation = signer.invite(
            roles=roles,
            now_wall=self._clock.wall(),
            entropy=self._entropy,
            valid_s=valid_s,
            addresses=addresses,
            may_invite=may_invite,
            label=label,
        )
        if self.authority is not None:
            self._keep_issued(invitation.id, invitation.chain[0])
        return invitation

    # --- renewal --------------------------------------------------------------------------------------------------------

    def renewals_due(self) -> list[bytes]:
        """Renewed certificates (DER) of invitations that are in the last third of their time; kept as the new ones.

        These are the issued ones and the owner's own, under which every peer of this user is linked. One that has ended
        already is not renewed: its holder was away too long and is invited again.
        """
        now = self._clock.wall()
        renewed: list[bytes] = []
        for certificate in self._renewable(now):
            if self.authority is not None and window_needs_renewal(certificate.window, now):
                new = self.authority.renew(certificate.der, now, certificate.window.promised_s, self._entropy)
                if certificate.invitation == self.invitation.id:
                    self.keep_renewal(new)
                else:
                    self._keep_issued(certificate.invitation, new)
                renewed.append(new)
        return renewed

    def next_renewal_wall(self) -> float | None:
        """When the next invitation wants to be renewed, in seconds since 1970; None where this user renews nothing."""
        return min((renewal_due_wall(each.window) for each in self._renewable(self._clock.wall())), default=None)

    def renewal_of(self, invitation: InvitationId, known_expires_wall: float) -> bytes | None:
        """The issued certificate (DER) of an invitation where it ends later than its holder knows, else None."""
        der = None if self.authority is None else read_if_there(self._issued_path(invitation))
        if der is None or self._certificate(der).window.not_after_s <= known_expires_wall:
            return None
        return der

    def keep_renewal(self, invitation_der: bytes) -> bool:
        """Use a renewed certificate of the own invitation's chain from the next start on; whether it was one.

        Raises CorruptFileError where the own invitation cannot be read, ProtocolError where that is no certificate.
        """
        own = read_invitation(self.folder, self._clock.wall(), any_time=True)
        try:
            renewed = own.renewed(invitation_der)
        except AdmissionError:
            return False
        write_atomically(self.folder / INVITATION_FILE, renewed.token().encode() + b"\n")
        return True

    def _renewable(self, now: float) -> list[Certificate]:
        """What the owner could renew now: neither ended nor revoked, and ending before the owner's own certificate."""
        if self.authority is None:
            return []
        revoked = self.revocations()
        own = read_invitation(self.folder, now, any_time=True).lineage.issuer
        return [
            certificate
            for certificate in (own, *self.issued())
            if now < certificate.window.not_after_s < self.authority.expires_wall
            and (revoked is None or certificate.invitation not in revoked.invitations)
        ]

    # --- revocation -----------------------------------------------------------------------------------------------------

    def revoke(
        self, wanted: str, peers: Iterable[PeerId] = (), invitations: Iterable[InvitationId | bytes] = ()
    ) -> RevocationList:
        """The next list of revocations, with these; `wanted` is what the user typed.

        Where no peer was found for it, it is read as an issued invitation: its label, or the start of its id. The own
        invitation is never revoked, since every peer of this user would be out with it; a peer under it is revoked alone.
        Raises UsageError, NoSuchPeerError.
        """
        authority = self.owner()
        chosen_peers = tuple(peers)
        chosen = {InvitationId(bytes(invitation)) for invitation in invitations} - {self.invitation.id}
        if not chosen_peers and not chosen:
            chosen = {self._issued_by_text(wanted)}
        make_private_folder(self.folder)
        with locked_file(self.folder / _LOCK):
            revocations = authority.revoke(
                self.revocations(), invitations=sorted(chosen), peers=chosen_peers, now_wall=self._clock.wall()
            )
            write_atomically(self.folder / _REVOCATIONS, revocations.wire)
        return revocations

    def issued(self) -> list[Certificate]:
        """The certificates of the invitations that this owner has issued, by id."""
        return [self._certificate(der) for der in self._issued()]

    def _issued_by_text(self, wanted: str) -> InvitationId:
        found = {
            certificate.invitation
            for certificate in self.issued()
            if wanted == certificate.notes.label
            or (len(wanted) >= 4 and certificate.invitation.hex().startswith(wanted.lower()))
        }
        if not found:
            raise NoSuchPeerError(
                f"no peer and no invitation of {self.name!r} is called {wanted!r}: `p2pcompute peers` shows the peers; "
                "an invitation is named by its label or the start of its id"
            )
        if len(found) > 1:
            raise UsageError(f"{len(found)} invitations are called {wanted!r}: give more characters of the id")
        return found.pop()

    def revocations(self) -> RevocationList | None:
        """The newest list that this owner has signed here, or None. Raises CorruptFileError."""
        path = self.folder / _REVOCATIONS
        wire = read_if_there(path)
        if wire is None:
            return None
        try:
            return RevocationList.open(wire, [self.invitation.owner])
        except ProtocolError as error:
            raise CorruptFileError(
                f"{path} cannot be read ({error.reason_text}) and was left as it is: restore it from a backup"
            ) from error

    # --- issued invitations ---------------------------------------------------------------------------------------------

    def _keep_issued(self, invitation: InvitationId, der: bytes) -> None:
        make_private_folder(self.folder / _ISSUED)
        write_atomically(self._issued_path(invitation), der)

    def _issued_path(self, invitation: InvitationId) -> Path:
        return self.folder / _ISSUED / f"{invitation.hex()}.der"

    def _issued(self) -> list[bytes]:
        folder = self.folder / _ISSUED
        paths = sorted(folder.glob("*.der")) if folder.is_dir() else []
        return [content for path in paths if (content := read_if_there(path)) is not None]

    def _certificate(self, der: bytes) -> Certificate:
        try:
            return read_certificate(der)
        except ProtocolError as error:
            raise CorruptFileError(
                f"a file in {self.folder / _ISSUED} is no certificate ({error.reason_text}): restore it, or move it away"
            ) from error


def issue_own(signer: Authority, now_wall: float, entropy: Entropy) -> Invitation:
    """The invitation under which the peers of a network's owner, or of a member of an open network, take part."""
    if signer.is_open:
        return signer.invite(roles=frozenset(), now_wall=now_wall, entropy=entropy)
    return signer.invite(roles=ALL_ROLES, now_wall=now_wall, entropy=entropy, may_invite=True, label="owner")


def read_invitation(folder: Path, now_wall: float, *, any_time: bool = False) -> Invitation:
    """The invitation in a network's folder. Raises CorruptFileError with the file, AdmissionError where it has ended.

    `any_time` reads one that has ended, or has not begun, as well.
    """
    path = folder / INVITATION_FILE
    content = read_if_there(path)
    if content is None:
        raise CorruptFileError(f"{path} is missing: join the network again with a token, or remove {folder}")
    text = content.decode("utf-8", "replace")
    try:
        # No moment is before or after NaN: the window is then not judged.
        return Invitation.from_token(text, math.nan if any_time else now_wall)
    except AdmissionError as error:
        if error.reason is AdmissionReason.UNREADABLE:
            raise CorruptFileError(
                f"{path} cannot be read and was left as it is ({error.reason_text}); restore it, or join again"
            ) from error
        raise


def _read_owner(path: Path) -> Authority | None:
    content = read_if_there(path)
    if content is None:
        return None
    try:
        return Authority.from_bytes(content)
    except CorruptFileError as error:
        raise CorruptFileError(f"{path}: {error}") from error


def _read_open_name(path: Path) -> str:
    content = read_if_there(path) or b""
    name = content.decode("utf-8", "replace").strip()
    if not name:
        raise CorruptFileError(f"{path} does not name an open network: remove the folder and open it again")
    return name
