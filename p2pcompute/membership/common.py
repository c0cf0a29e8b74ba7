"""What the parts of the peer book share: the table, the links, the dice, and the list of effects that is being written."""

from __future__ import annotations

from p2pcompute.membership.awareness import Awareness
from p2pcompute.membership.book_events import BookSettings, Effect
from p2pcompute.membership.incarnation import latest_incarnation
from p2pcompute.membership.table import Row, Table
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerRecord
from p2pcompute.model.seams import Rng
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
        #: Revoked peers: nothing of them is taken.
        self.banned: set[PeerId] = set()
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
        """Peers that gossip and are believed to live, this one included."""
        return len(self.table.ring) + 1

    def gossip_row(self, peer: PeerId) -> Row | None:
        """The row of `peer` where both it and this peer gossip."""
        row = self.table.rows.get(peer)
        return row if row is not None and row.gossips and self.table.gossips else None

    def is_of_the_future(self, incarnation: int, wall: float) -> bool:
        """Whether `incarnation` is higher than any to be taken while the wall clock shows `wall` seconds."""
        # The neighbours are asked only where the own clock says no: they can allow more, never less.
        own_ms = (wall + self.settings.incarnation_ahead_max_s) * 1000
        return incarnation > own_ms and incarnation > self.latest_incarnation(wall)

    def latest_incarnation(self, wall: float) -> float:
        """The highest incarnation to take while the wall clock shows `wall` seconds; milliseconds."""
        rows = self.table.rows
        linked = [rows[peer].signed.record.incarnation for peer in self.links if peer in rows]
        return latest_incarnation(wall, linked, self.settings.incarnation_ahead_max_s)
