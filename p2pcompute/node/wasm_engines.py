"""WebAssembly at a peer: which of its two engines work here, and the WebAssembly Python, made on first use and kept for all peers of the user.

It is made by a process of its own (`execution/engines/wasm_python_build.py`): half a minute of compiling is nothing for the loop of a peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.engines.wasm_python_build import is_there, make_folder, place_of
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import P2PComputeError, ResourceError, UsageError
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.storage.files import make_private_folder

_BUILD = "p2pcompute.execution.engines.wasm_python_build"
#: The process finds this very program, however it was installed.
_ROOT = str(Path(__file__).resolve().parents[2])
#: Added to the niceness of the process that makes it: a peer that lends its cores has others' tasks to run meanwhile.
_NICE = 10
#: Engines that strangers may use.
SAFE_FOR_STRANGERS = (Engine.WASM, Engine.WASM_PYTHON)


class WasmEngines:
    """What WebAssembly can do at this peer; `look` finds out."""

    def __init__(self, folder: Path, component: Path | None, place: Path | None, problem: str) -> None:
        self._folder = folder
        self._component = component
        #: Where the compiled form of the WebAssembly Python is or will be; None where it cannot be made here.
        self.place = place
        #: Why not, and what to do; empty where it can be.
        self.problem = problem
        #: Whether modules can be run.
        self.runs_modules = has_wasmtime()

    @classmethod
    def look(cls, folders: Folders, component: Path | None = None) -> Self:
        """Look at what is installed. Reads a few files: not on the loop. `component`: one that was made elsewhere."""
        folder = folders.data / "engines"
        try:
            return cls(folder, component, place_of(folder, component), "")
        except UsageError as error:
            return cls(folder, component, None, str(error))

    @classmethod
    def open(cls, folders: Folders, component: Path | None = None) -> Self:
        """`look`, and make the folder, before workers start: sandboxes show it from their start, also to what comes into it later."""
        found = cls.look(folders, component)
        if found.place is not None:
            make_private_folder(folders.data)
            make_folder(found.place.parent)
        return found

    @property
    def python_is_ready(self) -> bool:
        """Whether the WebAssembly Python is there."""
        return self.place is not None and is_there(self.place)

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Those that work now."""
        found = [Engine.WASM] if self.runs_modules else []
        return (*found, Engine.WASM_PYTHON) if self.python_is_ready else tuple(found)

    async def prepare(self, progress: Callable[[str], None] = lambda text: None) -> Path:
        """The compiled form, made if it is not there. `progress`: gets a few sentences. Raises UsageError, ResourceError."""
        if self.place is None:
            raise UsageError(self.problem)
        if self.python_is_ready:
            return self.place
        arguments = [str(self._folder), *([str(self._component)] if self._component is not None else [])]
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (_ROOT, environment.get("PYTHONPATH", ""))))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _START, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            last = ""
            async for line in process.stdout:
                last = line.decode(errors="replace").strip()
                if last != str(self.place):
                    progress(last)
            said = (await process.stderr.read()).decode(errors="replace").strip()
            status = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if status != 0 or not is_there(self.place):
            raise ResourceError(
                f"the WebAssembly Python could not be made: {said[-2000:] or f'its builder ended with {status}'}"
            )
        return self.place


_START = f"""
import os, sys
if hasattr(os, "nice"):
    os.nice({_NICE})
from {_BUILD} import main
sys.exit(main(sys.argv[1:]))
"""


def has_wasmtime() -> bool:
    """Whether the package that runs WebAssembly is installed."""
    return importlib.util.find_spec("wasmtime") is not None


def offered_engines(works: tuple[Engine, ...], chosen: tuple[str, ...], *, is_open: bool) -> tuple[Engine, ...]:
    """Which of the engines that work a peer offers. `chosen`: by its owner, empty where he said nothing: then everything, but in an open
    network, where anybody may submit, only what holds strangers' code best."""
    if chosen:
        return tuple(engine for engine in works if engine in chosen)
    return tuple(engine for engine in works if not is_open or engine in SAFE_FOR_STRANGERS)


def engine_by_default(*, is_open: bool) -> Engine:
    """What runs a submitter's Python functions where he said nothing: among strangers, what strangers run."""
    return Engine.WASM_PYTHON if is_open else Engine.PYTHON


def wants_wasm_python(config: PeerConfig, *, is_open: bool) -> bool:
    """Whether the WebAssembly Python is to be made where it is not there: its owner names it, or the network is open."""
    named = bool(config.engines) or is_open
    return config.slots != 0 and named and bool(offered_engines((Engine.WASM_PYTHON,), config.engines, is_open=is_open))


async def prepare_where_wanted(
    engines: WasmEngines,
    config: PeerConfig,
    is_open: bool,
    made: Callable[[], Awaitable[None]],
    log: FilteringBoundLogger,
) -> None:
    """Make the WebAssembly Python where it is wanted, can be made and is not there; `made`: called once it is."""
    if not wants_wasm_python(config, is_open=is_open) or engines.place is None or engines.python_is_ready:
        return
    try:
        await engines.prepare(lambda text: log.info("engine", engine="wasm-python", text=text))
    except P2PComputeError as error:
        log.warning("engine is not offered", engine="wasm-python", cause=str(error))
    else:
        await made()
