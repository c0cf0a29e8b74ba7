"""What `benchmarks/overlay.py` measures: each function is one run of the laboratory, and gives back one row of figures.

All times are virtual seconds unless a name says otherwise; a run is repeated exactly by its seed on the same sources. Peers run
with the defaults of the product on a switched network (`Conditions.lan`), with real certificates, seals and records; nothing checks
invariants meanwhile. Runs are functions of plain values, so that each can have a process of its own, and its memory is its own.
"""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from p2pcompute.membership.pacing import PacingSettings
from p2pcompute.membership.traffic import gossip_bytes_per_s, peer_bytes_per_s, update_period_s
from p2pcompute.model.peer import PeerStatus
from p2pcompute.node.overlay_peer import OverlaySettings
from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.failure import SimFailure
from p2pcompute.sim.lab import Lab, LabSettings, RunReport, Scenario, run
from p2pcompute.sim.peers import Machine, SimOverlay, SimPeer, address_of
from p2pcompute.sim.trace import Detail

#: One row of a table: figures by name.
Row = dict[str, float | int | str]

#: Peers are started within so many seconds, whatever their number.
START_S = 2.0
#: Peers that whoever starts is told of: one of these, by lot.
WELL_KNOWN = 3
#: Nothing is waited for longer.
PATIENCE_S = 300.0
#: Between two looks at everybody.
LOOK_S = 0.25
#: Before traffic is measured: records are signed again a few times after a start.
WARM_UP_S = 120.0
#: When the formula is asked what a network that settled sends: later than the first round of probes, and every session's first keys.
SETTLED_S = 7_200.0
#: From so many peers on the throughput of links is not measured at the start: in one process that is gigabytes, long over before anything is counted.
LARGE = 300
#: What is sent is counted in windows of so many seconds; runs of `LARGE` networks, which take an hour, tell each of them.
WINDOW_S = 10.0
#: IPv4 and UDP headers of a datagram, bytes; a host counts what is in it.
HEADERS_BYTES = 28


def _run(scenario: Scenario, seed: int) -> RunReport:
    try:
        return run(scenario, seed, LabSettings(detail=Detail.NOTES))
    except SimFailure as failure:
        # Its parts do not travel from one process to another; its text says it all.
        raise RuntimeError(str(failure)) from None


def _in_laboratory(scenario: Callable[[Lab], Awaitable[Row]], seed: int) -> Row:
    """Run `scenario`; its row, with the seed and what the run cost this process."""
    rows: list[Row] = []

    async def whole(lab: Lab) -> None:
        rows.append(await scenario(lab))

    cpu_s = time.process_time()
    report = _run(whole, seed)
    return {
        "seed": seed,
        **rows[0],
        "virtual_s": round(report.virtual_s, 1),
        "cpu_s": round(time.process_time() - cpu_s, 1),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


async def _start(lab: Lab, count: int, *, measures: bool = True) -> SimOverlay:
    """`count` peers, started one after the other, each told of one of the first three. `measures`: the throughput of links, with a megabyte for each."""
    rng = lab.dice.of("benchmark", "start")
    overlay = SimOverlay(lab, OverlaySettings() if measures else OverlaySettings(throughput_probe_bytes=0))
    for number in range(count):
        overlay.add(Machine((address_of(number),)))
    for number, peer in enumerate(overlay.peers):
        await peer.up([overlay.peers[rng.randrange(0, min(number, WELL_KNOWN))]] if number else [])
        await asyncio.sleep(START_S / count)
    return overlay


async def _converge(lab: Lab, overlay: SimOverlay) -> float:
    """Wait until everybody knows everybody; how long it took."""
    return await lab.until(overlay.converged, "everybody knows everybody", PATIENCE_S, LOOK_S)


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


# --- failure detection ------------------------------------------------------------------------------------------------


def detection(count: int, seed: int, crashes: int) -> Row:
    """Silent crashes, one after the other: when anybody first suspects, and when nobody believes any more that it lives."""

    async def scenario(lab: Lab) -> Row:
        rng = lab.dice.of("benchmark", "crashes")
        overlay = await _start(lab, count)
        await _converge(lab, overlay)
        interval_s = overlay.settings.book.probe_interval_s
        first: list[float] = []
        known: list[float] = []
        for _ in range(crashes):
            await asyncio.sleep(rng.uniform(10.0, 20.0))
            victim = overlay.peers[rng.randrange(WELL_KNOWN, count)]
            begun, said = lab.now, len(overlay.said)
            await victim.crash()
            others = overlay.running
            await lab.until(
                lambda: all(each.status_of(victim) is PeerStatus.DEAD for each in others),  # noqa: B023 - within this round
                f"{victim.name} is dead to all",
                PATIENCE_S,
                LOOK_S,
            )
            about = [each for each in overlay.said[said:] if each.about == victim.peer]
            first.append((about[0].at - begun) / interval_s)
            known.append(max(each.at for each in about if each.kind == "peer_died") - begun)
            await victim.restart()
            await _converge(lab, overlay)
        await overlay.stop()
        return {
            "peers": count,
            "crashes": crashes,
            "first_mean_intervals": round(statistics.fmean(first), 2),
            "first_p95_intervals": round(_p95(first), 2),
            "all_mean_s": round(statistics.fmean(known), 2),
            "all_p95_s": round(_p95(known), 2),
            "all_worst_s": round(max(known), 2),
        }

    return _in_laboratory(scenario, seed)


def false_positives(count: int, seed: int, minutes: float, loss: float) -> Row:
    """Nobody crashes; datagrams are lost, and a quarter of the machines hardly ever has the CPU. Who is called dead nevertheless?"""

    async def scenario(lab: Lab) -> Row:
        overlay = await _start(lab, count)
        await _converge(lab, overlay)
        lab.network.set_conditions(Conditions(loss=loss))
        starved = overlay.peers[WELL_KNOWN : WELL_KNOWN + count // 4]
        for each in starved:
            lab.network.starve(each.host, run_s=(0.05, 0.5), stall_s=(0.2, 3.0))
        said = len(overlay.said)
        await asyncio.sleep(minutes * 60)
        news = overlay.said[said:]
        ids = {each.peer for each in starved}
        for each in starved:
            lab.network.feed(each.host)
        await overlay.stop()
        died = [each for each in news if each.kind == "peer_died"]
        suspected = [each for each in news if each.kind == "peer_suspected"]
        return {
            "peers": count,
            "starved": len(starved),
            "minutes": minutes,
            "loss": loss,
            "dead_healthy": sum(each.about not in ids for each in died),
            "dead_starved": sum(each.about in ids for each in died),
            "dead_said_by_starved": sum(each.by in starved for each in died),
            "suspected_healthy": sum(each.about not in ids for each in suspected),
            "suspected_starved": sum(each.about in ids for each in suspected),
        }

    return _in_laboratory(scenario, seed)


# --- traffic ----------------------------------------------------------------------------------------------------------


class _Meter:
    """Bytes and datagrams that all hosts have sent since it was made, a second and peer."""

    def __init__(self, lab: Lab, overlay: SimOverlay) -> None:
        self._lab = lab
        self._hosts = [each.host for each in overlay.peers]
        self._since = lab.now
        self._before = self._sums()

    def _sums(self) -> tuple[int, int, int]:
        return (
            sum(host.bytes_out for host in self._hosts),
            sum(host.datagrams_out for host in self._hosts),
            sum(host.link_bytes_out for host in self._hosts),
        )

    def row(self, peers: float) -> Row:
        """What was sent, for `peers` that ran in the mean."""
        each = peers * (self._lab.now - self._since)
        udp, datagrams, link = ((now - before) / each for now, before in zip(self._sums(), self._before, strict=True))
        return {
            "udp_bytes": round(udp + datagrams * HEADERS_BYTES),
            "datagrams": round(datagrams, 2),
            "link_bytes": round(link),
            "all_bytes": round(udp + datagrams * HEADERS_BYTES + link),
        }


def _by_formula(overlay: SimOverlay) -> Row:
    """What `membership/traffic.py` expects of gossip alone, while every record is renewed as often as it may be, and while none is."""
    pacing, book = PacingSettings(), overlay.settings.book
    count = len(overlay.running)
    records = [len(each.own.signed.wire) for each in overlay.running if each.own is not None]
    record_bytes = round(statistics.fmean(records))
    period_s = update_period_s(count, record_bytes, pacing.shared.copies, pacing.shared.budget_bytes_per_s)

    def expected(every_s: float) -> int:
        return round(
            gossip_bytes_per_s(
                count,
                record_bytes,
                every_s,
                probe_interval_s=book.probe_interval_s,
                anti_entropy_s=book.anti_entropy_s,
                retransmit_mult=book.retransmit_mult,
                gossip_interval_s=book.gossip_interval_s,
                fanout=book.gossip_fanout,
            )
        )

    links = statistics.fmean(len(_links(each)) for each in overlay.running)
    return {
        "record_bytes": record_bytes,
        "links": round(links, 1),
        "formula_idle": expected(pacing.renew_s),
        "formula_busy": expected(period_s),
        "formula_settled": round(peer_bytes_per_s(count, record_bytes, links, SETTLED_S, pacing.renew_s)),
        "busy_period_s": round(period_s),
    }


async def _count_windows(lab: Lab, overlay: SimOverlay, for_s: float) -> int:
    """Let `for_s` pass; the most that a peer sent in any window, bytes a second."""
    worst = 0
    for _ in range(round(for_s / WINDOW_S)):
        meter = _Meter(lab, overlay)
        await asyncio.sleep(WINDOW_S)
        found = meter.row(len(overlay.running))
        worst = max(worst, int(found["all_bytes"]))
        if len(overlay.running) >= LARGE:
            print(f"    until {lab.now:.0f} s: {found}", flush=True)
    return worst


def idle_traffic(count: int, seed: int, for_s: float) -> Row:
    """What peers send while nothing happens, two minutes after the start, and the most within ten seconds before and after that."""

    async def scenario(lab: Lab) -> Row:
        overlay = await _start(lab, count, measures=count < LARGE)
        await _converge(lab, overlay)
        early = await _count_windows(lab, overlay, WARM_UP_S)
        meter = _Meter(lab, overlay)
        peak = await _count_windows(lab, overlay, for_s)
        row: Row = {
            "peers": count,
            "measured_s": for_s,
            **meter.row(count),
            # Smaller networks measure the throughput of their links first, which drowns all else.
            **({"early_peak_bytes": early} if count >= LARGE else {}),
            "peak_bytes": peak,
            **_by_formula(overlay),
        }
        await overlay.stop()
        return row

    return _in_laboratory(scenario, seed)


def churn_traffic(count: int, seed: int, for_s: float, every_s: float, measures: bool) -> Row:
    """The same while every `every_s` somebody falls silent, and who did so before comes back. `measures`: see `_start`."""

    async def scenario(lab: Lab) -> Row:
        rng = lab.dice.of("benchmark", "churn")
        overlay = await _start(lab, count, measures=measures)
        await _converge(lab, overlay)
        await asyncio.sleep(WARM_UP_S)
        meter = _Meter(lab, overlay)
        down: SimPeer | None = None
        for _ in range(int(for_s / every_s)):
            before, down = down, overlay.running[rng.randrange(WELL_KNOWN, len(overlay.running))]
            await down.crash()
            if before is not None:
                await before.restart()
            await asyncio.sleep(every_s)
        row: Row = {
            "peers": count,
            "measured_s": for_s,
            "every_s": every_s,
            "measures": int(measures),
            **meter.row(count - 1),
        }
        if down is not None:
            await down.restart()
        row["agreed_after_s"] = round(await _converge(lab, overlay), 2)
        await overlay.stop()
        return row

    return _in_laboratory(scenario, seed)


# --- coming together --------------------------------------------------------------------------------------------------


def cold_start(count: int, seed: int) -> Row:
    """From the first start until everybody knows everybody; the last peer starts two seconds after the first."""

    async def scenario(lab: Lab) -> Row:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        begun = lab.now
        overlay = await _start(lab, count, measures=count < LARGE)
        await _converge(lab, overlay)
        row: Row = {
            "peers": count,
            "converged_s": round(lab.now - begun, 2),
            "converged_cpu_s": round(time.process_time() - cpu_s, 1),
            "converged_real_s": round(time.perf_counter() - wall_s, 1),
            "converged_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "links": round(statistics.fmean(len(_links(each)) for each in overlay.running), 1),
        }
        await overlay.stop()
        return row

    return _in_laboratory(scenario, seed)


def _links(peer: SimPeer) -> Sequence[object]:
    assert peer.side is not None, "a peer that was started"
    return list(peer.side.hub.links)


def merge(count: int, seed: int) -> Row:
    """Halves that were cut off from each other for minutes: how long until both know all again."""

    async def scenario(lab: Lab) -> Row:
        rng = lab.dice.of("benchmark", "merge")
        overlay = await _start(lab, count)
        await _converge(lab, overlay)
        await asyncio.sleep(35.0)
        half = count // 2
        parted = lab.network.partition(
            [each.host for each in overlay.peers[:half]], [each.host for each in overlay.peers[half:]]
        )
        await asyncio.sleep(rng.uniform(120.0, 300.0))
        lab.network.heal(parted)
        row: Row = {"peers": count, "merged_s": round(await _converge(lab, overlay), 2)}
        await overlay.stop()
        return row

    return _in_laboratory(scenario, seed)


def restart(count: int, seed: int) -> Row:
    """All machines lose power at once, and come back within a minute, knowing only whom they remember."""

    async def scenario(lab: Lab) -> Row:
        rng = lab.dice.of("benchmark", "restart")
        overlay = await _start(lab, count)
        await _converge(lab, overlay)
        await asyncio.sleep(40.0)
        for each in overlay.peers:
            await each.crash()
        await asyncio.sleep(rng.uniform(10.0, 600.0))
        for number, each in enumerate(_shuffled(overlay.peers, rng)):
            if number:
                await asyncio.sleep(60.0 / count)
            await each.restart()
        row: Row = {"peers": count, "restarted_s": round(await _converge(lab, overlay), 2)}
        await overlay.stop()
        return row

    return _in_laboratory(scenario, seed)


def move(count: int, seed: int, moves: int) -> Row:
    """A machine that runs gets another address: how long until everybody has it."""

    async def scenario(lab: Lab) -> Row:
        rng = lab.dice.of("benchmark", "move")
        overlay = await _start(lab, count)
        await _converge(lab, overlay)
        took: list[float] = []
        for number in range(moves):
            await asyncio.sleep(rng.uniform(10.0, 20.0))
            mover, host = overlay.peers[rng.randrange(WELL_KNOWN, count)], f"53.7.{number}.1"
            lab.network.move(mover.host, host)
            mover.moved()
            others = [each for each in overlay.peers if each is not mover]
            took.append(await lab.until(lambda: all(_knows(each, mover, host) for each in others), "known", PATIENCE_S))  # noqa: B023
            await _converge(lab, overlay)
        await overlay.stop()
        return {
            "peers": count,
            "moves": moves,
            "mean_s": round(statistics.fmean(took), 2),
            "worst_s": round(max(took), 2),
        }

    return _in_laboratory(scenario, seed)


def _knows(peer: SimPeer, other: SimPeer, host: str) -> bool:
    entry = peer.view.entry(other.peer)
    return entry is not None and entry.record.addresses[0].host == host


def _shuffled(peers: Sequence[SimPeer], rng: random.Random) -> list[SimPeer]:
    return rng.sample(peers, len(peers))


# --- behind routers ---------------------------------------------------------------------------------------------------


def nat(seed: int) -> list[Row]:
    """Two peers behind routers of each pair of kinds, and a public one: by which path they are linked, and after how long."""
    from p2pcompute.sim.scenarios.nat import nat_matrix

    rows: list[Row] = []

    async def whole(lab: Lab) -> None:
        found = await nat_matrix(lab)
        rows.extend(
            {"seed": seed, "one": one, "other": other, "path": path, "took_s": round(took_s, 2)}
            for (one, other), (path, took_s) in found.items()
        )

    _run(whole, seed)
    return rows
