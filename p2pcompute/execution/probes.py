"""What this machine has and how busy it is: cores, frequency, idleness, memory, accelerators.

Nothing here blocks: each sample reads counters and compares them with the sample before. What cannot be read is unknown (0), never
an error: a peer without a driver, in a container, or on an odd system still starts. Network figures are measured between
peers, in `net/`. Refuses to know: the score (`model/capability.py`).
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil

from p2pcompute.execution.process_tree import family_cpu_s
from p2pcompute.execution.resources import worker_environment
from p2pcompute.execution.sandbox.probe import SandboxReport, probe
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.peer import Isolation
from p2pcompute.model.seams import Clock

_GIB = float(1 << 30)
#: Idleness is smoothed over about so many seconds: long against one task, short against a job.
SMOOTHING_S = 15.0
#: Samples closer than this tell nothing new about idleness: the counters tick 100 times a second.
SAMPLE_SPACING_S = 0.5
#: Accelerators are asked this often at most; a call into a driver may take milliseconds.
GPU_SPACING_S = 5.0
_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class GpuSummary:
    """What the machine's driver said: its accelerators, or in words why there are none."""

    gpus: tuple[Gpu, ...]
    text: str


class HardwareProbe:
    """Samples this machine. One object a peer; `sample` is cheap and never blocks."""

    def __init__(self, clock: Clock, *, cgroup: Path = _CGROUP, cpuinfo: Path = _CPUINFO) -> None:
        self._clock = clock
        self._cgroup = cgroup
        self._cpuinfo = cpuinfo
        self._gpus = GpuProbe()
        self._gpu_summary: GpuSummary | None = None
        self._gpu_asked_at = 0.0
        #: Counters of the sample that idleness was last measured from, and when.
        self._times = _cpu_times()
        self._times_at = clock.monotonic()
        #: Smoothed idle share, 0 to 1; None before two samples could be compared.
        self._idle: float | None = None

    def sample(self) -> Capability:
        """The machine now. `idle` is smoothed over `SMOOTHING_S`; before a second sample it follows the load average."""
        memory = psutil.virtual_memory()
        limit_bytes, used_bytes = cgroup_memory(self._cgroup)
        total_bytes, available_bytes = memory.total, memory.available
        if limit_bytes is not None and limit_bytes < total_bytes:
            total_bytes = limit_bytes
            available_bytes = min(available_bytes, max(limit_bytes - used_bytes, 0))
        cores = usable_cores(self._cgroup)
        return Capability(
            cores=cores,
            frequency_mhz=frequency_mhz(self._cpuinfo),
            idle=self._sample_idle(cores),
            memory_gb=total_bytes / _GIB,
            memory_available_gb=available_bytes / _GIB,
            gpus=self._sample_gpus().gpus,
        )

    def gpu_summary(self) -> GpuSummary:
        """The accelerators, and a sentence for `doctor`."""
        self._gpu_summary = None
        return self._sample_gpus()

    def close(self) -> None:
        """Let go of the driver."""
        self._gpus.close()

    def _sample_idle(self, cores: int) -> float:
        now = self._clock.monotonic()
        elapsed_s = now - self._times_at
        if elapsed_s >= SAMPLE_SPACING_S:
            times = _cpu_times()
            total = times[0] - self._times[0]
            if total > 0:
                measured = min(max((times[1] - self._times[1]) / total, 0.0), 1.0)
                self._idle = smoothed(self._idle, measured, elapsed_s)
            self._times, self._times_at = times, now
        if self._idle is None:
            return 1.0 - min(_load_average() / max(cores, 1), 1.0)
        return self._idle

    def _sample_gpus(self) -> GpuSummary:
        now = self._clock.monotonic()
        if self._gpu_summary is None or now - self._gpu_asked_at >= GPU_SPACING_S:
            self._gpu_summary = self._gpus.read()
            self._gpu_asked_at = now
        return self._gpu_summary


class OthersProbe:
    """How many cores processes are busy with that are not the peer's own: neither this one nor its descendants.

    A container engine's or a cluster's processes are nobody's descendants here, and count as others'.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Of the last sample: when, busy seconds of all cores, those of this process family; None before the first.
        self._last: tuple[float, float, float] | None = None

    def sample(self) -> float | None:
        """Cores, since the sample before; None at the first. Reads files of every process: call it off the loop."""
        every = _cpu_times()
        now, busy_s, own_s = self._clock.monotonic(), every[0] - every[1], family_cpu_s(os.getpid())
        last, self._last = self._last, (now, busy_s, own_s)
        if last is None or now - last[0] <= 0:
            return None
        # What a process spent that ended without being waited for is lost, so that sums may fall.
        own_s = max(own_s - last[2], 0.0)
        return max(busy_s - last[1] - own_s, 0.0) / (now - last[0])


def machine_cores() -> int:
    """Cores of the whole machine, whatever this process may use of them."""
    return os.cpu_count() or 1


def on_battery() -> bool | None:
    """Whether the machine runs on its battery; None where it has none or does not tell."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, NotImplementedError, RuntimeError):
        return None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


class GpuProbe:
    """NVML, opened once and kept open; a machine without it is asked no second time."""

    def __init__(self, library: ModuleType | None = None) -> None:
        #: `pynvml`, None until the first read; replaced by tests.
        self._library = library
        self._opened = False
        #: Why there is nothing to read, once that is known.
        self._absent = ""

    def read(self) -> GpuSummary:
        """All accelerators now. Never raises: a driver that fails is an absent one, and the text says why."""
        if self._absent:
            return GpuSummary((), self._absent)
        try:
            library = self._open()
            handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
            gpus = tuple(self._read_one(library, handle) for handle in handles)
        except ImportError as error:
            self._absent = f"no GPU: the package nvidia-ml-py is not usable ({error})"
            return GpuSummary((), self._absent)
        except Exception as error:  # NVML's errors are made at run time, and a driver may do anything
            if not self._opened:
                self._absent = f"no GPU: no NVIDIA driver answers ({error})"
            return GpuSummary((), self._absent or f"the NVIDIA driver does not answer now ({error})")
        if not gpus:
            return GpuSummary((), "no GPU: the NVIDIA driver knows none")
        names = ", ".join(f"{gpu.name} ({gpu.memory_gb:.0f} GiB)" for gpu in gpus)
        return GpuSummary(gpus, f"{len(gpus)} GPU: {names}")

    def _open(self) -> ModuleType:
        if self._library is None:
            import pynvml

            self._library = pynvml
        if not self._opened:
            self._library.nvmlInit()
            self._opened = True
        return self._library

    @staticmethod
    def _read_one(library: ModuleType, handle: object) -> Gpu:
        name = library.nvmlDeviceGetName(handle)
        memory_bytes = library.nvmlDeviceGetMemoryInfo(handle).total
        try:
            utilisation = library.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except library.NVMLError:
            utilisation = 0.0  # not told by MIG slices and some laptops
        text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return Gpu(name=text, memory_gb=memory_bytes / _GIB, utilisation=min(max(utilisation, 0.0), 1.0))

    def close(self) -> None:
        """Shut NVML down; reading again opens it again."""
        if self._opened and self._library is not None:
            self._library.nvmlShutdown()
            self._opened = False


def smoothed(previous: float | None, measured: float, elapsed_s: float) -> float:
    """Exponential smoothing with time constant `SMOOTHING_S`, right for samples that come at any distance."""
    if previous is None:
        return measured
    weight = elapsed_s / (elapsed_s + SMOOTHING_S)
    return previous + weight * (measured - previous)


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: the machine's, less what affinity and a cgroup's quota withhold; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    quota = cgroup_cores(cgroup)
    if quota is not None:
        cores = min(cores, max(round(quota), 1))
    return max(cores, 1)


def cgroup_cores(cgroup: Path = _CGROUP) -> float | None:
    """The CPU quota of this container in cores (cgroup v2, then v1), None where there is none or it cannot be read."""
    words = _read_text(cgroup / "cpu.max").split()
    if len(words) != 2:
        folder = cgroup / "cpu"
        words = [_read_text(folder / "cpu.cfs_quota_us").strip(), _read_text(folder / "cpu.cfs_period_us").strip()]
    try:
        quota_us, period_us = float(words[0]), float(words[1])
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def cgroup_memory(cgroup: Path = _CGROUP) -> tuple[int | None, int]:
    """(limit, use) of this container's memory in bytes (cgroup v2, then v1); (None, 0) where there is no limit."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit_bytes = int(_read_text(cgroup / limit_name))
            used_bytes = int(_read_text(cgroup / used_name))
        except ValueError:
            continue
        # v1 writes "no limit" as the largest multiple of a page.
        if limit_bytes < 1 << 60:
            return limit_bytes, used_bytes
    return None, 0


def frequency_mhz(cpuinfo: Path = _CPUINFO) -> float:
    """The highest frequency of the processor as far as it is told, else the present one, else 0."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        frequency = None
    if frequency is not None and (frequency.max or frequency.current):
        return float(frequency.max or frequency.current)
    for line in _read_text(cpuinfo).splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "cpu mhz":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 0.0


def sandbox_report() -> SandboxReport:
    """What of the sandbox works for this interpreter here. Blocks for a third of a second at the first call of a process."""
    return probe(sys.executable, worker_environment(os.environ, threads=1), [Path.home()])


def isolation() -> Isolation:
    """How this machine holds other people's code. Blocks as `sandbox_report` does."""
    return sandbox_report().level


def platform_text() -> str:
    """The system and machine in words, for records: "Linux x86_64", "Darwin arm64"."""
    return f"{platform.system() or 'unknown'} {platform.machine() or 'unknown'}"


def gpu_summary() -> GpuSummary:
    """The accelerators of this machine, read once."""
    probe = GpuProbe()
    try:
        return probe.read()
    finally:
        probe.close()


def _cpu_times() -> tuple[float, float]:
    """(all, idle) seconds of all cores since the machine started; waiting for disks counts as idle."""
    times = psutil.cpu_times()
    # guest time is part of user time on Linux already
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total, times.idle + getattr(times, "iowait", 0.0)


def _load_average() -> float:
    try:
        return psutil.getloadavg()[0]
    except OSError:
        return 0.0


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
