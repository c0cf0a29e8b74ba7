"""A peer: everything above, put together; started, stopped, and used through `Door`'s four names.

The order of `start` is the order of what each part needs; `stop` is its reverse. Refuses to decide anything: machines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from structlog.typing import FilteringBoundLogger

from p2pcompute import __version__
from p2pcompute.execution.probes import HardwareProbe
from p2pcompute.execution.values import Handle
from p2pcompute.jobs.health import Health
from p2pcompute.jobs.plan import NOWHERE, Place
from p2pcompute.membership.joining import Source
from p2pcompute.model import limits
from p2pcompute.model.errors import NotRunningError, P2PComputeError, PeerError
from p2pcompute.model.ids import BlobId, PeerId, coordinator_of, is_seat, short_peer_id
from p2pcompute.model.peer import Address, PeerView
from p2pcompute.net.blobs import BlobExchange
from p2pcompute.net.link import Link
from p2pcompute.node.admission import Admission
from p2pcompute.node.channels import LinkChannel
from p2pcompute.node.clusters import cluster_of, sample_of
from p2pcompute.node.community import Community
from p2pcompute.node.config import PeerConfig, config_with, own_name
from p2pcompute.node.containers import Containers
from p2pcompute.node.coordinator import Coordinator
from p2pcompute.node.delegating import Delegating
from p2pcompute.node.facts import view_health
from p2pcompute.node.folders import Folders, Instance
from p2pcompute.node.handles import Handles
from p2pcompute.node.holders import Holders
from p2pcompute.node.identity import NodeIdentity, load_key
from p2pcompute.node.job_stream import JobRequest, JobStream, ResultRow
from p2pcompute.node.kept_results import keep_sweeping
from p2pcompute.node.lender import Lender
from p2pcompute.node.logs import get_log
from p2pcompute.node.networks import LocalNetwork, Networks
from p2pcompute.node.offers import Offers, offers_of, workshop_of
from p2pcompute.node.origin import Origin
from p2pcompute.node.overlay_peer import OverlayParts, OverlayPeer, overlay_settings
from p2pcompute.node.own_record import Identity, OwnRecord
from p2pcompute.node.program_doors import ProgramDoors
from p2pcompute.node.records import Records
from p2pcompute.node.seams import ThreadOffload
from p2pcompute.node.shape_loading import load_topology_report, load_topology_watch
from p2pcompute.node.standing import standings_of
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.surroundings import Surroundings
from p2pcompute.node.wasm_engines import WasmEngines, engine_by_default, prepare_where_wanted
from p2pcompute.node.world import World
from p2pcompute.node.yielding import YieldsToOwner
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.storage.peer_database import PeerDatabase
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Membership, Trust
from p2pcompute.wire.messages import BlobMissing, BlobWant, Message, Renewals, Revocations
from p2pcompute.wire.revocation import RevocationList

if TYPE_CHECKING:
    from p2pcompute.node.topology import TopologyWatch
    from p2pcompute.topology.shape import NetworkShape

_PORT_KEY = "port"
#: How often linked peers are written down for the next start.
REMEMBER_INTERVAL_S = 30.0
#: How often the owner looks for invitations that need renewal: other programs of this user may have made some.
RENEWAL_INTERVAL_S = 60.0
#: A look at a renewal that is due is no busy loop, whatever the clocks say.
RENEWAL_PAUSE_MIN_S = 0.5
#: How long saying goodbye may take.
GOODBYE_TIMEOUT_S = 2.0

Watcher = Callable[[str, PeerId, str], None]


class Peer(ProgramDoors):
    """One peer in this process.

    `async with Peer() as peer:` joins this user's network, lends this machine's cores and takes jobs:
    `await peer.submit(fn, *args)`, `async for r in peer.map(fn, inputs)`, `await peer.map_reduce(…)`, `await peer.put(obj)`.
    `config`: see `PeerConfig`; keyword arguments replace single values of it.
    """

    def __init__(self, config: PeerConfig | None = None, *, folders: Folders | None = None, **changes: Any) -> None:
        self.config = config_with(config, changes)
        self._world = World.machine(maps_ports=self.config.map_ports)
        super().__init__(self._world.entropy)
        self.folders = folders or Folders.locate(os.environ)
        self._entropy_source = self._world.entropy
        self._clock = self._world.clock
        self._log: FilteringBoundLogger = get_log("peer")
        self._exits = contextlib.AsyncExitStack()
        self._started = False
        self._stopping = False
        #: Who wants to hear of peers that appear and go.
        self._watchers: list[Watcher] = []
        self._started_at = 0.0
        #: Keeps the shape of the network; None before its first look.
        self._topology: TopologyWatch | None = None
        self.port = 0

    # --- life cycle -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Join the network and begin to serve. Raises what stands in the way; nothing is left behind then."""
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._exits = stack.pop_all()
        self._started = True
        self._started_at = self._clock.monotonic()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        self.instance: Instance = self.folders.claim_instance(self.config.instance)
        stack.callback(self.instance.close)
        self._database = PeerDatabase.open(self.instance.folder / "peer.db")
        stack.callback(self._database.close)
        key = load_key(self.instance.folder, self._entropy_source)
        self.network: LocalNetwork = Networks(self.folders, self._clock, self._entropy_source).get(self.config.network)
        invitation = self.network.invitation
        membership = Membership.mint(key, invitation, self._clock.wall(), self._entropy_source)
        trust = Trust(membership.network, membership.owners, None, self.network.is_open)
        self._offload = ThreadOffload()
        stack.callback(self._offload.close)
        self._supervisor = Supervisor(self._log)
        await self._supervisor.start()
        stack.push_async_callback(self._supervisor.stop)

        self._containers = await Containers.look(self.config, os.environ, self._log)
        stack.push_async_callback(self._containers.close)
        self._wasm = await self._offload.run(lambda: WasmEngines.open(self.folders, self.config.wasm_python))
        self._engine_by_default = engine_by_default(is_open=self.network.is_open)
        self._offers = await self._offload.run(self._look_at_offers)
        self._probe = HardwareProbe(self._clock)
        capability = self._probe.sample()
        slots = capability.cores if self.config.slots is None else self.config.slots
        self._cluster = cluster_of(self.config, self._log) if slots else None
        if self._cluster is not None:
            slots = 0  # until it has answered
        self.own = OwnRecord(
            Identity(
                peer=key.peer_id,
                network=membership.network,
                name=self._name(),
                slots=slots,
                roles=membership.roles,
                isolation=self._offers.isolation,
                engines=tuple(engine.value for engine in self._offers.engines),
                grants=self._offers.grants,
                labels=self.config.labels,
                version=__version__,
                cost_per_hour=self.config.cost_per_hour,
                performance_tier=self.config.performance_tier,
            ),
            key,
            self._incarnation_next,
            capability,
            (),
            self._world.rng("own record"),
            tells_load=True,
        )
        self.peer_id = key.peer_id
        self.identity = NodeIdentity(
            key,
            membership,
            trust,
            self._clock,
            agent=f"p2pcompute/{__version__}",
            instance=self._entropy_source.bytes(16),
            record_wire=lambda: self.own.signed.wire,
        )
        self._blobs = BlobStore(self.instance.folder / "blobs")
        stack.callback(self._blobs.close)
        self.handles = Handles(self._blobs)
        await self._start_jobs(stack, slots)
        await self._start_overlay(stack, key)
        await self._join(invitation.addresses)
        self._start_services()

    async def _start_jobs(self, stack: contextlib.AsyncExitStack, slots: int) -> None:
        self.exchange = BlobExchange(self._blobs, self._supervisor.task)
        self.records = await Records.open(
            self.instance.folder, self._clock, self._world.rng("placing"), self._offload, self._log
        )
        stack.push_async_callback(self.records.close)
        self.origin = Origin(self._blobs, self._supervisor, self._clock, self._log, self.name_of, self.records)
        stack.callback(self.origin.stop)
        self.lender = Lender(
            self._blobs,
            self._supervisor,
            self._clock,
            self._offload,
            self._log,
            slots=slots,
            offers=self._offers,
            trust=lambda: self.identity.trust,
            standings=standings_of(self.config, self.peer_id, self.network.is_open),
            reserved=self.config.reserved_slots,
        )
        self.yielding = YieldsToOwner(
            self.config, self._database, self._clock, self._offload, self.lender, self.own, self._log
        )
        # A pause that was kept holds from the first moment.
        await self.yielding.look()
        workshop = workshop_of(
            self.lender, self._clock, self.config, self._entropy_source, self._wasm.place, self._cluster
        )
        self._containers.add_to(
            workshop, self.lender, self._clock, self.instance.folder, self.peer_id, self._supervisor
        )
        if self._cluster is not None:
            self._cluster.tells(self.yielding, self.own)
        if slots or self._cluster is not None:
            await workshop.start()
            stack.push_async_callback(workshop.stop)
        stack.callback(self.lender.stop)
        self.lender.start(workshop)
        self.coordinator = Coordinator(self._blobs, self._supervisor, self._clock, self._log, self.records.registry)
        stack.callback(self.coordinator.stop)
        self.community = Community(self.peer_id, self._blobs, self.exchange, self.origin, self.coordinator, self.lender)
        self.origin.seats.delegating = Delegating(self.identity, self._clock, self._entropy_source)
        self.origin.holders = Holders(lambda: self.handles.sizes)

    async def _start_overlay(self, stack: contextlib.AsyncExitStack, key: PeerKey) -> None:
        parts = OverlayParts(
            key,
            self.identity,
            self.own,
            self._database,
            self._supervisor,
            self,
            self._log,
            lambda: sample_of(self._probe.sample(), self.lender.load, self._cluster),
            self._worth,
            self.config.relay,
        )
        self.side = OverlayPeer(parts, self._world, overlay_settings(self.config.timing))
        self.overlay = self.side.overlay
        self.surroundings = Surroundings(
            self.own, self.overlay, self.exchange, self.community, self.origin, self.place_of
        )
        self.surroundings.is_open = self.network.is_open
        self.surroundings.offer_self()
        self.origin.misdeed = self.overlay.misdeed
        self.coordinator.misdeed = self.overlay.misdeed
        self.admission = Admission(
            self.identity,
            self.network,
            self._database,
            self._clock,
            self._log,
            lambda: self.side.hub.links.values(),
            self._close_link,
            self._ban,
        )
        remembered = self._database.get(_PORT_KEY)
        wanted = self.config.port
        if remembered is not None and wanted == limits.PEER_PORT:
            # An instance keeps its port where the user asked for none: others remember it.
            wanted = int(remembered)
        self.port = await self.side.start(self.config.host, wanted)
        stack.push_async_callback(self.side.stop)
        stack.callback(self.lender.drain)
        self._database.put(_PORT_KEY, str(self.port).encode())
        if self.network.authority is not None:
            # What was revoked while no peer of the owner ran is told now.
            kept = self.network.revocations()
            if kept is not None:
                self.admission.revoke(kept)

    async def _join(self, invited_by: Sequence[Address]) -> None:
        candidates: list[tuple[Address, Source]] = [(address, "flag") for address in self.config.bootstrap]
        candidates += [(address, "invitation") for address in invited_by]
        for peer in self._database.remembered():
            candidates += [(address, "remembered") for address in peer.addresses]
        self.side.join(candidates)
        if self.config.lan:
            await self.side.call_on_lan(self.config.beacon_port)

    def _worth(self, link: Link) -> float | None:
        """How useful a link is; None: work runs over it."""
        if self.lender.works_for(link.peer) or self.origin.uses(link.peer) or self.coordinator.uses(link.peer):
            return None
        entry = self.view.entry(link.peer)
        slots = entry.record.slots if entry is not None else 0
        return min(slots, 64) / 64 + 1.0 / (1.0 + (link.rtt_s or 1.0))

    def _start_services(self) -> None:
        self._supervisor.service("offers", self.surroundings.keep_offering)
        self._supervisor.service("records", self.records.run)
        self._supervisor.service("yielding", self.yielding.run)
        self._supervisor.service("topology", self._keep_topology)
        self._supervisor.service("kept results", lambda: keep_sweeping(self.folders))
        if self.network.authority is not None:
            self._supervisor.service("renewals", self._keep_renewing)
        making = prepare_where_wanted(self._wasm, self.config, self.network.is_open, self._offer_again, self._log)
        self._supervisor.task("wasm-python", making)

    def _look_at_offers(self) -> Offers:
        is_open = self.network.is_open
        return offers_of(
            self.config, (*self._wasm.engines, *self._containers.engines(is_open=is_open)), is_open=is_open
        )

    async def _offer_again(self) -> None:
        self._offers = self.lender.offers = await self._offload.run(self._look_at_offers)
        self.own.set_engines(tuple(engine.value for engine in self._offers.engines))

    async def _keep_topology(self) -> None:
        await (await self._topology_watch()).run()

    async def _topology_watch(self) -> TopologyWatch:
        """The one watch, made when it is first wanted."""
        if self._topology is None:
            # NumPy takes a tenth of a second to load: not before this peer serves, and not on its loop.
            watch = await self._offload.run(load_topology_watch)
            # Whoever else waited for the same may have been first.
            self._topology = self._topology or watch(
                lambda: self.view, self.own, self._clock, self._offload, self.surroundings.mapped
            )
        return self._topology

    async def stop(self) -> None:
        """Say goodbye, stop what runs, close everything; bounded. A second call does nothing."""
        if self._stopping:
            return
        self._stopping = True
        if self._started:
            self._close_sessions()
        await self._exits.aclose()

    # --- Door -----------------------------------------------------------------------------------------------------------

    def _open(self, request: JobRequest, inputs: AsyncIterator[Sequence[bytes]]) -> JobStream:
        return self.origin.open(request, inputs)

    async def _ready(self) -> None:
        if not self._started or self._stopping:
            raise NotRunningError("this peer is not running: use it inside `async with Peer() as peer:`")

    async def _keep(self, data: bytes, blob: BlobId) -> Handle:
        return self.handles.put(data, blob)

    async def _let_go(self, handle: Handle) -> None:
        self.handles.drop(handle)

    def _peer_name(self, row: ResultRow) -> str:
        return self.name_of(row.peer)

    # --- what others see ------------------------------------------------------------------------------------------------

    @property
    def view(self) -> PeerView:
        """The network as this peer sees it now."""
        return self.overlay.view

    async def shape(self) -> NetworkShape:
        """Communities, key nodes and everything else of the network's Laplacian, as of now."""
        await self._ready()
        return await (await self._topology_watch()).look()

    def place_of(self, peer: PeerId) -> Place:
        """Where `peer` is in the newest shape of the network; nowhere before the first one, and where it is no part of it."""
        shape = None if self._topology is None else self._topology.shape
        row = None if shape is None else shape.row(peer)
        if shape is None or row is None:
            return NOWHERE
        return Place(float(shape.scores[row]), int(shape.labels[row]))

    async def topology(self) -> dict[str, Any]:
        """The same as a plain document; its keys: `node/topology_report.py`."""
        shape, view = await self.shape(), self._view_now
        report = await self._offload.run(load_topology_report)
        return await self._offload.run(lambda: report(shape, view, self.network.name))

    @property
    def _view_now(self) -> PeerView:
        """`view`, with what this peer knows of itself, also where others were told it by a load update."""
        return dataclasses.replace(self.view, own=self.own.now)

    def name_of(self, peer: PeerId) -> str:
        """What people call a peer: its name, with its short id where two share a name; a seat by its coordinator."""
        if is_seat(peer):
            return f"the community of {self.name_of(coordinator_of(peer))}"
        if peer == self.peer_id:
            return self.own.record.name
        entry = self.overlay.view.entry(peer)
        return entry.record.name if entry is not None else short_peer_id(peer)

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return self._clock.monotonic() - self._started_at

    def health(self) -> tuple[Health, ...]:
        """How this peer and every other that is up, or only suspected to be down, is now, by their newest records."""
        return view_health(self._view_now, self._clock.monotonic())

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher(kind, peer, text)` for what happens in the network; the returned function ends it."""
        self._watchers.append(watcher)

        def unwatch() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return unwatch

    # --- OverlayEvents --------------------------------------------------------------------------------------------------

    def linked(self, link: Link) -> None:
        """Called by the overlay."""
        self.admission.greet(link)
        self.community.linked(LinkChannel(link, self.exchange))
        self.surroundings.offer(link)

    def unlinked(self, link: Link, error: P2PComputeError | None) -> None:
        """Called by the overlay."""
        current = self.overlay.hub.links.get(link.peer)
        if current is not None and current is not link:
            return
        reason = str(error) if error is not None else "it left"
        self.community.gone(link.peer, reason)

    def job_message(self, link: Link, message: Message) -> None:
        """Called by the overlay."""
        channel = LinkChannel(link, self.exchange)
        if not self.community.message(channel, message) and isinstance(message, (BlobWant, BlobMissing)):
            self.exchange.message(link, message)

    def trust_message(self, link: Link, message: Revocations | Renewals) -> None:
        """Called by the overlay."""
        try:
            self.admission.heard(link, message)
        except PeerError as error:
            self.overlay.trouble(short_peer_id(link.peer), str(error))

    def network_event(self, kind: str, peer: PeerId, text: str) -> None:
        """Called by the overlay."""
        if kind in ("peer_appeared", "peer_suspected"):
            link = self.overlay.hub.links.get(peer)
            if link is not None:
                self.surroundings.offer(link)
        for watcher in list(self._watchers):
            watcher(kind, peer, text)

    # --- services -------------------------------------------------------------------------------------------------------

    async def _keep_renewing(self) -> None:
        while True:
            self.admission.renew(await self._offload.run(self.network.renewals_due))
            due_wall = await self._offload.run(self.network.next_renewal_wall)
            wait_s = RENEWAL_INTERVAL_S if due_wall is None else due_wall - self._clock.wall()
            await asyncio.sleep(min(max(wait_s, RENEWAL_PAUSE_MIN_S), RENEWAL_INTERVAL_S))

    # --- inner ----------------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        """What was asked for; peers of one machine that were given no name are told apart by their number."""
        number = self.instance.number
        named = self.config.name != own_name()
        return self.config.name if named or number == 1 else f"{self.config.name}-{number}"

    def _incarnation_next(self, at_least: int) -> int:
        # A refutation goes one step on, not to what the clock shows: a clock that is ahead would put it beyond what others take.
        return self._database.incarnation_next(at_least or int(self._clock.wall() * 1000))

    def _ban(self, revocations: RevocationList) -> None:
        gone = [
            entry.record.peer
            for entry in self.view.entries
            if entry.record.peer in revocations.peers or entry.invitation in revocations.invitations
        ]
        self.side.ban(dict.fromkeys((*sorted(revocations.peers), *gone)))

    def _close_link(self, link: Link, reason: str, text: str) -> None:
        self._supervisor.task(f"close {short_peer_id(link.peer)}", link.close(reason, text))
