"""What running code may say about itself: `p2pcompute.task.progress(0.5, "half way")`.

Outside a worker the same call checks its arguments and does nothing, so a function runs unchanged on its author's desk. Refuses to
know how a report travels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["progress"]

Reporter = Callable[[float, str], None]

#: Characters of a progress message that travel; a status line has no more.
MESSAGE_CHARS_MAX = 1024


class _Context:
    """Where reports go. One a process, because a process runs one task and user code holds no other handle."""

    __slots__ = ("reporter",)

    def __init__(self) -> None:
        #: None outside a worker.
        self.reporter: Reporter | None = None


_CONTEXT = _Context()


def progress(fraction: float, message: str = "") -> None:
    """Report how far this task is: `fraction` from 0 to 1 (cut to that range), and a short text for people.

    Cheap enough for inner loops: at most a few reports a second are passed on, the last one always. NaN, or any number
    below 0, means unknown.
    """
    value = float(fraction)
    value = -1.0 if math.isnan(value) or value < 0 else min(value, 1.0)
    reporter = _CONTEXT.reporter
    if reporter is not None:
        reporter(value, str(message)[:MESSAGE_CHARS_MAX])


def install_reporter(reporter: Reporter | None) -> None:
    """For the worker's runtime: send reports of this process to `reporter` (called in the thread that reports)."""
    _CONTEXT.reporter = reporter
