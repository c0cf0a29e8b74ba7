"""Python values as typed msgpack: what arguments and results travel as.

Every type comes back as itself: the C packer writes what msgpack knows, a hook writes everything else as an extension whose
content is again msgpack. Classes are named by (module, qualified name) and found through a `ClassResolver`, which knows only the
classes of one program: decoding never imports anything and never runs a stranger's code. What no extension covers becomes a pickle, which only
a worker, or an allow-list, opens.

Bytes from a peer can cause only ProtocolError and ResultRefusedError here, and cost no more than a constant times their length: nothing
is made as long as the bytes merely claim. Refuses to know where bytes come from.
"""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import pickle
import re
import sys
import traceback
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Protocol

import msgpack

from p2pcompute.execution.pickles import ALLOW, REFUSE, PicklePolicy, allow_list, class_in, open_pickle
from p2pcompute.model import limits
from p2pcompute.model.errors import BlobMissingError, NotSerializableError, ProtocolError, ResultRefusedError

__all__ = [
    "ALLOW",
    "REFUSE",
    "ClassNames",
    "ClassResolver",
    "Decoded",
    "Encoded",
    "Failure",
    "Handle",
    "HandleSource",
    "Opaque",
    "PicklePolicy",
    "allow_list",
    "classes_in",
    "decode",
    "decode_failure",
    "encode",
    "encode_failure",
]

#: Nesting of extensions; each level costs the C decoder 40 KiB of stack, of which a thread may have only 8 MiB.
DEPTH_MAX = 100
#: An extension inside extensions is copied once a level: in all at most so many times the value's length, and so many bytes more.
COPIES_MAX = 16
COPIED_BYTES_FREE = 64 << 20
#: Above this, claimed lengths are compared with the bytes that are there before lists of such lengths are made.
_CHECKED_BYTES = 1_024
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,3}", re.ASCII)
#: NumPy's types whose bytes are their value; nothing else is passed on to NumPy, whose own reader of texts takes whole programs.
_DTYPE = re.compile(r"[<>|=]?(?:[?biufcSUV][0-9]{0,9}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?)", re.ASCII)

(
    BIG_INT, TUPLE, SET, FROZENSET, COMPLEX, DECIMAL, FRACTION, DATETIME, DATE, TIME, TIMEDELTA, TIMEZONE, ZONE, UUID, PATH, RANGE,
    SLICE, ELLIPSIS, ENUM, NAMED_TUPLE, INSTANCE, COUNTER, ORDERED_DICT, DEFAULT_DICT, DEQUE, ARRAY, NDARRAY, NUMPY_SCALAR, EXCEPTION,
    BYTEARRAY, PATTERN, CLASS, ENCODED, HANDLE, PICKLE, NOT_IMPLEMENTED, DTYPE, OBJECT_ARRAY,
) = range(1, 39)  # fmt: skip


class ClassNames(Protocol):
    """Says under which name a class travels."""

    def name_of(self, cls: type) -> tuple[str, str] | None:
        """(module, qualified name) as the other side knows it, or None for a class that is not of the program."""

    def holds(self, module: str) -> bool:
        """Whether the module of that name here is part of the program."""


class ClassResolver:
    """The classes of one program: by name for decoding, by class for encoding.

    `modules`: name on the wire to name in `sys.modules` here (`__main__` has another name in a worker). Never imports, and looks
    only into dictionaries of modules and classes, since the names come from peers.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = dict(modules)
        #: The other way round; where a module has two names on the wire, the first is its own.
        self._wire_names = {here: wire for wire, here in reversed(self._modules.items())}

    @classmethod
    def for_modules(cls, names: Iterable[str]) -> ClassResolver:
        """The classes of the modules called `names`, which have the same name everywhere."""
        return cls({name: name for name in names})

    def resolve(self, module: str, qualname: str) -> type | None:
        """The class of that name if it is one of this program, else None."""
        here = self._modules.get(module)
        found = None if here is None else class_in(here, qualname)
        return found if found is not None and found.__module__ == here else None

    def name_of(self, cls: type) -> tuple[str, str] | None:
        """(module, qualified name) on the wire, or None where the class is not of this program or not found under its name."""
        wire = self._wire_names.get(cls.__module__)
        if wire is None or self.resolve(wire, cls.__qualname__) is not cls:
            return None
        return (wire, cls.__qualname__)

    def holds(self, module: str) -> bool:
        """Whether the module of that name here is part of the program."""
        return module in self._wire_names


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value of a class that is not known here; encodes to the same bytes again."""

    code: int
    data: bytes
    name: tuple[str, str] = ("", "")

    def __repr__(self) -> str:
        return f"<{'.'.join(self.name)}, not known here>"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value that is encoded already: `encode` puts it in as it is, `decode` gives back the value."""

    data: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Handle:
    """Data that was put at a peer: where a function gets one as an argument it sees the value itself."""

    blob: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a source of handles gives where it has the value itself and not only its bytes."""

    value: Any


Bytes = bytes | bytearray | memoryview

#: Gives what is behind a handle: its bytes, or the value. May raise BlobMissingError.
HandleSource = Callable[[Handle], Bytes | Decoded]


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that came back. `exception`: itself where its class is known here, else None."""

    type_name: str
    message: str
    traceback: str
    exception: BaseException | None


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode(
    value: object,
    *,
    classes: ClassNames | None = None,
    allow_pickle: bool = True,
    on_handle: Callable[[Handle], None] | None = None,
) -> bytes:
    """`value` as bytes. Raises NotSerializableError naming the part that cannot travel."""
    return _Encoder(classes, allow_pickle, on_handle).encode(value)


class _Encoder:
    def __init__(
        self, classes: ClassNames | None, allow_pickle: bool, on_handle: Callable[[Handle], None] | None
    ) -> None:
        self._classes = classes
        self._allow_pickle = allow_pickle
        self._on_handle = on_handle
        self._depth = 0
        #: Bytes of all extensions so far: what the decoder will copy.
        self._copied = 0
        #: Objects being encoded, by identity: one that turns up inside itself is a cycle.
        self._open: set[int] = set()
        #: What `classes` answered.
        self._names: dict[type, tuple[str, str] | None] = {}

    def encode(self, value: object) -> bytes:
        try:
            data = self._pack(value)
        except NotSerializableError as error:
            path = _path_of(value, self, "value")
            raise NotSerializableError(f"{path or 'the value'} cannot travel: {error}") from error
        except (ValueError, RecursionError, OverflowError) as error:
            raise NotSerializableError(f"the value is nested too deep or contains itself: {error}") from error
        if self._copied > COPIED_BYTES_FREE + COPIES_MAX * len(data):
            raise NotSerializableError("large parts of the value are nested too deep: pass them flat, or as arrays")
        return data

    def _pack(self, value: object) -> bytes:
        data: bytes = msgpack.packb(
            self._exact(value), default=self._hook, strict_types=True, use_bin_type=True, unicode_errors="surrogatepass"
        )
        return data

    def _exact(self, value: Any) -> Any:
        """`value` with each bytearray in its lists and dicts as an extension: msgpack would write it like bytes."""
        cls = type(value)
        if cls is bytearray:
            return msgpack.ExtType(BYTEARRAY, bytes(value))
        if cls is not list and cls is not dict:
            return value
        members = value if cls is list else value.values()
        kinds = set(map(type, members))
        if kinds.isdisjoint(_LOOKED_INTO):
            return value
        if self._depth >= DEPTH_MAX or id(value) in self._open:
            raise NotSerializableError("it contains itself, or is nested too deep")
        self._depth += 1
        self._open.add(id(value))
        try:
            exact = [self._exact(member) for member in members]
        finally:
            self._open.discard(id(value))
            self._depth -= 1
        return exact if cls is list else dict(zip(value, exact, strict=True))

    def _hook(self, value: Any) -> msgpack.ExtType:
        if self._depth >= DEPTH_MAX or id(value) in self._open:
            raise NotSerializableError("it contains itself, or is nested too deep")
        self._depth += 1
        self._open.add(id(value))
        try:
            extension = self._extension(value)
        finally:
            self._open.discard(id(value))
            self._depth -= 1
        self._copied += len(extension.data)
        return extension

    def _ext(self, code: int, content: Any) -> msgpack.ExtType:
        return msgpack.ExtType(code, self._pack(content))

    def _extension(self, value: Any) -> msgpack.ExtType:
        cls = type(value)
        if cls is set or cls is frozenset:
            return self._ext(SET if cls is set else FROZENSET, self._ordered(value))
        simple = _SIMPLE.get(cls)
        if simple is not None:
            code, to_plain = simple
            return self._ext(code, to_plain(value))
        if cls is Encoded:
            return msgpack.ExtType(ENCODED, bytes(value.data))
        if cls is Handle:
            if self._on_handle is not None:
                self._on_handle(value)
            return self._ext(HANDLE, [value.blob, value.size_bytes])
        if cls is Opaque:
            return msgpack.ExtType(value.code, value.data)
        if isinstance(value, pathlib.PurePath) and cls.__module__.startswith("pathlib"):
            return self._ext(PATH, [cls.__name__, str(value)])
        if isinstance(value, type):
            return self._class(value)
        if cls.__module__ == "numpy" or cls.__module__.startswith("numpy."):
            made = _numpy_extension(self, value)
            if made is not None:
                return made
        if isinstance(value, enum.Enum):
            name = self._name_of(cls)
            if name is not None:
                single = value.name if value.name in cls.__members__ else None
                return self._ext(ENUM, [*name, single, None if single else value.value])
        if isinstance(value, BaseException):
            made = self._exception(value)
            if made is not None:
                return made
        name = self._name_of(cls)
        if name is not None:
            if isinstance(value, tuple) and hasattr(cls, "_fields"):
                return self._ext(NAMED_TUPLE, [*name, list(value)])
            made = self._instance(value, name)
            if made is not None:
                return made
        return self._pickle(value)

    def _ordered(self, members: Iterable[Any]) -> list[Any]:
        """Members of a set in an order that is the same in every process: equal values have equal bytes."""
        kinds = set(map(type, members))
        if len(kinds) <= 1 and kinds <= {int, str, bytes}:
            return sorted(members)
        return sorted(members, key=self._pack)

    def _name_of(self, cls: type) -> tuple[str, str] | None:
        if self._classes is None:
            return None
        if cls not in self._names:
            self._names[cls] = self._classes.name_of(cls)
        return self._names[cls]

    def _class(self, cls: type) -> msgpack.ExtType:
        if cls.__module__ == "builtins":
            return self._ext(CLASS, ["builtins", cls.__qualname__])
        name = self._name_of(cls)
        if name is None:
            return self._pickle(cls)
        return self._ext(CLASS, list(name))

    def _instance(self, value: Any, name: tuple[str, str]) -> msgpack.ExtType | None:
        """An instance of a class of the program: its base value, if it extends a builtin, and its state."""
        cls = type(value)
        if not isinstance(value, BaseException) and not _is_builtin_reduce(cls):
            return None
        base = next((found for found in _BASES if isinstance(value, found)), None)
        content = None
        if base is not None:
            content = _BASES[base](value)
        getstate = getattr(cls, "__getstate__", None)
        if (
            getstate is not None
            and getstate is not getattr(object, "__getstate__", None)
            and not dataclasses.is_dataclass(cls)
        ):
            return self._ext(INSTANCE, [*name, content, 1, value.__getstate__()])
        state = dict(getattr(value, "__dict__", {}))
        for slot in _slots_of(cls):
            if hasattr(value, slot):
                state[slot] = getattr(value, slot)
        return self._ext(INSTANCE, [*name, content, 0, state])

    def _exception(self, error: BaseException) -> msgpack.ExtType | None:
        cls = type(error)
        name: tuple[str, str] | None = (cls.__module__, cls.__qualname__)
        if cls.__module__ != "builtins":
            name = self._name_of(cls)
            if name is None and class_in(cls.__module__, cls.__qualname__) is cls and not self._is_unknown_there(cls):
                name = (cls.__module__, cls.__qualname__)
        if name is None:
            return None
        # What Python's own class says about itself: OSError keeps its file name outside of `args`.
        base: Any = _python_base(cls)
        reduced = base.__reduce__(error)
        args, state = reduced[1], dict(reduced[2]) if len(reduced) > 2 and reduced[2] else {}
        notes = [str(note) for note in state.pop("__notes__", [])]
        cause = None
        if error.__cause__ is not None:
            with contextlib.suppress(NotSerializableError):
                cause = Encoded(self._pack(error.__cause__))
        return self._ext(EXCEPTION, [*name, list(args), state, notes, cause])

    def _is_unknown_there(self, thing: Any) -> bool:
        """Whether `thing` is of a local module that is not part of the program."""
        module = getattr(thing, "__module__", None)
        if self._classes is None or not isinstance(module, str) or self._classes.holds(module):
            return False
        from p2pcompute.execution import imports

        return module == "__main__" or imports.find(module).local

    def _pickle(self, value: Any) -> msgpack.ExtType:
        kind = value if isinstance(value, (type, FunctionType)) else type(value)
        if "<locals>" in kind.__qualname__ or kind.__name__ == "<lambda>":
            raise NotSerializableError(
                f"{kind.__qualname__} is made inside a function, where nobody else can find it: define it at the top of a module"
            )
        if self._is_unknown_there(kind):
            raise NotSerializableError(
                f"{_type_text(kind)} is of a module that the function's module does not import, so peers do not have it: import "
                "it there"
            )
        if not self._allow_pickle:
            raise NotSerializableError(f"a {_type_text(type(value))} has no typed form")
        try:
            return msgpack.ExtType(PICKLE, pickle.dumps(value, 5))
        except Exception as error:
            known = _NEVER.get(f"{type(value).__module__}.{type(value).__qualname__}", _type_text(type(value)))
            raise NotSerializableError(f"a {known} cannot be sent ({error})") from error


#: Members of lists and dicts that make the encoder look into them before msgpack does.
_LOOKED_INTO = frozenset({bytearray, list, dict})
#: What people call things that exist on one machine only.
_NEVER = {
    "_thread.lock": "thread lock",
    "_thread.RLock": "thread lock",
    "_io.TextIOWrapper": "open file",
    "_io.BufferedReader": "open file",
    "_io.BufferedWriter": "open file",
    "builtins.generator": "generator",
    "builtins.coroutine": "coroutine",
    "builtins.module": "module",
    "socket.socket": "socket",
    "sqlite3.Connection": "database connection",
}


def _python_base(cls: type) -> type:
    """The class of Python's own from which the exception class `cls` derives."""
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _type_text(cls: type | FunctionType) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _is_builtin_reduce(cls: type) -> bool:
    """Whether reducing is inherited from a builtin that `_BASES` covers."""
    owner = next((base for base in cls.__mro__ if "__reduce__" in vars(base) or "__reduce_ex__" in vars(base)), object)
    return owner is object or owner in _BASES or owner.__module__ == "builtins"


def _slots_of(cls: type) -> list[str]:
    names: list[str] = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__"):
                mangled = (
                    f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
                )
                names.append(mangled)
    return names


#: Exact types with a simple form: code and function to what is packed.
_SIMPLE: dict[type, tuple[int, Callable[[Any], Any]]] = {
    int: (BIG_INT, lambda v: v.to_bytes((v.bit_length() + 8) // 8, "big", signed=True)),
    tuple: (TUPLE, list),
    complex: (COMPLEX, lambda v: [v.real, v.imag]),
    decimal.Decimal: (DECIMAL, str),
    fractions.Fraction: (FRACTION, lambda v: _fraction_plain(v)),
    datetime.datetime: (
        DATETIME,
        lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo, v.fold],
    ),
    datetime.date: (DATE, lambda v: [v.year, v.month, v.day]),
    datetime.time: (TIME, lambda v: [v.hour, v.minute, v.second, v.microsecond, v.tzinfo, v.fold]),
    datetime.timedelta: (TIMEDELTA, lambda v: [v.days, v.seconds, v.microseconds]),
    datetime.timezone: (TIMEZONE, lambda v: [v.utcoffset(None), v.tzname(None)]),
    zoneinfo.ZoneInfo: (ZONE, lambda v: _zone_name(v)),
    uuid.UUID: (UUID, lambda v: v.bytes),
    range: (RANGE, lambda v: [v.start, v.stop, v.step]),
    slice: (SLICE, lambda v: [v.start, v.stop, v.step]),
    type(...): (ELLIPSIS, lambda _: None),
    type(NotImplemented): (NOT_IMPLEMENTED, lambda _: None),
    collections.Counter: (COUNTER, lambda v: dict(v)),
    collections.OrderedDict: (ORDERED_DICT, lambda v: dict(v)),
    collections.defaultdict: (DEFAULT_DICT, lambda v: [v.default_factory, dict(v)]),
    collections.deque: (DEQUE, lambda v: [v.maxlen, list(v)]),
    array.array: (ARRAY, lambda v: [v.typecode, v.itemsize, v.tobytes(), sys.byteorder]),
    re.Pattern: (PATTERN, lambda v: [v.pattern, v.flags]),
}

#: Builtins that classes of a program may extend: what of the value is packed beside its state.
_BASES: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: int,
    float: float,
    str: lambda v: str.__str__(v),
    bytes: lambda v: bytes(memoryview(v)),
    bytearray: lambda v: bytearray(memoryview(v)),
    tuple: lambda v: tuple(tuple.__iter__(v)),
    list: lambda v: list(list.__iter__(v)),
    collections.OrderedDict: lambda v: dict(dict.items(v)),
    dict: lambda v: dict(dict.items(v)),
    set: lambda v: list(set.__iter__(v)),
    frozenset: lambda v: list(frozenset.__iter__(v)),
    complex: complex,
}


def _numpy_extension(encoder: _Encoder, value: Any) -> msgpack.ExtType | None:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.dtype):
        return None if value.hasobject else encoder._ext(DTYPE, _dtype_plain(value))
    if type(value) is numpy.ndarray:
        if value.dtype.hasobject:
            return encoder._ext(OBJECT_ARRAY, [list(value.shape), list(value.flat)]) if value.dtype == object else None
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        head = msgpack.packb([_dtype_plain(value.dtype), list(value.shape), order])
        return msgpack.ExtType(NDARRAY, b"".join((len(head).to_bytes(4, "big"), head, _memory_of(numpy, value, order))))
    if isinstance(value, numpy.generic) and not value.dtype.hasobject:
        return encoder._ext(NUMPY_SCALAR, [_dtype_plain(value.dtype), value.tobytes()])
    return None


def _memory_of(numpy: Any, value: Any, order: str) -> Any:
    """The elements as one run of bytes; no copy where they lie like that already."""
    flat = (value.T if order == "F" else numpy.ascontiguousarray(value)).reshape(-1)
    return memoryview(flat.view(numpy.uint8)) if flat.size and flat.dtype.itemsize else b""


def _dtype_plain(dtype: Any) -> Any:
    if dtype.names is None and dtype.subdtype is None:
        return dtype.str
    numpy = sys.modules["numpy"]
    return numpy.lib.format.dtype_to_descr(dtype)


def _path_of(value: Any, encoder: _Encoder, name: str, depth: int = 0) -> str:
    """Where inside `value` the part is that cannot travel, as Python would write it."""
    parts: list[tuple[str, Any]] = []
    if depth < 20:
        if isinstance(value, Mapping):
            parts = [(f"{name}[{key!r}]", item) for key, item in value.items()]
        elif isinstance(value, (list, tuple, collections.deque)):
            parts = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
        elif isinstance(value, (set, frozenset)):
            parts = [(f"a member of {name}", item) for item in value]
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            parts = [(f"{name}.{key}", item) for key, item in vars(value).items()]
    for path, item in parts:
        try:
            _Encoder(encoder._classes, encoder._allow_pickle, None)._pack(item)
        except (NotSerializableError, ValueError, RecursionError):
            return _path_of(item, encoder, path, depth + 1)
    return name


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(
    data: bytes | bytearray | memoryview,
    *,
    classes: ClassResolver | None = None,
    pickles: PicklePolicy = REFUSE,
    handles: HandleSource | None = None,
) -> Any:
    """The value in `data`. Raises ProtocolError for bytes that no encoder writes, ResultRefusedError for pickles not allowed.

    `handles` gives what is behind a handle, and the value takes its place; without it handles stay handles. The BlobMissingError that
    it raises comes through.
    """
    return _Decoder(classes, pickles, handles).decode(data)


class _Decoder:
    def __init__(
        self,
        classes: ClassResolver | None,
        pickles: PicklePolicy,
        handles: HandleSource | None,
    ) -> None:
        self._classes = classes
        self._pickles = pickles
        self._handles = handles
        self._depth = 0
        self._copies_left = 0

    def decode(self, data: bytes | bytearray | memoryview) -> Any:
        self._copies_left = COPIED_BYTES_FREE + COPIES_MAX * len(data)
        try:
            return self._unpack(data)
        except (ProtocolError, ResultRefusedError, BlobMissingError, MemoryError):
            raise
        except Exception as error:
            raise ProtocolError(f"not an encoded value: {type(error).__name__}: {str(error)[:200]}") from error

    def _unpack(self, data: bytes | bytearray | memoryview) -> Any:
        size = len(data)
        lengths: dict[str, Any] = {f"max_{kind}_len": size for kind in ("str", "bin", "ext", "array", "map")}
        if size > _CHECKED_BYTES:
            # The decoder makes each list as long as is claimed before it looks at what follows; skipping makes nothing.
            skipper = msgpack.Unpacker(max_buffer_size=size, **lengths)
            skipper.feed(data)
            skipper.skip()
            del skipper
        return msgpack.unpackb(
            data, ext_hook=self._hook, raw=False, strict_map_key=False, unicode_errors="surrogatepass", **lengths
        )

    def _hook(self, code: int, data: bytes) -> Any:
        self._copies_left -= len(data)
        if self._depth >= DEPTH_MAX or self._copies_left < 0:
            raise ProtocolError("a value is nested too deep")
        self._depth += 1
        try:
            return self._extension(code, data)
        finally:
            self._depth -= 1

    def _extension(self, code: int, data: bytes) -> Any:
        if code == BYTEARRAY:
            return bytearray(data)
        if code == ENCODED:
            return self._unpack(data)
        if code == PICKLE:
            return open_pickle(data, self._pickles, self._classes)
        if code == NDARRAY:
            return _array_of(data)
        if code == PATTERN and not self._pickles.allowed:
            raise ResultRefusedError(
                "the value contains a compiled regular expression, and compiling a stranger's may take for ever: return its text"
            )
        content = self._unpack(data)
        simple = _FROM_PLAIN.get(code)
        if simple is not None:
            return simple(_of(content, _PLAIN_TYPES.get(code, list)))
        if code == DTYPE:
            return _dtype(content)
        _of(content, list)
        if code in _CLASSED:
            return self._classed(code, data, content)
        if code == HANDLE:
            handle = Handle(_of(content[0], bytes), _of(content[1], int))
            if self._handles is None:
                return handle
            found = self._handles(handle)
            return found.value if isinstance(found, Decoded) else self._unpack(found)
        if code in (OBJECT_ARRAY, NUMPY_SCALAR):
            return _numpy_value(code, content)
        raise ProtocolError(f"a value of unknown kind {code}: was it made by a newer version?")

    def _classed(self, code: int, data: bytes, content: list[Any]) -> Any:
        module, qualname = _of(content[0], str), _of(content[1], str)
        cls: type | None = None
        if module == "builtins" and code in (CLASS, EXCEPTION):
            found = getattr(sys.modules["builtins"], qualname, None)
            cls = found if isinstance(found, type) else None
        elif self._classes is not None:
            cls = self._classes.resolve(module, qualname)
            if cls is None and code == EXCEPTION:
                cls = _loaded_exception(module, qualname)
        if cls is None and self._classes is not None:
            raise ResultRefusedError(
                f"the value holds an instance of {module}.{qualname}"[:300]
                + ", which is not a class of this program or is not "
                "imported here"
            )
        if cls is None:
            return Opaque(code, data, (module, qualname))
        if code == CLASS:
            return cls
        if code == ENUM and issubclass(cls, enum.Enum):
            return cls.__members__[content[2]] if content[2] is not None else cls(content[3])
        if code == NAMED_TUPLE and issubclass(cls, tuple):
            if len(_of(content[2], list)) != len(getattr(cls, "_fields", ())):
                raise ProtocolError(f"a {qualname} with {len(content[2])} fields")
            return tuple.__new__(cls, content[2])
        if code == EXCEPTION and issubclass(cls, BaseException):
            return _exception_of(cls, content)
        if code == INSTANCE and not issubclass(cls, (BaseException, enum.Enum)):
            return _instance_of(cls, content)
        raise ProtocolError(f"{module}.{qualname} is not of the kind that the value says")


def _of(value: Any, kind: type) -> Any:
    """`value` if it is exactly a `kind`: of a claimed range, `tuple` or `list.extend` would make a list of any length."""
    if type(value) is not kind:
        raise ProtocolError(f"a {type(value).__name__} where a {kind.__name__} must stand")
    return value


_CLASSED = frozenset({ENUM, NAMED_TUPLE, INSTANCE, EXCEPTION, CLASS})


def _datetime(content: list[Any]) -> datetime.datetime:
    year, month, day, hour, minute, second, microsecond, zone, fold = content
    return datetime.datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _time(content: list[Any]) -> datetime.time:
    hour, minute, second, microsecond, zone, fold = content
    return datetime.time(hour, minute, second, microsecond, zone, fold=fold)


def _timezone(content: list[Any]) -> datetime.timezone:
    offset, name = content
    plain = datetime.timezone(offset)
    if plain.tzname(None) == name:
        return datetime.UTC if offset == datetime.timedelta(0) and name == "UTC" else plain
    return datetime.timezone(offset, name)


def _path(content: list[Any]) -> pathlib.PurePath:
    name, text = content
    pure = {"PureWindowsPath": pathlib.PureWindowsPath, "PurePosixPath": pathlib.PurePosixPath}
    # A path of the other kind of system keeps its meaning as a pure one.
    if name in pure:
        return pure[name](text)
    if name == "WindowsPath" and sys.platform != "win32":
        return pathlib.PureWindowsPath(text)
    if name == "PosixPath" and sys.platform == "win32":
        return pathlib.PurePosixPath(text)
    return pathlib.Path(text)


def _array(content: list[Any]) -> array.array[Any]:
    typecode, item_bytes, data, order = content
    made: array.array[Any] = array.array(typecode)
    if made.itemsize != item_bytes:
        raise ProtocolError(f"array items of type {typecode!r} have {made.itemsize} bytes here and {item_bytes} there")
    made.frombytes(data)
    if order != sys.byteorder:
        made.byteswap()
    return made


def _default_dict(content: list[Any]) -> Any:
    factory = content[0]
    if factory is not None and not isinstance(factory, type):
        raise ProtocolError("the factory of a defaultdict is a class")
    return collections.defaultdict(factory, _of(content[1], dict))


def _fraction_plain(value: fractions.Fraction) -> list[int]:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _FRACTION_BITS_CHECKED:
        raise NotSerializableError(f"a fraction of more than {_FRACTION_BITS_CHECKED} bits: pass its two numbers")
    return [value.numerator, value.denominator]


def _zone_name(zone: zoneinfo.ZoneInfo) -> str:
    if zone.key is None or not _ZONE_NAME.fullmatch(zone.key):
        raise NotSerializableError("a time zone without a name that others know")
    return zone.key


def _fraction(content: list[Any]) -> fractions.Fraction:
    numerator, denominator = content
    if type(numerator) is not int or type(denominator) is not int or denominator <= 0:
        raise ProtocolError("a fraction of two whole numbers, the second above 0")
    if max(numerator.bit_length(), denominator.bit_length()) > _FRACTION_BITS_CHECKED:
        raise ProtocolError(f"a fraction of more than {_FRACTION_BITS_CHECKED} bits")
    return fractions.Fraction(numerator, denominator)


def _zone(key: str) -> datetime.tzinfo:
    # A name is looked up as a path and as a package.
    if not _ZONE_NAME.fullmatch(key):
        raise ProtocolError("no time zone has such a name")
    try:
        return zoneinfo.ZoneInfo(key)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise ResultRefusedError(f"the time zone {key!r:.80} is not known on this machine: install tzdata") from error


def _pattern(content: list[Any]) -> re.Pattern[Any]:
    text, flags = content
    if len(text) > _PATTERN_CHARS_MAX:
        raise ProtocolError(f"a regular expression of {len(text)} characters")
    return re.compile(text, flags & ~int(re.DEBUG))


#: Reducing a fraction takes the square of its size: at this one 5 ms.
_FRACTION_BITS_CHECKED = 1 << 16
_PATTERN_CHARS_MAX = 65_536

#: What was packed where it is not a list.
_PLAIN_TYPES: dict[int, type] = {
    BIG_INT: bytes, DECIMAL: str, ZONE: str, UUID: bytes, ELLIPSIS: type(None), NOT_IMPLEMENTED: type(None), COUNTER: dict,
    ORDERED_DICT: dict,
}  # fmt: skip

#: Code to function from what was packed, whose type has been checked.
_FROM_PLAIN: dict[int, Callable[[Any], Any]] = {
    BIG_INT: lambda c: int.from_bytes(c, "big", signed=True),
    TUPLE: tuple,
    SET: set,
    FROZENSET: frozenset,
    COMPLEX: lambda c: complex(c[0], c[1]),
    DECIMAL: decimal.Decimal,
    FRACTION: _fraction,
    DATETIME: _datetime,
    DATE: lambda c: datetime.date(*c),
    TIME: _time,
    TIMEDELTA: lambda c: datetime.timedelta(*c),
    TIMEZONE: _timezone,
    ZONE: _zone,
    UUID: lambda c: uuid.UUID(bytes=c),
    PATH: _path,
    RANGE: lambda c: range(*c),
    SLICE: lambda c: slice(*c),
    ELLIPSIS: lambda _: ...,
    NOT_IMPLEMENTED: lambda _: NotImplemented,
    COUNTER: lambda c: _filled(collections.Counter(), c),
    ORDERED_DICT: collections.OrderedDict,
    DEFAULT_DICT: _default_dict,
    DEQUE: lambda c: collections.deque(_of(c[1], list), c[0]),
    ARRAY: _array,
    PATTERN: _pattern,
}


def _filled(counter: collections.Counter[Any], content: dict[Any, Any]) -> collections.Counter[Any]:
    dict.update(counter, content)
    return counter


def _numpy_value(code: int, content: Any) -> Any:
    import numpy

    if code == NUMPY_SCALAR:
        dtype, data = _dtype(content[0]), _of(content[1], bytes)
        if len(data) != dtype.itemsize:
            raise ProtocolError("a number of another size than its type says")
        return numpy.ndarray((), dtype, bytearray(data) or None)[()]
    shape, items = _shape(content[0]), _of(content[1], list)
    if math.prod(shape) != len(items):
        raise ProtocolError("an array of another size than its shape says")
    made = numpy.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        made[index] = item
    return made.reshape(shape)


def _array_of(data: bytes) -> Any:
    import numpy

    size = int.from_bytes(data[:4], "big")
    plain, shape, order = msgpack.unpackb(data[4 : 4 + size])
    dtype = _dtype(plain)
    if order not in ("C", "F") or math.prod(_shape(shape)) * dtype.itemsize != len(data) - 4 - size:
        raise ProtocolError(f"an array of another size than its shape says, {len(data) - 4 - size} bytes")
    # Through a bytearray, so that the array is writable as the caller's own was.
    return numpy.ndarray(tuple(shape), dtype, bytearray(memoryview(data)[4 + size :]) or None, order=order)


def _shape(plain: Any) -> list[int]:
    if type(plain) is not list or len(plain) > 32 or not all(type(length) is int and length >= 0 for length in plain):
        raise ProtocolError("a shape is a list of lengths")
    return plain


def _dtype(plain: Any) -> Any:
    """The type of array elements that `_dtype_plain` wrote: a text, or a list of [name, type] or [name, type, shape]."""
    import numpy

    plain = _listed(plain)
    _check_dtype(plain, 0)
    return numpy.lib.format.descr_to_dtype(_descr(plain))


def _listed(plain: Any) -> Any:
    return [_listed(part) for part in plain] if type(plain) in (list, tuple) else plain


def _check_dtype(plain: Any, depth: int) -> None:
    if type(plain) is str:
        if not _DTYPE.fullmatch(plain):
            raise ProtocolError("not a type of array elements")
        return
    if depth > 8 or not _of(plain, list):
        raise ProtocolError("not a type of array elements")
    if type(plain[0]) is str or (len(plain) == 2 and type(plain[1]) is list and all(type(n) is int for n in plain[1])):
        inner, shape = plain
        _check_dtype(inner, depth + 1)
        _shape(shape)
        return
    for name, inner, *shape in plain:
        # A field with a title has two names.
        for part in name if type(name) is list else (name,):
            _of(part, str)
        _check_dtype(inner, depth + 1)
        for each in shape:
            _shape(each)


def _descr(plain: Any) -> Any:
    """NumPy wants tuples where msgpack gives lists."""
    if type(plain) is str:
        return plain
    if type(plain[0]) is str or (len(plain) == 2 and type(plain[1]) is list and all(type(n) is int for n in plain[1])):
        return (_descr(plain[0]), tuple(plain[1]))
    return [
        (tuple(name) if type(name) is list else name, _descr(inner), *(tuple(each) for each in shape))
        for name, inner, *shape in plain
    ]


def _loaded_exception(module: str, qualname: str) -> type | None:
    """An exception class of a loaded module. Any will do: it is made by Python's own base class, past the code of its own."""
    found = class_in(module, qualname)
    return found if found is not None and issubclass(found, Exception) else None


def _exception_of(cls: type[BaseException], content: list[Any]) -> BaseException:
    _, _, args, state, notes, cause = content
    _of(args, list), _of(state, dict), _of(notes, list)
    base: Any = _python_base(cls)
    # Past the class's own __init__, whose parameters are its own affair.
    error: Any = base.__new__(cls, *args)
    try:
        base.__init__(error, *args)
    except (TypeError, ValueError):
        error.args = tuple(args)
    kept = vars(error)
    for key, value in state.items():
        if isinstance(vars(base).get(key), (MemberDescriptorType, GetSetDescriptorType)):
            setattr(error, str(key), value)
        else:
            kept[str(key)] = value
    for note in notes:
        error.add_note(str(note))
    if cause is not None:
        if not isinstance(cause, (BaseException, Opaque)):
            raise ProtocolError("the cause of an exception is one")
        error.__cause__ = None if isinstance(cause, Opaque) else cause
    made: BaseException = error
    return made


#: From what builtins that classes of a program extend are made, where it is not the builtin itself.
_BASE_PLAIN: dict[type, type] = {collections.OrderedDict: dict, set: list, frozenset: list}


def _instance_of(cls: type, content: list[Any]) -> Any:
    _, _, base_value, has_own_state, state = content
    base: Any = next((found for found in _BASES if issubclass(cls, found)), None)
    _of(base_value, type(None) if base is None else _BASE_PLAIN.get(base, base))
    value: Any
    if base is None:
        value = object.__new__(cls)
    elif base in (dict, collections.OrderedDict, list, set, bytearray):
        value = base.__new__(cls)
        if base in (dict, collections.OrderedDict):
            for key, item in base_value.items():
                base.__setitem__(value, key, item)
        elif base is list:
            list.extend(value, base_value)
        elif base is set:
            set.update(value, base_value)
        else:
            bytearray.extend(value, base_value)
    else:
        value = base.__new__(cls, base_value)
    if has_own_state:
        setter = getattr(value, "__setstate__", None)
        if setter is not None:
            setter(state)
            return value
    slots = set(_slots_of(cls))
    for key, item in (state or {}).items():
        if key in slots:
            object.__setattr__(value, key, item)
        else:
            vars(value)[key] = item
    return value


# --- failures ---------------------------------------------------------------------------------------------------------


def encode_failure(error: BaseException, *, classes: ClassNames | None = None) -> bytes:
    """`error` with its traceback as text, itself typed where its class is Python's or the program's own."""
    text = "".join(traceback.format_exception(error))
    if len(text) > limits.TRACEBACK_CHARS_MAX:
        half = limits.TRACEBACK_CHARS_MAX // 2 - 50
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
    try:
        message = str(error)[: limits.TRACEBACK_CHARS_MAX]
    except Exception as broken:
        message = f"<its text cannot be made: {broken!r}>"
    try:
        typed: Any = Encoded(encode(error, classes=classes, allow_pickle=False))
    except NotSerializableError:
        typed = None
    return encode([_type_text(type(error)), message, text, typed])


def decode_failure(
    data: bytes | bytearray | memoryview, *, classes: ClassResolver | None = None, pickles: PicklePolicy = REFUSE
) -> Failure:
    """What `encode_failure` wrote. Raises ProtocolError."""
    content = decode(data, classes=classes, pickles=pickles)
    if not isinstance(content, list) or len(content) != 4 or not all(isinstance(part, str) for part in content[:3]):
        raise ProtocolError("a failure is [type, message, traceback, exception]")
    # Never one that ends the process or a loop (SystemExit, KeyboardInterrupt): a peer must not choose that.
    exception = content[3] if isinstance(content[3], Exception) else None
    return Failure(content[0], content[1], content[2], exception)


# --- looking into values -----------------------------------------------------------------------------------------------


def classes_in(value: object, depth: int = 0) -> Iterator[type]:
    """The classes of the values in `value`, a few levels deep."""
    if depth > 4:
        return
    if isinstance(value, type):
        yield value
        return
    cls = type(value)
    if cls.__module__ != "builtins":
        yield cls
    if isinstance(value, Mapping):
        for key, item in list(value.items())[:64]:
            yield from classes_in(key, depth + 1)
            yield from classes_in(item, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in list(value)[:64]:
            yield from classes_in(item, depth + 1)
    elif hasattr(value, "__dict__"):
        for item in list(vars(value).values())[:64]:
            yield from classes_in(item, depth + 1)
