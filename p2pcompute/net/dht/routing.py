"""Routing tables: the package's buckets without its faults, one table a family.

What is different from the package: bounds of buckets meet without overlap (D16), neighbours are the true nearest in a total order (D15),
no network fills a table (D9), a peer that answers from elsewhere is moved (D20), time is the caller's clock.

Limits by network are hard for addresses of the internet: two of a /24 (IPv6: /48) in a bucket, ten in a table. Private,
link-local and loopback ranges count by invitation, and softly: as long as nobody else wants the place an invitation may have more, since a
household or a cluster under one invitation is the commonest network of all; a bucket that is full and cannot be split gives
up a contact of an invitation that has more than its two for one of an invitation that has fewer. So a person with many
identities can fill what is empty and can push nobody out.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dht.addresses import Scope
from p2pcompute.net.dht.contacts import Contact, InvitationOf, dht_id

_ID_MAX = (1 << 160) - 1

#: Monotonic seconds.
Now = Callable[[], float]


class Bucket(KBucket):  # type: ignore[misc]
    """Contacts whose ids are within [lower, upper], both included, the longest unheard first."""

    def __init__(self, lower: int, upper: int, ksize: int, now: Now) -> None:
        #: The caller's clock; needed by the base class's constructor.
        self._now = now
        super().__init__(lower, upper, ksize)

    def touch_last_updated(self) -> None:
        """A lookup went through here."""
        self.last_updated = self._now()

    def split(self) -> tuple[Bucket, Bucket]:
        """Two buckets, each with its half; replacements stay replacements until the table's limits let them in."""
        lower, upper = self.range
        middle = (lower + upper) // 2
        halves = (
            Bucket(lower, middle, self.ksize, self._now),
            Bucket(middle + 1, upper, self.ksize, self._now),
        )
        for half in halves:
            half.last_updated = self.last_updated
        for contact in self.nodes.values():
            halves[contact.long_id > middle].nodes[contact.id] = contact
        for contact in self.replacement_nodes.values():
            halves[contact.long_id > middle].replacement_nodes[contact.id] = contact
        return halves

    def put(self, contact: Contact) -> None:
        """Set or move `contact`, now the one heard last; room has been checked."""
        self.nodes.pop(contact.id, None)
        self.replacement_nodes.pop(contact.id, None)
        self.nodes[contact.id] = contact

    def contacts(self) -> Iterator[Contact]:
        """Its contacts, the longest unheard first."""
        return iter(self.nodes.values())


class FamilyTable(RoutingTable):  # type: ignore[misc]
    """The contacts of one family of addresses. `crowded(contact)` is told of the oldest of a full bucket when another wants in."""

    def __init__(
        self, node: Node, ksize: int, now: Now, invitation_of: InvitationOf, crowded: Callable[[Contact], None]
    ) -> None:
        #: The caller's clock.
        self._now = now
        #: For counting voices.
        self._invitation_of = invitation_of
        #: Asked to find out whether the oldest of a full bucket still lives.
        self._crowded = crowded
        #: Buckets in order of their ranges, which cover [0, 2^160) without gap or overlap.
        self.buckets: list[Bucket] = []
        super().__init__(None, ksize, node)

    def flush(self) -> None:
        """Forget everybody."""
        self.buckets = [Bucket(0, _ID_MAX, self.ksize, self._now)]

    def split_bucket(self, index: int) -> None:
        """Make two of the bucket at `index`; replacements move into the room that this makes, newest first."""
        super().split_bucket(index)
        for bucket in self.buckets[index : index + 2]:
            self._promote(bucket, self.ksize - len(bucket))

    def _promote(self, bucket: Bucket, places: int) -> None:
        for spare in list(reversed(bucket.replacement_nodes.values())):
            if places <= 0:
                return
            if self.takes(spare):
                bucket.put(spare)
                places -= 1

    def get_bucket_for(self, node: Node) -> int:
        """Index of the bucket in whose range `node` is; ranges include both ends."""
        low, high = 0, len(self.buckets) - 1
        while low < high:
            middle = (low + high) // 2
            if node.long_id <= self.buckets[middle].range[1]:
                high = middle
            else:
                low = middle + 1
        return low

    def contacts(self) -> Iterator[Contact]:
        """Everybody, by bucket."""
        for bucket in self.buckets:
            yield from bucket.contacts()

    def contact(self, peer: PeerId) -> Contact | None:
        """The contact of `peer`, if it is here."""
        wanted = Node(dht_id(peer))
        found: Contact | None = self.buckets[self.get_bucket_for(wanted)].nodes.get(wanted.id)
        # Twenty bytes are looked up, and all thirty-two compared.
        return found if found is not None and found.peer == peer else None

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Contact]:
        """The `k` nearest to `node`, nearest first, without `exclude`."""
        self.buckets[self.get_bucket_for(node)].touch_last_updated()
        found = (each for each in self.contacts() if exclude is None or each.id != exclude.id)
        return heapq.nsmallest(k or self.ksize, found, key=lambda each: each.long_id ^ node.long_id)

    def lonely_buckets(self) -> list[Bucket]:
        """Buckets through which no lookup went for a refresh interval."""
        before = self._now() - limits.DHT_REFRESH_INTERVAL_S
        return [bucket for bucket in self.buckets if bucket.last_updated <= before]

    def takes(self, contact: Contact) -> bool:
        """Whether the limits by network let `contact` in, whatever room there is."""
        if contact.id == self.node.id:
            return False
        bucket = self.buckets[self.get_bucket_for(contact)]
        known = bucket.nodes.get(contact.id)
        if known is not None and known.peer != contact.peer:
            return False
        if contact.scope is not Scope.GLOBAL:
            return known is not None or len(self) < limits.DHT_CONTACTS_MAX
        near = _same_network(bucket.contacts(), contact)
        far = _same_network(self.contacts(), contact)
        return (
            near < limits.DHT_SAME_NETWORK_PER_BUCKET_MAX
            and far < limits.DHT_SAME_NETWORK_PER_TABLE_MAX
            and (known is not None or len(self) < limits.DHT_CONTACTS_MAX)
        )

    def add_contact(self, contact: Contact) -> bool:
        """Let `contact`, which has just answered from its address, in, or move it there; whether it is in now."""
        if not self.takes(contact):
            return False
        while True:
            index = self.get_bucket_for(contact)
            bucket = self.buckets[index]
            known = bucket.nodes.get(contact.id)
            if known is not None:
                contact.since = known.since
            if known is not None or len(bucket) < self.ksize:
                bucket.put(contact)
                return True
            # Kademlia, section 4.2: split around the own id, and elsewhere to a depth that shortens lookups.
            if not (bucket.has_in_range(self.node) or bucket.depth() % 5 != 0):
                break
            self.split_bucket(index)
        crowding = self._crowding(bucket, contact)
        if crowding is not None:
            bucket.nodes.pop(crowding.id)
            bucket.put(contact)
            return True
        if _same_network(bucket.replacement_nodes.values(), contact) < limits.DHT_SAME_NETWORK_PER_BUCKET_MAX:
            bucket.add_node(contact)
        self._crowded(bucket.head())
        return False

    def remove_contact(self, contact: Contact) -> None:
        """Forget `contact`; the newest replacement that the limits let in takes its place."""
        bucket = self.buckets[self.get_bucket_for(contact)]
        bucket.replacement_nodes.pop(contact.id, None)
        if bucket.nodes.pop(contact.id, None) is not None:
            self._promote(bucket, 1)

    def _crowding(self, bucket: Bucket, newcomer: Contact) -> Contact | None:
        """The newest contact of an invitation that has more than its share of a full bucket, if the newcomer's has less."""
        voices = {each.id: each.voice(self._invitation_of) for each in bucket.contacts()}
        counts = Counter(voices.values())
        share = limits.DHT_SAME_NETWORK_PER_BUCKET_MAX
        if counts[newcomer.voice(self._invitation_of)] >= share:
            return None
        over = [
            each for each in bucket.contacts() if each.scope is not Scope.GLOBAL and counts[voices[each.id]] > share
        ]
        return max(over, key=lambda each: (counts[voices[each.id]], each.since, each.id), default=None)

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def check_invariants(self) -> None:
        """Raise AssertionError where the table is not what it says; for tests and the laboratory."""
        assert self.buckets[0].range[0] == 0
        assert self.buckets[-1].range[1] == _ID_MAX
        for before, after in zip(self.buckets, self.buckets[1:], strict=False):
            assert before.range[1] + 1 == after.range[0], "ranges meet without gap or overlap"
        networks: Counter[str] = Counter()
        for bucket in self.buckets:
            assert len(bucket) <= self.ksize
            near: Counter[str] = Counter()
            for contact in bucket.contacts():
                assert contact.id != self.node.id, "nobody is its own contact"
                assert len(contact.id) == len(self.node.id)
                assert bucket.has_in_range(contact)
                assert contact.failures < limits.DHT_FAILURES_MAX
                if contact.scope is Scope.GLOBAL:
                    near[contact.network] += 1
            networks.update(near)
            assert max(near.values(), default=0) <= limits.DHT_SAME_NETWORK_PER_BUCKET_MAX
        assert max(networks.values(), default=0) <= limits.DHT_SAME_NETWORK_PER_TABLE_MAX
        assert len(self) <= limits.DHT_CONTACTS_MAX


def _same_network(contacts: Iterable[Contact], like: Contact) -> int:
    """How many of `contacts` are of the network of `like`, which is not counted itself; none outside the internet."""
    if like.scope is not Scope.GLOBAL:
        return 0
    return sum(each.network == like.network and each.id != like.id for each in contacts)


class Tables:
    """One table a family; a peer may be in both. Takes the place of the package's `router`."""

    def __init__(
        self,
        node: Node,
        ksize: int,
        families: Iterable[int],
        now: Now,
        invitation_of: InvitationOf,
        crowded: Callable[[Contact], None],
    ) -> None:
        #: By family, of those that this peer can use.
        self.by_family: dict[int, FamilyTable] = {
            family: FamilyTable(node, ksize, now, invitation_of, crowded) for family in sorted(families)
        }
        #: The own place in the key space.
        self.node = node

    def takes(self, contact: Contact) -> bool:
        """Whether its family is in use and the limits let it in."""
        table = self.by_family.get(contact.family)
        return table is not None and table.takes(contact)

    def add_contact(self, contact: Contact) -> bool:
        """See `FamilyTable.add_contact`; False for a family that is not in use."""
        table = self.by_family.get(contact.family)
        return table is not None and table.add_contact(contact)

    def remove_contact(self, contact: Contact) -> None:
        """Forget `contact` in the table of its family."""
        table = self.by_family.get(contact.family)
        if table is not None:
            table.remove_contact(contact)

    def known(self, peer: PeerId) -> list[Contact]:
        """The contacts of `peer`, at most one a family."""
        found = (table.contact(peer) for table in self.by_family.values())
        return [contact for contact in found if contact is not None]

    def at(self, peer: PeerId, address: Address) -> Contact | None:
        """The contact of `peer` if it is known at exactly `address`."""
        return next((contact for contact in self.known(peer) if contact.address == address), None)

    def contacts(self) -> Iterator[Contact]:
        """Everybody, by family and bucket."""
        for table in self.by_family.values():
            yield from table.contacts()

    def __len__(self) -> int:
        return sum(len(table) for table in self.by_family.values())

    def check_invariants(self) -> None:
        """Those of every table, and that contacts stand in the one of their family."""
        for family, table in self.by_family.items():
            table.check_invariants()
            assert all(contact.family == family for contact in table.contacts())
