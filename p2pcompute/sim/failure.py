"""What a failed run says: the seed, the sources it ran on, the command that repeats it, and what happened last."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from p2pcompute.sim.loop import SimulationError


class SimFailure(SimulationError):
    """A run ended with an exception, which is its cause. Its text is the whole report."""

    def __init__(
        self, scenario: str, seed: int, at_s: float, error: BaseException, events: Sequence[str], further: Sequence[str]
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        #: Virtual seconds at which it ended.
        self.at_s = at_s
        #: How to have the same run again.
        self.command = shlex.join(
            [Path(sys.executable).name, "-m", "p2pcompute.sim", "--scenario", scenario, "--seed", str(seed)]
        )
        lines = [
            f"scenario {scenario} failed at {at_s:.6f} s",
            *(f"with {type(each).__name__}: {each}" for each in leaves(error)),
            f"seed {seed}, sources {sources()}",
            f"repeat it with: {self.command}",
            *(f"and then: {each}" for each in further),
            f"the last {len(events)} events:",
            *(f"  {line}" for line in events),
        ]
        super().__init__("\n".join(lines))


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a group, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


def sources() -> str:
    """The commit of this source tree, with a plus where files differ from it; "unknown" outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
