"""The score, formula by formula, against values worked out by hand."""

from __future__ import annotations

import pytest

from p2pcompute.model.capability import (
    Capability,
    Gpu,
    Weights,
    capability_score,
    cpu_score,
    gpu_score,
    memory_score,
    network_score,
)


@pytest.mark.parametrize(
    ("cores", "mhz", "idle", "score"),
    [
        (32, 4000, 1.0, 100),
        (64, 8000, 1.0, 100),
        (16, 2000, 0.5, 50),
        (0, 0, 0.0, 0),
        (8, 4000, 0.0, 40),
        (2, 0, 2.0, 32.5),
    ],
)
def test_cpu(cores: int, mhz: float, idle: float, score: float) -> None:
    assert cpu_score(cores, mhz, idle) == pytest.approx(score)


@pytest.mark.parametrize(
    ("count", "memory_gb", "score"), [(0, 0, 0), (0, 80, 0), (8, 80, 100), (4, 40, 50), (1, 24, 21.25), (16, 160, 100)]
)
def test_gpu(count: int, memory_gb: float, score: float) -> None:
    assert gpu_score(count, memory_gb) == pytest.approx(score)


@pytest.mark.parametrize(
    ("total", "available", "score"), [(256, 256, 100), (512, 256, 75), (128, 64, 50), (0, 0, 0), (64, 128, 62.5)]
)
def test_memory(total: float, available: float, score: float) -> None:
    assert memory_score(total, available) == pytest.approx(score)


@pytest.mark.parametrize(
    ("mbps", "ms", "loss", "score"),
    [(1000, 0, 0, 100), (500, 50, 0.5, 50), (2000, 200, 1, 40), (None, None, None, 0), (100, 10, None, 40)],
)
def test_network(mbps: float | None, ms: float | None, loss: float | None, score: float) -> None:
    assert network_score(mbps, ms, loss) == pytest.approx(score)


FULL = Capability(32, 4000, 1.0, 256, 256, tuple(Gpu("gpu", 10.0) for _ in range(8)), 1000, 0, 0)
HALF = Capability(16, 2000, 0.5, 128, 64, (), None, None, None)


def test_the_whole_is_the_weighted_sum() -> None:
    assert capability_score(FULL) == pytest.approx(100)
    assert FULL.score == capability_score(FULL)
    assert capability_score(HALF) == pytest.approx(0.4 * 50 + 0.2 * 50)


def test_weights_are_normalised() -> None:
    assert capability_score(HALF, Weights(4, 3, 2, 1)) == pytest.approx(capability_score(HALF))
    assert capability_score(HALF, Weights(1, 0, 0, 0)) == pytest.approx(50)
