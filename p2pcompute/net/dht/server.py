"""The package's server without its sockets, its files and its own get and set: lookups, publishing, upkeep.

Owners publish again at a third of a pointer's lifetime, with a higher version; holders never do. Before an owner
publishes it looks at what is there, so that one whose clock was set back goes on above its own last version. Every public verb of the package that would open a
socket, read a pickle or believe a value is shut.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NoReturn

from kademlia.network import Server
from kademlia.node import Node

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, ResourceError, UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Reach
from p2pcompute.net.dht.contacts import Contact, dht_id
from p2pcompute.net.dht.crawl import ContactCrawl, Found, PointerCrawl
from p2pcompute.net.dht.protocol import HardenedProtocol, PortTransport
from p2pcompute.net.dht.storage import SignedStorage
from p2pcompute.net.dht.surroundings import DhtPort, Surroundings
from p2pcompute.wire.pointer import KEY_BYTES, Name, Pointer, PointerKey, pointer_key, sign_pointer
from p2pcompute.wire.record import Signer

#: Of the lifetime, after which an owner publishes again: two tries may fail before the pointer ends.
_REPUBLISH_SHARE = 1 / 3
#: Contacts that a lookup may fall back on, in multiples of k.
_SPARE_FACTOR = 3
#: After a try that nobody took.
_RETRY_S = 30.0
#: Holders of an old version, and of none, that a reader brings the newest to (section 2.3 of the paper; it is signed).
_REPAIRED_MAX = 3


@dataclass(slots=True)
class Published:
    """What this peer publishes under one name."""

    value: bytes
    lifetime_s: int
    #: When it is published again, monotonic seconds.
    due: float
    #: Of the last try; 0 before the first.
    version: int = 0


class HardenedServer(Server):  # type: ignore[misc]
    """See the module."""

    protocol: HardenedProtocol
    storage: SignedStorage

    def __init__(self, around: Surroundings, signer: Signer, port: DhtPort) -> None:
        own_id = dht_id(around.own)
        super().__init__(
            around.settings.k, around.settings.alpha, own_id, SignedStorage(own_id, around.clock, around.verify)
        )
        #: Clock, dice, settings and so on.
        self.around = around
        #: Signs what this peer publishes.
        self._signer = signer
        #: By name; at most `limits.DHT_PUBLISHED_MAX`.
        self.published: dict[Name, Published] = {}
        self.protocol = self._create_protocol()
        self.transport = PortTransport(port, lambda peer: self.protocol.trouble("address", peer))
        self.protocol.connection_made(self.transport)

    def _create_protocol(self) -> HardenedProtocol:
        return HardenedProtocol(self.node, self.storage, self.around)

    # --- lookups ------------------------------------------------------------------------------------------------------------

    def nearest(self, key: PointerKey) -> list[Contact]:
        """The contacts of our tables nearest to `key`, nearest first, each peer once, several k so that k may be dead."""
        target, count = Node(key), _SPARE_FACTOR * self.ksize
        found = [
            contact
            for table in self.protocol.router.by_family.values()
            for contact in table.find_neighbors(target, count)
        ]
        once: dict[PeerId, Contact] = {}
        for contact in sorted(found, key=lambda each: (each.long_id ^ target.long_id, each.family)):
            once.setdefault(contact.peer, contact)
        return list(once.values())

    async def find_peers(self, key: PointerKey) -> Found:
        """Who is nearest to `key` (20 bytes)."""
        return await ContactCrawl(self.protocol, Node(key), self.nearest(key)).find()

    async def fetch(self, owner: PeerId, name: Name) -> Pointer | None:
        """The newest pointer (`owner`, `name`) that is found; brings it to a few that lacked it."""
        key = pointer_key(owner, name)
        own = self.storage.pointer(key)
        found = await PointerCrawl(self.protocol, Node(key), self.nearest(key)).find()
        newest = max(
            (pointer for pointer in (own, found.newest) if pointer is not None),
            key=lambda pointer: pointer.order,
            default=None,
        )
        if newest is not None:
            stale = self._lacking(found, newest)
            if stale:
                self.around.spawn("dht repair", self._repair(stale, newest))
        return newest

    def _lacking(self, found: Found, newest: Pointer) -> list[Contact]:
        versions = {contact.peer: pointer.order for contact, pointer in found.holders}
        old = [each for each in found.contacts if each.peer in versions and versions[each.peer] < newest.order]
        without = [each for each in found.contacts if each.peer not in versions]
        return old[:_REPAIRED_MAX] + without[:1]

    async def _repair(self, contacts: list[Contact], pointer: Pointer) -> None:
        for contact in contacts:
            await self.protocol.call_store(contact, pointer.wire)

    # --- publishing ---------------------------------------------------------------------------------------------------------

    async def publish(self, name: Name, value: bytes, lifetime_s: int) -> int:
        """Publish, and from now on again and again until `withdraw`; how many peers keep it.

        Raises UsageError for what cannot be signed, BusyError for one name too many, and ResourceError where nobody took
        it, which does not end the publishing: it is tried again.
        """
        if name not in self.published and len(self.published) >= limits.DHT_PUBLISHED_MAX:
            raise BusyError(
                f"this peer publishes {limits.DHT_PUBLISHED_MAX} pointers, and nobody keeps more of one owner: "
                "withdraw one first"
            )
        # Refused before anything is promised.
        sign_pointer(self._signer, name, value, version=1, issued_s=0, lifetime_s=lifetime_s)
        before = self.published.get(name)
        now = self.around.clock.monotonic()
        self.published[name] = Published(value, lifetime_s, now + _RETRY_S, before.version if before else 0)
        return await self.publish_again(name)

    def withdraw(self, name: Name) -> None:
        """Publish `name` no more; what is out ends by itself."""
        self.published.pop(name, None)

    def due_at(self) -> float | None:
        """When something is published again, monotonic seconds."""
        return min((each.due for each in self.published.values()), default=None)

    def due(self) -> list[Name]:
        """What is to be published again now."""
        now = self.around.clock.monotonic()
        return [name for name, each in self.published.items() if each.due <= now]

    async def publish_again(self, name: Name) -> int:
        """Sign what stands under `name` anew and bring it to the nearest; how many keep it. Raises ResourceError where nobody does."""
        entry = self.published[name]
        entry.due = self.around.clock.monotonic() + _RETRY_S
        key = pointer_key(self.around.own, name)
        found = await PointerCrawl(self.protocol, Node(key), self.nearest(key), wanted=None).find()
        seen = max((pointer.version for _, pointer in found.holders), default=0)
        kept = self.storage.pointer(key)
        seen = max(seen, entry.version, kept.version if kept is not None else 0)
        wall = self.around.clock.wall()
        # Set before the first await after it, so that two publishers of one name never use one version twice.
        entry.version = max(int(wall * 1000), seen + 1)
        pointer = sign_pointer(
            self._signer,
            name,
            entry.value,
            version=entry.version,
            issued_s=int(wall),
            lifetime_s=entry.lifetime_s,
        )
        holders = found.nearest(self.ksize)
        if self._is_holder(key, holders):
            self.storage.keep(pointer.wire, "own")
        count = await self._store(holders, pointer)
        if not count:
            raise ResourceError(
                f"nobody keeps this pointer: of {len(found.contacts)} peers that answered none took it. It is tried again "
                f"in {_RETRY_S:.0f} s"
            )
        entry.due = self.around.clock.monotonic() + entry.lifetime_s * _REPUBLISH_SHARE
        return count

    async def _store(self, holders: list[Contact], pointer: Pointer) -> int:
        taken: list[Contact] = []

        async def one(contact: Contact) -> None:
            if await self.protocol.call_store(contact, pointer.wire):
                taken.append(contact)

        async with asyncio.TaskGroup() as group:
            for contact in holders:
                group.create_task(one(contact), name="dht store")
        return len(taken)

    def _is_holder(self, key: PointerKey, holders: list[Contact]) -> bool:
        if self.around.reach is Reach.PRIVATE:
            return False
        target = Node(key)
        own_distance = int(self.node.distance_to(target))
        return len(holders) < self.ksize or own_distance < max(each.distance(target) for each in holders)

    # --- upkeep -------------------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look through each bucket that no lookup went through lately, at a random place of it; forget what has ended."""
        self.storage.sweep(self.around.clock.monotonic())
        for table in self.protocol.router.by_family.values():
            for bucket in table.lonely_buckets():
                bucket.touch_last_updated()
                if not len(bucket) and len(table.buckets) > 1:
                    continue
                lower, upper = bucket.range
                place = self.around.rng.randrange(lower, upper + 1)
                await self.find_peers(PointerKey(place.to_bytes(KEY_BYTES, "big")))

    async def check_quietest(self) -> None:
        """Ask the contact that was quiet longest whether it is there."""
        now = self.around.clock.monotonic()
        contacts = [
            each
            for each in self.protocol.router.contacts()
            if not self.protocol.dead.is_dead(each.peer, each.address, now)
        ]
        quietest = min(contacts, key=lambda each: (each.heard_at, each.peer), default=None)
        if quietest is not None and now - quietest.heard_at >= self.around.settings.check_interval_s:
            await self.protocol.call_ping(quietest)

    def stop(self) -> None:
        """Send, ask and answer nothing any more."""
        self.protocol.close()
        super().stop()

    # --- what is shut -------------------------------------------------------------------------------------------------------

    async def listen(self, port: object, interface: object = "") -> NoReturn:
        """Refused: the address book has no socket of its own."""
        raise UsageError("the address book shares the peer's one UDP port, which is given to its constructor")

    def refresh_table(self, interval: object = 0) -> NoReturn:
        """Refused: it would start tasks that nobody keeps."""
        raise UsageError("the address book is kept up by Dht.run()")

    async def bootstrap(self, addrs: object) -> NoReturn:
        """Refused: an address without a peer id proves nothing."""
        raise UsageError("contacts come by Dht.heard_of(), with the id that they must prove")

    async def bootstrap_node(self, addr: object) -> NoReturn:
        """Refused, see `bootstrap`."""
        raise UsageError("contacts come by Dht.heard_of(), with the id that they must prove")

    async def get(self, key: object) -> NoReturn:
        """Refused: it believes what the majority says."""
        raise UsageError("unsigned values are not read: use fetch()")

    async def set(self, key: object, value: object) -> NoReturn:
        """Refused: it publishes what anybody may overwrite."""
        raise UsageError("unsigned values are not published: use publish()")

    async def set_digest(self, dkey: object, value: object) -> NoReturn:
        """Refused, see `set`."""
        raise UsageError("unsigned values are not published: use publish()")

    def save_state(self, fname: object) -> NoReturn:
        """Refused: it writes a pickle."""
        raise UsageError("the package keeps its state as a pickle, which runs what stands in it: keep Dht.anchors()")

    def save_state_regularly(self, fname: object, frequency: object = 0) -> NoReturn:
        """Refused, see `save_state`."""
        raise UsageError("the package keeps its state as a pickle, which runs what stands in it: keep Dht.anchors()")

    @classmethod
    async def load_state(cls, fname: object, port: object, interface: object = "") -> NoReturn:
        """Refused: it reads a pickle."""
        raise UsageError("the package keeps its state as a pickle, which runs what stands in it: give Dht its anchors")
