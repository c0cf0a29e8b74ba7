"""Membership: a peer's leaf certificate under its invitation, and how a peer judges the leaves of others.

A peer mints its own leaf over its own key. What it may do comes from the invitation above the leaf, never from the
leaf. `Trust.admit` holds for links and datagrams alike: it checks again what TLS has checked, and adds what TLS knows
nothing of: roles, revocations and who was expected. Refuses to know: sockets (`net/tls.py` feeds the same
certificates to TLS), files, and the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, ProtocolError, UsageError
from p2pcompute.model.ids import InvitationId, NetworkId, PeerId, format_peer_id, peer_id_of, short_peer_id
from p2pcompute.model.peer import Role
from p2pcompute.model.seams import Entropy
from p2pcompute.wire.certificates import Certificate, Window, build_certificate, read_certificate, serial_from
from p2pcompute.wire.chain import Lineage, check_window, network_of, owner_keys, read_owner, trace
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.revocation import RevocationList

#: Share of the time that a membership was made for that may be left before it is renewed.
RENEWAL_SHARE = 1 / 3
#: Certificates above a leaf that are looked at: one more than can be right, so that the refusal says what is wrong.
_CHAIN_READ_MAX = 3


@dataclass(frozen=True, slots=True)
class Admitted:
    """Whom a certificate proves somebody to be. `expires_wall`: when that ends, seconds since 1970."""

    peer: PeerId
    public_key: bytes
    roles: frozenset[Role]
    invitation: InvitationId
    expires_wall: float


@dataclass(frozen=True, slots=True)
class Renewal:
    """An invitation that was signed again. `expires_wall`: its new end, seconds since 1970."""

    invitation: InvitationId
    expires_wall: float


@dataclass(frozen=True, slots=True)
class Membership:
    """What one peer holds after joining; `mint` makes one.

    `invited`: its invitation, with the key that mints leaves. `public_key`: the peer's own. `leaf`: DER. `owners`:
    DER certificates that it trusts, two while the network changes hands.
    """

    invited: Invitation = field(repr=False)
    public_key: bytes
    leaf: bytes = field(repr=False)
    owners: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def mint(cls, key: PeerKey, invitation: Invitation, now_wall: float, entropy: Entropy) -> Membership:
        """The membership of the peer that holds `key`, under `invitation`. Raises AdmissionError when that has ended."""
        check_window(invitation.lineage.window, now_wall, f"the invitation to {invitation.network_name!r}")
        leaf = _leaf(key.public_key, invitation, entropy.bytes(16))
        return cls(invitation, key.public_key, leaf, (invitation.owner,))

    @property
    def network(self) -> NetworkId:
        """The network."""
        return self.invited.network

    @property
    def network_name(self) -> str:
        """What its owner called the network; not unique."""
        return self.invited.network_name

    @property
    def is_open(self) -> bool:
        """Whether the network is open: no admission, and no role counts."""
        return self.invited.is_open

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER certificates above the leaf and below the owner, the issuer of the leaf first."""
        return self.invited.chain

    @property
    def roles(self) -> frozenset[Role]:
        """What this peer may do; empty in open networks."""
        return self.invited.roles

    @property
    def invitation(self) -> InvitationId:
        """Which invitation it came by."""
        return self.invited.id

    @property
    def expires_wall(self) -> float:
        """When it ends, unless it is renewed: seconds since 1970."""
        return self.invited.expires_wall

    def needs_renewal(self, now_wall: float) -> bool:
        """Whether less than a third of its life is left."""
        return window_needs_renewal(self.invited.lineage.window, now_wall)

    def renewed(self, invitation_der: bytes) -> Membership:
        """This membership under a renewed invitation of its chain, with a leaf that lasts as long.

        Raises AdmissionError where it renews nothing of this chain, ends no later, or is not signed by who may;
        ProtocolError where it is no certificate.
        """
        invited = self.invited.renewed(invitation_der, self.owners)
        return replace(self, invited=invited, leaf=_leaf(self.public_key, invited, invitation_der))

    def trusting(self, owner: bytes) -> Membership:
        """This membership with a further owner trusted, whom one of the present owners has appointed.

        At most two are trusted at a time: the new one, and the one that this peer's own chain leads to. Raises
        AdmissionError, ProtocolError.
        """
        if owner in self.owners:
            return self
        successor = read_owner(owner)
        predecessors = owner_keys(successor)[1:]
        known = {read_owner(der).public_key for der in self.owners}
        if network_of(successor) != self.network or not known.intersection(predecessors):
            raise AdmissionError(
                AdmissionReason.FOREIGN_AUTHORITY,
                "this owner was not appointed by one that this peer trusts: ask the owner",
            )
        kept = (self.invited.owner, owner)
        assert len(kept) <= limits.OWNERS_MAX
        return replace(self, owners=kept)

    def trust(self, revocations: RevocationList | None) -> Trust:
        """What this peer checks others with."""
        return Trust(self.network, self.owners, revocations, self.is_open)


def window_needs_renewal(window: Window, now_wall: float) -> bool:
    """Whether less than a third of what `window` was made for is left."""
    return now_wall > renewal_due_wall(window)


def renewal_due_wall(window: Window) -> float:
    """When the last third of what `window` was made for begins, in seconds since 1970.

    The backdated day counts for nothing: with it a membership for an hour would want to be renewed from its first minute on.
    """
    return window.not_after_s - window.promised_s * RENEWAL_SHARE


def _leaf(public_key: bytes, invitation: Invitation, seed: bytes) -> bytes:
    lineage: Lineage = invitation.lineage
    # The window is the invitation's own, not one that starts now: the clock of a joining machine may be wrong.
    return build_certificate(
        name=short_peer_id(peer_id_of(public_key)),
        public_key=public_key,
        signer=invitation.key,
        issuer=lineage.issuer,
        window=lineage.window,
        serial=serial_from(seed + public_key),
        path_length=None,
    )


@dataclass(frozen=True, slots=True)
class Trust:
    """What a peer checks others with. `owners`: DER certificates of `network` (two while it changes hands).

    Raises UsageError where an owner is another network's, ProtocolError where it is no owner.
    """

    network: NetworkId
    owners: tuple[bytes, ...] = field(repr=False)
    revocations: RevocationList | None
    is_open: bool
    #: The owners as they read; kept, since reading checks signatures.
    _owners: tuple[Certificate, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        owners = tuple(read_owner(der) for der in self.owners)
        if not 1 <= len(owners) <= limits.OWNERS_MAX or any(network_of(owner) != self.network for owner in owners):
            raise UsageError(f"trust needs one owner of its network, or at most {limits.OWNERS_MAX}")
        object.__setattr__(self, "_owners", owners)

    def with_revocations(self, revocations: RevocationList) -> Trust:
        """The same trust under `revocations` where they are newer, else this one.

        In an open network, where everybody could sign such a list, none counts.
        """
        if self.is_open or revocations.network != self.network or not revocations.newer_than(self.revocations):
            return self
        return replace(self, revocations=revocations)

    def admit(self, leaf_der: bytes, chain: Sequence[bytes], now_wall: float, *, expected: PeerId | None) -> Admitted:
        """Whom `leaf_der` under the invitations `chain` (issuer of the leaf first) proves somebody to be.

        That somebody holds the leaf's key must have been proven, by TLS or otherwise. `expected`: who was dialled,
        None for anybody. Raises AdmissionError, whose reason is the case.
        """
        if not leaf_der:
            raise AdmissionError(
                AdmissionReason.NO_CERTIFICATE, "showed no certificate: join the network with a token of its owner"
            )
        try:
            leaf = read_certificate(leaf_der)
            invitations = [read_certificate(der) for der in chain[:_CHAIN_READ_MAX]]
        except ProtocolError as error:
            raise AdmissionError(AdmissionReason.UNREADABLE, f"showed {error.reason_text}") from error
        origin = f"peer {short_peer_id(leaf.peer)}"
        try:
            return self._admit(leaf, invitations, now_wall, expected)
        except AdmissionError as error:
            raise AdmissionError(error.reason, error.reason_text, origin) from error

    def _admit(
        self, leaf: Certificate, invitations: Sequence[Certificate], now_wall: float, expected: PeerId | None
    ) -> Admitted:
        if leaf.path_length is not None:
            raise AdmissionError(
                AdmissionReason.NOT_ALLOWED, "showed an invitation where a peer's own certificate should stand"
            )
        if expected is not None and leaf.peer != expected:
            raise AdmissionError(
                AdmissionReason.WRONG_PEER,
                f"answers where {format_peer_id(expected)} was expected: its address has changed hands, look it up again",
            )
        lineage = trace(invitations, self._owners)
        if not leaf.signed_by(lineage.issuer):
            raise AdmissionError(
                AdmissionReason.FOREIGN_AUTHORITY,
                "its certificate was not made under the invitation that it shows: join again with a token",
            )
        window = lineage.window.within(leaf.window)
        check_window(window, now_wall, "its membership")
        self._check_revoked(leaf.peer, lineage)
        roles = frozenset[Role]() if self.is_open else lineage.roles
        return Admitted(leaf.peer, leaf.public_key, roles, lineage.invitation, float(window.not_after_s))

    def renewal(self, invitation_der: bytes, now_wall: float) -> Renewal:
        """What an invitation that an owner signed again says.

        Raises AdmissionError where no owner of this network signed it, it has ended or is revoked; ProtocolError
        where it is no certificate.
        """
        lineage = trace([read_certificate(invitation_der)], self._owners)
        check_window(lineage.window, now_wall, "a renewed invitation")
        self._check_revoked(None, lineage)
        return Renewal(lineage.invitation, float(lineage.window.not_after_s))

    def _check_revoked(self, peer: PeerId | None, lineage: Lineage) -> None:
        if self.revocations is None or self.is_open:
            return
        # An admin's revoked invitation takes along everybody whom the admin invited.
        if any(certificate.invitation in self.revocations.invitations for certificate in lineage.invitations):
            raise AdmissionError(
                AdmissionReason.REVOKED, "the network's owner has revoked its invitation: ask the owner"
            )
        if peer is not None and peer in self.revocations.peers:
            raise AdmissionError(AdmissionReason.REVOKED, "the network's owner has revoked this peer: ask the owner")
