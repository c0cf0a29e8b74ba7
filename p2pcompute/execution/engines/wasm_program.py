"""The document of a WebAssembly program: a module, which of its exports are called and how, and what one call may use.

Submitters make it with `make_wasm_program`, which refuses with a sentence what no peer would run. Always the binary form: text is turned
into it by its author's own machine. Refuses to know: the engine.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from p2pcompute.execution.bundle import Program, program_of
from p2pcompute.execution.engines.document import DEMANDS, ENGINE
from p2pcompute.execution.engines.wasm_binary import Signature, WasmInterface, interface_of, is_wasm
from p2pcompute.model import limits
from p2pcompute.model.engine import NOTHING_DEMANDED, Demands, Engine
from p2pcompute.model.errors import CannotShipError, ProtocolError, UnknownNameError, UsageError
from p2pcompute.wire.codec import Converted, Many, Maybe, Raw, Row, Schema, Text, Whole, pack, unpack

#: The version of this document.
VERSION = 1
#: Text of a module that is read: texts are a few times as long as what they say.
WAT_CHARS_MAX = 16 << 20
MEMORY_BYTES_MIN = 64 << 10
_NAME = Text(512)


class Convention(enum.IntEnum):
    """How values reach an export. BYTES: `alloc(length) -> address` is called, the bytes are put there, then the export with (address,
    length), which answers with address << 32 | length of what it gives back, all in the memory that is exported as `memory`."""

    NUMBERS = 0
    BYTES = 1


@dataclass(frozen=True, slots=True)
class WasmLimits:
    """What one call may use; None: what the peer allows.

    `fuel`: units of work, about one an instruction, the same number on every machine. `memory_bytes`: of linear memory. `timeout_s`: of
    the wall clock, after which the call is interrupted and its worker goes on.
    """

    fuel: int | None = None
    memory_bytes: int | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.fuel is not None and not 0 < self.fuel < 1 << 63:
            raise UsageError(f"fuel is {self.fuel}: give units of work above 0, or None for no limit")
        if self.memory_bytes is not None and not MEMORY_BYTES_MIN <= self.memory_bytes < 1 << 48:
            raise UsageError(
                f"memory_bytes is {self.memory_bytes}: one page of WebAssembly has {MEMORY_BYTES_MIN} bytes"
            )
        if self.timeout_s is not None and not 0.001 <= self.timeout_s < 1e9:
            raise UsageError(f"timeout_s is {self.timeout_s}: give seconds, at least 0.001, or None for no time-out")


@dataclass(frozen=True, slots=True)
class WasmBody:
    """Everything in a WebAssembly program."""

    engine: Annotated[Engine, ENGINE]
    version: Annotated[int, Whole(1, 255)]
    module: Annotated[bytes, Raw(limits.PROGRAM_BYTES_MAX)]
    #: (name of the export, how values reach it)
    entries: Annotated[
        tuple[tuple[str, Convention], ...],
        Many(Row((_NAME, Converted(Whole(0, 255), Convention, int))), 1_000),
    ]
    fuel: Annotated[int | None, Maybe(Whole(1))] = None
    memory_bytes: Annotated[int | None, Maybe(Whole(MEMORY_BYTES_MIN, 1 << 48))] = None
    timeout_ms: Annotated[int | None, Maybe(Whole(1, 1 << 40))] = None
    demands: Annotated[Demands, DEMANDS] = NOTHING_DEMANDED
    unknown: dict[str, Any] = field(default_factory=dict)

    @property
    def limits(self) -> WasmLimits:
        """What one call may use."""
        return WasmLimits(self.fuel, self.memory_bytes, None if self.timeout_ms is None else self.timeout_ms / 1000)


_BODY = Schema(WasmBody)


def open_wasm_program(data: bytes | bytearray | memoryview) -> WasmBody:
    """The document in `data`; nothing of it is run. Raises ProtocolError."""
    body = _BODY.from_fields(unpack(data, bytes_max=limits.PROGRAM_BYTES_MAX))
    if body.engine is not Engine.WASM:
        raise ProtocolError(f"a program for the engine {body.engine}, where a WebAssembly module is wanted")
    if body.version != VERSION:
        raise ProtocolError(
            f"a WebAssembly program of version {body.version}, this peer reads version {VERSION}: upgrade the older one"
        )
    return body


def make_wasm_program(
    module: bytes | str,
    entries: Mapping[str, Convention] | None = None,
    allowed: WasmLimits | None = None,
    demands: Demands = NOTHING_DEMANDED,
) -> tuple[Program, WasmInterface]:
    """The program of a module, given as bytes or as its text (WAT), and what it offers.

    `entries`: the exports to call and how; None: all functions, with numbers. Raises CannotShipError, UnknownNameError.
    """
    binary = binary_of(module)
    try:
        interface = interface_of(binary)
    except ProtocolError as error:
        raise CannotShipError(f"the module cannot be read: {error.reason_text}") from error
    refuse_imports(interface)
    chosen = dict.fromkeys(interface.functions, Convention.NUMBERS) if entries is None else dict(entries)
    if not chosen:
        raise CannotShipError("the module exports no function: export what is to be called")
    for name, convention in chosen.items():
        signature = interface.functions.get(name)
        if signature is None:
            raise UnknownNameError("export", name, interface.functions)
        if convention is Convention.BYTES:
            check_bytes_convention(interface, signature)
    allowed = allowed or WasmLimits()
    body = WasmBody(
        engine=Engine.WASM,
        version=VERSION,
        module=binary,
        entries=tuple(chosen.items()),
        fuel=allowed.fuel,
        memory_bytes=allowed.memory_bytes,
        timeout_ms=None if allowed.timeout_s is None else max(1, round(allowed.timeout_s * 1000)),
        demands=demands,
    )
    data = pack(_BODY.to_fields(body))
    if len(data) > limits.PROGRAM_BYTES_MAX:
        raise CannotShipError(f"the module has {len(binary)} bytes, at most {limits.PROGRAM_BYTES_MAX} can travel")
    return program_of(data, tuple(chosen)), interface


def refuse_imports(interface: WasmInterface) -> None:
    """Nothing is granted to a module. Raises CannotShipError that names what it wants."""
    if interface.imports:
        wanted = ", ".join(f"{home}.{name} ({kind})" for home, name, kind in interface.imports[:5])
        more = f" and {len(interface.imports) - 5} more" if len(interface.imports) > 5 else ""
        hint = ""
        if any(home.startswith("wasi") for home, _, _ in interface.imports):
            hint = " (WASI: compile it without a main program and without files, such as with -nostartfiles or for wasm32-unknown-unknown)"
        raise CannotShipError(f"the module imports {wanted}{more}, and a module is granted nothing{hint}")


def check_bytes_convention(interface: WasmInterface, signature: Signature) -> None:
    """Raise CannotShipError where the export cannot take and give bytes."""
    alloc = interface.functions.get("alloc")
    if not signature.takes_bytes:
        raise CannotShipError(
            f"{signature.text} cannot take bytes: for that it is (i32, i32) -> i64, address and length in, address << 32 | length out"
        )
    if "memory" not in interface.memories or alloc is None or (alloc.parameters, alloc.results) != (("i32",), ("i32",)):
        raise CannotShipError(
            f"{signature.name} cannot take bytes: the module must export `memory` and `alloc(i32) -> i32`"
        )


def binary_of(module: bytes | str) -> bytes:
    """The binary form of a module that is given as that or as text (WAT). Raises CannotShipError."""
    if not isinstance(module, str) and is_wasm(bytes(module[:4])):
        return bytes(module)
    if len(module) > WAT_CHARS_MAX:
        raise CannotShipError(
            f"the module's text has {len(module)} characters, at most {WAT_CHARS_MAX} are read: compile it first"
        )
    try:
        text = module if isinstance(module, str) else bytes(module).decode()
    except UnicodeDecodeError as error:
        raise CannotShipError("this is no WebAssembly module: neither its binary form nor its text (WAT)") from error
    try:
        import wasmtime
    except ImportError as error:
        raise CannotShipError(
            "a module's text (WAT) is turned into its binary form by wasmtime, which is not installed here: "
            "pip install 'p2pcompute[wasm]', or give the binary form"
        ) from error
    try:
        return bytes(wasmtime.wat2wasm(text))
    except wasmtime.WasmtimeError as error:
        raise CannotShipError(f"the module's text cannot be read: {error}") from error
