"""A WebAssembly module at a door: its exports as functions that peers run.

module = peer.wasm(Path("primes.wasm").read_bytes(), fuel=10**9)
await module.count(1000)                                   # one call
await peer.submit(module.count, 1000)                      # the same
async for n in peer.map(module.count, [10, 100, 1000]): …
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from p2pcompute.execution.bundle import Program
from p2pcompute.execution.engines.wasm_binary import Signature
from p2pcompute.execution.engines.wasm_program import Convention, WasmLimits, binary_of, make_wasm_program
from p2pcompute.model.engine import NOTHING_DEMANDED, Demands, Engine
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.job import JobOptions

Submit = Callable[..., Awaitable[Any]]


class WasmFunction:
    """One export. Can be called, and given wherever a door takes a function.

    An input that is a tuple or a list of several numbers stands for as many arguments.
    """

    engine = Engine.WASM

    def __init__(
        self, binary: bytes, signature: Signature, convention: Convention, allowed: WasmLimits, submit: Submit
    ) -> None:
        self._binary = binary
        self._convention = convention
        self._allowed = allowed
        self._submit = submit
        #: Its name and types.
        self.signature = signature
        #: What jobs of it are called.
        self.__name__ = self.__qualname__ = signature.name
        self._programs: dict[Demands, Program] = {}

    def __repr__(self) -> str:
        return f"<WebAssembly function {self.signature.text}>"

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it at whichever peer is best."""
        return await self._submit(self, *args, **kwargs)

    def program_for(self, options: JobOptions) -> Program:
        """See ForeignFunction."""
        demands = options.demands or NOTHING_DEMANDED
        if demands not in self._programs:
            entries = {self.signature.name: self._convention}
            self._programs[demands], _ = make_wasm_program(self._binary, entries, self._allowed, demands)
        return self._programs[demands]

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See ForeignFunction."""
        if any(type(arg).__name__ == "Handle" for arg in args):
            return  # what is behind it is seen there
        if self._convention is Convention.BYTES:
            if kwargs or len(args) != 1 or not isinstance(args[0], (bytes, bytearray)):
                raise UsageError(
                    f"{self.signature.name} is called with bytes: give it exactly one argument of type bytes"
                )
        else:
            self.signature.arguments(args, kwargs)


class WasmModule:
    """The exports of a module, as attributes and by name."""

    def __init__(
        self, module: bytes | str, submit: Submit, allowed: WasmLimits, takes_bytes: tuple[str, ...] = ()
    ) -> None:
        """`takes_bytes`: exports that get and give bytes (`wasm_program.Convention`). Raises CannotShipError, UnknownNameError."""
        binary = binary_of(module)
        _, interface = make_wasm_program(binary, None, allowed)
        for name in takes_bytes:
            make_wasm_program(binary, {name: Convention.BYTES}, allowed)
        self._functions = {
            name: WasmFunction(
                binary, signature, Convention.BYTES if name in takes_bytes else Convention.NUMBERS, allowed, submit
            )
            for name, signature in interface.functions.items()
        }

    @property
    def functions(self) -> Mapping[str, WasmFunction]:
        """All exported functions by name."""
        return dict(self._functions)

    def __getitem__(self, name: str) -> WasmFunction:
        """The export called `name`. Raises UnknownNameError."""
        found = self._functions.get(name)
        if found is None:
            raise UnknownNameError("export", name, self._functions)
        return found

    def __getattr__(self, name: str) -> WasmFunction:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


def limits_of(named: Mapping[str, Any]) -> WasmLimits:
    """`fuel`, `memory_bytes` and `timeout_s`. Raises UsageError for other names."""
    valid = {field.name for field in dataclasses.fields(WasmLimits)}
    for name in named:
        if name not in valid:
            raise UnknownNameError("limit", name, valid)
    return WasmLimits(**named)
