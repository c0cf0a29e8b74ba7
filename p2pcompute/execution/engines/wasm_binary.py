"""What a WebAssembly module wants and offers, read from its bytes: imports, exported functions and their types.

Lets a submitter say before anything is sent that a call does not fit or that a module wants what nobody grants, without the engine being
installed there. Reads four kinds of sections of the binary format (https://webassembly.github.io/spec/core/binary/modules.html) and skips the
rest; whether the code is valid is the engine's to say. Bytes can cause only ProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from p2pcompute.model.errors import ProtocolError, UsageError

T = TypeVar("T")

MAGIC = b"\x00asm"
#: Members of one section; far above what compilers write, and each costs at least a byte of the module.
ITEMS_MAX = 100_000
_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128", 0x70: "funcref", 0x6F: "externref"}
_KINDS = ("function", "table", "memory", "global", "tag")
_TYPE, _IMPORT, _FUNCTION, _EXPORT = 1, 2, 3, 7
_BITS = {"i32": 32, "i64": 64}


@dataclass(frozen=True, slots=True)
class Signature:
    """The type of one exported function: "i32", "i64", "f32", "f64" and rarer ones."""

    name: str
    parameters: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def text(self) -> str:
        """As people write it: `add(i32, i32) -> i32`."""
        results = {0: "nothing", 1: "".join(self.results)}.get(len(self.results), f"({', '.join(self.results)})")
        return f"{self.name}({', '.join(self.parameters)}) -> {results}"

    @property
    def takes_bytes(self) -> bool:
        """Whether it may be one that gets bytes as (address, length) and gives them as address << 32 | length."""
        return self.parameters == ("i32", "i32") and self.results == ("i64",)

    def arguments(self, given: Sequence[Any], named: Mapping[str, Any]) -> list[int | float]:
        """The numbers to call it with, whole ones signed. Raises UsageError that names the export and its types."""
        if len(given) == 1 and isinstance(given[0], (list, tuple)):
            given = given[0]  # one input of a map
        if named:
            raise UsageError(f"{self.text} takes its arguments by position, not as {', '.join(sorted(named))}=…")
        if len(given) != len(self.parameters):
            were = "1 was" if len(given) == 1 else f"{len(given)} were"
            takes = "1 argument" if len(self.parameters) == 1 else f"{len(self.parameters)} arguments"
            raise UsageError(f"{self.text} takes {takes}, {were} given")
        return [
            self._number(place, kind, value)
            for place, (kind, value) in enumerate(zip(self.parameters, given, strict=True), 1)
        ]

    def _number(self, place: int, kind: str, value: Any) -> int | float:
        what = f"argument {place} of {self.text} is"
        if kind in _BITS:
            if not isinstance(value, int):
                raise UsageError(f"{what} a whole number, not {type(value).__name__}")
            bits = _BITS[kind]
            if not -(1 << (bits - 1)) <= value < 1 << bits:
                raise UsageError(f"{what} a number of {bits} bits, and {value} does not fit")
            return int(value) - (1 << bits) if value >= 1 << (bits - 1) else int(value)
        if kind not in ("f32", "f64"):
            raise UsageError(f"{what} of a type that cannot travel: only i32, i64, f32 and f64 can")
        if not isinstance(value, (int, float)):
            raise UsageError(f"{what} a number, not {type(value).__name__}")
        try:
            return float(value)
        except OverflowError as error:
            raise UsageError(f"{what} a number that is too large for it") from error


@dataclass(frozen=True, slots=True)
class WasmInterface:
    """`imports`: (module, name, kind) of each; `functions`: exported ones by name; `memories`: names of exported memories."""

    imports: tuple[tuple[str, str, str], ...]
    functions: Mapping[str, Signature]
    memories: tuple[str, ...]


def is_wasm(module: bytes) -> bool:
    """Whether these bytes say that they are a WebAssembly module."""
    return module.startswith(MAGIC)


def interface_of(module: bytes) -> WasmInterface:
    """What a module wants and offers. Raises ProtocolError."""
    if len(module) < 8 or not is_wasm(module):
        raise ProtocolError("not a WebAssembly module: it does not begin with \\0asm")
    if module[4:8] == b"\x0d\x00\x01\x00":
        raise ProtocolError("a WebAssembly component, where a plain module is wanted")
    if module[4:8] != b"\x01\x00\x00\x00":
        raise ProtocolError("a WebAssembly module of an unknown version")
    reader = _Reader(module, 8, len(module))
    types: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    imports: list[tuple[str, str, str]] = []
    #: Number of the type of each function, imported ones first.
    function_types: list[int] = []
    exports: list[tuple[str, int, int]] = []
    while reader.at < reader.end:
        section, size = reader.byte(), reader.number()
        inner = reader.part(size)
        if section == _TYPE:
            types = inner.many(inner.function_type)
        elif section == _IMPORT:
            for home, name, kind, index in inner.many(inner.import_):
                imports.append((home, name, _KINDS[kind]))
                if kind == 0:
                    function_types.append(index)
        elif section == _FUNCTION:
            function_types += inner.many(inner.number)
        elif section == _EXPORT:
            exports = inner.many(inner.export)
    functions: dict[str, Signature] = {}
    for name, kind, index in exports:
        if kind == 0:
            if index >= len(function_types) or function_types[index] >= len(types):
                raise ProtocolError(f"the export {name[:80]!r} is of a function that does not exist")
            functions[name] = Signature(name, *types[function_types[index]])
    return WasmInterface(tuple(imports), functions, tuple(name for name, kind, _ in exports if kind == 2))


class _Reader:
    """Bytes from `at` to `end`."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self.at = at
        self.end = end

    def byte(self) -> int:
        if self.at >= self.end:
            raise ProtocolError("a WebAssembly module that is cut off")
        self.at += 1
        return self._data[self.at - 1]

    def number(self) -> int:
        """An unsigned number of 32 bits, or of 64 where a limit is one (LEB128)."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ProtocolError("a number of a WebAssembly module that is too long")

    def part(self, size: int) -> _Reader:
        if size > self.end - self.at:
            raise ProtocolError("a WebAssembly module that is cut off")
        self.at += size
        return _Reader(self._data, self.at - size, self.at)

    def many(self, read: Callable[[], T]) -> list[T]:
        count = self.number()
        if count > ITEMS_MAX or count > self.end - self.at:
            raise ProtocolError(f"a section of a WebAssembly module with {count} members")
        return [read() for _ in range(count)]

    def name(self) -> str:
        inner = self.part(self.number())
        try:
            return self._data[inner.at : inner.end].decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("a name of a WebAssembly module that is no text") from error

    def value_type(self) -> str:
        found = _TYPES.get(self.byte())
        if found is None:
            raise ProtocolError("a function with types beyond numbers, vectors and references: compile it without them")
        return found

    def function_type(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self.byte() != 0x60:
            raise ProtocolError("a type that is no function's (garbage collection?): compile the module without it")
        return tuple(self.many(self.value_type)), tuple(self.many(self.value_type))

    def limits(self) -> None:
        flags = self.byte()
        self.number()
        if flags & 1:
            self.number()
        if flags & 8:
            self.number()

    def import_(self) -> tuple[str, str, int, int]:
        home, name, kind = self.name(), self.name(), self.byte()
        index = 0
        if kind == 0:
            index = self.number()
        elif kind == 1:
            self.byte()
            self.limits()
        elif kind == 2:
            self.limits()
        elif kind == 3:
            self.byte()
            self.byte()
        elif kind == 4:
            self.byte()
            self.number()
        else:
            raise ProtocolError(f"an import of unknown kind {kind}")
        return home, name, kind, index

    def export(self) -> tuple[str, int, int]:
        return self.name(), self.byte(), self.number()
