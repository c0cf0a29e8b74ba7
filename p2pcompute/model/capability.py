"""What a peer can do, and the score that sums it up.

score = 0.4 CPU + 0.3 GPU + 0.2 memory + 0.1 network, each 0 to 100. Formulas here, measurements in `execution/probes.py`
(hardware) and `net/` (round trip, throughput, loss).
"""

from __future__ import annotations

from dataclasses import dataclass

CORES_FULL = 32
FREQUENCY_FULL_MHZ = 4000.0
GPUS_FULL = 8
GPU_MEMORY_FULL_GB = 80.0
MEMORY_FULL_GB = 256.0
BANDWIDTH_FULL_MBPS = 1000.0
LATENCY_ZERO_MS = 100.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator as NVML names it; `memory_gb` in units of 2**30 bytes."""

    name: str
    memory_gb: float
    utilisation: float = 0.0


@dataclass(frozen=True, slots=True)
class Capability:
    """One peer's hardware and its state, as last measured.

    Memory in units of 2**30 bytes; `idle` is the share of all cores that does nothing, 0 to 1; `bandwidth_mbps`,
    `latency_ms` and `loss` (0 to 1) are medians over the peer's links, None before one was measured.
    """

    cores: int
    frequency_mhz: float
    idle: float
    memory_gb: float
    memory_available_gb: float
    gpus: tuple[Gpu, ...] = ()
    bandwidth_mbps: float | None = None
    latency_ms: float | None = None
    loss: float | None = None

    @property
    def score(self) -> float:
        """0 to 100, see `capability_score`."""
        return capability_score(self)


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each part of the score counts; normalised to a sum of 1 when used."""

    cpu: float = 0.4
    gpu: float = 0.3
    memory: float = 0.2
    network: float = 0.1


DEFAULT_WEIGHTS = Weights()


def cpu_score(cores: int, frequency_mhz: float, idle: float) -> float:
    """min(cores/32, 1)·40 + min(MHz/4000, 1)·30 + idle·30."""
    return min(cores / CORES_FULL, 1) * 40 + min(frequency_mhz / FREQUENCY_FULL_MHZ, 1) * 30 + _share(idle) * 30


def gpu_score(count: int, memory_gb: float) -> float:
    """min(n/8, 1)·50 + min(total memory/80 GB, 1)·50; 0 where there is none."""
    if count == 0:
        return 0.0
    return min(count / GPUS_FULL, 1) * 50 + min(memory_gb / GPU_MEMORY_FULL_GB, 1) * 50


def memory_score(total_gb: float, available_gb: float) -> float:
    """min(total/256 GB, 1)·50 + available/total·50."""
    ratio = _share(available_gb / total_gb) if total_gb > 0 else 0.0
    return min(total_gb / MEMORY_FULL_GB, 1) * 50 + ratio * 50


def network_score(bandwidth_mbps: float | None, latency_ms: float | None, loss: float | None) -> float:
    """min(Mbps/1000, 1)·40 + max(0, (100 - ms)/100)·40 + (1 - loss)·20; what was not measured counts nothing."""
    score = 0.0
    if bandwidth_mbps is not None:
        score += min(bandwidth_mbps / BANDWIDTH_FULL_MBPS, 1) * 40
    if latency_ms is not None:
        score += _share((LATENCY_ZERO_MS - latency_ms) / LATENCY_ZERO_MS) * 40
    if loss is not None:
        score += (1 - _share(loss)) * 20
    return score


def capability_score(capability: Capability, weights: Weights = DEFAULT_WEIGHTS) -> float:
    """The weighted sum of the four parts, 0 to 100."""
    total = weights.cpu + weights.gpu + weights.memory + weights.network
    gpu_memory_gb = sum(gpu.memory_gb for gpu in capability.gpus)
    parts = (
        weights.cpu * cpu_score(capability.cores, capability.frequency_mhz, capability.idle)
        + weights.gpu * gpu_score(len(capability.gpus), gpu_memory_gb)
        + weights.memory * memory_score(capability.memory_gb, capability.memory_available_gb)
        + weights.network * network_score(capability.bandwidth_mbps, capability.latency_ms, capability.loss)
    )
    return parts / total


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
