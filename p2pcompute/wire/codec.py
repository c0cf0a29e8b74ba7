"""Strict msgpack: from bytes to checked dataclasses and back.

A message or record is a frozen dataclass whose fields are annotated with what may stand there, e.g.
`reason: Annotated[str, Text(256)]`. `Schema(cls)` compiles the annotations once. Decoding refuses what is too long, too deep, of the
wrong type or missing; a field that is not known goes into `unknown` where the class has such a field, else it is
dropped. Optional fields are those with a default. Refuses to know: what any message means.

A peer's bytes can cause only ProtocolError here (fuzzed in tests/fuzz).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError

M = TypeVar("M")


class Check(abc.ABC):
    """Says whether a decoded value may stand in a field, and turns it into the field's Python form and back."""

    @abc.abstractmethod
    def load(self, value: Any) -> Any:
        """The field's value. Raises ProtocolError."""

    def dump(self, value: Any) -> Any:
        """What msgpack packs."""
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Text(Check):
    """A str of at most `chars_max` characters."""

    chars_max: int = limits.TEXT_CHARS_MAX

    def load(self, value: Any) -> str:
        if type(value) is not str or len(value) > self.chars_max:
            raise ProtocolError(f"expected a text of at most {self.chars_max} characters, got {_shown(value)}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Raw(Check):
    """Bytes, from `bytes_min` to `bytes_max` of them."""

    bytes_max: int
    bytes_min: int = 0

    def load(self, value: Any) -> bytes:
        if type(value) is not bytes or not self.bytes_min <= len(value) <= self.bytes_max:
            raise ProtocolError(f"expected {self.bytes_min} to {self.bytes_max} bytes, got {_shown(value)}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Whole(Check):
    """An int within bounds."""

    low: int = 0
    high: int = (1 << 63) - 1

    def load(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise ProtocolError(f"expected a whole number from {self.low} to {self.high}, got {_shown(value)}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Real(Check):
    """A finite float (or int) within bounds."""

    low: float = -1e18
    high: float = 1e18

    def load(self, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not self.low <= value <= self.high:
            raise ProtocolError(f"expected a number from {self.low} to {self.high}, got {_shown(value)}")
        return float(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Truth(Check):
    """True or False."""

    def load(self, value: Any) -> bool:
        if type(value) is not bool:
            raise ProtocolError(f"expected true or false, got {_shown(value)}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Many(Check):
    """A list of at most `items_max` members, as a tuple."""

    item: Check
    items_max: int

    def load(self, value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > self.items_max:
            raise ProtocolError(f"expected a list of at most {self.items_max}, got {_shown(value)}")
        load = self.item.load
        return tuple([load(member) for member in value])

    def dump(self, value: Any) -> list[Any]:
        dump = self.item.dump
        return [dump(member) for member in value]


@dataclasses.dataclass(frozen=True, slots=True)
class Row(Check):
    """A list of fixed length, one check a place, as a tuple: the lean form for the hot path."""

    places: tuple[Check, ...]

    def load(self, value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(self.places):
            raise ProtocolError(f"expected a row of {len(self.places)}, got {_shown(value)}")
        return tuple([check.load(member) for check, member in zip(self.places, value, strict=True)])

    def dump(self, value: Any) -> list[Any]:
        return [check.dump(member) for check, member in zip(self.places, value, strict=True)]


@dataclasses.dataclass(frozen=True, slots=True)
class Maybe(Check):
    """The inner check's value, or None."""

    inner: Check

    def load(self, value: Any) -> Any:
        return None if value is None else self.inner.load(value)

    def dump(self, value: Any) -> Any:
        return None if value is None else self.inner.dump(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Inner(Check):
    """A nested dataclass, through its own schema."""

    schema: Schema[Any]

    def load(self, value: Any) -> Any:
        return self.schema.from_fields(value)

    def dump(self, value: Any) -> Any:
        return self.schema.to_fields(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Converted(Check):
    """The inner check's value through a pair of functions, for enums, addresses and sets."""

    inner: Check
    from_plain: Callable[[Any], Any]
    to_plain: Callable[[Any], Any]

    def load(self, value: Any) -> Any:
        plain = self.inner.load(value)
        try:
            return self.from_plain(plain)
        except ValueError as error:
            raise ProtocolError(f"{_shown(plain)}: {error}") from error

    def dump(self, value: Any) -> Any:
        return self.inner.dump(self.to_plain(value))


@dataclasses.dataclass(frozen=True, slots=True)
class Plain(Check):
    """Any msgpack value within the decoder's limits: for documents whose meaning lies elsewhere."""

    def load(self, value: Any) -> Any:
        return value


class Schema(Generic[M]):
    """The compiled form of a message class: `to_fields`, `from_fields`."""

    def __init__(self, cls: type[M]) -> None:
        self.cls = cls
        checks: dict[str, Check] = {}
        hints = get_type_hints(cls, include_extras=True)
        members = dataclasses.fields(cls)  # type: ignore[arg-type]
        for member in members:
            if member.name == "unknown":
                continue
            hint = hints[member.name]
            found = [extra for extra in get_args(hint)[1:] if isinstance(extra, Check)]
            if get_origin(hint) is not Annotated or len(found) != 1:
                raise TypeError(f"{cls.__name__}.{member.name} says not what may stand there")
            checks[member.name] = found[0]
        #: Field name to check, in order of definition.
        self.checks = checks
        #: Fields that must be present.
        self.required = frozenset(
            member.name
            for member in members
            if member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING
        )
        #: What a field that is missing means; it is left out where it says nothing else. Never changes once it is released.
        self.defaults = {
            member.name: member.default
            for member in members
            if member.name in checks and member.default is not dataclasses.MISSING
        }
        #: Whether fields of later versions are kept.
        self.keeps_unknown = any(member.name == "unknown" for member in members)

    def to_fields(self, message: M) -> dict[str, Any]:
        """The msgpack map of `message`, without what it would mean anyway; fields of later versions stand beside the known ones."""
        fields: dict[str, Any] = {}
        for name, check in self.checks.items():
            value = getattr(message, name)
            if name not in self.defaults or value != self.defaults[name]:
                fields[name] = check.dump(value)
        if self.keeps_unknown:
            fields.update({name: value for name, value in message.unknown.items() if name not in fields})  # type: ignore[attr-defined]
        return fields

    def from_fields(self, fields: Any) -> M:
        """The message that `fields` spells. Raises ProtocolError naming the field."""
        name = self.cls.__name__
        if type(fields) is not dict:
            raise ProtocolError(f"{name}: expected a map, got {_shown(fields)}")
        values: dict[str, Any] = {}
        for field, check in self.checks.items():
            if field not in fields:
                if field in self.required:
                    raise ProtocolError(f"{name}: field {field!r} is missing")
                continue
            try:
                values[field] = check.load(fields[field])
            except ProtocolError as error:
                raise ProtocolError(f"{name}.{field}: {error.reason_text}") from error
        if self.keeps_unknown:
            values["unknown"] = {
                key: value for key, value in fields.items() if type(key) is str and key not in self.checks
            }
        try:
            return self.cls(**values)
        except ValueError as error:
            raise ProtocolError(f"{name}: {error}") from error


def pack(value: Any) -> bytes:
    """`value` (of msgpack's own types) as bytes."""
    return msgpack.packb(value, use_bin_type=True)


def unpack(data: bytes | bytearray | memoryview, *, bytes_max: int = limits.FRAME_BYTES_MAX) -> Any:
    """The one msgpack value in `data`, of plain types only. Raises ProtocolError.

    Refuses more than `bytes_max` bytes, extension types, keys that are not texts or numbers, and nesting beyond
    `limits.DECODE_DEPTH_MAX`, which is measured before anything recursive is built.
    """
    if len(data) > bytes_max:
        raise ProtocolError(f"{len(data)} bytes where at most {bytes_max} may stand")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            ext_hook=_no_extension,
            max_str_len=bytes_max,
            max_bin_len=bytes_max,
            max_array_len=limits.DECODE_ITEMS_MAX,
            max_map_len=limits.DECODE_ITEMS_MAX,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise ProtocolError(f"not a valid message: {type(error).__name__}: {str(error)[:200]}") from error
    _check_depth(value)
    return value


def _no_extension(code: int, data: bytes) -> Any:
    raise ProtocolError(f"extension type {code} in a message")


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, (list, dict)) else []
    for _ in range(limits.DECODE_DEPTH_MAX):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
    if level:
        raise ProtocolError(f"nested deeper than {limits.DECODE_DEPTH_MAX}")


def _shown(value: Any) -> str:
    if isinstance(value, (bytes, str, list, dict, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]}"
