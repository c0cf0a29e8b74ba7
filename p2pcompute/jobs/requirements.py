"""Whether a peer meets what a job requires, and what the nearest one lacks.

What a peer does not say of itself it does not have. Reading of requirements is `model/requirement.py`'s.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from p2pcompute.jobs.plan import Candidate
from p2pcompute.model.capability import Capability, cpu_score, gpu_score, memory_score
from p2pcompute.model.engine import is_granted
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.requirement import ISOLATIONS, TIERS, Kind, Requirement, Value

_GIB = 1024.0**3
_COMPARE: Mapping[str, Callable[[Value, Value], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class Lack:
    """A requirement that a peer does not meet. `has`: what it has instead, in words; `gap`: how far it is off, 0 to 1."""

    requirement: Requirement
    has: str
    gap: float


def lacks(requirements: Sequence[Requirement], peer: Candidate) -> tuple[Lack, ...]:
    """The requirements that `peer` does not meet, in their order; empty where it may be used."""
    return tuple(
        Lack(each, shown(each, peer), _gap(each, value_of(each, peer)))
        for each in requirements
        if not meets(each, peer)
    )


def meets(requirement: Requirement, peer: Candidate) -> bool:
    """Whether `peer` meets one requirement."""
    wanted, compare = requirement.value, requirement.operator
    if requirement.kind is Kind.LABEL:
        return _has_label(peer.facts.labels, str(wanted)) is (compare == "==")
    if requirement.kind is Kind.MEMBER:
        return _has_member(requirement.name, str(wanted), peer) is (compare == "==")
    value = value_of(requirement, peer)
    if value is None:
        return False
    if requirement.kind is Kind.PART:
        return (str(wanted) in str(value)) is (compare == "==")
    if isinstance(value, tuple):
        # "3.12" means every 3.12.x.
        assert isinstance(wanted, tuple)
        value = (*value, 0, 0, 0, 0)[: len(wanted)]
    return _COMPARE[compare](value, wanted)


def value_of(requirement: Requirement, peer: Candidate) -> Value | None:
    """What `peer` has, in base units as in `Requirement.value`; None where it does not say."""
    facts, capability = peer.facts, peer.facts.capability
    match requirement.name:
        case "slots":
            return float(facts.slots)
        case "load":
            return float(facts.load)
        case "latency":
            return float(peer.rtt_s)
        case "bandwidth":
            return facts.bandwidth_mbps
        case "cost_per_hour":
            return float(facts.cost_per_hour)
        case "performance_tier":
            return _place(facts.performance_tier, TIERS)
        case "isolation":
            return _place(facts.isolation, ISOLATIONS)
        case "python":
            return _version(facts.python)
        case "platform":
            return facts.platform.lower() or None
        case "label" | "engine" | "grant":
            return None
        case "name":
            return facts.name.lower()
        case "score":
            return float(peer.rank) if capability is not None else None
        case name:
            return None if capability is None else _of_hardware(name, capability)


def headroom(requirements: Sequence[Requirement], peer: Candidate) -> float:
    """How much more than asked for `peer` has: mean of 1 - wanted/has over the "at least" ones, 1 where there are none.

    0 where it has exactly what is asked for, near 1 where it has many times as much; 0 for what it does not say.
    """
    parts: list[float] = []
    for each in requirements:
        if each.operator not in (">=", ">") or not isinstance(each.value, float):
            continue
        has = value_of(each, peer)
        parts.append(max(0.0, 1 - each.value / has) if isinstance(has, float) and has > 0 else 0.0)
    return sum(parts) / len(parts) if parts else 1.0


def shown(requirement: Requirement, peer: Candidate) -> str:
    """What `peer` has of it, as people write it."""
    if requirement.kind is Kind.LABEL:
        return f"labels {', '.join(peer.facts.labels)}" if peer.facts.labels else "no labels"
    if requirement.kind is Kind.MEMBER:
        has = peer.facts.engines if requirement.name == "engine" else peer.facts.grants
        return f"{requirement.name}s {', '.join(has)}" if has else f"no {requirement.name}s"
    value = value_of(requirement, peer)
    if value is None:
        return f"no {requirement.name} that it tells of"
    if isinstance(value, tuple):
        return peer.facts.python
    if isinstance(value, str):
        return value or "none"
    match requirement.kind:
        case Kind.BYTES:
            return f"{value / _GIB:.4g} GB"
        case Kind.FREQUENCY:
            return f"{value:g} MHz"
        case Kind.DURATION:
            return f"{value * 1000:.4g} ms"
        case Kind.RATE:
            return f"{value:.4g} Mbps"
        case Kind.RANK:
            return peer.facts.isolation if requirement.name == "isolation" else peer.facts.performance_tier
        case _:
            return f"{value:.4g}"


def unmet_text(requirements: Sequence[Requirement], peers: Sequence[Candidate]) -> str:
    """Why none of `peers` may run a job, naming the nearest and what it lacks.

    Nearest: the one with the fewest unmet requirements, then the smallest sum of gaps, then the lower id.
    """
    wanted = " and ".join(map(str, requirements))
    if not peers:
        return f"no peer has {wanted}: none that may compute for this one is linked"
    rows = sorted(((lacks(requirements, peer), peer) for peer in peers), key=_nearness)
    nearest, peer = rows[0]
    if not nearest:
        return ""
    # What others have need not be said: the first lacks are what stands in the way.
    asked = " and ".join(str(lack.requirement) for lack in nearest)
    has = " and ".join(f"{lack.has}" for lack in nearest)
    place = "this peer" if peer.local else f"{peer.facts.name or 'a peer'} ({short_peer_id(peer.peer)})"
    if len(nearest) == len(requirements):
        return f"no peer has {asked}: the nearest is {place} with {has}"
    return f"no peer has {wanted}: the nearest is {place}, which lacks {asked} and has {has}"


def _nearness(row: tuple[tuple[Lack, ...], Candidate]) -> tuple[int, float, PeerId]:
    lacking, peer = row
    return len(lacking), round(sum(lack.gap for lack in lacking), 9), peer.peer


def _gap(requirement: Requirement, has: Value | None) -> float:
    wanted = requirement.value
    if not isinstance(has, float) or not isinstance(wanted, float):
        return 1.0
    most = max(abs(has), abs(wanted))
    return abs(has - wanted) / most if most > 0 else 0.0


def _of_hardware(name: str, capability: Capability) -> Value | None:
    gpus = capability.gpus
    match name:
        case "cpu_cores":
            return float(capability.cores)
        case "cpu_frequency":
            return float(capability.frequency_mhz)
        case "memory":
            return capability.memory_gb * _GIB
        case "available_memory":
            return capability.memory_available_gb * _GIB
        case "gpu_count":
            return float(len(gpus))
        case "gpu_memory":
            # Of one of them: what a model needs, it needs on one card.
            return max((gpu.memory_gb * _GIB for gpu in gpus), default=0.0)
        case "gpu_name":
            return ", ".join(gpu.name.lower() for gpu in gpus)
        case "cpu_score":
            return cpu_score(capability.cores, capability.frequency_mhz, capability.idle)
        case "gpu_score":
            return gpu_score(len(gpus), sum(gpu.memory_gb for gpu in gpus))
        case "memory_score":
            return memory_score(capability.memory_gb, capability.memory_available_gb)
    raise AssertionError(f"no rule for {name}")


def _has_label(labels: Sequence[str], wanted: str) -> bool:
    return any(label == wanted or ("=" not in wanted and label.startswith(f"{wanted}=")) for label in labels)


def _has_member(name: str, wanted: str, peer: Candidate) -> bool:
    return wanted in peer.facts.engines if name == "engine" else is_granted(wanted, peer.facts.grants)


def _place(name: str, ranks: Sequence[str]) -> float | None:
    return float(ranks.index(name)) if name in ranks else None


def _version(text: str) -> tuple[int, ...] | None:
    parts: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts) or None
