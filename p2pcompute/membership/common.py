"""What the parts of the peer book share: the table, the links, the dice, and the list of effects that is being written."""

from __future__ import annotations

from p2pcompute.membership.awareness import Awareness
from p2pcompute.membership.book_events import BookSettings, Effect
from p2pcompute.membership.incarnation import latest_incarnation
from p2pcompute.membership.table import Row, Table
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerRecord
from p2pcompute.model.seams import Rng
from p2pcompute.wire.gossip import PREFIX_BYTES
from p2pcompute.wire.record import SignedRecord, Signer, Verifier


class Common:
    """See the module."""

    def __init__(
        self, own: SignedRecord, verify: Verifier, rng: Rng, settings: BookSettings, signer: Signer | None
    ) -> None:
        #: Times and limits.
        self.settings = settings
        #: Checks a signature.
        self.verify = verify
        #: Signs this peer's accusations; None: it makes none.
        self.signer = signer
        #: The machine's dice.
        self.rng = rng
        #: Every peer that is known, this one included.
        self.table = Table(own, settings, rng)
        #: When each linked peer last said anything, monotonic seconds.
        self.links: dict[PeerId, float] = {}
        #: By how much the clock of each linked peer was ahead of this machine's when the link came up, seconds; where it said so.
        self.clocks_ahead_s: dict[PeerId, float] = {}
        #: Revoked peers: nothing of them is taken. How their ids begin: a revoked peer has no row, and what is announced
        #: of it would be asked for again and again.
        self.banned: set[PeerId] = set()
        self._banned_prefixes: set[bytes] = set()
        #: How far this peer doubts itself.
        self.awareness = Awareness(settings.awareness_max)
        #: What the event that is being handled leads to.
        self.effects: list[Effect] = []

    @property
    def own(self) -> PeerRecord:
        """This peer's own newest record."""
        return self.table.own.record

    @property
    def peers(self) -> int:
        """Peers that gossip and are believed to live, this one included; of strangers no more than can be told from inventions."""
        met = len(self.table.ring) + 1
        return met + min(len(self.table.strangers), limits.STRANGERS_COUNTED_PER_PEER * met)

    def gossip_row(self, peer: PeerId) -> Row | None:
        """The row of `peer` where both it and this peer gossip."""
        row = self.table.rows.get(peer)
        return row if row is not None and row.gossips and self.table.gossips else None

    def ban(self, peer: PeerId) -> None:
        """Take nothing of `peer` from now on."""
        self.banned.add(peer)
        self._banned_prefixes.add(peer[:PREFIX_BYTES])

    def is_banned(self, start: bytes) -> bool:
        """Whether a revoked peer's id begins as `start` does, of which `PREFIX_BYTES` bytes count."""
        return start[:PREFIX_BYTES] in self._banned_prefixes

    def is_of_the_future(self, incarnation: int, wall: float, row: Row | None) -> bool:
        """Whether `incarnation` is higher than any to be taken while the wall clock shows `wall` seconds.

        `row`: of the peer whose it is; a life that was taken once goes on, whatever the clocks say later.
        """
        if row is not None and incarnation <= row.signed.record.incarnation:
            return False
        ahead_max_s = self.settings.incarnation_ahead_max_s
        return incarnation > latest_incarnation(wall, list(self.clocks_ahead_s.values()), ahead_max_s)
