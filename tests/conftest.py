"""What every test shares: a data folder of its own, real parts that are required where they must be, and bounded fuzzing.

Where CI=true, a test that skips because a real part is missing fails instead, so that a green run means that everything ran;
a part that no machine of the continuous checks can have is listed in `NEVER_IN_CI` with the reason.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import WorkStealingScheduling

from p2pcompute.model.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent

#: Beginnings of skip reasons that are honest even where CI=true: hardware and systems that a Linux container cannot be.
NEVER_IN_CI = ("no GPU", "rights of files do not bind root", "not on this platform", "only on macOS", "only on Windows")

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite`: write transcripts (tests/scenarios) as they are now."""
    parser.addoption("--rewrite", action="store_true", help="write the outputs of transcripts as they are now")


#: Tests that wait are most of the time that the suite takes, and need hardly any of a processor's: so many more of them run at a time than
#: there are processors, up to twice as many.
WORKERS_MORE = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * cores, cores + WORKERS_MORE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who has nothing left takes over tests of others: one may take a thousand times as long as another. What `--dist` says counts."""
    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that nobody waits for one of them at the end; the others as they were."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Five thousand tests and all modules stay until the end: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh data folder, which everything below P2PCOMPUTE_HOME lives in for the length of the test."""
    folder = tmp_path / "p2pcompute-home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(folder))
    return folder


def other_pythons() -> tuple[Path, ...]:
    """Interpreters of other Python versions that have the product: P2PCOMPUTE_TEST_PYTHONS, else what tests/setup.sh noted."""
    listed = os.environ.get("P2PCOMPUTE_TEST_PYTHONS")
    noted = ROOT / ".test-env"
    if listed is None and noted.exists():
        for line in noted.read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "P2PCOMPUTE_TEST_PYTHONS":
                listed = value
    return tuple(path for path in map(Path, (listed or "").split(":")) if path.name and path.exists())


@pytest.fixture(scope="session", name="other_pythons")
def other_pythons_fixture() -> tuple[Path, ...]:
    """The interpreters of `other_pythons()`; skips where there is none."""
    found = other_pythons()
    if not found:
        pytest.skip(
            "no further Python version with the product installed; tests/setup.sh makes them where it finds one"
        )
    return found


@pytest.fixture(scope="session")
def wasm_python() -> Path:
    """The compiled form of the WebAssembly Python, made where tests/setup.sh has not; skips where it cannot be."""
    from p2pcompute.execution.engines.wasm_python_build import prepare

    try:
        return prepare(ROOT / ".test-engines")
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def engine_socket(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The socket of this run's own dockerd, with the image `dockerd.BUSYBOX`."""
    from tests.support.dockerd import shared_engine

    return shared_engine(_of_all_workers(tmp_path_factory, worker_id))


@pytest.fixture(scope="session")
def podman_socket(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The socket of this run's own podman, with the same image."""
    from tests.support.dockerd import shared_engine

    return shared_engine(_of_all_workers(tmp_path_factory, worker_id), "podman")


@pytest.fixture(scope="session")
def python_image(tmp_path_factory: pytest.TempPathFactory, worker_id: str, engine_socket: Path) -> str:
    """An image there with this machine's Python."""
    from tests.support.dockerd import with_python_image

    return with_python_image(_of_all_workers(tmp_path_factory, worker_id), engine_socket)


def _of_all_workers(tmp_path_factory: pytest.TempPathFactory, worker: str) -> Path:
    base = tmp_path_factory.getbasetemp()
    return base if worker == "master" else base.parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where CI=true."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(NEVER_IN_CI):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped where CI=true: {reason}"
    return report
