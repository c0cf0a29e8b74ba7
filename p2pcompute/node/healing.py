"""Finding again what was lost, and being found: the address book, remembered peers, sleep and wake.

Performs what the healing machine says with dials and lookups, publishes where this peer is, and remembers for the next start whom it
met. Refuses to decide: `membership/healing.py` and `net/dht` do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from p2pcompute.membership import healing
from p2pcompute.membership.book import PeerBook
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address, PeerRecord, PeerStatus
from p2pcompute.model.seams import Clock
from p2pcompute.net.dht.dht import Dht, DhtContact
from p2pcompute.net.link import Link
from p2pcompute.net.links import LinkHub
from p2pcompute.node.driver import Observe, Pump
from p2pcompute.node.supervise import Supervisor
from p2pcompute.storage.peer_database import RememberedPeer
from p2pcompute.wire.pointer import Presence

#: How often living peers are counted, and what this peer says about itself in the address book is compared with the truth.
LOOK_INTERVAL_S = 2.0
#: How often linked peers are written down for the next start.
REMEMBER_INTERVAL_S = 30.0


class PeerMemory(Protocol):
    """What outlives a peer's process; `storage.peer_database.PeerDatabase` is one."""

    def remembered(self) -> list[RememberedPeer]:
        """Peers that were met, the last seen first."""

    def remember(self, peers: Iterable[RememberedPeer]) -> None:
        """Write down peers that are met now."""

    def choose_anchors(self, peers: Iterable[PeerId]) -> None:
        """These are remembered before all others."""

    def dht_anchors(self) -> tuple[tuple[PeerId, Address], ...]:
        """Contacts of the address book, from the last run."""

    def put_dht_anchors(self, contacts: Iterable[tuple[PeerId, Address]]) -> None:
        """Contacts of the address book, for the next run."""


def remembered_contacts(memory: PeerMemory) -> tuple[DhtContact, ...]:
    """The anchors of the address book from the last run."""
    return tuple(DhtContact(peer, address) for peer, address in memory.dht_anchors())


class Healing:
    """See the module; an `overlay.Listener`. `own`: the newest own record; `found`: told of addresses that the book names."""

    def __init__(
        self,
        machine: healing.HealingMachine,
        dht: Dht,
        hub: LinkHub,
        memory: PeerMemory,
        clock: Clock,
        supervisor: Supervisor,
        log: FilteringBoundLogger,
        book: PeerBook,
        found: Callable[[PeerId, Presence], None],
        observe: Observe | None = None,
    ) -> None:
        self._dht = dht
        self._hub = hub
        self._memory = memory
        self._clock = clock
        self._supervisor = supervisor
        self._log = log
        self._book = book
        self._found = found
        #: What the address book was last told.
        self._announced: Presence | None = None
        self.pump: Pump[healing.Event, healing.Effect] = Pump(
            machine,
            {
                healing.TryAddress: lambda effect: self._dial(effect.peer, (effect.address,)),
                healing.ExchangeViews: lambda effect: self._dial(effect.peer, effect.addresses),
                healing.LookUp: self._look_up,
                healing.LookFor: self._look_for,
                healing.AnchorsChosen: lambda effect: memory.choose_anchors(effect.peers),
            },
            healing.Tick(),
            clock,
            observe=observe,
        )

    def start(self) -> None:
        """Begin; never ends."""
        self.pump.feed(
            healing.RememberedKnown(
                tuple(
                    healing.Remembered(
                        each.peer, each.addresses, each.last_seen_s, each.times_seen, is_anchor=each.is_anchor
                    )
                    for each in self._memory.remembered()
                )
            )
        )
        self._supervisor.service("address book", self._dht.run)
        self._supervisor.service("presence", self._keep_present)
        self._supervisor.service("remembered peers", self._keep_remembered)

    def stop(self) -> None:
        """Take nothing more in, and write down what the next start needs."""
        self.pump.stop()
        self.remember()
        self._dht.stop()

    def woke(self, slept_s: float) -> None:
        """This machine has slept, or its clock has jumped."""
        self.pump.feed(healing.Woke(slept_s))

    def networks_changed(self) -> None:
        """This machine sits on other networks than before."""
        self.pump.feed(healing.NetworksChanged())

    def banned(self, peer: PeerId) -> None:
        """The owner has revoked `peer`."""
        self.pump.feed(healing.PeerBanned(peer))

    def views_differ(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        """A beacon tells of another view."""
        self.pump.feed(healing.ViewsDiffer(peer, addresses))

    # --- Listener -------------------------------------------------------------------------------------------------------

    def linked(self, link: Link) -> None:
        """Called by the overlay."""
        record = self._view_record(link.peer)
        if record is not None:
            self.pump.feed(healing.PeerSeen(link.peer, record.addresses))

    def unlinked(self, peer: PeerId) -> None:
        """Called by the overlay: gossip tells whether it lives."""

    def learned(self, record: PeerRecord) -> None:
        """Called by the overlay."""
        self.pump.feed(healing.PeerSeen(record.peer, record.addresses))
        self._dht.heard_of(record.peer, record.addresses)

    def forgotten(self, peer: PeerId) -> None:
        """Called by the overlay."""
        self.pump.feed(healing.PeerLost(peer))

    def _view_record(self, peer: PeerId) -> PeerRecord | None:
        entry = self._book.entry(peer)
        return entry.record if entry is not None and entry.status is PeerStatus.ALIVE else None

    # --- effects --------------------------------------------------------------------------------------------------------

    def _dial(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        self._supervisor.task(f"try {short_peer_id(peer)}", self._dialled(peer, addresses))

    async def _dialled(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        for address in addresses:
            try:
                await self._hub.dial(address, peer)
            except P2PComputeError as error:
                self._log.debug("not there", peer=short_peer_id(peer), address=str(address), cause=str(error))
            else:
                return

    def _look_up(self, effect: healing.LookUp) -> None:
        self._supervisor.task("look up at random", self._looked_up(PeerId(effect.target)))

    async def _looked_up(self, target: PeerId) -> None:
        for contact in await self._dht.lookup(target):
            self.pump.feed(healing.Found(contact.peer, (contact.address,)))

    # --- being found ----------------------------------------------------------------------------------------------------

    def _look_for(self, effect: healing.LookFor) -> None:
        self._supervisor.task(f"look for {short_peer_id(effect.peer)}", self._looked_for(effect.peer))

    async def _looked_for(self, peer: PeerId) -> None:
        try:
            presence = await self._dht.find_presence(peer)
        except P2PComputeError as error:
            self._log.info("the address book says nonsense", peer=short_peer_id(peer), cause=str(error))
            return
        if presence is not None:
            self._found(peer, presence)
            self.pump.feed(healing.Found(peer, presence.addresses))

    async def _keep_present(self) -> None:
        while True:
            alive, known = self._book.counts()
            self.pump.feed(healing.ViewSize(alive, known))
            own = self._book.own_record
            self._dht.reach = own.reach
            presence = Presence(own.incarnation, own.addresses, own.relays, own.reach)
            if presence != self._announced and known:
                try:
                    await self._dht.announce(presence)
                    self._announced = presence
                except P2PComputeError as error:
                    self._log.debug("nobody keeps where this peer is", cause=str(error))
            await asyncio.sleep(LOOK_INTERVAL_S)

    # --- remembering ----------------------------------------------------------------------------------------------------

    async def _keep_remembered(self) -> None:
        while True:
            await asyncio.sleep(REMEMBER_INTERVAL_S)
            self.remember()

    def remember(self) -> None:
        """Write down whom this peer is linked to, and whom its address book rests on."""
        now_wall = self._clock.wall()
        self._memory.remember(
            [
                RememberedPeer(
                    entry.record.peer,
                    entry.record.addresses,
                    now_wall,
                    relays=entry.record.relays,
                    reach=entry.record.reach,
                )
                for entry in self._book.view.alive
                if entry.linked
            ]
        )
        self._memory.put_dht_anchors(tuple((each.peer, each.address) for each in self._dht.anchors()))
