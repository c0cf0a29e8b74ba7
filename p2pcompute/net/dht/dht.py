"""The wide-area address book as the rest of the peer sees it: put, get, announce, find, and a loop that keeps it up.

For two things only: where a peer is, and small signed pointers. Membership, jobs and data do not go over it. A peer that
nobody can dial from elsewhere is a client: it reads and publishes, and keeps nothing for the internet; within its own site, where
it can be dialled, it takes part like any other, or a network of one household would have no address book at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.model.ids import PEER_ID_BYTES, PeerId
from p2pcompute.model.peer import Address, Reach
from p2pcompute.model.seams import Clock, Rng
from p2pcompute.net.dht.contacts import Contact, InvitationOf, PeerAddress, dht_id
from p2pcompute.net.dht.server import HardenedServer
from p2pcompute.net.dht.surroundings import DhtPort, DhtSettings, Spawn, Surroundings
from p2pcompute.net.dht.troubles import Troubles
from p2pcompute.wire.identity import verify_signature
from p2pcompute.wire.pointer import (
    KEY_BYTES,
    PRESENCE_NAME,
    Name,
    Pointer,
    Presence,
    encode_value,
    portable_addresses,
    read_value,
)
from p2pcompute.wire.record import Signer, Verifier

#: Of presences: that of a peer's record.
_PRESENCE_LIFETIME_S = int(limits.RECORD_EXPIRY_S)
#: Between tries of the anchors while nobody is known.
_ANCHOR_INTERVAL_S = 10.0
#: After the first contact: its friends have been asked by then, and the own neighbourhood can be looked at.
_SETTLE_S = 1.0


@dataclass(frozen=True, slots=True, order=True)
class DhtContact:
    """A peer that has answered at an address."""

    peer: PeerId
    address: Address


def _unknown_invitation(peer: PeerId) -> bytes | None:
    return None


class Dht:
    """The address book of one peer.

    `invitation_of`: under which invitation a peer is a member, for counting voices in private ranges; `anchors`: from
    `anchors()` of an earlier life; `misdeed(peer, reason, times)`: told of peers that go on doing what no honest one does. Feed what arrives to `received`, and have `run` run.
    """

    def __init__(
        self,
        own: PeerId,
        signer: Signer,
        port: DhtPort,
        clock: Clock,
        rng: Rng,
        spawn: Spawn,
        *,
        anchors: Iterable[DhtContact] = (),
        settings: DhtSettings | None = None,
        reach: Reach = Reach.UNKNOWN,
        invitation_of: InvitationOf = _unknown_invitation,
        verify: Verifier = verify_signature,
        misdeed: Callable[[PeerId, str, int], None] | None = None,
    ) -> None:
        self._around = Surroundings(own, clock, rng, spawn, verify, invitation_of, settings or DhtSettings(), reach)
        if misdeed is not None:
            self._around.troubles = Troubles(misdeed)
        #: The subclass of the package's server.
        self.server = HardenedServer(self._around, signer, port)
        self.server.protocol.welcomed = self._welcomed
        #: Remembered from an earlier life, and tried while nobody is known.
        self._remembered = tuple(anchors)[: limits.DHT_ANCHORS]
        #: When to look at the own neighbourhood, monotonic seconds; None: nothing has changed.
        self._settle_at: float | None = None
        self._stopped = False
        #: Set when the loop has something to do earlier than it believed.
        self._changed = asyncio.Event()

    # --- from below and beside ------------------------------------------------------------------------------------------

    def received(self, peer: PeerId, source: Address, payload: bytes) -> None:
        """A datagram of `peer`, whose session has proven who and where it is. Raises nothing."""
        self.server.protocol.datagram_received(payload, PeerAddress(peer, source))

    def heard_of(self, peer: PeerId, addresses: Iterable[Address]) -> None:
        """`peer` may be at `addresses`: a hint, which is asked before it is believed."""
        self.server.protocol.hint(peer, tuple(addresses)[: limits.ADDRESSES_MAX])

    @property
    def reach(self) -> Reach:
        """Whether others can dial this peer."""
        return self._around.reach

    @reach.setter
    def reach(self, reach: Reach) -> None:
        self._around.reach = reach

    # --- the book -------------------------------------------------------------------------------------------------------

    async def put(self, name: Name, value: bytes, lifetime_s: int) -> int:
        """Publish `name` -> `value`, again and again until `withdraw`; how many peers keep it now.

        Raises UsageError for what is too large or lives too long, BusyError for too many names, ResourceError where nobody
        took it (it is tried again all the same).
        """
        count = await self.server.publish(name, value, lifetime_s)
        self._changed.set()
        return count

    def withdraw(self, name: Name) -> None:
        """Publish `name` no more; what is out ends with its lifetime."""
        self.server.withdraw(name)

    async def get(self, owner: PeerId, name: Name) -> Pointer | None:
        """The newest pointer of `owner` under `name` that can be found, its signature checked.

        `owner`: a peer id (`ids.peer_id_of` makes one of a public key).
        """
        if len(owner) != PEER_ID_BYTES:
            raise UsageError(f"an owner is given by its peer id of {PEER_ID_BYTES} bytes, not {len(owner)}")
        return await self.server.fetch(owner, name)

    async def announce(self, presence: Presence) -> int:
        """Publish where this peer is; how many peers keep it. Addresses that mean nothing elsewhere are left out. Raises like `put`."""
        said = Presence(
            presence.incarnation,
            portable_addresses(presence.addresses),
            presence.relays[: limits.RELAYS_MAX],
            presence.reach,
            presence.unknown,
        )
        return await self.put(PRESENCE_NAME, encode_value(said), _PRESENCE_LIFETIME_S)

    async def find_presence(self, peer: PeerId) -> Presence | None:
        """Where `peer` says it is; None where nothing is found. Raises ProtocolError where it signed nonsense."""
        pointer = await self.get(peer, PRESENCE_NAME)
        value = None if pointer is None else read_value(pointer)
        return value if isinstance(value, Presence) else None

    async def lookup(self, target: PeerId) -> tuple[DhtContact, ...]:
        """Who is nearest to `target` and answers, nearest first: a random id heals a split, somebody's own finds its neighbours."""
        if len(target) < KEY_BYTES:
            raise UsageError(f"a lookup needs an id of at least {KEY_BYTES} bytes, not {len(target)}")
        found = await self.server.find_peers(dht_id(target))
        return tuple(DhtContact(each.peer, each.address) for each in found.contacts)

    # --- upkeep ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the book up until `stop`: anchors, own neighbourhood, buckets, what this peer publishes."""
        settings, clock = self._around.settings, self._around.clock
        checked_at = refreshed_at = clock.monotonic()
        anchors_at = checked_at
        while not self._stopped:
            now = clock.monotonic()
            if not len(self.server.protocol.router) and now >= anchors_at:
                anchors_at = now + _ANCHOR_INTERVAL_S
                for anchor in self._remembered:
                    self.heard_of(anchor.peer, (anchor.address,))
            if self._settle_at is not None and now >= self._settle_at:
                self._settle_at = None
                await self.server.find_peers(dht_id(self._around.own))
            if now >= checked_at + settings.check_interval_s:
                checked_at = now
                await self.server.check_quietest()
            if now >= refreshed_at + settings.refresh_interval_s / 4:
                refreshed_at = now
                await self.server.refresh()
            for name in self.server.due():
                await self._publish_again(name)
            times = [
                checked_at + settings.check_interval_s,
                refreshed_at + settings.refresh_interval_s / 4,
                *(at for at in (self._settle_at, self.server.due_at()) if at is not None),
                *((anchors_at,) if self._remembered and not len(self.server.protocol.router) else ()),
            ]
            await self._until(min(times))

    async def _publish_again(self, name: Name) -> None:
        if name not in self.server.published or self._stopped:
            return
        try:
            await self.server.publish_again(name)
        except ResourceError:
            # It says itself when it is tried again; `doctor` shows the count.
            self._around.troubles.count("nobody keeps ours")

    async def _until(self, at: float) -> None:
        """Wait until `at`, monotonic seconds, or until something has changed."""
        if self._stopped:
            return
        self._changed.clear()
        pause_s = max(at - self._around.clock.monotonic(), 0.0)
        try:
            async with asyncio.timeout(pause_s):
                await self._changed.wait()
        except TimeoutError:
            return

    def _welcomed(self, contact: Contact) -> None:
        # The first contact, and any while the table is small, may know our neighbours.
        if self._settle_at is None and len(self.server.protocol.router) <= self._around.settings.k:
            self._settle_at = self._around.clock.monotonic() + _SETTLE_S
            self._changed.set()

    def stop(self) -> None:
        """Send and answer nothing any more; `run` returns, calls end unanswered. A second call does nothing."""
        self._stopped = True
        self.server.stop()
        self._changed.set()

    # --- for others to look at ------------------------------------------------------------------------------------------

    def anchors(self) -> tuple[DhtContact, ...]:
        """Whom to remember for the next start: those known longest, of different voices where there are."""
        contacts = sorted(
            self.server.protocol.router.contacts(), key=lambda each: (each.failures, each.since, each.peer)
        )
        first: dict[str, Contact] = {}
        for contact in contacts:
            first.setdefault(contact.voice(self._around.invitation_of), contact)
        chosen: dict[PeerId, Contact] = {}
        for contact in (*first.values(), *contacts):
            if len(chosen) < limits.DHT_ANCHORS:
                chosen.setdefault(contact.peer, contact)
        return tuple(DhtContact(each.peer, each.address) for each in chosen.values()) or self._remembered

    def contacts(self) -> tuple[DhtContact, ...]:
        """Everybody in the tables, by id."""
        found = self.server.protocol.router.contacts()
        return tuple(sorted(DhtContact(each.peer, each.address) for each in found))

    @property
    def troubles(self) -> Mapping[str, int]:
        """What was refused, times by reason."""
        return dict(self._around.troubles.by_reason)

    def offenders(self) -> tuple[tuple[PeerId, Mapping[str, int]], ...]:
        """Who did what no honest peer does, times by reason, the worst first."""
        return self._around.troubles.offenders()

    def check_invariants(self) -> None:
        """Raise AssertionError where the state is not what it says; for tests and the laboratory."""
        self.server.protocol.check_invariants()
        assert len(self.server.published) <= limits.DHT_PUBLISHED_MAX
