"""News from the owner of the network: revocations and renewals, kept, spread and acted upon.

Both are signed by the owner, so it does not matter who passes them on. A peer tells its newest list and the renewals that it
knows to every peer that it meets, and passes on what was new to it. A renewal of its own membership is kept where the
next start finds it. In open networks, where everybody could sign, neither counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from structlog.typing import FilteringBoundLogger

from p2pcompute.model.errors import AdmissionError
from p2pcompute.model.ids import InvitationId, short_peer_id
from p2pcompute.model.seams import Clock
from p2pcompute.net.link import Link
from p2pcompute.node.identity import NodeIdentity
from p2pcompute.node.local_network import LocalNetwork
from p2pcompute.storage.peer_database import PeerDatabase
from p2pcompute.wire.certificates import read_certificate
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.membership import Membership, Renewal
from p2pcompute.wire.messages import Message, Renewals, Revocations
from p2pcompute.wire.revocation import RevocationList

_REVOCATIONS_KEY = "revocations"
_RENEWALS_KEY = "renewals"
#: Renewed invitations passed on by one peer, newest kept.
RENEWALS_KEPT = 64


class Admission:
    """Keeps a peer's trust current. `links`: every open link; `close`: ends a link for a reason; `ban`: has the revoked forgotten."""

    def __init__(
        self,
        identity: NodeIdentity,
        network: LocalNetwork,
        database: PeerDatabase,
        clock: Clock,
        log: FilteringBoundLogger,
        links: Callable[[], Iterable[Link]],
        close: Callable[[Link, str, str], None],
        ban: Callable[[RevocationList], None],
    ) -> None:
        self._identity = identity
        self._network = network
        self._database = database
        self._clock = clock
        self._log = log
        self._links = links
        self._close = close
        self._ban = ban
        #: Renewed invitations by the invitation's id, with their certificates (DER); the newest stand last.
        self._renewals: dict[InvitationId, tuple[Renewal, bytes]] = {}
        self._load()

    def _load(self) -> None:
        kept = self._database.get(_REVOCATIONS_KEY)
        if kept is not None:
            self._take_list(kept)
        # What the owner revoked while none of the owner's peers ran.
        signed_here = self._network.revocations()
        if signed_here is not None:
            self._take_list(signed_here.wire)
        for der in unpack(self._database.get(_RENEWALS_KEY) or pack([])):
            self._take_renewal(der)

    def greet(self, link: Link) -> None:
        """Tell a newly linked peer what the owner has said."""
        self._extend(link)
        revocations = self._identity.trust.revocations
        if revocations is not None:
            link.send(Revocations(revocations.wire))
        renewals = [der for _, der in self._renewals.values()]
        # The owner's folder knows all, however many were renewed since the other side was here last.
        theirs = self._network.renewal_of(InvitationId(link.admission.invitation), link.admission.expires_wall)
        if theirs is not None and theirs not in renewals:
            renewals = [*renewals[1 - RENEWALS_KEPT :], theirs]
        if renewals:
            link.send(Renewals(tuple(renewals)))

    def heard(self, link: Link, message: Revocations | Renewals) -> None:
        """A peer passes on what the owner said. Raises PeerError where the owner did not."""
        if isinstance(message, Revocations):
            if self._take_list(message.signed):
                self._spread(message, link)
            return
        new = tuple(der for der in message.invitations if self._take_renewal(der))
        if new:
            self._spread(Renewals(new), link)

    def revoke(self, revocations: RevocationList) -> None:
        """This user is the owner and has revoked: act on it and tell everybody."""
        if self._take_list(revocations.wire):
            self._spread(Revocations(revocations.wire), None)

    def renew(self, invitations: Iterable[bytes]) -> None:
        """This user is the owner and has renewed: act on it and tell everybody."""
        new = tuple(der for der in invitations if self._take_renewal(der))
        if new:
            self._spread(Renewals(new), None)

    def _take_list(self, wire: bytes) -> bool:
        """Whether the list was newer than ours; it is in force then."""
        if self._identity.trust.is_open:
            return False
        known = self._identity.trust.revocations
        if known is not None and known.wire == wire:
            return False
        heard = RevocationList.open(wire, self._identity.trust.owners)
        if known is not None and heard.number <= known.number:
            return False
        self._identity.trust = self._identity.trust.with_revocations(heard)
        self._database.put(_REVOCATIONS_KEY, wire)
        self._ban(heard)
        for link in list(self._links()):
            if self._is_revoked(heard, link):
                self._log.warning("link to a revoked peer is closed", peer=short_peer_id(link.peer))
                self._close(link, "revoked", "the owner of the network has revoked this peer's invitation")
        return True

    @staticmethod
    def _is_revoked(heard: RevocationList, link: Link) -> bool:
        # An admin's revoked invitation takes along everybody whom the admin invited.
        chain = (read_certificate(der).invitation for der in link.hello.invitations)
        return link.peer in heard.peers or any(invitation in heard.invitations for invitation in chain)

    def _take_renewal(self, der: bytes) -> bool:
        """Whether the renewal was news; this peer's own membership is renewed by it where it is its own."""
        if self._identity.trust.is_open:
            return False
        try:
            renewed = self._identity.trust.renewal(der, self._clock.wall())
        except AdmissionError as error:
            self._log.info("a renewal was refused", cause=str(error))
            return False
        known = self._renewals.get(renewed.invitation)
        if known is not None and known[0].expires_wall >= renewed.expires_wall:
            return False
        self._renewals.pop(renewed.invitation, None)
        self._renewals[renewed.invitation] = (renewed, der)
        while len(self._renewals) > RENEWALS_KEPT:
            del self._renewals[next(iter(self._renewals))]
        self._database.put(_RENEWALS_KEY, pack([kept for _, kept in self._renewals.values()]))
        self._renew_own(der)
        for link in list(self._links()):
            self._extend(link)
        return True

    def _extend(self, link: Link) -> None:
        """Whoever shows a certificate under an invitation that was renewed is a member for as long as a new one would say."""
        renewed, _ = self._renewals.get(InvitationId(link.admission.invitation), (None, b""))
        if renewed is not None:
            link.expires_wall = max(link.expires_wall, renewed.expires_wall)

    def _renew_own(self, der: bytes) -> None:
        own: Membership = self._identity.membership
        try:
            renewed = own.renewed(der)
        except AdmissionError:
            return  # of another invitation, or one that this peer started with already
        self._identity.renew(renewed)
        self._network.keep_renewal(der)
        self._log.info("membership renewed", ends_wall=renewed.expires_wall)

    def _spread(self, message: Message, source: Link | None) -> None:
        for link in list(self._links()):
            if link is not source and not link.closed:
                link.send(message)
