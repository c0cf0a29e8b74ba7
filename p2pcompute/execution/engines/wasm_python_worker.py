"""Python source in the WebAssembly Python, in a worker process: what `WorkerProgram` is to native Python.

One instance serves one program, and stays warm; after a call that it did not survive (fuel, stack, `os._exit`) the next call gets a new one. The
interpreter inside has no files, sockets, threads or processes; WASI gives it the time, randomness and two streams, which are this process's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime.component import Component, Linker

from p2pcompute.execution import task, values
from p2pcompute.execution.engines import wasm_runtime as runtime
from p2pcompute.execution.engines.wasm_python_build import COMPILED_VARIABLE
from p2pcompute.execution.engines.wasm_python_guest import FETCHED, MISSING, NO_MEMORY
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.model.errors import BlobMissingError, WasmTrapError
from p2pcompute.model.job import Outcome

#: Linear memory of one instance: the interpreter itself takes 40 MB of it.
MEMORY_BYTES_MAX = 1 << 30


class WasmPythonProgram:
    """A loaded program, called by number of entry with encoded arguments. `last_fuel`: units that the last call used."""

    def __init__(
        self, data: bytes | bytearray, fetch: Callable[[values.Handle], bytes | bytearray], kept_bytes_max: int
    ) -> None:
        """Load it. Raises ProgramLoadError."""
        compiled = os.environ.get(COMPILED_VARIABLE, "")
        if not compiled:
            raise ProgramLoadError(
                "bundle", "", "the WebAssembly Python is not ready at this peer: `p2pcompute wasm-python` makes it"
            )
        self.last_fuel = 0
        self._text = bytes(data).decode("latin-1")
        self._fetch = fetch
        self._kept_bytes_max = kept_bytes_max
        self._engine = runtime.make_engine()
        try:
            self._component = Component.deserialize_file(self._engine, compiled)
        except wasmtime.WasmtimeError as error:
            raise ProgramLoadError(
                "bundle", "", f"the WebAssembly Python of this peer cannot be used: {error}"
            ) from error
        self._linker = Linker(self._engine)
        self._linker.add_wasip2()
        with self._linker.root() as root:
            root.add_func("fetch", self._on_fetch)
            root.add_func("progress", self._on_progress)
        try:
            self._instance = _Instance(self)
        except MemoryError as error:
            raise ProgramLoadError(
                "bundle", "", f"the WebAssembly Python needs more memory than a worker has here: {error}"
            ) from error

    def run(self, entry: int, arguments: bytes | bytearray | memoryview) -> tuple[Outcome, bytes]:
        """The outcome of one call and its payload, as `wire.messages.Results` defines it. Never raises for what user code does."""
        self.last_fuel = 0
        try:
            if self._instance.is_broken:
                self._instance = _Instance(self)
            meter = runtime.FuelMeter(self._instance.store, None)
            try:
                outcome, payload = self._instance.call("run", entry, bytes(arguments).decode("latin-1"))
            finally:
                self.last_fuel = meter.used
            return Outcome(outcome), payload.encode("latin-1")
        except ProgramLoadError as error:
            return Outcome.RAISED, values.encode_failure(
                WasmTrapError(f"the program does not load again: {error.text}")
            )
        except MemoryError:
            return Outcome.OUT_OF_MEMORY, b"the task ran out of memory (MemoryError)"
        except wasmtime.ExitTrap as error:
            text = f"the task ended its interpreter with status {error.code} (os._exit): raise an exception instead"
            return Outcome.RAISED, values.encode_failure(WasmTrapError(text))
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            outcome, meaning = runtime.ending_of(error, "the task", fuel_max=None, timeout_s=None)
            return outcome, meaning.encode() if isinstance(meaning, str) else values.encode_failure(meaning)

    # what the instance asks for

    def _on_fetch(self, _: Any, blob: str, size_bytes: int) -> tuple[int, str]:
        try:
            return FETCHED, bytes(self._fetch(values.Handle(bytes.fromhex(blob), size_bytes))).decode("latin-1")
        except (BlobMissingError, ValueError) as error:
            return MISSING, str(error)
        except MemoryError as error:
            return NO_MEMORY, str(error)

    @staticmethod
    def _on_progress(_: Any, fraction: float, message: str) -> None:
        task.progress(fraction, message)


class _Instance:
    """One instance with the program loaded in it. Raises ProgramLoadError while it is made."""

    def __init__(self, program: WasmPythonProgram) -> None:
        self.is_broken = False
        self.store = wasmtime.Store(program._engine)
        wasi = wasmtime.WasiConfig()
        wasi.stdout_custom = _writer(1)
        wasi.stderr_custom = _writer(2)
        self.store.set_wasi(wasi)
        self.store.set_limits(
            memory_size=MEMORY_BYTES_MAX,
            table_elements=runtime.TABLE_ELEMENTS_MAX,
            instances=runtime.INSTANCES_MAX,
            memories=runtime.MEMORIES_MAX,
        )
        # Nothing steps the epoch here: time-outs are the pool's, which kills the process.
        self.store.set_epoch_deadline(1)
        runtime.FuelMeter(self.store, None)
        try:
            self._exports = program._linker.instantiate(self.store, program._component)
            reason, module, text = self.call("load", program._text, program._kept_bytes_max)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            outcome, meaning = runtime.ending_of(
                error, "the program, while it was loaded,", fuel_max=None, timeout_s=None
            )
            if outcome is Outcome.OUT_OF_MEMORY:
                raise MemoryError(str(meaning)) from error
            raise ProgramLoadError("bundle", "", str(meaning)) from error
        if reason:
            raise ProgramLoadError(reason, module, text)

    def call(self, name: str, *arguments: Any) -> Any:
        """One call of an export; an instance that does not come back from it is broken."""
        function = self._exports.get_func(self.store, name)
        assert function is not None
        self.is_broken = True
        answer = function(self.store, *arguments)
        function.post_return(self.store)
        self.is_broken = False
        return answer


def _writer(descriptor: int) -> Callable[[bytes], int]:
    def write(data: bytes) -> int:
        with contextlib.suppress(BlockingIOError):
            return os.write(descriptor, data)
        return 0

    return write
