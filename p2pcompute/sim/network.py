"""A network in memory for many hosts: datagrams here, links in `links.py`, routers in `nat.py`; and every fault that can be switched on.

Faults act at any time, on a pair of hosts, on a host or on all, and their dice are the network's own. What a fault means:

- `Conditions` and `Line` shape the way (latency, loss, duplicates, reordering, rates). A loss costs a link a retransmission.
- `partition` and `block` make ways impassable: datagrams vanish, bytes on links stall and arrive after it has healed.
- `clog` holds everything on a way until a time, then lets it arrive, in order on links.
- `reset` breaks connections. `crash` ends all programs of a host; `silent` as when its cable is pulled, so that nobody is told.
- `suspend` and `starve` stop the programs of a host: their timers wait with them, and what comes is queued by the kernel, as far as it has room.
- `tap` puts an attacker on a way, `inject` lets anybody send under any address.

Times are those of the loop. Everything is in the order of hosts as they were added; no set is walked through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Address
from p2pcompute.sim.conditions import OWN_HOST, Conditions, Line, Path, path_over
from p2pcompute.sim.dice import Dice
from p2pcompute.sim.endpoint import open_endpoint
from p2pcompute.sim.hosts import HERE, UDP_BYTES_MAX, Arrival, Realm, SimHost, SimPort
from p2pcompute.sim.links import SimLinks
from p2pcompute.sim.loop import SimLoop, current_context_of
from p2pcompute.sim.nat import NatBox, NatSettings, may_hairpin
from p2pcompute.sim.trace import Field, Trace

#: What waits at the slow end of a line before more is dropped: the usual router has a quarter of a second.
_LINE_QUEUE_S: Final = 0.25
#: Addresses by which every host reaches itself.
_OWN: Final = ("127.0.0.1", "::1")

#: Called with a datagram on a way, its source and its destination; what it returns goes on, None: nothing does.
Tap = Callable[[bytes, Address, Address], bytes | None]


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """A partition that stands, until `SimNetwork.heal`."""

    #: The side of each host that it concerns, by name.
    sides: dict[str, int]
    #: Whether only what goes from side 0 to side 1 is stopped.
    one_way: bool

    def blocks(self, near: int, far: int) -> bool:
        """Whether nothing gets from one side to the other."""
        return (near, far) == (0, 1) if self.one_way else near != far


class SimNetwork:
    """The network of one run. `dice` gives it streams of its own; `trace` is told what arrives and what is lost."""

    def __init__(self, loop: SimLoop, dice: Dice, trace: Trace, conditions: Conditions | None = None) -> None:
        self.loop = loop
        self.trace = trace
        #: How much of what arrives goes into the trace; `Trace.detail`, as a number.
        self.detail = int(trace.detail)
        self._rng = dice.of("network")
        self._dice = dice
        #: Every host, by name.
        self.hosts: dict[str, SimHost] = {}
        #: Addresses of host names, for whoever looks them up.
        self.names: dict[str, tuple[str, ...]] = {}
        #: The public address space.
        self.internet = Realm(None)
        self.links = SimLinks(self, dice.of("network", "links"))
        #: Between sites for which nothing else was said.
        self._conditions = conditions or Conditions.lan()
        #: By pair of sites, both ways; and by pair of host names, one way.
        self._site_conditions: dict[tuple[str, str], Conditions] = {}
        self._pair_conditions: dict[tuple[str, str], Conditions] = {}
        #: Partitions that stand, in order.
        self._partitions: dict[Partition, None] = {}
        #: Number of each kind of host: site, line and sides in the partitions.
        self._kinds: dict[tuple[Any, ...], int] = {}
        #: Ways that are known, by the kinds of both ends; emptied with every change.
        self._paths: dict[tuple[int, int], Path] = {}
        #: One way, by pair of host names: seconds of the loop until which it is clogged, and who listens in.
        self._clogs: dict[tuple[str, str], float] = {}
        self._taps: dict[tuple[str, str], Tap] = {}
        #: Whether ways between pairs of hosts differ from those between their kinds, or hosts are clogged.
        self._is_special = False
        #: Datagrams that arrived, and that did not.
        self.delivered = 0
        self.lost = 0
        loop.door = self

    # --- hosts ----------------------------------------------------------------------------------------------------------

    def add_host(
        self, *addresses: str, site: str = "", lan: str | None = None, nat: NatBox | None = None, name: str = ""
    ) -> SimHost:
        """A new machine. `site`: where it stands; `lan`: whose broadcasts it hears; `nat`: behind which router its addresses are. Raises UsageError."""
        if not addresses or not all(Address(each, 1).is_numeric for each in addresses):
            raise UsageError(f"a host has numeric addresses, not {addresses}")
        realm = nat.realm if nat is not None else self.internet
        name = name or (f"{addresses[0]}@{nat.outside}" if nat is not None else addresses[0])
        if name in self.hosts:
            raise UsageError(f"there is a host {name!r} already: give this one another name")
        host = SimHost(self, name, realm, site, lan)
        self._settle(host, addresses)
        self.hosts[name] = host
        self._classify(host)
        return host

    def add_nat(self, outside: str, settings: NatSettings | None = None, *, behind: NatBox | None = None) -> NatBox:
        """A new router with the address `outside`; `behind` another one where there are two in a row. Raises UsageError."""
        outer = behind.realm if behind is not None else self.internet
        if outside in outer.nodes:
            raise UsageError(f"{outside} is taken: give the router another address")
        nat = NatBox(self, outside, outer, settings or NatSettings(), self.loop.time)
        outer.nodes[outside] = nat
        return nat

    def host_at(self, address: str, realm: Realm | None = None) -> SimHost | None:
        """The host that has `address`, on the internet or in `realm`."""
        found = (realm or self.internet).nodes.get(address)
        return found if isinstance(found, SimHost) else None

    def addresses_of(self, name: str) -> list[str]:
        """What a name resolves to; names are in `names`."""
        return list(self.names.get(name, ()))

    def _settle(self, host: SimHost, addresses: tuple[str, ...]) -> None:
        for each in addresses:
            if host.realm.nodes.get(each, host) is not host:
                raise UsageError(f"the address {each} is taken by {host.realm.nodes[each]!r}: choose another")
        for each in host.addresses:
            del host.realm.nodes[each]
        for each in addresses:
            host.realm.nodes[each] = host
        host.use_addresses(addresses)

    # --- what ways are like ---------------------------------------------------------------------------------------------

    def set_conditions(self, conditions: Conditions) -> None:
        """For every way of which nothing else was said."""
        self._conditions = conditions
        self._paths.clear()

    def set_sites(self, one: str, other: str, conditions: Conditions) -> None:
        """For the ways between two sites, both ways; with the same site twice, inside it."""
        self._site_conditions[one, other] = self._site_conditions[other, one] = conditions
        self._paths.clear()

    def set_pair(self, near: SimHost, far: SimHost, conditions: Conditions | None, *, one_way: bool = False) -> None:
        """For the way between two hosts; None: as between their sites again."""
        for pair in ((near.name, far.name),) if one_way else ((near.name, far.name), (far.name, near.name)):
            if conditions is None:
                self._pair_conditions.pop(pair, None)
            else:
                self._pair_conditions[pair] = conditions
        self._look_for_specials()

    def set_line(self, host: SimHost, line: Line) -> None:
        """Connect `host` otherwise."""
        host.line = line
        self._classify(host)

    def _classify(self, host: SimHost) -> None:
        sides = tuple(
            (number, each.sides[host.name]) for number, each in enumerate(self._partitions) if host.name in each.sides
        )
        what = (host.site, host.line, sides)
        host.kind = self._kinds.setdefault(what, len(self._kinds))

    def path(self, near: SimHost, far: SimHost) -> Path:
        """The way from one host to another as it is now."""
        if near is far:
            return OWN_HOST
        special = self._pair_conditions.get((near.name, far.name)) if self._pair_conditions else None
        if special is not None:
            return path_over(special, near.line, far.line, self._is_blocked(near, far))
        found = self._paths.get((near.kind, far.kind))
        if found is None:
            conditions = self._site_conditions.get((near.site, far.site), self._conditions)
            found = path_over(conditions, near.line, far.line, self._is_blocked(near, far))
            self._paths[near.kind, far.kind] = found
        return found

    def _is_blocked(self, near: SimHost, far: SimHost) -> bool:
        return any(
            near.name in each.sides
            and far.name in each.sides
            and each.blocks(each.sides[near.name], each.sides[far.name])
            for each in self._partitions
        )

    def _look_for_specials(self) -> None:
        now = self.loop.time()
        self._clogs = {pair: until for pair, until in self._clogs.items() if until > now}
        self._is_special = bool(self._pair_conditions or self._clogs or self._taps) or any(
            host.clogged_until > now for host in self.hosts.values()
        )

    # --- partitions and clogs -------------------------------------------------------------------------------------------

    def partition(self, *groups: Collection[SimHost]) -> Partition:
        """Part groups from each other, both ways; who is in none of them reaches everybody. `heal` ends it."""
        return self._part({host.name: side for side, group in enumerate(groups) for host in group}, one_way=False)

    def block(self, senders: Collection[SimHost], receivers: Collection[SimHost]) -> Partition:
        """Let nothing through from `senders` to `receivers`; the other way stays open. `heal` ends it."""
        sides = {host.name: 1 for host in receivers} | {host.name: 0 for host in senders}
        return self._part(sides, one_way=True)

    def _part(self, sides: dict[str, int], *, one_way: bool) -> Partition:
        made = Partition(sides, one_way)
        self._partitions[made] = None
        self._reclassify()
        self.note("partition", len(self._partitions), *(f"{name}:{side}" for name, side in sides.items()))
        return made

    def heal(self, partition: Partition | None = None) -> None:
        """End one partition, or all of them. What stalled on links goes on, once TCP has tried again."""
        if partition is None:
            self._partitions.clear()
        else:
            self._partitions.pop(partition, None)
        self._reclassify()
        self.note("heal", len(self._partitions))
        self.links.go_on()

    def _reclassify(self) -> None:
        # Kinds are numbered by partitions, so all numbers change with them.
        self._kinds.clear()
        self._paths.clear()
        for host in self.hosts.values():
            self._classify(host)

    def clog(
        self, for_s: float, near: SimHost | None = None, far: SimHost | None = None, *, one_way: bool = False
    ) -> None:
        """Hold what is sent in the next `for_s` seconds until they are over: between two hosts, of one host, or of all."""
        until = self.loop.time() + for_s
        if near is not None and far is not None:
            for pair in ((near.name, far.name),) if one_way else ((near.name, far.name), (far.name, near.name)):
                self._clogs[pair] = max(until, self._clogs.get(pair, 0.0))
        else:
            for host in self.hosts.values() if near is None else (near,):
                host.clogged_until = max(until, host.clogged_until)
        self._look_for_specials()

    def clogged_until(self, near: SimHost, far: SimHost) -> float:
        """When a way moves again; a time in the past: it moves."""
        return max(near.clogged_until, far.clogged_until, self._clogs.get((near.name, far.name), 0.0))

    def reset(self, one: SimHost, other: SimHost) -> None:
        """Break all connections between two hosts."""
        self.note("reset", one.name, other.name)
        self.links.cut(one.name, other.name)

    # --- hosts that stop, fall and move ---------------------------------------------------------------------------------

    def crash(self, host: SimHost, *, silent: bool = True) -> None:
        """End all programs of `host`: its ports are closed, its connections gone.

        `silent`: nobody is told, as when its cable is pulled; otherwise the others see their connections break, as when the programs are killed.
        What still runs of its code reaches nobody: cancel its tasks after this.
        """
        self.note("crash", host.name, silent)
        host.is_up = False
        for port in list(host.ports.values()):
            if isinstance(port, SimPort):
                port.close()
        host.listeners.clear()
        host.broadcast_listeners.clear()
        host.on_moved.clear()
        self._run_again(host)
        self.links.fall(host, silent=silent)

    def revive(self, host: SimHost, *addresses: str) -> None:
        """Switch a crashed host on again, with its old addresses or others; its programs have to be started."""
        if addresses:
            self._settle(host, addresses)
        host.is_up = True
        self.note("revive", host.name, *host.addresses)

    def move(
        self, host: SimHost, *addresses: str, site: str | None = None, lan: str | None = None, nat: NatBox | None = None
    ) -> None:
        """Carry a running host elsewhere: UDP ports stay open under the new addresses, connections are dead without a word. Raises UsageError."""
        realm = nat.realm if nat is not None else self.internet
        if realm is not host.realm:
            self._settle(host, ())
            host.realm = realm
        self._settle(host, addresses)
        host.lan = lan
        host.site = host.site if site is None else site
        self._classify(host)
        self.note("move", host.name, *addresses)
        self.links.leave(host)
        for listener in list(host.on_moved):
            host.run(listener)

    def suspend(self, host: SimHost) -> None:
        """Close the lid: its programs and timers stop, datagrams for it are lost, links stall. Its clock goes on unless it is stopped too."""
        self._stop(host, "asleep")

    def resume(self, host: SimHost) -> None:
        """Open the lid: what fell due meanwhile happens now."""
        self._go_on(host, "asleep")

    def starve(self, host: SimHost, run_s: tuple[float, float], stall_s: tuple[float, float]) -> None:
        """Take the CPU from `host` again and again: it runs for a random time between both values of `run_s`, then stands still for one of `stall_s`.

        What comes meanwhile waits in the kernel, as far as it has room (Lifeguard's experiment: Dadgar et al., 2018). Ends with `feed`.
        """
        rng = self._dice.of("network", "starve", host.name)
        token = object()
        host.starving = token

        def stall(_: object, __: object) -> None:
            if host.starving is token and host.is_up:
                self._stop(host, "starved")
                self.loop.post(self.loop.time() + rng.uniform(*stall_s), run, None, None)

        def run(_: object, __: object) -> None:
            if host.starving is token and host.is_up:
                self._go_on(host, "starved")
                self.loop.post(self.loop.time() + rng.uniform(*run_s), stall, None, None)

        self.loop.post(self.loop.time() + rng.uniform(*run_s), stall, None, None)

    def feed(self, host: SimHost) -> None:
        """End `starve`."""
        host.starving = None
        self._go_on(host, "starved")

    def _stop(self, host: SimHost, why: str) -> None:
        if host.is_up:
            host.stops[why] = None
            self.note("stop", host.name, why)
            self.loop.stopped = self._holds

    def _go_on(self, host: SimHost, why: str) -> None:
        if why in host.stops:
            del host.stops[why]
            self.note("go on", host.name, why)
            if not host.stops:
                self._run_again(host)

    def _run_again(self, host: SimHost) -> None:
        host.stops.clear()
        held, host.held = host.held, []
        queue, host.queue, host.queue_bytes = host.queue, [], 0
        now = self.loop.time()
        for port, data, source in queue:
            self.loop.post(now, port.arrive, data, source)
        for handle in held:
            self.loop.resume(handle)
        self.links.go_on(host)
        if not any(each.stops for each in self.hosts.values()):
            self.loop.stopped = None

    def _holds(self, handle: asyncio.TimerHandle) -> bool:
        """Whether a timer that is due belongs to a host that does not run; then it waits there."""
        host = current_context_of(handle).get(HERE)
        if host is None or not host.stops:
            return False
        host.held.append(handle)
        return True

    # --- datagrams ------------------------------------------------------------------------------------------------------

    def send(self, host: SimHost, data: bytes, source: Address | None, to: Address) -> None:
        """Send a datagram of `host`."""
        if source is None:
            self.lose("no route", data, Address(host.name, 0), host)
            return
        node = host.realm.nodes.get(to.host)
        target = node.ports.get(to.port) if node is not None else None
        if target is None or len(data) > UDP_BYTES_MAX:
            self._send_out(host, data, source, to)
            return
        far = target.host
        path = self._paths.get((host.kind, far.kind))
        if path is None or not path.is_plain or self._is_special or far is host:
            self._travel(host, far, target, data, source, to)
            return
        self.loop.post(self.loop._now + path.base_s + path.jitter_s * self._rng.random(), target.arrive, data, source)

    def inject(self, data: bytes, source: Address, to: Address, via: SimHost) -> None:
        """Send under any source address from the place of `via`, as an attacker does whose provider does not check."""
        self.send(via, data, source, to)

    def tap(self, near: SimHost, far: SimHost, tap: Tap | None, *, one_way: bool = False) -> None:
        """Let datagrams between two hosts pass through `tap`, which sees them with their addresses as the sender's side knows them; None takes it away."""
        for pair in ((near.name, far.name),) if one_way else ((near.name, far.name), (far.name, near.name)):
            if tap is None:
                self._taps.pop(pair, None)
            else:
                self._taps[pair] = tap
        self._look_for_specials()

    def broadcast(self, host: SimHost, data: bytes, source: Address) -> None:
        """Send to every host of the same LAN that listens for broadcasts, `host` itself included."""
        if host.lan is None or not host.is_up:
            return
        host.datagrams_out += 1
        host.bytes_out += len(data)
        for far in self.hosts.values():
            if far.lan == host.lan and far.realm is host.realm:
                for heard in far.broadcast_listeners:
                    self._travel(host, far, _Broadcast(far, heard), data, source, None)

    def _send_out(self, host: SimHost, data: bytes, source: Address, to: Address) -> None:
        """Send what is not for a port in the host's own address space: to itself, out through routers, or nowhere."""
        if len(data) > UDP_BYTES_MAX:
            self.lose("too large", data, source, host)
            return
        if to.host in _OWN:
            own = host.ports.get(to.port)
            if own is not None:
                self._travel(host, host, own, data, Address(to.host, source.port), to)
            else:
                self.lose("nobody", data, source, host)
            return
        realm = host.realm
        inside = host.ports.get(source.port)
        while True:
            node = realm.nodes.get(to.host)
            if node is not None:
                target = node.ports.get(to.port)
                if target is None or not may_hairpin(node, host.realm):
                    self.lose("nobody", data, source, host)
                else:
                    self._travel(host, target.host, target, data, source, to)
                return
            nat = realm.nat
            if nat is None or inside is None:
                self.lose("nobody", data, source, host)
                return
            source = nat.translate(source, inside, to)
            inside = nat.ports[source.port]
            realm = nat.outer

    def _travel(
        self, near: SimHost, far: SimHost, target: Arrival, data: bytes, source: Address, to: Address | None
    ) -> None:
        """Send a datagram on its way, with everything that can happen there."""
        if not near.is_up:
            self.lose("down", data, source, far)
            return
        tap = self._taps.get((near.name, far.name)) if to is not None else None
        if tap is not None and to is not None:
            passed = tap(data, source, to)
            if passed is None:
                self.lose("tapped", data, source, far)
                return
            data = passed
        path = self.path(near, far)
        draw = self._rng.random
        if path.is_blocked or (path.loss and draw() < path.loss):
            self.lose("partition" if path.is_blocked else "loss", data, source, far)
            return
        now = self.loop.time()
        depart = now
        up_rate = near.line.up_bytes_per_s if near is not far else None
        down_rate = far.line.down_bytes_per_s if near is not far else None
        if up_rate is not None:
            depart = max(near.up_free_at, now) + len(data) / up_rate
            if depart - now > _LINE_QUEUE_S:
                self.lose("line full", data, source, far)
                return
            near.up_free_at = depart
        for _ in range(2 if path.duplicate and draw() < path.duplicate else 1):
            due = depart + path.base_s + path.jitter_s * draw()
            if path.reorder and draw() < path.reorder:
                due += path.reorder_s * draw()
            if down_rate is not None:
                due = far.down_free_at = max(far.down_free_at, due) + len(data) / down_rate
            if self._is_special:
                due = max(due, self.clogged_until(near, far))
            self.loop.post(due, target.arrive, data, source)

    def lose(self, why: str, data: bytes, source: Address, far: SimHost) -> None:
        """A datagram does not arrive."""
        self.lost += 1
        if self.detail:
            self.trace.event((self.loop.time(), "lost", why, source.host, source.port, far.name, len(data)))

    # --- the loop's door, the trace -------------------------------------------------------------------------------------

    async def datagram_endpoint(
        self,
        factory: Callable[[], asyncio.DatagramProtocol],
        local: tuple[Any, ...] | None,
        remote: tuple[Any, ...] | None,
    ) -> tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]:
        """For `SimLoop.create_datagram_endpoint`. Raises OSError."""
        wanted = str(local[0]) if local is not None else "0.0.0.0"
        here = HERE.get()
        host = (
            here if here is not None and wanted in ("0.0.0.0", "::", *_OWN, *here.addresses) else self.host_at(wanted)
        )
        if host is None:
            raise OSError(f"no host of the simulation has the address {wanted}: bind inside `with host.here():`")
        return await open_endpoint(host, factory, int(local[1]) if local is not None else 0, ":" in wanted, remote)

    def note(self, kind: str, *fields: Field) -> None:
        """Put something into the trace that is no datagram."""
        self.trace.event((self.loop.time(), kind, *fields))


class _Broadcast:
    """Where a LAN's broadcast arrives."""

    def __init__(self, host: SimHost, heard: Callable[[bytes, Address], None]) -> None:
        self.host = host
        self._heard = heard

    def arrive(self, data: bytes, source: Address) -> None:
        host = self.host
        network = host.network
        if not host.is_up or host.stops or self._heard not in host.broadcast_listeners:
            network.lose("nobody", data, source, host)
            return
        host.datagrams_in += 1
        host.bytes_in += len(data)
        network.delivered += 1
        if network.detail:
            what = data if network.detail == 2 else len(data)
            network.trace.event((network.loop.time(), "broadcast", source.host, source.port, host.name, what))
        host.context.run(self._heard, data, source)
