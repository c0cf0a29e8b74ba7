"""Programs whose tasks wait for each other, so that what a test asks about does not hang on who is quick.

Late binding gives what waits to whoever is free: on a busy machine a peer that begins a second late finds nothing left to do. A test that
wants every peer to take part, or a job that is in mid-way until it has seen enough, holds the tasks back until that is so. The peers
share this machine's file system, also where each has a network of its own.
"""

from __future__ import annotations

from pathlib import Path

#: For peers whose tasks tell each other something by files of this machine, or by numbers of processes: no sandbox shows them.
PLAIN = {"isolation": "process"}
#: The same, for the environment of peers that are processes.
PLAIN_ENVIRONMENT = {"P2PCOMPUTE_ISOLATION": "process"}

#: The start of a program. A task that calls `wait_for_others` ends once tasks of so many peers have begun. One that calls `held_back` takes
#: `pause_s`, by default more than a batch is worth, so that nobody is sent many ahead; and where more than `free` tasks have begun at its
#: peer, which is known by the parent of its workers, it ends once the file "go" is there.
_HOLDING = """
import os
import time


def _note(name):
    open(os.path.join({folder!r}, name), "w").close()


def _noted(start):
    return sum(name.startswith(start) for name in os.listdir({folder!r}))


def wait_for_others():
    _note("peer-%d" % os.getppid())
    while _noted("peer-") < {peers}:
        time.sleep(0.01)


def held_back(pause_s=0.05):
    mine = "of-%d-" % os.getppid()
    _note("%s%d-%d" % (mine, os.getpid(), time.monotonic_ns()))
    time.sleep(pause_s)
    while _noted(mine) > {free} and not _noted("go"):
        time.sleep(0.01)
"""


def holding(folder: Path, *, peers: int = 1, free: int = 0) -> str:
    """The start of a program (`_HOLDING`), with `folder` for what its tasks tell each other, which is made."""
    folder.mkdir()
    return _HOLDING.format(folder=str(folder), peers=peers, free=free)


def let_go(folder: Path) -> None:
    """Tasks of a program made with `folder` are held back no more."""
    (folder / "go").touch()
