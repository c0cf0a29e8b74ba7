"""Clusters by their names: `dask://host:port`, `dask+tls://host:port`, `ray://host:port`, or `module:factory`.

A factory of the owner's own gives any `concurrent.futures.Executor`, or a pair of one and the number of its slots. Everything here blocks: whoever
uses it has threads for that. Refuses to know: programs, tasks.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass
from typing import Any, Protocol

from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError, UsageError

Function = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a cluster has. `slots`: tasks at a time; `memory_bytes`: of all its machines together, None where it does not say."""

    slots: int
    memory_bytes: int | None = None


class Blame(enum.Enum):
    """What an exception of an executor means."""

    #: The process that ran the call died, and perhaps with it whoever else was there; the cluster lives.
    WORKER = "worker"
    #: That, and an executor that takes nothing any more for it.
    BOTH = "both"
    #: The cluster cannot be used any more: connect again.
    CLUSTER = "cluster"
    #: The function itself cannot be run there.
    FUNCTION = "function"


class Cluster(Protocol):
    """A connection to a cluster."""

    def look(self) -> Capacity:
        """How large it is now. Raises ResourceError, or anything of its own, where it cannot be reached."""

    def submit(self, function: Function, argument: bytes) -> Future[bytes]:
        """Run a function of an importable module there. Any exception: see `blame`."""

    def take_back(self, future: Future[bytes]) -> bool:
        """Take back a call that has surely not begun; False where it may have. Does not block."""

    def interrupt(self, future: Future[bytes], call: bytes) -> bool:
        """Stop a call that may run, by `remote.stop` or otherwise; False where this kind of cluster has no way to."""

    def blame(self, error: BaseException) -> Blame:
        """What an exception of `submit` or of its future means."""

    def close(self) -> None:
        """Hang up; what runs is given up."""


Opener = Callable[[], Cluster]


def opener_of(text: str) -> Opener:
    """What connects to the cluster called `text`. Raises UsageError where that is no such name; nothing is imported or called yet."""
    scheme, separator, place = text.partition("://")
    if separator:
        kind = SCHEMES.get(scheme)
        if kind is None:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise UsageError(f"{text!r} is no cluster: write {known} and an address, or module:factory")
        if not place:
            raise UsageError(f"{text!r} names no place: write {scheme}://host:port")
        return lambda: kind(scheme, place)
    module, separator, name = text.partition(":")
    if not separator or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise UsageError(f"{text!r} is no cluster: write dask://host:port, ray://host:port or module:factory")
    return lambda: _from_factory(module, name)


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(
            f"this cluster needs {module}, which is not installed: pip install 'p2pcompute[{extra}]'"
        ) from error


# --- any executor -----------------------------------------------------------------------------------------------------


class ExecutorCluster:
    """Any executor; `slots` where it does not say how many tasks it runs at a time."""

    def __init__(self, executor: Executor, slots: int | None = None) -> None:
        found = slots if slots is not None else getattr(executor, "_max_workers", None)
        if not isinstance(found, int) or found < 1:
            raise ResourceError(
                f"a {type(executor).__name__} does not say how many tasks it runs at a time: let the factory return (executor, slots)"
            )
        self._executor = executor
        self._slots = found
        self._broken = False

    def look(self) -> Capacity:
        """See Cluster."""
        if self._broken:
            raise ResourceError("the executor is broken")
        return Capacity(self._slots)

    def submit(self, function: Function, argument: bytes) -> Future[bytes]:
        """See Cluster."""
        return self._executor.submit(function, argument)

    def take_back(self, future: Future[bytes]) -> bool:
        """See Cluster."""
        return future.cancel()

    def interrupt(self, future: Future[bytes], call: bytes) -> bool:
        """See Cluster: an executor has no way to reach what runs."""
        return False

    def blame(self, error: BaseException) -> Blame:
        """See Cluster."""
        if isinstance(error, BrokenExecutor):
            self._broken = True
            return Blame.BOTH
        if isinstance(error, (CancelledError, RuntimeError)):
            return Blame.CLUSTER
        return Blame.FUNCTION

    def close(self) -> None:
        """See Cluster. Processes of a ProcessPoolExecutor are killed: at the end of Python they would be waited for."""
        processes = list((getattr(self._executor, "_processes", None) or {}).values())
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                process.kill()


def _from_factory(module: str, name: str) -> Cluster:
    try:
        factory: Any = importlib.import_module(module)
        for part in name.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError) as error:
        raise ResourceError(f"the factory {module}:{name} of a cluster is not found: {error}") from error
    made = factory()
    executor, slots = made if isinstance(made, tuple) else (made, None)
    return ExecutorCluster(executor, slots)


# --- Dask -------------------------------------------------------------------------------------------------------------


class DaskCluster:
    """A Dask cluster, by the address of its scheduler."""

    def __init__(self, scheme: str, place: str) -> None:
        self._distributed = _import("distributed", "dask")
        protocol = "tls" if scheme.endswith("+tls") else "tcp"
        try:
            self._client = self._distributed.Client(
                f"{protocol}://{place}",
                timeout=limits.CLUSTER_CONNECT_TIMEOUT_S,
                set_as_default=False,
                name="p2pcompute",
                direct_to_workers=False,
            )
        except (OSError, TimeoutError) as error:
            raise ResourceError(f"the Dask scheduler at {place} does not answer: {error}") from error
        self._place = place
        self._executor = self._client.get_executor(pure=False)

    def look(self) -> Capacity:
        """See Cluster."""
        if self._client.status != "running":
            raise ResourceError(f"the connection to the Dask scheduler at {self._place} is {self._client.status}")
        try:
            identity = self._client.sync(
                self._client.scheduler.identity, n_workers=-1, callback_timeout=limits.CLUSTER_CONNECT_TIMEOUT_S
            )
        except (OSError, TimeoutError) as error:
            raise ResourceError(f"the Dask scheduler at {self._place} does not answer: {error}") from error
        workers = identity["workers"].values()
        memory = [int(worker.get("memory_limit") or 0) for worker in workers]
        return Capacity(sum(int(worker["nthreads"]) for worker in workers), sum(memory) or None)

    def submit(self, function: Function, argument: bytes) -> Future[bytes]:
        """See Cluster."""
        future: Future[bytes] = self._executor.submit(function, argument)
        return future

    def take_back(self, future: Future[bytes]) -> bool:
        """See Cluster: to Dask's own executor every call is one that has not begun, so nothing follows from that."""
        return False

    def interrupt(self, future: Future[bytes], call: bytes) -> bool:
        """See Cluster: the scheduler forgets it, then every worker is told, past the queue of its tasks."""
        from p2pcompute.execution.cluster import remote

        future.cancel()
        self._client.run(remote.stop, call, on_error="ignore")
        return True

    def blame(self, error: BaseException) -> Blame:
        """See Cluster. What a dead worker had Dask gives to others first, as often as its scheduler allows."""
        if type(error).__name__ == "KilledWorker":
            return Blame.WORKER
        if isinstance(error, (CancelledError, OSError, TimeoutError)) or type(error).__name__ == "FutureCancelledError":
            return Blame.CLUSTER
        return Blame.FUNCTION

    def close(self) -> None:
        """See Cluster."""
        self._executor.shutdown(wait=False)
        self._client.close(timeout=limits.CLUSTER_CONNECT_TIMEOUT_S / 5)


# --- Ray --------------------------------------------------------------------------------------------------------------


class RayCluster:
    """A Ray cluster: `ray://host:port` of its client server, or `ray://auto` for one that runs on this machine."""

    def __init__(self, scheme: str, place: str) -> None:
        self._ray = _import("ray", "ray")
        try:
            self._ray.init(
                address=place if place in ("auto", "local") else f"ray://{place}",
                ignore_reinit_error=True,
                log_to_driver=False,
                configure_logging=False,
            )
        except (OSError, TimeoutError, RuntimeError) as error:
            raise ResourceError(f"the Ray cluster at {place} does not answer: {error}") from error
        self._place = place
        #: Ray's own functions, made of ours.
        self._functions: dict[Function, Any] = {}
        #: What `interrupt` cancels.
        self._references: dict[Future[bytes], Any] = {}

    def look(self) -> Capacity:
        """See Cluster."""
        if not self._ray.is_initialized():
            raise ResourceError(f"the connection to the Ray cluster at {self._place} is closed")
        found = self._ray.cluster_resources()
        return Capacity(int(found.get("CPU", 0)), int(found["memory"]) if "memory" in found else None)

    def submit(self, function: Function, argument: bytes) -> Future[bytes]:
        """See Cluster. Nothing is tried again by Ray: whoever submitted the job says how often."""
        if function not in self._functions:
            self._functions[function] = self._ray.remote(num_cpus=1, max_retries=0)(function)
        reference = self._functions[function].remote(argument)
        future: Future[bytes] = reference.future()
        # Ray would set what it was told is over, and its thread would die of it: nobody is to cancel this one.
        future.set_running_or_notify_cancel()
        self._references[future] = reference
        future.add_done_callback(lambda done: self._references.pop(done, None))
        return future

    def take_back(self, future: Future[bytes]) -> bool:
        """See Cluster."""
        return False

    def interrupt(self, future: Future[bytes], call: bytes) -> bool:
        """See Cluster: the Ray worker is killed, and what it has started dies with it."""
        reference = self._references.get(future)
        if reference is not None:
            self._ray.cancel(reference, force=True)
        return True

    def blame(self, error: BaseException) -> Blame:
        """See Cluster."""
        names = {base.__name__ for base in type(error).__mro__}
        if names & {
            "WorkerCrashedError",
            "NodeDiedError",
            "OutOfMemoryError",
            "TaskCancelledError",
            "LocalRayletDiedError",
        }:
            return Blame.WORKER
        if names & {"RayTaskError", "RuntimeEnvSetupError"}:
            return Blame.FUNCTION
        return Blame.CLUSTER

    def close(self) -> None:
        """See Cluster."""
        self._ray.shutdown()


#: Kinds of clusters by the first part of their names.
SCHEMES: dict[str, Callable[[str, str], Cluster]] = {
    "dask": DaskCluster,
    "dask+tls": DaskCluster,
    "ray": RayCluster,
}
