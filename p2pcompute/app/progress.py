"""The progress bar of a job, on stderr and only where stderr is a terminal.

Refuses to know where progress comes from.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from p2pcompute.model.job import JobProgress


class Progress:
    """A bar while it is entered; `show` moves it, `say` prints a line above it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        #: The last progress that was shown, or None before the first.
        self.latest: JobProgress | None = None

    def __enter__(self) -> Self:
        if not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            from p2pcompute.app.render import console

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}"),
                console=console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("tasks", total=None, detail="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: JobProgress) -> None:
        """Move the bar."""
        self.latest = progress
        if self._bar is None:
            return
        peers = len(progress.done_by_peer)
        detail = f"{progress.tasks_running} running, {peers} peer{'' if peers == 1 else 's'}"
        if progress.retries:
            detail += f", {progress.retries} retries"
        if progress.tasks_cached:
            detail += f", {progress.tasks_cached} from the cache"
        if progress.tasks_failed:
            detail += f", {progress.tasks_failed} failed"
        self._bar.update(
            self._task, completed=progress.tasks_done + progress.tasks_failed, total=progress.tasks_total, detail=detail
        )

    def say(self, line: str) -> None:
        """Print a line on stderr without breaking the bar."""
        if self._bar is None:
            click.echo(line, err=True)
        else:
            from rich.text import Text

            self._bar.console.print(Text(line))
