"""`p2pcompute topology` as its users meet it: real peers, a terminal, files, JSON, and a picture that is drawn again."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.remote import RemotePeer
from p2pcompute.node.service import serving
from tests.support.peers import WAIT_S, Machine, machine, own_ports, until_now

NAMES = ("anna", "bert", "<carl & co>")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "home", environ=own_ports()) as found:
        for name in NAMES:
            found.up(name)
        # Both ends of a link list it, and its round trip with it, some seconds after it is there.
        until_now(lambda: _is_whole(found), "three peers with three measured links", step_s=0.5)
        yield found


def _is_whole(here: Machine) -> bool:
    document = here.json("topology")
    return len(document["peers"]) == 3 and sum(row["rtt_ms"] is not None for row in document["links"]) == 3


def test_the_picture_the_figures_and_the_files(here: Machine, tmp_path: Path) -> None:
    document = here.json("topology")
    assert {row["name"] for row in document["peers"]} == set(NAMES)
    assert [row["status"] for row in document["peers"] if row["name"] == "anna"] == ["self"]
    assert all(row["linked"] for row in document["peers"] if row["name"] != "anna")
    (community,) = document["communities"]
    assert len(community["members"]) == 3
    assert community["slots"] >= 3
    assert document["lambda2"] > 0
    assert all(row["weight"] > 0 and not row["estimated"] for row in document["links"])
    assert here.json("topology", "--peer", "bert")["communities"][0]["members"] == community["members"]

    done = here.run("topology")
    for name in NAMES:
        assert name in done.stdout
    assert "3 peers in 1 community" in done.stdout
    assert "one community: whoever submits a job dispatches it directly" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""

    refused = here.run("topology", "--watch", "--svg", "x.svg", check=False)
    assert refused.returncode == 2
    assert "leave it out" in refused.stderr
    here.environ["PYTHONIOENCODING"] = "ascii"
    assert "anna" in here.run("topology").stdout

    if find_spec("matplotlib") is None and not os.environ.get("CI"):
        pytest.skip("files need matplotlib: pip install -e '.[test]'")
    svg, png = tmp_path / "network.svg", tmp_path / "network.png"
    done = here.run("topology", "--svg", str(svg), "--png", str(png))
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"wrote {svg}", f"wrote {png}"]
    shown = ["".join(each.itertext()).strip() for each in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert set(NAMES) <= set(shown)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert here.run("topology", "--svg", "-").stdout.startswith("<?xml")
    nowhere = here.run("topology", "--svg", str(tmp_path / "no" / "folder.svg"), check=False)
    assert nowhere.returncode != 0
    assert "cannot write" in nowhere.stderr


def test_programs_get_the_same_document(tmp_path: Path) -> None:
    async def documents() -> list[dict[str, Any]]:
        folders = Folders.beneath(tmp_path)
        config = PeerConfig.test(name="anna", slots=1)
        async with (
            serving(config, lambda: None, folders) as peer,
            await RemotePeer.connect(peer.instance.socket_path) as remote,
        ):
            return [await peer.topology(), await remote.topology()]

    here, there = asyncio.run(documents())
    assert here == there
    assert [row["name"] for row in here["peers"]] == ["anna"]
    assert here["notes"] == ["no other peer takes part: there is nothing to coordinate"]


def test_it_is_drawn_again_until_it_is_told_to_stop(here: Machine) -> None:
    with subprocess.Popen(
        here.command("topology", "--watch", "--json"), env=here.environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert [row["peer"] for row in first["peers"]] == [row["peer"] for row in second["peers"]]
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**here.environment, "TERM": "xterm"}
    with subprocess.Popen(
        here.command("topology", "--watch"), env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        written = _read_until(controller, lambda data: data.count(b"3 peers in 1 community") >= 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        written += _read_until(controller, lambda data: b"\x1b[?1049l" in data)
    os.close(controller)
    assert b"\x1b[?1049h" in written, "on a screen of its own"
    assert b"carl & co" in written


def _read_until(controller: int, is_enough: Callable[[bytes], bool]) -> bytes:
    data = b""
    deadline = time.monotonic() + WAIT_S
    while not is_enough(data):
        assert time.monotonic() < deadline, data
        if select.select([controller], [], [], 0.1)[0]:
            try:
                data += os.read(controller, 65536)
            except OSError:  # the other end is closed: all has been read
                assert is_enough(data), data
    return data
