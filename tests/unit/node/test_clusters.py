"""A cluster behind a peer: what is announced and offered, and what the doctor says."""

from __future__ import annotations

import asyncio
import itertools
import platform
from pathlib import Path

import pytest

from p2pcompute.execution.cluster.pool import ClusterState
from p2pcompute.execution.engines.document import ProgramHead
from p2pcompute.model.capability import Capability
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import ConfigError
from p2pcompute.model.peer import Isolation
from p2pcompute.node.clusters import ClusterSide
from p2pcompute.node.config import PeerConfig, load_config
from p2pcompute.node.doctor import Level, _engine_findings
from p2pcompute.node.logs import get_log
from p2pcompute.node.offers import missing_in, offers_of
from tests.support.networks import SeededEntropy
from tests.unit.execution.pool_help import Recorder, SystemClock, eventually

FACTORY = "tests.support.executors:one_process_of_four_slots"
OWN = Capability(cores=2, frequency_mhz=3000, idle=0.5, memory_gb=8.0, memory_available_gb=4.0)


def test_what_the_cluster_has_is_announced_as_far_as_the_owner_lends_it() -> None:
    class Told:
        """A lender and a record in one."""

        def __init__(self) -> None:
            self.heard: list[object] = []

        def resize(self, slots: int) -> None:
            self.heard.append(slots)

        def set_python(self, version: str) -> None:
            self.heard.append(version)

    async def main() -> None:
        lender, own = Told(), Told()
        side = ClusterSide(FACTORY, PeerConfig(slots=3), get_log("test"))
        side.tells(lender, own)
        pool = side.pool(Recorder(), SystemClock(), SeededEntropy("side"), itertools.count(1))
        assert side.capability(OWN, 0.0).cores == 1
        await pool.start()
        try:
            await eventually(lambda: bool(own.heard))
            assert lender.heard == [3]
            assert own.heard == [platform.python_version()]
            seen = side.capability(OWN, 0.25)
            assert (seen.cores, seen.idle, seen.memory_gb, seen.memory_available_gb) == (3, 0.75, 8.0, 4.0)
            side._changed(ClusterState(100, 64 << 30))
            seen = side.capability(OWN, 0.25)
            assert (seen.cores, seen.memory_gb, seen.memory_available_gb) == (3, 64.0, 48.0)
        finally:
            await pool.stop()

    asyncio.run(main())


def test_a_cluster_runs_python_and_is_as_safe_as_its_owner_says() -> None:
    offers = offers_of(PeerConfig(cluster=FACTORY, engines=("python", "command")))
    assert (offers.engines, offers.isolation, offers.is_elsewhere) == ((Engine.PYTHON,), Isolation.PROCESS, True)
    assert offers_of(PeerConfig(cluster=FACTORY, isolation="sandbox")).isolation is Isolation.SANDBOX
    assert not offers_of(PeerConfig()).is_elsewhere
    # What is installed on this machine says nothing of the cluster's: not even the program is read.
    assert missing_in(ProgramHead(), b"no program", is_elsewhere=True) is None


def test_commands_are_offered_by_owners_who_name_them() -> None:
    assert offers_of(PeerConfig()).engines == (Engine.PYTHON,)
    assert offers_of(PeerConfig(engines=("command",))).engines == (Engine.COMMAND,)


@pytest.mark.parametrize("text", ["dusk://host", "host:8786", "dask://"])
def test_a_name_that_is_no_cluster_ends_the_start(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write"):
        load_config({"cluster": text}, {}, None)


def test_the_doctor_sees_what_a_cluster_needs() -> None:
    def of(**settings: object) -> dict[str, tuple[Level, str]]:
        config = PeerConfig(**settings)  # type: ignore[arg-type]
        return {found.subject: (found.level, f"{found.text} {found.advice}") for found in _engine_findings(config)}

    assert "not offered" in of()["engine command"][1]
    assert "runs executables" in of(engines=("command",))["engine command"][1]
    assert of(cluster=FACTORY)["cluster"][0] is Level.OK
    level, text = of(cluster="no_such_module_here:make")["cluster"]
    assert level is Level.FAIL
    assert "see that Python finds the module" in text
