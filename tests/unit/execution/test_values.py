"""Values come back as what they were, and bytes that nobody honest wrote cause the two errors of the decoder only."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import re
import subprocess
import sys
import threading
import typing
import uuid
import zoneinfo
from typing import Any

import numpy
import pytest

from p2pcompute.execution.values import ALLOW, ClassResolver, Handle, Opaque, decode, encode
from p2pcompute.model.errors import NotSerializableError, ProtocolError, ResultRefusedError


class Colour(enum.Enum):
    RED = "r"
    BLUE = ("b", 2)


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2


class Point(typing.NamedTuple):
    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    tags: frozenset[str] = frozenset()


@dataclasses.dataclass
class Base:
    number: int
    hidden: int = dataclasses.field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.hidden = self.number * 2


@dataclasses.dataclass
class Derived(Base):
    inner: Frozen | None = None


class Plain:
    def __init__(self, needed: object) -> None:
        self.needed = needed


class Slotted:
    __slots__ = ("__private", "unset", "x")

    def __init__(self, x: int) -> None:
        self.x = x
        self.__private = x + 1

    def private(self) -> int:
        return self.__private


class WithState:
    def __init__(self, a: int) -> None:
        self.a = a
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, int]:
        return {"a": self.a}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.a = state["a"]
        self.lock = threading.Lock()


class Registry(dict):  # type: ignore[type-arg]
    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def __iter__(self) -> Any:
        raise AssertionError("the encoder asks dict itself")


class Stack(list):  # type: ignore[type-arg]
    pass


class Metres(float):
    pass


class Word(str):
    __slots__ = ()


class CustomError(Exception):
    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"code {code} at {where}")
        self.code = code
        self.where = where


CLASSES = ClassResolver.for_modules([__name__])


def again(value: object, **options: Any) -> Any:
    return decode(encode(value, classes=CLASSES, allow_pickle=False), classes=CLASSES, **options)


SAME: list[object] = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    -(2**64) - 1,
    10**500,
    1.5,
    -0.0,
    math.inf,
    "ä\ud800x",
    "",
    b"",
    b"\x00\xff",
    bytearray(b"abc"),
    [bytearray(b"a"), [bytearray(b"b")], {"k": bytearray(b"c")}],
    (),
    (1, (2, [3])),
    [],
    {1, "a", None, (2, 3)},
    frozenset({1.5, frozenset()}),
    {(1, 2): "tuple", frozenset({1}): "frozen", None: 0, 1.5: 1, b"b": 2, "s": {"deep": [1]}},
    1 + 2j,
    decimal.Decimal("1.10"),
    decimal.Decimal("NaN"),
    fractions.Fraction(-2, 6),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
    datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    datetime.date(1, 1, 1),
    datetime.time(1, 2, 3, 4, tzinfo=datetime.timezone(datetime.timedelta(hours=-5, seconds=1), "odd")),
    datetime.timedelta(-1, 5, 7),
    datetime.timezone(datetime.timedelta(hours=2)),
    zoneinfo.ZoneInfo("UTC"),
    uuid.UUID(int=7),
    pathlib.PurePosixPath("/a/b"),
    pathlib.PureWindowsPath("C:/x"),
    pathlib.Path("relative/file"),
    range(1, 10, 3),
    slice(None, 5, -1),
    ...,
    NotImplemented,
    collections.Counter("abca"),
    collections.OrderedDict([("b", 1), ("a", 2)]),
    collections.defaultdict(list, a=[1]),
    collections.defaultdict(None, a=1),
    collections.deque([1, (2,)], maxlen=3),
    array.array("d", [1.5, 2.5]),
    array.array("b", [-1, 2]),
    int,
    [dict, ValueError],
    Colour.RED,
    Colour.BLUE,
    Permission.READ,
    Permission.READ | Permission.WRITE,
    Permission(0),
    Point(1, 2),
    Frozen("n", frozenset({"t"})),
    {Frozen("key"): Frozen("value")},
    Derived(3, inner=Frozen("i")),
    Stack([1, Stack()]),
    Metres(2.5),
    Word("w"),
    Plain,
    Handle(b"\x01" * 32, 5),
]


@pytest.mark.parametrize("value", SAME, ids=[f"{number}-{type(value).__name__}" for number, value in enumerate(SAME)])
def test_comes_back_the_same(value: object) -> None:
    back = again(value)
    assert type(back) is type(value)
    assert isinstance(value, set | frozenset) or repr(back) == repr(value)
    if not isinstance(value, decimal.Decimal):
        assert back == value


def test_the_smaller_marks_of_a_value_come_back() -> None:
    assert math.isnan(again(math.nan))
    assert math.copysign(1, again(-0.0)) == -1
    assert again(collections.deque(maxlen=2)).maxlen == 2
    moment = datetime.datetime(2024, 10, 27, 2, 30, fold=1)
    assert again(moment).fold == 1
    assert again(datetime.UTC) is datetime.UTC
    assert again(memoryview(b"xy")) == b"xy"
    assert list(again({3: 0, 1: 0, 2: 0})) == [3, 1, 2]
    assert again(collections.defaultdict(list))["new"] == []


def test_instances_come_back_with_their_state_and_without_init() -> None:
    assert again(Plain([1])).needed == [1]
    slotted = again(Slotted(4))
    assert (slotted.x, slotted.private(), hasattr(slotted, "unset")) == (4, 5, False)
    assert again(WithState(7)).a == 7
    registry = Registry("t")
    registry["k"] = 1
    back = again(registry)
    assert type(back) is Registry
    assert (back.title, back["k"]) == ("t", 1)
    derived = Derived(3)
    derived.hidden = 99
    assert again(derived).hidden == 99


@pytest.mark.parametrize(
    "value",
    [
        numpy.arange(6).reshape(2, 3),
        numpy.arange(6).reshape(2, 3).T,
        numpy.arange(20)[::3],
        numpy.arange(24).reshape(2, 3, 4)[:, ::2],
        numpy.array(3.5),
        numpy.empty((0, 3)),
        numpy.array(["a", "bc"]),
        numpy.array([b"a", b""]),
        numpy.array(["2024-01-01", "NaT"], "M8[ns]"),
        numpy.array([1, 2], "m8[h]"),
        numpy.array([True, False]),
        numpy.array([1, 2], ">i4"),
        numpy.array([1 + 2j], "c8"),
        numpy.zeros(3, [("a", "<i4"), ("b", "M8[us]", (2,)), ("c", [("d", "U3")])]),
        numpy.zeros(2, numpy.dtype([("a", "i1"), ("b", "f8")], align=True)),
        numpy.array([1, "x", None, [2]], dtype=object),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays(value: Any) -> None:
    back = again(value)
    assert type(back) is numpy.ndarray
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert back.flags.writeable
    assert back.tobytes() == value.tobytes() or back.tolist() == value.tolist()
    assert back.flags.f_contiguous == numpy.asarray(value).flags.f_contiguous or not value.flags.contiguous


@pytest.mark.parametrize(
    "value",
    [numpy.float64(1.5), numpy.int8(-3), numpy.bool_(True), numpy.str_("x"), numpy.datetime64("2024-01-01", "D")],
    ids=repr,
)
def test_array_scalars(value: Any) -> None:
    back = again(value)
    assert type(back) is type(value)
    assert back == value
    assert back.dtype == value.dtype


def test_element_types_travel_too() -> None:
    for dtype in (numpy.dtype("<f4"), numpy.dtype([("a", "i4"), ("b", "f8", (2, 3))])):
        assert again(dtype) == dtype


def test_exceptions_come_back_as_themselves() -> None:
    error = CustomError(5, where="here")
    error.add_note("a note")
    error.__cause__ = KeyError("inner")
    back = again(error)
    assert type(back) is CustomError
    assert (back.code, back.where, back.args, back.__notes__) == (5, "here", ("code 5 at here",), ["a note"])
    assert repr(back.__cause__) == "KeyError('inner')"
    missing = again(FileNotFoundError(2, "gone", "file.txt"))
    assert (missing.errno, missing.filename, missing.args) == (2, "file.txt", (2, "gone"))
    assert again(StopIteration(7)).value == 7
    assert again(ImportError("x", name="mod")).name == "mod"
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    assert str(again(caught.value)) == str(caught.value)
    group = again(ExceptionGroup("several", [ValueError(1), CustomError(2, where="w")]))
    assert [type(inner) for inner in group.exceptions] == [ValueError, CustomError]


def test_an_exception_of_an_installed_package_is_the_callers_own() -> None:
    assert type(again(numpy.linalg.LinAlgError("singular"))) is numpy.linalg.LinAlgError
    assert type(again(subprocess.CalledProcessError(3, ["x"]))) is subprocess.CalledProcessError


def test_equal_values_have_equal_bytes_in_every_process() -> None:
    """Sets of texts iterate in another order in each process."""
    program = (
        "from p2pcompute.execution.values import encode; import sys;"
        "sys.stdout.write(encode([set('abcdefgh'), frozenset([('x', 1), ('y', 2), 3]), {'k': {'a', 'b'}}]).hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


# --- what cannot travel -----------------------------------------------------------------------------------------------


def test_the_error_names_the_part() -> None:
    with pytest.raises(NotSerializableError, match=r"value\[0\]\['x'\]\.needed cannot travel: a thread lock"):
        encode(({"x": Plain(threading.Lock())},), classes=CLASSES)
    with pytest.raises(NotSerializableError, match=r"a generator cannot be sent"):
        encode([(i for i in [])])


def test_what_is_made_inside_a_function_is_named_as_such() -> None:
    class Local:
        pass

    for value in (Local(), Local, lambda: 1):
        with pytest.raises(NotSerializableError, match="made inside a function"):
            encode(value, classes=CLASSES)


def test_an_instance_of_a_local_module_outside_of_the_program_is_refused() -> None:
    with pytest.raises(NotSerializableError, match="import it there"):
        encode(Plain(1), classes=ClassResolver({}))


def test_cycles_and_depth_are_errors() -> None:
    loop: list[object] = []
    loop.append(loop)
    table: dict[str, object] = {}
    table["self"] = (table,)
    plain = Plain(None)
    plain.needed = [plain]
    deep: object = ()
    for _ in range(5000):
        deep = (deep,)
    lists: object = []
    for _ in range(5000):
        lists = [lists]
    for value in (loop, table, plain, deep, lists):
        with pytest.raises(NotSerializableError, match=r"contains itself|too deep"):
            encode(value, classes=CLASSES)


def test_shared_parts_are_no_cycle() -> None:
    part = [1]
    assert again([part, part, (part,)]) == [[1], [1], ([1],)]


def test_without_pickles_only_typed_values_travel() -> None:
    with pytest.raises(NotSerializableError, match="no typed form"):
        encode(numpy.random.default_rng(1), allow_pickle=False)


# --- classes that are not known ---------------------------------------------------------------------------------------


def test_unknown_classes_are_kept_as_they_are_where_there_is_no_program() -> None:
    data = encode([1, Frozen("a"), {"k": Colour.RED}, CustomError(1, where="x")], classes=CLASSES)
    held = decode(data)
    assert isinstance(held[1], Opaque)
    assert repr(held[1]) == f"<{__name__}.Frozen, not known here>"
    assert encode(held) == data
    assert decode(encode(held), classes=CLASSES)[1] == Frozen("a")


def test_a_class_outside_of_the_program_is_refused_where_there_is_one() -> None:
    data = encode(Frozen("a"), classes=CLASSES)
    with pytest.raises(ResultRefusedError, match=r"Frozen, which is not a class of this program"):
        decode(data, classes=ClassResolver.for_modules(["collections"]))


def test_only_classes_that_a_module_defines_are_found() -> None:
    """`subprocess` is imported here; nothing of it is this module's."""
    for name in ("subprocess.Popen", "threading.Thread", "pathlib.Path", "typing", "again", "CLASSES", "Frozen.name"):
        assert CLASSES.resolve(__name__, name) is None
    assert CLASSES.resolve("os", "stat_result") is None
    assert CLASSES.resolve(__name__, "Frozen") is Frozen


def test_the_script_has_another_name_in_a_worker() -> None:
    there = ClassResolver({"__main__": __name__})
    assert there.name_of(Frozen) == ("__main__", "Frozen")
    assert decode(encode(Frozen("a"), classes=there), classes=there) == Frozen("a")


# --- hostile bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 40))
def test_truncated_bytes_are_a_protocol_error(cut: int) -> None:
    data = encode([Frozen("a"), (1, {2: b"x"}), decimal.Decimal(1), numpy.arange(2)], classes=CLASSES)
    with pytest.raises((ProtocolError, ResultRefusedError)):
        decode(data[:-cut], classes=CLASSES)


def test_values_of_the_wrong_kind_are_protocol_errors() -> None:
    import msgpack

    from p2pcompute.execution import values

    def extension(code: int, content: object) -> bytes:
        packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(content)))
        return packed

    bad = [
        extension(values.ENUM, [__name__, "Plain", "RED", None]),
        extension(values.ENUM, [__name__, "Colour", "GREEN", None]),
        extension(values.EXCEPTION, [__name__, "Plain", [], {}, [], None]),
        extension(values.NAMED_TUPLE, [__name__, "Point", [1]]),
        extension(values.NAMED_TUPLE, [__name__, "Plain", [1]]),
        extension(values.FRACTION, [1, 0]),
        extension(values.RANGE, [1, 2, 0]),
        extension(values.SET, [[1]]),
        extension(values.DATE, [2024, 13, 1]),
        extension(values.ARRAY, ["q", b"123", "little"]),
        extension(values.DTYPE, "|O8,junk"),
        extension(values.DEFAULT_DICT, [3, {}]),
        extension(127, None),
        msgpack.packb(
            msgpack.ExtType(values.NDARRAY, b"\x00\x00\x00\x09" + msgpack.packb(["|O", [1], "C"]) + b"8" * 8)
        ),
        msgpack.packb(msgpack.Timestamp(1)) + b"x",
    ]
    for data in bad:
        with pytest.raises(ProtocolError):
            decode(data, classes=CLASSES)


def test_an_array_claims_only_the_bytes_that_it_has() -> None:
    data = encode(numpy.zeros(4))
    with pytest.raises(ProtocolError):
        decode(data.replace(b"\x91\x04", b"\x91\x05"))


@pytest.mark.parametrize("pattern", [re.compile(r"(\d+)x", re.IGNORECASE), re.compile(rb"a")])
def test_patterns_are_compiled_in_workers_only(pattern: re.Pattern[Any]) -> None:
    assert decode(encode([pattern]), pickles=ALLOW) == [pattern]
    with pytest.raises(ResultRefusedError, match="return its text"):
        decode(encode([pattern]))


def test_what_bytes_claim_is_not_made() -> None:
    import msgpack

    from p2pcompute.execution import values as v

    def extension(code: int, content: object) -> Any:
        return msgpack.ExtType(code, msgpack.packb(content))

    endless = extension(v.RANGE, [0, 10**13, 1])
    copied: bytes = msgpack.packb(b"x" * (1 << 21))
    for _ in range(v.DEPTH_MAX - 1):
        copied = msgpack.packb(msgpack.ExtType(v.ENCODED, copied))
    bombs = [
        *(extension(code, endless) for code in (v.TUPLE, v.SET, v.FROZENSET, v.BIG_INT, v.UUID, v.COUNTER)),
        extension(v.DEQUE, [None, endless]),
        extension(v.EXCEPTION, ["builtins", "ValueError", endless, {}, [], None]),
        extension(v.EXCEPTION, ["builtins", "ValueError", [], {}, endless, None]),
        extension(v.OBJECT_ARRAY, [[1], endless]),
        extension(v.NUMPY_SCALAR, ["|V999999999", b""]),
        extension(v.NUMPY_SCALAR, ["(100000,100000)i4", b""]),
        extension(v.DTYPE, "i4," * 20_000),
        extension(v.ZONE, "../../etc/passwd"),
        extension(v.INSTANCE, [__name__, "Text", 10**13, False, {}]),
    ]
    for bomb in bombs:
        with pytest.raises(ProtocolError):
            decode(msgpack.packb(bomb), classes=ClassResolver.for_modules([__name__]))
    for data in (copied, b"\xdd\x00\x0f\x42\x40" * 900 + b"\x00" * 1_000_100):
        with pytest.raises(ProtocolError):
            decode(data)


class Text(bytes):
    """A class whose base would make as many bytes as it is told."""
