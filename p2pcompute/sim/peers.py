"""Peers in the laboratory: the product's own composition (`node/overlay_peer.py`) on simulated machines.

A machine has a host, clocks, a disk and a key, and runs a peer or none. What is replaced is sockets, clocks, dice and disks; links,
sessions, gossip, address book, healing and reach are the real shells over the real machines. Certificates are real too; that
they have been checked before, for the same bytes, is remembered for all peers of a run, since it is a pure function.

Refuses to know: what a scenario does with its peers, and what must hold (`invariants.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from structlog.typing import FilteringBoundLogger

from p2pcompute.model import limits
from p2pcompute.model.capability import Capability
from p2pcompute.model.errors import AdmissionError, P2PComputeError, ProtocolError
from p2pcompute.model.ids import NetworkId, PeerId, short_peer_id
from p2pcompute.model.peer import DEFAULT_ROLES, Address, Isolation, PeerStatus, PeerView
from p2pcompute.net.beacon import BeaconShell
from p2pcompute.net.link import Link
from p2pcompute.net.relay_pipe import ClearPipes
from p2pcompute.net.wakefulness import WakeClocks
from p2pcompute.node.driver import Observe
from p2pcompute.node.identity import NodeIdentity
from p2pcompute.node.overlay_peer import OverlayParts, OverlayPeer, OverlaySettings
from p2pcompute.node.own_record import Identity, OwnRecord
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.world import World
from p2pcompute.sim.beacon import SimBeaconShell
from p2pcompute.sim.hosts import SimHost
from p2pcompute.sim.lab import Lab
from p2pcompute.sim.nat import NatBox
from p2pcompute.storage.peer_database import RememberedPeer, incarnation_after
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.identity import PeerKey, verify_signature
from p2pcompute.wire.membership import Admitted, Membership
from p2pcompute.wire.messages import Message, Renewals, Revocations
from p2pcompute.wire.record import SignedRecord, Signer, open_record

#: A membership in the laboratory lasts longer than any run.
_VALID_S = 3 * 365 * 86_400.0
#: What is remembered about signatures and certificates, entries of each kind.
_MEMO_MAX = 200_000


class Memo:
    """Pure functions of bytes, computed once for all peers of a run."""

    def __init__(self) -> None:
        self._signatures: dict[tuple[bytes, bytes, bytes, bytes], bool] = {}
        self._records: dict[bytes, SignedRecord] = {}
        self._judged: dict[tuple[object, ...], Admitted | AdmissionError] = {}

    def verify(self, public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
        """`verify_signature`."""
        key = (public_key, context, data, signature)
        known = self._signatures.get(key)
        if known is None:
            if len(self._signatures) >= _MEMO_MAX:
                self._signatures.clear()
            known = self._signatures[key] = verify_signature(*key)
        return known

    def open(self, wire: bytes) -> SignedRecord | None:
        """The record in `wire`; None where it is none."""
        known = self._records.get(wire)
        if known is None:
            if len(self._records) >= _MEMO_MAX:
                self._records.clear()
            try:
                known = self._records[wire] = open_record(wire, verify_signature)
            except ProtocolError:
                return None
        return known

    def judge(
        self, identity: NodeIdentity, leaf_der: bytes, chain: Sequence[bytes], expected: PeerId | None, wall: float
    ) -> Admitted:
        """`Trust.admit`. Raises AdmissionError."""
        trust = identity.trust
        number = trust.revocations.number if trust.revocations is not None else 0
        key = (trust.owners, number, leaf_der, tuple(chain), expected)
        known = self._judged.get(key)
        if known is None:
            try:
                known = trust.admit(leaf_der, chain, wall, expected=expected)
            except AdmissionError as error:
                known = error
            self._judged[key] = known
        if isinstance(known, AdmissionError):
            raise AdmissionError(known.reason, known.reason_text)
        return known


class SimIdentity(NodeIdentity):
    """A `NodeIdentity` that remembers what it has judged."""

    memo: Memo

    def judge(self, leaf_der: bytes, chain: Sequence[bytes], expected: PeerId | None) -> Admitted:
        """Whom a leaf proves somebody to be. Raises AdmissionError."""
        return self.memo.judge(self, leaf_der, chain, expected, self._clock.wall())


class SimDisk:
    """What outlives a peer's process; a `node.healing.PeerMemory`."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, RememberedPeer] = {}
        self._anchors: tuple[PeerId, ...] = ()
        self._dht_anchors: tuple[tuple[PeerId, Address], ...] = ()
        self._incarnation = -1
        #: After a crash nothing is written until the next start.
        self.is_frozen = False

    def incarnation_next(self, now_ms: int) -> int:
        """As `PeerDatabase.incarnation_next`."""
        self._incarnation = incarnation_after(self._incarnation, now_ms)
        return self._incarnation

    def remembered(self) -> list[RememberedPeer]:
        """Peers that were met, the last seen first."""
        found = [replace(each, is_anchor=each.peer in self._anchors) for each in self._peers.values()]
        return sorted(found, key=lambda each: (-each.last_seen_s, each.peer))

    def remember(self, peers: Iterable[RememberedPeer]) -> None:
        """Write down peers that are met now."""
        if not self.is_frozen:
            for each in peers:
                old = self._peers.get(each.peer)
                times = old.times_seen + 1 if old is not None else 1
                self._peers[each.peer] = replace(each, times_seen=times)

    def choose_anchors(self, peers: Iterable[PeerId]) -> None:
        """These are remembered before all others."""
        if not self.is_frozen:
            self._anchors = tuple(peers)

    def dht_anchors(self) -> tuple[tuple[PeerId, Address], ...]:
        """Contacts of the address book, from the last run."""
        return self._dht_anchors

    def put_dht_anchors(self, contacts: Iterable[tuple[PeerId, Address]]) -> None:
        """Contacts of the address book, for the next run."""
        if not self.is_frozen:
            self._dht_anchors = tuple(contacts)


class _Log:
    """A peer's log: warnings become lines of the trace, bugs fail the run."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """Not kept."""

    info = debug

    def warning(self, event: str, **fields: Any) -> None:
        """A line of the trace."""
        self._lab.note("warning", self._name, event, *(f"{key}={value}" for key, value in sorted(fields.items())))

    error = warning

    def exception(self, event: str, **fields: Any) -> None:
        """A bug: what a supervised task raised."""
        import sys

        self._lab.loop.call_exception_handler(
            {"message": f"{self._name}: {event} {fields}", "exception": sys.exc_info()[1]}
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """How a simulated machine is made. `clock_*`: how wrong its clock may be."""

    addresses: tuple[str, ...]
    site: str = ""
    lan: str | None = None
    nat: NatBox | None = None
    clock_skew_max_s: float = 60.0
    clock_drift_max: float = 1e-4
    cores: int = 4


class SimPeer:
    """One machine with a disk and a key, on which a peer runs, or does not. Made by `SimOverlay.add`."""

    def __init__(self, overlay: SimOverlay, number: int, machine: Machine) -> None:
        lab = overlay.lab
        self._overlay = overlay
        self.number = number
        self.name = f"p{number}"
        self.machine = machine
        self.host: SimHost = lab.network.add_host(
            *machine.addresses, site=machine.site, lan=machine.lan, nat=machine.nat, name=self.name
        )
        self.clock = lab.clock(self.name, skew_max_s=machine.clock_skew_max_s, drift_max=machine.clock_drift_max)
        self.entropy = lab.entropy(self.name)
        self.key = PeerKey.generate(self.entropy)
        self.peer: PeerId = self.key.peer_id
        self.disk = SimDisk()
        #: Whether a peer runs here.
        self.is_up = False
        #: How often one was started.
        self.lives = 0
        #: The overlay of the peer that runs, or ran last.
        self.side: OverlayPeer | None = None
        self._supervisor: Supervisor | None = None
        self.own: OwnRecord | None = None
        self.identity: SimIdentity | None = None
        #: What its slots are busy with; scenarios set it.
        self.load = 0.0
        self._membership = self._join_network()

    def _join_network(self) -> Membership:
        # The owner's clock, not the machine's own: that one may be wrong.
        wall = self._overlay.owner_wall
        invitation = self._overlay.authority.invite(
            roles=DEFAULT_ROLES, label=self.name, valid_s=_VALID_S, now_wall=wall, entropy=self.entropy,
            may_invite=False, addresses=(),
        )  # fmt: skip
        return Membership.mint(self.key, invitation, wall, self.entropy)

    @property
    def address(self) -> Address:
        """Where others find it."""
        return Address(self.host.address, limits.PEER_PORT)

    @property
    def view(self) -> PeerView:
        """The network as it sees it."""
        assert self.side is not None, f"{self.name} was never started"
        return self.side.view

    @property
    def alive(self) -> frozenset[PeerId]:
        """Whom it believes to be up."""
        return frozenset(entry.record.peer for entry in self.view.alive)

    def status_of(self, other: SimPeer) -> PeerStatus | None:
        """What it believes of another peer; None: it does not know it."""
        entry = self.view.entry(other.peer)
        return entry.status if entry is not None else None

    # --- life -----------------------------------------------------------------------------------------------------------

    async def up(self, bootstrap: Iterable[SimPeer | Address] = ()) -> None:
        """Start a peer here. `bootstrap`: whom it is told of."""
        assert not self.is_up, f"{self.name} runs already"
        with self.host.here():
            await self._start([each if isinstance(each, Address) else each.address for each in bootstrap])

    async def _start(self, bootstrap: list[Address]) -> None:
        lab, overlay = self._overlay.lab, self._overlay
        self.lives += 1
        self.disk.is_frozen = False
        log = cast(FilteringBoundLogger, _Log(lab, self.name))
        self._supervisor = supervisor = Supervisor(log)
        await supervisor.start()
        capability = Capability(self.machine.cores, 3_000.0, 0.9, 16.0, 12.0)
        self.own = own = OwnRecord(
            Identity(
                peer=self.peer,
                network=self._membership.network,
                name=self.name,
                slots=self.machine.cores,
                roles=self._membership.roles,
                isolation=Isolation.PROCESS,
                labels=(),
                version="0.0.0",
            ),
            self.key,
            lambda at_least: self.disk.incarnation_next(at_least or int(self.clock.wall() * 1000)),
            capability,
            (),
            lab.dice.of("peer", self.number, self.lives, "own record"),
            tells_load=True,
        )
        self.identity = identity = SimIdentity(
            self.key,
            self._membership,
            self._membership.trust(None),
            self.clock,
            agent="sim",
            instance=self.entropy.bytes(16),
            record_wire=lambda: own.signed.wire,
        )
        identity.memo = overlay.memo
        parts = OverlayParts(
            self.key,
            identity,
            own,
            self.disk,
            supervisor,
            _Events(self),
            log,
            lambda: (replace(capability, idle=max(0.0, 0.9 - self.load)), self.load),
            # As `Peer` judges links over which no work runs; without it whoever is well known is full after two hundred newcomers.
            lambda link: min(self.machine.cores, 64) / 64 + 1.0 / (1.0 + (link.rtt_s or 1.0)),
        )
        self.side = OverlayPeer(parts, self._world(), overlay.settings)
        await self.side.start(None, limits.PEER_PORT)
        self.is_up = True
        remembered = [(address, "remembered") for each in self.disk.remembered() for address in each.addresses]
        self.side.join([*((address, "flag") for address in bootstrap), *remembered])  # type: ignore[list-item]
        if self.machine.lan is not None:
            await self.side.call_on_lan(limits.BEACON_PORT)
        lab.note("up", self.name, self.lives)

    def _world(self) -> World:
        lab, host, life = self._overlay.lab, self.host, self.lives

        def beacon(
            key: Signer,
            network: NetworkId,
            peer_port: int,
            heard: Callable[[bytes, Address], None],
            clock: Any,
            *,
            port: int,
            known_peers: Callable[[], Iterable[PeerId]],
            changed: Callable[[], None],
        ) -> BeaconShell:
            return SimBeaconShell(
                host, key, network, peer_port, heard, clock, self.entropy, known_peers=known_peers, changed=changed
            )

        return World(
            self.clock,
            self.entropy,
            rng=lambda purpose: lab.dice.of("peer", self.number, life, purpose),
            open_datagrams=host.open_datagrams,
            transport=lambda identity: host.transport(identity.membership.leaf, identity.hello),
            pipes=lambda identity: ClearPipes(identity.membership.leaf),
            addresses=lambda _, port: tuple(Address(each, port) for each in host.addresses),
            networks=lambda: tuple(f"{each}/{64 if ':' in each else 24}" for each in host.addresses),
            beacon=beacon,
            wake_clocks=WakeClocks(self.clock.monotonic, self.clock.wall, None),
            maps_ports=False,
            observe=self._overlay.observe_of(self),
            verify=self._overlay.memo.verify,
            remember_open=self._overlay.memo.open,
        )

    def sleep(self) -> None:
        """The lid is closed: nothing runs, and the monotonic clock stands still, as on Linux."""
        if self.is_up:
            self._overlay.lab.network.suspend(self.host)
            self.clock.stop()

    def wake(self) -> None:
        """The lid is opened."""
        self.clock.go_on(counts_sleep=self.number % 2 == 0)  # systems differ
        self._overlay.lab.network.resume(self.host)

    def moved(self) -> None:
        """Its host has other addresses: the system tells its programs, as netlink does."""
        if self.is_up and self.side is not None and self.machine.lan is None:
            with self.host.here():
                self.side.interfaces_changed()

    async def down(self) -> None:
        """Stop the peer as its user would."""
        if self.is_up:
            self._overlay.lab.note("down", self.name)
            self.is_up = False
            with self.host.here():
                await self._end()

    async def crash(self, *, silent: bool = True, loses_disk: bool = False) -> None:
        """The machine dies. `silent`: nothing answers any more; else connections are reset. `loses_disk`: keys survive, memory does not."""
        if not self.is_up:
            return
        self._overlay.lab.note("crash", self.name, loses_disk)
        self.is_up = False
        self.disk.is_frozen = True
        self._overlay.lab.network.crash(self.host, silent=silent)
        # Its tasks must end; with the host down nothing that they say gets out.
        with self.host.here():
            await self._end()
        if loses_disk:
            self.disk = SimDisk()

    async def _end(self) -> None:
        assert self.side is not None
        assert self._supervisor is not None
        await self.side.stop()
        await self._supervisor.stop()

    async def restart(self, bootstrap: Iterable[SimPeer | Address] = ()) -> None:
        """Switch the machine on again after a crash, and start its peer."""
        if not self.host.is_up:
            self._overlay.lab.network.revive(self.host)
        await self.up(bootstrap)


class _Events:
    """What a peer hears of its overlay: lines of the trace."""

    def __init__(self, peer: SimPeer) -> None:
        self._peer = peer

    def linked(self, link: Link) -> None:
        """A link is up."""

    def unlinked(self, link: Link, error: P2PComputeError | None) -> None:
        """A link is down."""

    def job_message(self, link: Link, message: Message) -> None:
        """No jobs run here."""

    def trust_message(self, link: Link, message: Revocations | Renewals) -> None:
        """No owner speaks here."""

    def network_event(self, kind: str, peer: PeerId, text: str) -> None:
        """Who came and went."""
        if kind != "view_changed":
            self._peer._overlay.heard(self._peer, kind, peer, text)


@dataclass(frozen=True, slots=True)
class Said:
    """Something that a peer came to believe, at `at` virtual seconds."""

    at: float
    by: SimPeer
    kind: str
    about: PeerId
    text: str


@dataclass
class SimOverlay:
    """A network of simulated peers. `observe`: shown what every machine of every peer is told and answers."""

    lab: Lab
    settings: OverlaySettings = field(default_factory=OverlaySettings)
    observe: Callable[[SimPeer, object, object, Sequence[object]], None] | None = None
    peers: list[SimPeer] = field(default_factory=list)
    #: Everything that any peer came to believe, in order.
    said: list[Said] = field(default_factory=list)
    memo: Memo = field(default_factory=Memo)

    def __post_init__(self) -> None:
        self._owner_clock = self.lab.clock("owner")
        self.authority = Authority.create("lab", self.lab.entropy("owner"), self.owner_wall)
        self._by_id: dict[PeerId, SimPeer] = {}

    @property
    def owner_wall(self) -> float:
        """The true time, seconds since 1970."""
        return self._owner_clock.wall()

    def add(self, machine: Machine | None = None) -> SimPeer:
        """One more machine; nothing runs on it yet."""
        number = len(self.peers)
        made = SimPeer(self, number, machine or Machine((address_of(number),)))
        self.peers.append(made)
        self._by_id[made.peer] = made
        return made

    def name_of(self, peer: PeerId) -> str:
        """What a peer is called."""
        known = self._by_id.get(peer)
        return known.name if known is not None else short_peer_id(peer)

    def peer(self, peer: PeerId) -> SimPeer | None:
        """The machine of that id."""
        return self._by_id.get(peer)

    @property
    def running(self) -> list[SimPeer]:
        """Machines on which a peer runs."""
        return [each for each in self.peers if each.is_up]

    def heard(self, by: SimPeer, kind: str, about: PeerId, text: str) -> None:
        """`by` came to believe something."""
        self.said.append(Said(self.lab.now, by, kind, about, text))
        self.lab.note(kind, by.name, self.name_of(about), text)

    def observe_of(self, peer: SimPeer) -> Observe | None:
        """What watches the machines of `peer`."""
        observe = self.observe
        if observe is None:
            return None
        return lambda machine, event, effects: observe(peer, machine, event, effects)

    def converged(self) -> bool:
        """Whether everybody that runs believes exactly the others that run to be up."""
        peers = self.running
        # Numbers first: of a thousand peers the sets have a million members.
        if any(each.side is None or each.side.counts()[0] != len(peers) - 1 for each in peers):
            return False
        running = frozenset(each.peer for each in peers)
        return all(each.alive == running - {each.peer} for each in peers)

    def known_dead(self, peer: SimPeer) -> bool:
        """Whether everybody that runs and knows `peer` believes it dead."""
        return all(each.status_of(peer) in (None, PeerStatus.DEAD) for each in self.running)

    async def stop(self) -> None:
        """Stop every peer that runs."""
        async with asyncio.TaskGroup() as group:
            for each in self.running:
                group.create_task(each.down())


def address_of(number: int) -> str:
    """A public address for each number up to 65,000, 250 to a /24."""
    return f"52.{number // 62_500 + 1}.{number // 250 % 250}.{number % 250 + 1}"
