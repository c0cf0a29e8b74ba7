"""WebAssembly modules in a worker process: what `WorkerProgram` is to Python source.

Every call has an instance of its own, so that it neither sees nor leaves anything: the same call takes the same fuel and gives the same result
whatever ran before it. A module is granted nothing: one that imports anything is refused by name before it is compiled.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import wasmtime

from p2pcompute.execution import values
from p2pcompute.execution.engines import wasm_runtime as runtime
from p2pcompute.execution.engines.wasm_binary import Signature, WasmInterface, interface_of
from p2pcompute.execution.engines.wasm_program import (
    Convention,
    WasmBody,
    check_bytes_convention,
    open_wasm_program,
    refuse_imports,
)
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.execution.worker_handles import HandleValues
from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError, UsageError, WasmTrapError
from p2pcompute.model.job import Outcome

#: Linear memory of one call where nobody said: what a peer lends a stranger without asking.
MEMORY_BYTES_DEFAULT = 256 << 20


class WasmProgram:
    """A module, called by number of entry with encoded arguments. `last_fuel`: units that the last call used."""

    def __init__(
        self, data: bytes | bytearray, fetch: Callable[[values.Handle], bytes | bytearray], kept_bytes_max: int
    ) -> None:
        """Compile it. Raises ProgramLoadError."""
        self.last_fuel = 0
        try:
            self._body: WasmBody = open_wasm_program(data)
            self._interface: WasmInterface = interface_of(self._body.module)
            refuse_imports(self._interface)
            self._entries = [self._entry(name, convention) for name, convention in self._body.entries]
        except P2PComputeError as error:
            raise ProgramLoadError("bundle", "", str(error)) from error
        self._limits = self._body.limits
        self._engine = runtime.make_engine()
        self._deadline = runtime.Deadline(self._engine)
        try:
            self._module = wasmtime.Module(self._engine, self._body.module)
        except wasmtime.WasmtimeError as error:
            raise ProgramLoadError(
                "bundle", "", f"no valid WebAssembly module: {runtime.reason_of(str(error))}"
            ) from error
        self._linker = wasmtime.Linker(self._engine)
        self._handles = HandleValues(fetch, values.ClassResolver({}), kept_bytes_max)

    def _entry(self, name: str, convention: Convention) -> tuple[Signature, Convention]:
        signature = self._interface.functions.get(name)
        if signature is None:
            raise UsageError(f"the module exports no function {name!r}")
        if convention is Convention.BYTES:
            check_bytes_convention(self._interface, signature)
        return signature, convention

    def run(self, entry: int, arguments: bytes | bytearray | memoryview) -> tuple[Outcome, bytes]:
        """The outcome of one call and its payload, as `wire.messages.Results` defines it. Never raises for what the module does."""
        self.last_fuel = 0
        try:
            positional, named = values.decode(arguments, handles=self._handles.value)
            value = self._call(*self._entries[entry], positional, named)
            payload = values.encode(value)
        except MemoryError:
            return Outcome.OUT_OF_MEMORY, b"the call ran out of memory (MemoryError)"
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            outcome, meaning = runtime.ending_of(
                error, self._entries[entry][0].text, fuel_max=self._limits.fuel, timeout_s=self._limits.timeout_s
            )
            return outcome, meaning.encode() if isinstance(meaning, str) else values.encode_failure(meaning)
        except Exception as error:
            return Outcome.RAISED, values.encode_failure(error.with_traceback(None))
        if len(payload) > limits.VALUE_BYTES_MAX:
            text = f"the result has {len(payload)} bytes, one may have {limits.VALUE_BYTES_MAX}: return parts, or less"
            return Outcome.UNSHIPPABLE, values.encode_failure(ValueError(text))
        return Outcome.RETURNED, payload

    def _call(self, signature: Signature, convention: Convention, given: list[Any], named: dict[str, Any]) -> Any:
        if convention is Convention.BYTES:
            content = _one_content(signature, given, named)
        else:
            numbers = signature.arguments(given, named)
        store = wasmtime.Store(self._engine)
        store.set_limits(
            memory_size=self._limits.memory_bytes or MEMORY_BYTES_DEFAULT,
            table_elements=runtime.TABLE_ELEMENTS_MAX,
            instances=1,
            memories=runtime.MEMORIES_MAX,
        )
        meter = runtime.FuelMeter(store, self._limits.fuel)
        try:
            with self._deadline.within(store, self._limits.timeout_s):
                exports: Any = self._linker.instantiate(store, self._module).exports(store)
                if convention is Convention.BYTES:
                    return _call_with_bytes(store, exports, signature, content)
                result = exports[signature.name](store, *numbers)
        finally:
            self.last_fuel = meter.used
        return tuple(result) if len(signature.results) > 1 else result


def _one_content(signature: Signature, given: list[Any], named: dict[str, Any]) -> bytes:
    if named or len(given) != 1 or not isinstance(given[0], (bytes, bytearray)):
        raise UsageError(f"{signature.name} is called with bytes: give it exactly one argument of type bytes")
    return bytes(given[0])


def _call_with_bytes(store: wasmtime.Store, exports: Any, signature: Signature, content: bytes) -> bytes:
    memory = exports["memory"]
    address = exports["alloc"](store, len(content)) & 0xFFFF_FFFF
    if address + len(content) > memory.data_len(store):
        raise WasmTrapError(
            f"alloc gave address {address} for {len(content)} bytes, which is outside of the module's memory"
        )
    memory.write(store, content, address)
    place = struct.pack("<i", address if address < 1 << 31 else address - (1 << 32))
    packed = exports[signature.name](store, *struct.unpack("<i", place), len(content)) & 0xFFFF_FFFF_FFFF_FFFF
    start, length = packed >> 32, packed & 0xFFFF_FFFF
    if start + length > memory.data_len(store):
        raise WasmTrapError(
            f"{signature.name} gave {length} bytes at address {start}, which is outside of the module's memory"
        )
    return bytes(memory.read(store, start, start + length))
