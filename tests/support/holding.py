"""Programs whose tasks wait for each other, so that what a test asks about does not hang on who is quick.

Late binding gives what waits to whoever is free: on a busy machine a peer that begins a second late finds nothing left to do. A test that
wants every peer to take part, or a job that is in mid-way until it has seen enough, holds the tasks back until that is so. The peers
share this machine's file system, also where each has a network of its own.
"""

from __future__ import annotations

from pathlib import Path

#: The start of a program. A task that calls `wait_for_others` ends once tasks of `PEERS` peers have begun; one that calls `held_back` ends
#: at once while no more than `FREE` tasks have begun at its peer, others once the file "go" is there.
_HOLDING = """
import os
import time


def begun(name):
    open(os.path.join({folder!r}, name), "w").close()


def count(start):
    return sum(name.startswith(start) for name in os.listdir({folder!r}))


def wait_for_others():
    begun("peer-%d" % os.getppid())
    while count("peer-") < {peers}:
        time.sleep(0.01)


def held_back(task):
    mine = "of-%d-" % os.getppid()
    begun(mine + str(task))
    while count(mine) > {free} and not count("go"):
        time.sleep(0.01)
"""


def holding(folder: Path, *, peers: int = 1, free: int = 0) -> str:
    """The start of a program, with `folder` for what its tasks tell each other, which is made."""
    folder.mkdir()
    return _HOLDING.format(folder=str(folder), peers=peers, free=free)


def let_go(folder: Path) -> None:
    """Tasks of a program made with `folder` are held back no more."""
    (folder / "go").touch()
