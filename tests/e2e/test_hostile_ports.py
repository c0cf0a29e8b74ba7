"""Noise at every port of a peer while a job runs: the answer stays exact and the peers stay up."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers import WAIT_S, Machine, PeerProcess, machine, own_ports, until_now

PROGRAM = """
import time

def slow_square(x):
    time.sleep(0.05)
    return x * x
"""
_TASKS = 120
_ROUNDS = 40


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "home", environ=own_ports()) as found:
        yield found


def noises(dice: random.Random) -> list[bytes]:
    """Bytes that no peer sends: noise, a length without end, half a TLS greeting, another protocol."""
    return [
        dice.randbytes(dice.randrange(1, 3000)),
        struct.pack(">I", 0xFFFFFFFF) + dice.randbytes(64),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(40),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 70_000,
    ]


def throw_at_stream(family: int, address: object, data: bytes) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as stream, contextlib.suppress(OSError):
        stream.settimeout(2)
        stream.connect(address)  # type: ignore[arg-type]
        stream.sendall(data)


def throw_everywhere(peer: PeerProcess, tcp_port: int, udp_port: int, dice: random.Random) -> None:
    for data in noises(dice):
        throw_at_stream(socket.AF_INET, ("127.0.0.1", tcp_port), data)
        throw_at_stream(socket.AF_UNIX, str(peer.folders.socket_path(peer.number)), data)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, contextlib.suppress(OSError):
            datagrams.sendto(data[:60_000], ("127.0.0.1", udp_port))


def test_noise_at_every_port_changes_no_answer(here: Machine, tmp_path: Path) -> None:
    program = tmp_path / "program_under_fire.py"
    program.write_text(PROGRAM)
    peers = [here.up("anna", "--slots", "1"), here.up("bert", "--slots", "1")]
    for peer in peers:
        until_now(lambda peer=peer: len(peer.linked_names) == 1, "both are linked")
    ports = [int(peer.ask("status")["port"]) for peer in peers]
    udp_port = int(here.environ["P2PCOMPUTE_BEACON_PORT"])
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text("".join(f"{number}\n" for number in range(_TASKS)))
    dice = random.Random(20)
    with subprocess.Popen(
        here.command("map", str(program), "slow_square", "--jsonl", str(inputs)),
        env=here.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        rounds = 0
        while process.poll() is None and rounds < _ROUNDS:
            for peer, port in zip(peers, ports, strict=True):
                throw_everywhere(peer, port, udp_port, dice)
            rounds += 1
        stdout, stderr = process.communicate(timeout=WAIT_S)
    assert rounds > 0
    assert process.returncode == 0, stderr.decode()
    assert [json.loads(line) for line in stdout.splitlines()] == [number * number for number in range(_TASKS)]
    for peer in peers:
        assert peer.process.poll() is None
        assert len(peer.linked_names) == 1, "the noise has cost them their link"
        assert "Traceback" not in peer.log.read_text()
    late = here.up("cleo")  # the beacons still work
    until_now(lambda: late.linked_names == {"anna", "bert"}, "a newcomer finds both")


def test_connections_that_say_nothing_do_not_shut_others_out(here: Machine) -> None:
    anna = here.up("anna")
    port = int(anna.ask("status")["port"])
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            with contextlib.suppress(OSError):
                silent.settimeout(2)
                silent.connect(str(anna.folders.socket_path(anna.number)))
        for _ in range(20):
            silent = stack.enter_context(socket.socket())
            silent.settimeout(2)
            with contextlib.suppress(OSError):
                silent.connect(("127.0.0.1", port))
        assert here.json("peers")["own"]["name"] == "anna"
        bert = here.up("bert")
        until_now(lambda: bert.linked_names == {"anna"}, "they find each other nevertheless")
