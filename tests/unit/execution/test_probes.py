"""Hardware probes: this machine for real, and containers, drivers and odd systems as folders and stand-ins."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from p2pcompute.execution import probes
from p2pcompute.execution.probes import GpuProbe, HardwareProbe
from p2pcompute.model.peer import Isolation


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A folder that holds nothing: no cgroup, no cpuinfo."""
    return tmp_path


def test_this_machine(nowhere: Path) -> None:
    probe = HardwareProbe(HandClock(), cgroup=nowhere)
    capability = probe.sample()
    assert 1 <= capability.cores <= (os.cpu_count() or 1)
    assert capability.frequency_mhz >= 0
    assert 0 <= capability.idle <= 1
    assert capability.memory_gb == pytest.approx(psutil.virtual_memory().total / 2**30)
    assert 0 < capability.memory_available_gb <= capability.memory_gb
    assert 0 < capability.score < 100
    assert (capability.bandwidth_mbps, capability.latency_ms, capability.loss) == (None, None, None)
    probe.close()


def test_a_sample_does_not_keep_the_loop_waiting() -> None:
    probe = HardwareProbe(HandClock())
    probe.sample()  # the first looks for drivers

    async def main() -> float:
        began = time.process_time()
        for _ in range(10):
            probe.sample()
        return time.process_time() - began

    assert asyncio.run(main()) < 0.5


def test_idleness_is_measured_between_samples_and_smoothed(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = iter([(1000.0, 900.0), (1010.0, 900.0), (1020.0, 910.0), (1020.0, 910.0)])
    monkeypatch.setattr(probes, "_cpu_times", lambda: next(counters))
    clock = HandClock()
    probe = HardwareProbe(clock, cgroup=nowhere)
    monkeypatch.setattr(probes, "_load_average", lambda: 1000.0)
    assert probe.sample().idle == 0.0  # nothing to compare with yet: by the load average
    clock.now += 0.1
    assert probe.sample().idle == 0.0  # too soon
    clock.now += 9.9
    assert probe.sample().idle == 0.0  # ten seconds, none of them idle
    clock.now += probes.SMOOTHING_S
    assert probe.sample().idle == pytest.approx(0.5)  # then all idle, for one time constant
    clock.now += 10
    assert probe.sample().idle == pytest.approx(0.5)  # counters that stand still say nothing


@pytest.mark.parametrize(
    ("previous", "measured", "elapsed_s", "result"),
    [(None, 0.3, 1.0, 0.3), (0.0, 1.0, 0.0, 0.0), (0.0, 1.0, 15.0, 0.5), (1.0, 0.0, 1e9, 0.0)],
)
def test_smoothing(previous: float | None, measured: float, elapsed_s: float, result: float) -> None:
    assert probes.smoothed(previous, measured, elapsed_s) == pytest.approx(result, abs=1e-6)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "400000 100000"}, 4.0),
        ({"cpu.max": "rubbish"}, None),
        ({"cpu.max": "1 0"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
    ],
)
def test_a_containers_cpu_quota(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    _write(tmp_path, files)
    assert probes.cgroup_cores(tmp_path) == cores
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert probes.usable_cores(tmp_path) == min(available, max(round(cores), 1) if cores else available)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this platform: CPU affinity")
def test_affinity_counts(nowhere: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert probes.usable_cores(nowhere) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, (None, 0)),
        ({"memory.max": "max", "memory.current": "5"}, (None, 0)),
        ({"memory.max": "1073741824", "memory.current": "268435456"}, (1 << 30, 1 << 28)),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"}, (None, 0)),
        ({"memory/memory.limit_in_bytes": "1073741824", "memory/memory.usage_in_bytes": "5"}, (1 << 30, 5)),
    ],
)
def test_a_containers_memory(tmp_path: Path, files: dict[str, str], limit: tuple[int | None, int]) -> None:
    _write(tmp_path, files)
    assert probes.cgroup_memory(tmp_path) == limit
    capability = HardwareProbe(HandClock(), cgroup=tmp_path).sample()
    if limit[0] is not None:
        assert capability.memory_gb == 1.0
        assert capability.memory_available_gb <= 1.0 - limit[1] / 2**30


@pytest.mark.parametrize(
    ("text", "frequency"),
    [("", 0.0), ("cpu MHz\t\t: 2445.432\nother: 1\n", 2445.432), ("cpu MHz : fast\n", 0.0), ("processor : 0\n", 0.0)],
)
def test_frequency_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, frequency: float) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert probes.frequency_mhz(path) == frequency
    assert probes.frequency_mhz(tmp_path / "missing") == 0.0


def test_frequency_that_the_system_refuses(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise NotImplementedError("no such file")

    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    assert probes.frequency_mhz(nowhere / "missing") == 0.0


class NvmlError(Exception):
    """As pynvml's."""


def nvml(**changes: Any) -> Any:
    """A driver with two accelerators, except where `changes` says otherwise."""
    calls: list[str] = []
    library = {
        "calls": calls,
        "NVMLError": NvmlError,
        "nvmlInit": lambda: calls.append("init"),
        "nvmlShutdown": lambda: calls.append("shutdown"),
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: b"Example 100" if handle else "Example 90",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=(16 + handle) << 30),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=25),
    }
    return SimpleNamespace(**{**library, **changes})


def raising(error: Exception) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


def test_gpus_are_read() -> None:
    library = nvml()
    probe = GpuProbe(library)
    summary = probe.read()
    assert [(gpu.name, gpu.memory_gb, gpu.utilisation) for gpu in summary.gpus] == [
        ("Example 90", 16.0, 0.25),
        ("Example 100", 17.0, 0.25),
    ]
    assert summary.text == "2 GPU: Example 90 (16 GiB), Example 100 (17 GiB)"
    probe.read()
    assert library.calls == ["init"]
    probe.close()
    assert library.calls == ["init", "shutdown"]


def test_utilisation_that_is_not_told() -> None:
    probe = GpuProbe(nvml(nvmlDeviceGetUtilizationRates=raising(NvmlError("not supported"))))
    assert [gpu.utilisation for gpu in probe.read().gpus] == [0.0, 0.0]


def test_no_driver_is_no_error_and_is_asked_once() -> None:
    library = nvml(nvmlInit=raising(NvmlError("library not found")))
    probe = GpuProbe(library)
    assert probe.read().gpus == ()
    assert "library not found" in probe.read().text
    library.nvmlInit = lambda: pytest.fail("asked again")
    assert probe.read().gpus == ()


def test_a_driver_that_fails_later_is_asked_again() -> None:
    library = nvml()
    probe = GpuProbe(library)
    assert len(probe.read().gpus) == 2
    count, library.nvmlDeviceGetCount = library.nvmlDeviceGetCount, raising(NvmlError("lost"))
    assert probe.read().gpus == ()
    assert "lost" in probe.read().text
    library.nvmlDeviceGetCount = count
    assert len(probe.read().gpus) == 2


def test_a_driver_without_devices() -> None:
    assert GpuProbe(nvml(nvmlDeviceGetCount=lambda: 0)).read() == probes.GpuSummary(
        (), "no GPU: the NVIDIA driver knows none"
    )


def test_the_gpus_of_this_machine_are_said_in_words() -> None:
    summary = probes.gpu_summary()
    assert summary.text
    assert ("no GPU" in summary.text) == (not summary.gpus)


def test_isolation_and_platform() -> None:
    assert probes.isolation() is probes.sandbox_report().level
    if sys.platform != "linux":
        assert probes.isolation() is Isolation.PROCESS
    assert len(probes.platform_text().split()) >= 2


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
