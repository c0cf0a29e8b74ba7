"""What pure code is made to do with the world switched off, by full name, each returning something that can be compared.

`PURE`: exercises of functions and machines. `WORLDLY`: the opposite, to show that the switch works.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from p2pcompute.model import capability, errors, ids, job, peer
from p2pcompute.wire import codec, families
from tests.purity import machine_exercises, network_exercises, reach_exercise, topology_exercises
from tests.support import samples

Exercise = Callable[[random.Random], object]


def _ids(rng: random.Random) -> object:
    made = [ids.peer_id_of(rng.randbytes(32)) for _ in range(20)]
    assert [ids.parse_peer_id(ids.format_peer_id(each)) for each in made] == made
    return [ids.format_peer_id(each) for each in made] + [ids.short_peer_id(each) for each in made]


def _capability(rng: random.Random) -> object:
    return [
        capability.Capability(
            rng.randrange(1, 64), rng.uniform(800, 5000), rng.random(), rng.uniform(1, 512), rng.uniform(0, 512)
        ).score
        for _ in range(50)
    ]


def _addresses(rng: random.Random) -> object:
    texts = [f"10.0.{rng.randrange(0, 256)}.{rng.randrange(0, 256)}:{rng.randrange(1, 65536)}" for _ in range(50)]
    return [str(peer.Address.parse(text)) for text in texts]


def _options(rng: random.Random) -> object:
    return [job.JobOptions(timeout_s=rng.uniform(0.1, 9), priority=rng.randrange(0, 10)) for _ in range(20)]


def _names(rng: random.Random) -> object:
    return [str(errors.UnknownNameError("aggregation", name, ("sum", "average"))) for name in ("sun", "averag", "x")]


def _codec(rng: random.Random) -> object:
    blobs = [rng.randbytes(rng.randrange(0, 200)) for _ in range(200)]
    seen: list[object] = []
    for blob in blobs:
        try:
            seen.append(codec.unpack(blob))
        except errors.ProtocolError as error:
            seen.append(str(error))
    return repr(seen)


def _messages(rng: random.Random) -> object:
    seen = []
    for message in samples.messages(rng):
        family = families.LINK_CODEC if type(message) in families.LINK_MESSAGES else families.CONTROL_CODEC
        again = family.decode(family.encode(message))
        assert again == message
        seen.append(again)
    return seen


PURE: dict[str, Exercise] = {
    "p2pcompute.model.ids.parse_peer_id": _ids,
    "p2pcompute.model.capability.capability_score": _capability,
    "p2pcompute.model.peer.Address": _addresses,
    "p2pcompute.model.job.JobOptions": _options,
    "p2pcompute.model.errors.UnknownNameError": _names,
    "p2pcompute.wire.codec.unpack": _codec,
    "p2pcompute.wire.families.MessageCodec": _messages,
    "p2pcompute.membership.beacons.BeaconMachine": machine_exercises.beacon_machine,
    "p2pcompute.membership.book.PeerBook": machine_exercises.peer_book,
    "p2pcompute.membership.healing.HealingMachine": machine_exercises.healing_machine,
    "p2pcompute.membership.coordinates.CoordinateSpace": network_exercises.coordinates,
    "p2pcompute.membership.agreement.agreed_edges": network_exercises.edges,
    "p2pcompute.membership.pacing.Pacer": network_exercises.pacer,
    "p2pcompute.membership.joining.JoiningMachine": machine_exercises.joining_machine,
    "p2pcompute.membership.reach.ReachMachine": reach_exercise.reach_machine,
    "p2pcompute.topology.shape.analyse": topology_exercises.shapes,
    "p2pcompute.topology.moves.rebalance": topology_exercises.flows,
    "p2pcompute.jobs.dispatch.Dispatch": machine_exercises.dispatch,
    "p2pcompute.jobs.lend.Lend": machine_exercises.lend,
    "p2pcompute.jobs.yielding.Yielding": machine_exercises.yielding,
}

WORLDLY: dict[str, Callable[[], object]] = {
    "the clock": lambda: time.monotonic(),
    "the wall clock": lambda: time.time(),
    "sleeping": lambda: time.sleep(0),
    "the global dice": lambda: random.random(),
    "entropy": lambda: os.urandom(1),
    "secrets": lambda: secrets.token_bytes(1),
    "a file": lambda: open(os.devnull),  # noqa: SIM115
    "a file by its path": lambda: Path(os.devnull).read_text(),
    "a folder": lambda: os.listdir("/"),
    "a temporary file": lambda: tempfile.NamedTemporaryFile(),  # noqa: SIM115
    "a socket": lambda: socket.socket(),
    "a pair of sockets": lambda: socket.socketpair(),
    "a process": lambda: subprocess.Popen([sys.executable, "-c", ""]),
    "a thread": lambda: threading.Thread(target=len).start(),
    "a database": lambda: sqlite3.connect(":memory:"),
}
