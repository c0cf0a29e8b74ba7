"""Whether a peer offers containers: what an engine says of itself decides, and the owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from p2pcompute.execution.container.engine import ContainerEngine, engine_sockets
from p2pcompute.execution.container.pool import may_pull
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import ConfigError, ResourceError
from p2pcompute.node.config import PeerConfig, load_config
from p2pcompute.node.containers import Containers, find_engine
from p2pcompute.node.doctor import Level, container_finding
from p2pcompute.node.logs import get_log

GOOD = {
    "MemoryLimit": True,
    "PidsLimit": True,
    "OSType": "linux",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "MemTotal": 1 << 33,
}
LOG = get_log("test")


@contextlib.asynccontextmanager
async def an_engine(
    path: Path, info: dict[str, Any], *, hangs: bool = False, podman: bool = False
) -> AsyncIterator[Path]:
    """Something that answers as an engine would about itself."""
    components = [{"Name": "Podman Engine"}] if podman else [{"Name": "Engine"}]

    async def answer(request: web.Request) -> web.Response:
        if hangs:
            await asyncio.Event().wait()
        said = (
            info
            if request.path.endswith("/info")
            else {"Version": "9.8", "ApiVersion": "1.41", "Components": components}
        )
        return web.json_response(said)

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield path
    finally:
        await runner.cleanup()


def looked(socket: Path, *, is_open: bool = False, **changes: Any) -> tuple[tuple[Engine, ...], str]:
    async def look() -> tuple[tuple[Engine, ...], str]:
        found = await Containers.look(PeerConfig.test(container_socket=socket, **changes), {}, LOG)
        try:
            return found.engines(is_open=is_open), found.problem
        finally:
            await found.close()

    return asyncio.run(look())


def with_engine(tmp_path: Path, info: dict[str, Any], **changes: Any) -> tuple[tuple[Engine, ...], str]:
    async def main() -> tuple[tuple[Engine, ...], str]:
        async with an_engine(tmp_path / "s", info):
            return await asyncio.to_thread(looked, tmp_path / "s", **changes)

    return asyncio.run(main())


def test_an_engine_that_can_hold_containers_is_offered(tmp_path: Path) -> None:
    assert with_engine(tmp_path, GOOD) == ((Engine.CONTAINER,), "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"MemoryLimit": False}, "cannot limit memory"),
        ({"PidsLimit": False}, "cannot limit the number of processes"),
        ({"SecurityOptions": []}, "filters no system calls"),
        ({"SecurityOptions": ["name=seccomp", "name=userns"]}, "userns-remap"),
        ({"OSType": "windows"}, "not Linux's"),
    ],
)
def test_one_that_cannot_is_not_offered_and_doctor_says_why(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    engines, problem = with_engine(tmp_path, GOOD | change)
    assert engines == ()
    assert says in problem

    async def main() -> None:
        async with an_engine(tmp_path / "again", GOOD | change) as socket:
            found = await container_finding(PeerConfig.test(container_socket=socket, engines=("container",)), {})
            assert found.level is Level.WARN
            assert says in f"{found.text} {found.advice}"

    asyncio.run(main())


def test_doctor_says_where_granted_gpus_cannot_be_handed_out(tmp_path: Path) -> None:
    async def main() -> None:
        for name, info, level in (("a", GOOD, Level.WARN), ("b", GOOD | {"Runtimes": {"nvidia": {}}}, Level.OK)):
            async with an_engine(tmp_path / name, info) as socket:
                found = await container_finding(PeerConfig.test(container_socket=socket, grants=("gpu",)), {})
                assert (found.level, "dockerd 9.8" in found.text) == (level, True)

    asyncio.run(main())


def test_the_owner_decides(tmp_path: Path) -> None:
    assert with_engine(tmp_path, GOOD, engines=("python",))[0] == ()
    assert with_engine(tmp_path, GOOD, slots=0)[0] == ()
    assert with_engine(tmp_path, GOOD, is_open=True)[0] == (), "strangers get no containers by default"
    assert with_engine(tmp_path, GOOD, is_open=True, engines=("container",))[0] == (Engine.CONTAINER,)


def test_where_nothing_answers_it_is_said_what_to_do(tmp_path: Path) -> None:
    engines, problem = looked(tmp_path / "none")
    assert engines == ()
    assert "start dockerd" in problem
    (tmp_path / "file").write_text("")
    assert looked(tmp_path / "file")[0] == ()


def test_an_engine_that_hangs_delays_a_start_by_a_bound_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with an_engine(tmp_path / "s", GOOD, hangs=True) as socket:
            with pytest.raises(ResourceError, match="hanging"):
                await ContainerEngine.connect([socket], timeout_s=0.05)

    asyncio.run(main())


def test_podman_is_told_from_dockerd(tmp_path: Path) -> None:
    async def main() -> None:
        async with an_engine(tmp_path / "s", GOOD | {"SecurityOptions": ["name=rootless"]}, podman=True) as socket:
            engine, problem = await find_engine(PeerConfig.test(container_socket=socket), {})
            assert engine is not None, problem
            assert engine.info.text == "podman 9.8, rootless"
            await engine.close()

    asyncio.run(main())


def test_sockets_are_looked_for_where_they_are() -> None:
    assert engine_sockets({"DOCKER_HOST": "unix:///x/y.sock"}) == (Path("/x/y.sock"),)
    assert engine_sockets({"DOCKER_HOST": "tcp://host:2375"}) == (), (
        "a task's folder cannot be shared with another machine"
    )
    assert engine_sockets({"DOCKER_HOST": "unix:///x"}, Path("/chosen")) == (Path("/chosen"),)
    places = engine_sockets({"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/a"})
    assert Path("/var/run/docker.sock") in places
    assert Path("/run/user/7/podman/podman.sock") in places


@pytest.mark.parametrize(
    ("given", "may", "may_not"),
    [
        ("never", [], ["python", "never"]),
        ("always", ["python", "ghcr.io/a/b:1"], []),
        (
            "python:3.12-slim, ghcr.io/lab/*",
            ["python:3.12-slim", "ghcr.io/lab/x:2"],
            ["python:3.13", "python", "docker.io/ghcr.io/lab/x"],
        ),
    ],
)
def test_an_owner_says_which_images_may_be_pulled(given: str, may: list[str], may_not: list[str]) -> None:
    config = load_config({}, {"P2PCOMPUTE_PULL_IMAGES": given}, None)
    assert all(may_pull(image, config.pull_images) for image in may)
    assert not any(may_pull(image, config.pull_images) for image in may_not)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="no name of an image"):
        load_config({}, {"P2PCOMPUTE_PULL_IMAGES": "--privileged"}, None)
    with pytest.raises(ConfigError, match="absolute path"):
        load_config({}, {"P2PCOMPUTE_CONTAINER_SOCKET": "docker.sock"}, None)
    assert load_config({}, {"P2PCOMPUTE_CONTAINER_SOCKET": "unix:///a"}, None).container_socket == Path("/a")
