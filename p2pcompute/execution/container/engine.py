"""One connection to a container engine, dockerd or podman's socket, through its API.

It finds the engine, says what it is and what it cannot do, and does single things with images and containers. Every foreign exception becomes
one of ours here. Only sockets of this machine: a task's folder is shared with its container by path.

Refuses to know: tasks, and how a container is held (`holding.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError

if TYPE_CHECKING:
    import aiodocker

T = TypeVar("T")

#: What an owner installs for it.
PACKAGE_ADVICE = "pip install 'p2pcompute[container]'"
GPU_ADVICE = "install the NVIDIA Container Toolkit and `nvidia-ctk runtime configure --runtime=docker`; podman is not asked for GPUs"
#: On a container: whose it is, so that what a killed peer left is found again; and of which task.
LABEL_INSTANCE, LABEL_TASK = "p2pcompute.instance", "p2pcompute.task"
_PULL_PAUSE_S = 2.0
_UNIX = "unix://"
#: What aiodocker calls the status where there was no answer.
_NO_ANSWER = 900


class ContainerEngineError(ResourceError):
    """The engine refused or failed. `status`: of its answer, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ImageMissingError(ContainerEngineError):
    """An image is not there and was not pulled."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What answers. `lacks`: what of a container's confinement it cannot do, in words; `gpus`: whether it says that it can hand out accelerators."""

    name: str
    version: str
    rootless: bool
    lacks: tuple[str, ...]
    gpus: bool
    memory_bytes: int

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.name} {self.version}{', rootless' if self.rootless else ''}"


def engine_sockets(environ: Mapping[str, str], chosen: Path | None = None) -> tuple[Path, ...]:
    """Where an engine may answer, the likeliest first: what was chosen, or DOCKER_HOST, or the usual places of dockerd and podman."""
    if chosen is not None:
        return (chosen,)
    named = environ.get("DOCKER_HOST", "")
    if named:
        return (Path(named.removeprefix(_UNIX)),) if named.startswith(_UNIX) else ()
    runtime = environ.get("XDG_RUNTIME_DIR") or (f"/run/user/{os.getuid()}" if hasattr(os, "getuid") else "")
    home = environ.get("HOME", "")
    places = [
        "/var/run/docker.sock",
        f"{runtime}/docker.sock" if runtime else "",
        f"{home}/.docker/run/docker.sock" if home else "",
    ]
    places += [f"{runtime}/podman/podman.sock" if runtime else "", "/run/podman/podman.sock"]
    return tuple(Path(place) for place in places if place)


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Foreign exceptions of one call as ours. `what`: was being done."""
    import aiodocker
    import aiohttp

    try:
        yield
    except aiodocker.exceptions.DockerError as error:
        message = str(getattr(error, "message", error)).strip()
        if int(error.status) >= _NO_ANSWER:
            raise ContainerEngineError(f"the container engine is gone while it was to {what}: {message}") from error
        raise ContainerEngineError(f"the container engine could not {what}: {message}", int(error.status)) from error
    except TimeoutError as error:
        raise ContainerEngineError(f"the container engine did not {what} in time: is it hanging?") from error
    # RuntimeError: of a session that was closed meanwhile.
    except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
        raise ContainerEngineError(
            f"the container engine is gone while it was to {what}: {error or type(error).__name__}"
        ) from error


class ContainerEngine:
    """See the file's docstring. `ContainerEngine.connect(...)` makes one; close it."""

    def __init__(self, docker: aiodocker.Docker, socket: Path, info: EngineInfo) -> None:
        self._docker = docker
        self.socket = socket
        self.info = info

    @classmethod
    async def connect(cls, sockets: Sequence[Path], timeout_s: float = limits.CONTAINER_PROBE_TIMEOUT_S) -> Self:
        """The first engine that answers. Raises ResourceError saying what is missing and what to do, bounded by `timeout_s` for each."""
        try:
            import aiodocker
            import aiohttp
        except ImportError as error:
            raise ResourceError(f"the package aiodocker is not installed: {PACKAGE_ADVICE}") from error
        if not hasattr(aiohttp, "UnixConnector") or os.name == "nt":
            raise ResourceError("containers are run through a Unix socket, which this system has not")
        problems = []
        for socket in sockets:
            try:
                if not socket.is_socket():
                    continue
            except OSError as error:
                problems.append(f"{socket}: {error.strerror}")
                continue
            # Its own connector: the usual one holds a hundred connections, and each container takes two for as long as it runs.
            docker = aiodocker.Docker(
                url=f"{_UNIX}localhost", connector=aiohttp.UnixConnector(str(socket), limit=0), api_version="auto"
            )
            try:
                with _mapped("say what it is"):
                    async with asyncio.timeout(timeout_s):
                        info = _info_of(await docker.system.info(), await docker.version())
            except BaseException as error:
                await _closed(docker)
                if not isinstance(error, ResourceError):
                    raise
                problems.append(f"{socket}: {error}")
                continue
            return cls(docker, socket, info)
        if problems:
            raise ResourceError(
                f"no container engine can be used: {'; '.join(problems)}; check that this user may use it"
            )
        looked = ", ".join(map(str, sockets)) or "nowhere: DOCKER_HOST names no Unix socket"
        raise ResourceError(
            f"no container engine runs here (looked at {looked}): start dockerd, or `podman system service`"
        )

    async def close(self) -> None:
        """Hang up; as often as one likes."""
        await _closed(self._docker)

    async def _ask(self, what: str, call: Awaitable[T], timeout_s: float = limits.CONTAINER_ENGINE_TIMEOUT_S) -> T:
        with _mapped(what):
            async with asyncio.timeout(timeout_s):
                return await call

    # --- images ---------------------------------------------------------------------------------------------------------

    async def image(self, name: str) -> dict[str, Any] | None:
        """What the engine knows of an image, None where it has none of that name."""
        try:
            return await self._ask(f"look for the image {name!r}", self._docker.images.inspect(name))
        except ContainerEngineError as error:
            if error.status == 404:
                return None
            raise

    async def pull(self, name: str, progress: Callable[[str], None]) -> None:
        """Get an image from its registry, in several tries. `progress`: gets a few sentences. Raises ContainerEngineError."""
        problem: ContainerEngineError | None = None
        try:
            async with asyncio.timeout(limits.IMAGE_PULL_TIMEOUT_S):
                for attempt in range(limits.IMAGE_PULL_TRIES):
                    if attempt:
                        await asyncio.sleep(_PULL_PAUSE_S * attempt)
                    progress(f"pulling the image {name}" + (f", try {attempt + 1}" if attempt else ""))
                    try:
                        await self._pull_once(name, progress)
                        return
                    except ContainerEngineError as error:
                        problem = error
                        if error.status in (401, 403, 404):
                            break  # another try would hear the same
        except TimeoutError:
            problem = ContainerEngineError(f"{name!r} was not there within {limits.IMAGE_PULL_TIMEOUT_S:g} s")
        raise ContainerEngineError(
            f"the image {name!r} could not be pulled: {problem}", problem.status if problem else 0
        ) from problem

    async def _pull_once(self, name: str, progress: Callable[[str], None]) -> None:
        with _mapped(f"pull {name!r}"):
            seen: set[str] = set()
            async for line in self._docker.images.pull(name, stream=True):
                if "error" in line:
                    raise ContainerEngineError(str(line["error"])[:1000])
                text = str(line.get("status", ""))
                # Each layer's bytes are told many times a second; its steps are enough.
                layer = f"{line.get('id', '')} {text}".strip()
                if text and layer not in seen and len(seen) < 1_000:
                    seen.add(layer)
                    progress(layer)

    # --- containers -----------------------------------------------------------------------------------------------------

    async def create(self, configuration: Mapping[str, Any]) -> str:
        """Make a container, not started; its id."""
        container = await self._ask("make the container", self._docker.containers.create(dict(configuration)))
        return str(container.id)

    async def start(self, container: str) -> None:
        """Start it."""
        await self._ask("start the container", self._docker.containers.container(container).start())

    @contextlib.asynccontextmanager
    async def attached(self, container: str) -> AsyncIterator[AsyncIterator[tuple[int, bytes]]]:
        """What it writes from its very start, as (1 stdout or 2 stderr, bytes), to be read until its end; enter before `start`."""
        stream = self._docker.containers.container(container).attach(stdout=True, stderr=True)

        async def pieces() -> AsyncIterator[tuple[int, bytes]]:
            while True:
                with _mapped("pass on what the task writes"):
                    message = await stream.read_out()
                if message is None:
                    return
                yield message.stream, message.data

        with _mapped("attach to the container"):
            await stream.__aenter__()
        try:
            yield pieces()
        finally:
            with contextlib.suppress(ContainerEngineError), _mapped("hang up"):
                await stream.close()

    async def wait(self, container: str) -> int:
        """Its status, once it has ended."""
        with _mapped("say how the container ended"):
            answer = await self._docker.containers.container(container).wait()
        return int(answer["StatusCode"])

    async def state(self, container: str) -> dict[str, Any]:
        """Its state as the engine tells it: `OOMKilled`, `ExitCode`, `Error`, `StartedAt`, `FinishedAt`."""
        shown = await self._ask("describe the container", self._docker.containers.container(container).show())
        return dict(shown.get("State") or {})

    async def usage(self, container: str) -> tuple[int, int]:
        """(CPU microseconds so far, bytes of memory at their highest as far as the engine tells), of one that runs."""
        shown = await self._ask(
            "measure the container", self._docker.containers.container(container).stats(stream=False)
        )
        stats: dict[str, Any] = shown[0] if isinstance(shown, list) and shown else {}
        memory = stats.get("memory_stats") or {}
        processor = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
        # Control groups of version 2 tell no highest value.
        return int(processor.get("total_usage") or 0) // 1_000, int(memory.get("max_usage") or memory.get("usage") or 0)

    async def kill(self, container: str) -> None:
        """Kill it; does nothing where it has ended or is gone."""
        try:
            await self._ask("kill the container", self._docker.containers.container(container).kill())
        except ContainerEngineError as error:
            if error.status not in (404, 409, 500):  # 500: podman, of one that has ended
                raise

    async def remove(self, container: str) -> None:
        """Kill it and remove it with what it wrote; does nothing where it is gone."""
        try:
            await self._ask(
                "remove the container", self._docker.containers.container(container).delete(force=True, v=True)
            )
        except ContainerEngineError as error:
            if error.status not in (404, 409):  # 409: its removal is under way
                raise

    async def labelled(self, instance: str) -> list[str]:
        """The ids of all containers of one instance, whatever their state."""
        wanted = json.dumps({"label": [f"{LABEL_INSTANCE}={instance}"]})
        found = await self._ask("list containers", self._docker.containers.list(all=1, filters=wanted))
        return sorted(str(container.id) for container in found)


async def _closed(docker: aiodocker.Docker) -> None:
    await docker.close()
    # A connector that is handed in stays its maker's.
    if docker.connector is not None:
        await docker.connector.close()
    if not docker.session.closed:
        await docker.session.close()


def _info_of(info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineInfo:
    """From the answers to `/info` and `/version`, which dockerd and podman give in one form."""
    components = version.get("Components") or ()
    is_podman = any("podman" in str(component.get("Name", "")).lower() for component in components)
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    lacks = []
    for key, what in (("MemoryLimit", "memory"), ("PidsLimit", "the number of processes")):
        if not info.get(key, True):
            lacks.append(f"it cannot limit {what}: enable that control group")
    if not any("seccomp" in option for option in options) and not is_podman:
        lacks.append("it filters no system calls: it was built or started without seccomp")
    if any("name=userns" in option for option in options):
        lacks.append("it maps users to others (userns-remap), which then cannot write the folders of tasks")
    if str(info.get("OSType", "linux")) != "linux":
        lacks.append(f"its containers are {info.get('OSType')}'s, not Linux's")
    runtimes = info.get("Runtimes") or {}
    devices = [str(device) for device in info.get("DiscoveredDevices") or ()]
    return EngineInfo(
        name="podman" if is_podman else "dockerd",
        version=str(version.get("Version", "?")),
        rootless=any("rootless" in option for option in options),
        lacks=tuple(lacks),
        gpus="nvidia" in runtimes or any("nvidia.com/gpu" in device for device in devices),
        memory_bytes=int(info.get("MemTotal") or 0),
    )
