"""Kinds of clusters against the interfaces of what they connect to, which need not be installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any

import pytest

from p2pcompute.execution.cluster.clusters import Blame, Capacity, ExecutorCluster, RayCluster, opener_of
from p2pcompute.model.errors import ResourceError
from tests.support.executors import ByHand


class FakeRay:
    """As much of Ray as a peer uses, with its names and their meanings."""

    class WorkerCrashedError(Exception):
        pass

    class RayTaskError(Exception):
        pass

    def __init__(self) -> None:
        self.address = ""
        self.is_up = False
        self.futures: list[Future[bytes]] = []
        self.cancelled: list[tuple[Any, bool]] = []
        self.options: dict[str, Any] = {}

    def init(self, address: str, **_: Any) -> None:
        if address == "ray://nobody:1":
            raise ConnectionError("nobody answers")
        self.address, self.is_up = address, True

    def is_initialized(self) -> bool:
        return self.is_up

    def shutdown(self) -> None:
        self.is_up = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 7.0, "memory": 8e9, "node:x": 1.0}

    def remote(self, **options: Any) -> Callable[[Callable[[bytes], bytes]], Any]:
        self.options = options

        def wrap(function: Callable[[bytes], bytes]) -> Any:
            def call(argument: bytes) -> Any:
                self.futures.append(Future())
                return SimpleNamespace(future=lambda: self.futures[-1], argument=argument)

            return SimpleNamespace(remote=call)

        return wrap

    def cancel(self, reference: Any, *, force: bool) -> None:
        self.cancelled.append((reference.argument, force))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def same(data: bytes) -> bytes:
    return data


def test_a_ray_cluster(ray: FakeRay) -> None:
    cluster = opener_of("ray://head:10001")()
    assert isinstance(cluster, RayCluster)
    assert (ray.address, cluster.look()) == ("ray://head:10001", Capacity(7, 8_000_000_000))
    future = cluster.submit(same, b"call")
    assert ray.options == {"num_cpus": 1, "max_retries": 0}
    assert not cluster.take_back(future)
    assert not future.cancel()
    assert cluster.interrupt(future, b"id")
    assert ray.cancelled == [(b"call", True)]
    ray.futures[0].set_result(b"done")
    assert future.result() == b"done"
    cluster.interrupt(future, b"id")
    assert len(ray.cancelled) == 1
    assert cluster.blame(ray.WorkerCrashedError()) is Blame.WORKER
    assert cluster.blame(ray.RayTaskError()) is Blame.FUNCTION
    assert cluster.blame(ConnectionError()) is Blame.CLUSTER
    cluster.close()
    with pytest.raises(ResourceError, match="is closed"):
        cluster.look()
    with pytest.raises(ResourceError, match="nobody answers"):
        opener_of("ray://nobody:1")()


@pytest.mark.parametrize(("name", "extra"), [("ray://head:1", "ray"), ("dask://head:1", "dask")])
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ResourceError, match=rf"pip install 'p2pcompute\[{extra}\]'"):
        opener_of(name)()


def test_what_an_executors_errors_mean() -> None:
    cluster = ExecutorCluster(ByHand(), 3)
    assert cluster.look() == Capacity(3)
    future = cluster.submit(same, b"")
    assert cluster.take_back(future)
    future = cluster.submit(same, b"")
    future.set_running_or_notify_cancel()
    assert not cluster.take_back(future)
    assert not cluster.interrupt(future, b"")
    assert cluster.blame(ValueError()) is Blame.FUNCTION
    assert cluster.blame(CancelledError()) is Blame.CLUSTER
    assert cluster.blame(RuntimeError("cannot schedule new futures after shutdown")) is Blame.CLUSTER
    assert cluster.blame(BrokenProcessPool()) is Blame.BOTH
    with pytest.raises(ResourceError, match="broken"):
        cluster.look()
