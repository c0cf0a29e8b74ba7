"""The program inside the WebAssembly Python: what `worker_main.py` is to a process.

Bytes travel through its door as text of Latin-1, since a list of bytes would be converted one by one, a thousand times slower. It has no
files, sockets, threads or processes; what it prints goes to the two streams, progress and data behind handles through two imports.
The component is a picture of memory taken after this module was imported: whatever differs between instances is drawn at `load`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from p2pcompute.execution import task
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.execution.values import Handle
from p2pcompute.execution.worker_program import WorkerProgram
from p2pcompute.model.errors import BlobMissingError

#: Answers to `fetch`.
FETCHED, MISSING, NO_MEMORY = range(3)

Fetch = Callable[[str, int], tuple[int, str]]


class Guest:
    """The exports of the component. `fetch`, `progress`: its imports; see `wasm_python_build.WIT`."""

    def __init__(self, fetch: Fetch, progress: Callable[[float, str], None]) -> None:
        self._fetch_text = fetch
        self._progress = progress
        self._program: WorkerProgram | None = None

    def load(self, program: str, kept_bytes_max: int) -> tuple[str, str, str]:
        """Load it, once: ("", "", "") or (reason, module, text) of a ProgramLoadError."""
        random.seed()
        _use_loop_without_sockets()
        sys.meta_path.append(_AbsentParts())
        task.install_reporter(self._progress)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
        try:
            self._program = WorkerProgram(program.encode("latin-1"), self._fetch, kept_bytes_max)
        except ProgramLoadError as error:
            return error.reason, error.module, error.text
        finally:
            _flush()
        return "", "", ""

    def run(self, entry: int, arguments: str) -> tuple[int, str]:
        """(outcome, payload) of one call."""
        assert self._program is not None
        try:
            outcome, payload = self._program.run(entry, arguments.encode("latin-1"))
        finally:
            _flush()
        return int(outcome), payload.decode("latin-1")

    def _fetch(self, handle: Handle) -> bytes:
        status, text = self._fetch_text(handle.blob.hex(), handle.size_bytes)
        if status == MISSING:
            raise BlobMissingError(text)
        if status == NO_MEMORY:
            raise MemoryError(text)
        return text.encode("latin-1")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


class _NoSelector:
    """Waits for time alone: nothing else can happen here."""

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError(
                "every coroutine waits for what cannot happen here: there are no sockets, threads or processes"
            )
        if timeout > 0:
            time.sleep(timeout)
        return []

    def close(self) -> None:
        return


class GuestLoop(asyncio.BaseEventLoop):
    """An event loop without sockets, for coroutines that compute and sleep."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NoSelector()

    def _process_events(self, event_list: list[Any]) -> None:
        return

    def _write_to_self(self) -> None:
        return


def _use_loop_without_sockets() -> None:
    # The runner asks the module `events`, everybody else the package.
    asyncio.events.new_event_loop = asyncio.new_event_loop = GuestLoop


class _AbsentParts(MetaPathFinder, Loader):
    """Parts of p2pcompute that are not here, such as the peer: scripts import them at the top and use them under their main guard only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith("p2pcompute.") else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = _absent


def _absent(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(cls: type, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"p2pcompute's {name} is not in the WebAssembly Python: a task there can be no peer and reach none"
        )

    return type(name, (), {"__new__": refuse})
