"""A pickle is opened in a worker, or where every class in it is on the list; nothing else of it ever runs."""

from __future__ import annotations

import collections
import datetime
import io
import os
import pickle
import subprocess
from typing import Any

import numpy
import pytest

from p2pcompute.execution.pickles import ALLOW, REFUSE, allow_list, open_pickle
from p2pcompute.execution.values import ClassResolver, decode, encode
from p2pcompute.model.errors import ProtocolError, ResultRefusedError

#: What an attacker's pickle would change.
TOUCHED: list[str] = []


class Own:
    """A class of the program that has its own way to be pickled."""

    limit = 3

    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return (Own, (self.value,))


class Evil:
    """Calls `function(*args)` when it is opened."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def touch(text: str) -> str:
    """A function of the program's own module: still no business of a pickle."""
    TOUCHED.append(text)
    return text


CLASSES = ClassResolver.for_modules([__name__])


def global_pickle(module: str, name: str, *args: str) -> bytes:
    """A pickle that calls `module.name(*args)`, by the names as they are."""
    out = pickle.PROTO + b"\x04"
    for text in (module, name):
        out += pickle.BINUNICODE + len(text).to_bytes(4, "little") + text.encode()
    out += pickle.STACK_GLOBAL + pickle.MARK
    for text in args:
        out += pickle.BINUNICODE + len(text).to_bytes(4, "little") + text.encode()
    return out + pickle.TUPLE + pickle.REDUCE + pickle.STOP


def test_nothing_is_opened_unless_somebody_says_so() -> None:
    data = encode(Own(1), classes=CLASSES)
    with pytest.raises(ResultRefusedError, match="may run code when it is opened"):
        decode(data, classes=CLASSES)
    assert decode(data, classes=CLASSES, pickles=ALLOW).value == 1
    assert REFUSE != ALLOW


def test_the_program_s_own_classes_and_arrays_are_on_every_list() -> None:
    values: list[Any] = [
        Own([1, {"a": (2.5, b"x")}]),
        Own(numpy.arange(6, dtype=">i4").reshape(2, 3).T),
        Own(numpy.array(["2024-01-01"], "M8[ns]")),
        Own(numpy.zeros(2, [("a", "i2"), ("b", "U3", (2,))])),
        Own(numpy.array([1, None, "x"], dtype=object)),
        Own(numpy.float32(1.5)),
        Own(numpy.dtype("<f8")),
        Own(collections.OrderedDict(a=datetime.timedelta(1))),
        Own({1, 2, frozenset()}),
    ]
    for value in values:
        for protocol in (5,):
            back = open_pickle(pickle.dumps(value, protocol), allow_list(), CLASSES)
            assert type(back) is Own
            assert repr(back.value) == repr(value.value)
            if hasattr(value.value, "dtype"):
                assert back.value.dtype == value.value.dtype


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        (__name__, "touch"),
        (__name__, "subprocess.Popen"),
        (__name__, "os"),
        ("numpy", "os.system"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy.testing", "measure"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy.f2py", "compile"),
        ("copyreg", "add_extension"),
        ("subprocess", "Popen"),
    ],
)
def test_what_is_not_on_the_list_is_neither_found_nor_run(module: str, name: str) -> None:
    TOUCHED.clear()
    data = global_pickle(module, name, "touch /nonexistent/p2pc")
    with pytest.raises(ResultRefusedError):
        open_pickle(data, allow_list(), CLASSES)
    assert not TOUCHED


def test_a_named_package_gives_its_classes_and_not_its_functions_nor_what_it_imported() -> None:
    policy = allow_list(["tests"])
    assert open_pickle(pickle.dumps(Own(1)), policy, None).value == 1
    for name in ("touch", "subprocess.Popen", "os.system", "Evil.__init__"):
        with pytest.raises(ResultRefusedError):
            open_pickle(global_pickle(__name__, name, "x"), policy, None)
    with pytest.raises(ResultRefusedError, match="imported already"):
        open_pickle(global_pickle("tests.never_imported", "Thing"), policy, None)


def test_no_class_and_no_function_is_changed() -> None:
    """BUILD on a class sets attributes of the class itself."""
    for target in (Own, int):
        data = pickle.dumps(target)[:-1] + pickle.dumps((None, {"limit": 99}))[2:-1] + pickle.BUILD + pickle.STOP
        with pytest.raises((ResultRefusedError, ProtocolError)):
            open_pickle(data, allow_list(["tests"]), CLASSES)
    assert Own.limit == 3


def test_element_types_do_not_lie_about_memory() -> None:
    """NumPy's own `dtype.__setstate__` believes a struct that hides objects; an array over raw bytes would then hold wild pointers."""

    class Lying:
        def __reduce__(self) -> Any:
            fields = {"a": (numpy.dtype("O"), 0)}
            return (numpy.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 0))

    made = open_pickle(pickle.dumps(Lying()), allow_list(), CLASSES)
    assert made.hasobject
    with pytest.raises(ValueError):
        numpy.frombuffer(b"\x01" * 8, made)


def test_broken_pickles_are_protocol_errors() -> None:
    good = pickle.dumps(Own([1, 2]), 5)
    for cut in range(1, len(good)):
        with pytest.raises((ProtocolError, ResultRefusedError)):
            open_pickle(good[:-cut], allow_list(), CLASSES)
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream)
    pickler.persistent_id = lambda value: "id"  # type: ignore[method-assign]
    pickler.dump(1)
    with pytest.raises(ResultRefusedError, match="outside of it"):
        open_pickle(stream.getvalue(), allow_list(), CLASSES)


def test_a_call_of_an_allowed_class_stays_a_call_of_it() -> None:
    with pytest.raises(ResultRefusedError):
        open_pickle(pickle.dumps(Evil(os.getpid)), allow_list(["tests"]), CLASSES)
    with pytest.raises(ResultRefusedError):
        open_pickle(pickle.dumps(Evil(subprocess.run, ["true"])), allow_list(["tests"]), CLASSES)
