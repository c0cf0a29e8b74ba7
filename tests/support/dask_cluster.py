"""A real Dask cluster on loopback: a scheduler and workers, each a process that the test starts and kills."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.peers import free_port

ROOT = Path(__file__).resolve().parents[2]
_QUIET = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error", "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "false"}


@dataclass
class DaskProcesses:
    """`port`: of the scheduler, also of the next one."""

    folder: Path
    port: int
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As `--cluster` takes it."""
        return f"dask://127.0.0.1:{self.port}"

    def start_scheduler(self) -> None:
        """Start the scheduler; it answers a little later."""
        self.scheduler = self._start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show"
        )

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker of one thread that nobody starts again."""
        worker = self._start(
            "dask_worker", f"tcp://127.0.0.1:{self.port}", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny",
            "--no-dashboard", "--memory-limit", "256MiB", "--death-timeout", "60",
            "--local-directory", str(self.folder),
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{program}", *arguments],
                cwd=self.folder,
                env={**os.environ, **_QUIET, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Kill all of them."""
        for process in filter(None, (self.scheduler, *self.workers)):
            process.send_signal(signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def dask_cluster(workers: int) -> Iterator[DaskProcesses]:
    """A cluster of so many workers, killed at the end."""
    with tempfile.TemporaryDirectory(prefix="dask-") as folder:
        cluster = DaskProcesses(Path(folder), free_port())
        try:
            cluster.start_scheduler()
            for _ in range(workers):
                cluster.start_worker()
            yield cluster
        finally:
            cluster.stop()
