"""What a peer knows, as plain documents: for the control socket, `--json`, and later the console.

Every key is part of the interface; units stand last in the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pcompute.model.capability import capability_score
from p2pcompute.model.ids import PeerId, format_job_id, format_peer_id, short_peer_id
from p2pcompute.model.job import JobProgress
from p2pcompute.model.peer import PeerEntry, PeerRecord
from p2pcompute.net.link import Link
from p2pcompute.node.origin_job import OriginJob

Document = dict[str, Any]


def peer_row(record: PeerRecord, entry: PeerEntry | None, link: Link | None, last_error: str | None) -> Document:
    """One peer. `entry` is None for this peer itself, `link` where there is none."""
    capability = record.capability
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
        "load": round(record.load, 2),
        "rtt_ms": _rounded(link.rtt_s if link else None, 1000.0),
        "bandwidth_mbps": _rounded(
            (link.bandwidth_mbps if link else None) or (entry.bandwidth_mbps if entry else None), 1.0
        ),
        "path": link.path if link else None,
        "carrier": link.carrier if link else None,
        "bytes_in": link.bytes_in if link else None,
        "bytes_out": link.bytes_out if link else None,
        "python": record.python,
        "platform": record.platform,
        "isolation": record.isolation.value,
        "roles": sorted(role.value for role in record.roles),
        "labels": list(record.labels),
        "linked": link is not None and not link.closed,
        "last_error": last_error,
        "version": record.version,
    }


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
    options = job.spec.options
    return {
        **job_row(job, progress, names),
        "program": job.spec.program.hex(),
        "program_bytes": len(job.request.program),
        "inputs": job.inputs,
        "skipped": list(job.skipped),
        "results_kept": job.kept_all,
        "options": {
            "timeout_s": options.timeout_s,
            "job_timeout_s": options.job_timeout_s,
            "retries": options.retries,
            "priority": options.priority,
            "memory_bytes": options.memory_bytes,
            "on_error": options.on_error.value,
            "speculate": options.speculate,
        },
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
    }


def _rounded(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 3)
