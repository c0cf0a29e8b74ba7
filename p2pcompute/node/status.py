"""What a peer knows, as plain documents: for the control socket, `--json`, and later the console.

Every key is part of the interface; units stand last in the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pcompute.jobs.health import health_of
from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.submit import options_document
from p2pcompute.model.capability import capability_score
from p2pcompute.model.ids import PeerId, format_job_id, format_peer_id, short_peer_id
from p2pcompute.model.job import JobProgress
from p2pcompute.model.peer import PeerEntry, PeerRecord
from p2pcompute.model.performance import Summary
from p2pcompute.net.link import Link
from p2pcompute.net.session_events import SessionInfo
from p2pcompute.node.facts import facts_of, own_facts
from p2pcompute.node.origin_job import OriginJob
from p2pcompute.node.overlay_peer import OverlayPeer
from p2pcompute.node.records import Records

Document = dict[str, Any]
#: What people call a peer.
NameOf = Callable[[PeerId], str]
#: Direct links that are younger say nothing about datagrams yet: a handshake is tried for some seconds.
_DATAGRAMS_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Way:
    """How a linked peer is reached. `via`: name of the peer between, where there is one; `why`: a sentence; `session`: of datagrams."""

    via: str | None = None
    why: str | None = None
    session: SessionInfo | None = None


def way_of(side: OverlayPeer, link: Link | None, peer: PeerId, name_of: NameOf) -> Way:
    """How `peer` is reached over `link`."""
    session = side.udp.session(peer)
    if link is None or link.closed:
        return Way(session=session)
    via = name_of(link.route.via) if link.route is not None else None
    return Way(via, side.reaching.why(link, name_of), session)


def peer_row(
    record: PeerRecord,
    entry: PeerEntry | None,
    link: Link | None,
    last_error: str | None,
    way: Way | None = None,
    name_of: NameOf = short_peer_id,
    records: Records | None = None,
) -> Document:
    """One peer. `records`: knows how it did for jobs of this peer. `entry` is None for this peer itself, `link` where there is none."""
    capability = record.capability
    way = way or Way()
    facts = own_facts(record) if entry is None else facts_of(entry)
    health = health_of(Candidate(record.peer, 0.0, entry is None, 0.0, facts=facts), 0.0)
    return {
        "peer": format_peer_id(record.peer),
        "short": short_peer_id(record.peer),
        "name": record.name,
        "status": "self" if entry is None else entry.status.value,
        "addresses": [str(address) for address in record.addresses],
        "cores": capability.cores if capability else None,
        "frequency_mhz": capability.frequency_mhz if capability else None,
        "idle": capability.idle if capability else None,
        "memory_gb": round(capability.memory_gb, 2) if capability else None,
        "memory_available_gb": round(capability.memory_available_gb, 2) if capability else None,
        "gpus": [gpu.name for gpu in capability.gpus] if capability else [],
        "gpu_memory_gb": round(sum(gpu.memory_gb for gpu in capability.gpus), 2) if capability else 0.0,
        "score": round(capability_score(capability), 1) if capability else None,
        "slots": record.slots,
        "yields": list(record.yields),
        "load": round(record.load, 2),
        "available": health.is_available,
        "unavailable_because": health.error,
        "rtt_ms": _rounded(link.rtt_s if link else None, 1000.0),
        "bandwidth_mbps": _rounded(
            (link.bandwidth_mbps if link else None) or (entry.bandwidth_mbps if entry else None), 1.0
        ),
        "path": link.path if link else None,
        "path_via": way.via,
        "path_why": way.why,
        "reach": record.reach.value,
        "relays": [
            {"name": name_of(relay.peer), "short": short_peer_id(relay.peer), "address": str(relay.address)}
            for relay in record.relays
        ],
        "datagrams": _session_document(way.session),
        "carrier": link.carrier if link else None,
        "bytes_in": link.bytes_in if link else None,
        "bytes_out": link.bytes_out if link else None,
        "python": record.python,
        "platform": record.platform,
        "isolation": record.isolation.value,
        "engines": list(record.engines),
        "grants": list(record.grants),
        "roles": sorted(role.value for role in record.roles),
        "labels": list(record.labels),
        "cost_per_hour": record.cost_per_hour,
        "performance_tier": record.performance_tier,
        "linked": link is not None and not link.closed,
        "last_error": last_error,
        "version": record.version,
        **_served_document(record.peer, records),
    }


def reach_document(side: OverlayPeer, name_of: NameOf) -> Document:
    """How this peer is reached, through whom, and for whom it is a relay."""
    reaching, server = side.reaching, side.hub.reaching.server
    links = [link for link in side.hub.links.values() if not link.closed]
    settled = [link for link in links if not link.relayed and link.heard_at - link.opened_at >= _DATAGRAMS_AFTER_S]
    meters = server.meters.values()
    return {
        "reach": reaching.reach.value,
        "external": [str(address) for address in reaching.external],
        "mapping": reaching.mapping,
        "forwarded": None if reaching.external_by_router is None else str(reaching.external_by_router),
        "relays": [
            {"name": name_of(relay.peer), "short": short_peer_id(relay.peer), "address": str(relay.address)}
            for relay in reaching.relays
        ],
        "refusals": {name_of(peer): why for peer, why in reaching.refusals.items()},
        "links_relayed": sum(link.relayed for link in links),
        "datagrams": {
            "links": len(settled),
            "sessions": sum(side.udp.session(link.peer) is not None for link in settled),
            "lost": dict(side.udp.counts),
        },
        "serves": {
            "allowed": reaching.may_relay,
            "serving": server.serving,
            "reserved": len(server.reserved),
            "circuits": server.circuits,
            "bytes": sum(meter.sent_bytes for meter in meters),
        },
    }


def reach_text(reach: str, external: Sequence[str], relays: Sequence[str], mapping: str) -> str:
    """How this peer is reached, in words."""
    at = f" at {', '.join(external)}" if external else ""
    match reach:
        case "public":
            return f"peers of other networks can dial it{at}"
        case "mapped":
            return f"peers of other networks can dial it{at}, which its router forwards ({mapping})"
        case "private" if relays:
            return f"peers of other networks cannot dial it; they reach it through {' and '.join(relays)}. Router: {mapping}"
        case "private":
            return f"peers of other networks cannot dial it, and it has no relay. Router: {mapping}"
        case _:
            return "not known from outside: no peers of other networks could say whether they can dial it"


def job_row(job: OriginJob, progress: JobProgress, names: Mapping[PeerId, str]) -> Document:
    """One job."""
    return {
        "job": format_job_id(job.spec.job),
        "name": job.spec.name,
        "state": progress.state.value,
        "aggregation": job.spec.aggregation.value,
        "tasks_total": progress.tasks_total,
        "tasks_done": progress.tasks_done,
        "tasks_failed": progress.tasks_failed,
        "tasks_cached": progress.tasks_cached,
        "tasks_running": progress.tasks_running,
        "fraction_running": round(progress.fraction_running, 4),
        "retries": progress.retries,
        "duplicates_dropped": progress.duplicates_dropped,
        "elapsed_s": round(progress.elapsed_s, 3),
        "done_by_peer": {names.get(peer, short_peer_id(peer)): count for peer, count in progress.done_by_peer},
        "message": progress.message,
        "error": job.failure.text if job.end is not None and job.failure is not None else None,
    }


def job_details(job: OriginJob, progress: JobProgress, names: Mapping[PeerId, str]) -> Document:
    """One job with everything that is known about it."""
    return {
        **job_row(job, progress, names),
        "program": job.spec.program.hex(),
        "program_bytes": len(job.request.program),
        "inputs": job.inputs,
        "skipped": list(job.skipped),
        "results_kept": job.kept_all,
        "options": options_document(job.spec.options),
        "attempts": [
            {
                "task": int(task),
                "peer": names.get(attempt.peer, short_peer_id(attempt.peer)),
                "outcome": attempt.outcome.name.lower(),
                "detail": attempt.detail,
            }
            for task, attempt in job.attempts
        ],
        "history": list(job.failure.history) if job.failure is not None else [],
    }


def progress_document(progress: JobProgress, names: Mapping[PeerId, str]) -> Document:
    """Progress as it crosses the control socket."""
    return {
        "job": format_job_id(progress.job),
        "state": progress.state.value,
        "tasks_total": progress.tasks_total,
        "tasks_done": progress.tasks_done,
        "tasks_failed": progress.tasks_failed,
        "tasks_running": progress.tasks_running,
        "fraction_running": progress.fraction_running,
        "retries": progress.retries,
        "duplicates_dropped": progress.duplicates_dropped,
        "done_by_peer": [[bytes(peer), count] for peer, count in progress.done_by_peer],
        "names": {peer.hex(): names[peer] for peer, _ in progress.done_by_peer if peer in names},
        "elapsed_s": progress.elapsed_s,
        "message": progress.message,
        "tasks_cached": progress.tasks_cached,
    }


def _served_document(peer: PeerId, records: Records | None) -> Document:
    """How a peer did in the last hour for jobs of this one."""
    whole, functions = records.of_peer(peer) if records is not None else (None, ())
    return {
        **(_summary_document(whole) if whole is not None else {"tasks": 0, "success_rate": None, "mean_s": None}),
        "functions": [{"function": name, **_summary_document(summary)} for name, summary in functions],
    }


def _summary_document(summary: Summary) -> Document:
    return {
        "tasks": summary.counted,
        "success_rate": _rounded(summary.success_rate, 1.0),
        "mean_s": None if summary.mean_s is None else round(summary.mean_s, 6),
    }


def _session_document(session: SessionInfo | None) -> Document | None:
    if session is None:
        return None
    return {
        "address": str(session.address),
        "rtt_ms": _rounded(session.rtt_s, 1000.0),
        "bytes_in": session.bytes_in,
        "bytes_out": session.bytes_out,
    }


def _rounded(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 3)
