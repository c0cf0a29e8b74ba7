"""What happens to a pickle inside a value.

Opening a pickle runs whatever its author wants, so a worker opens all (it is there to run code), everybody else none, or only those
made of classes on an allow-list. Rules of the list: classes, never functions, since a package's functions may do anything (the few that
NumPy's arrays need are named one by one); a class counts as of the package in which it was defined, not of one that
imported it; nothing is imported but a package that the caller named; no class and no function is changed by a pickle; descriptions of
array elements are built by NumPy's checked constructor, since their `__setstate__` believes what it is told about memory. Whoever names a
package says: its constructors may run with any arguments. Refuses to know: how pickles travel.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Protocol

from p2pcompute.model.errors import ProtocolError, ResultRefusedError

#: What a submitter's script is called inside a worker.
MAIN_ALIAS = "__p2pc_main__"


class Classes(Protocol):
    """Finds the classes of one program."""

    def resolve(self, module: str, qualname: str) -> type | None:
        """The class of that name if it is one of the program."""


@dataclass(frozen=True, slots=True)
class PicklePolicy:
    """`allowed`: every pickle is opened. `listed`: one made of NumPy's arrays, the program's classes and those of `modules` is."""

    allowed: bool = False
    listed: bool = False
    modules: frozenset[str] = frozenset()


REFUSE = PicklePolicy()
ALLOW = PicklePolicy(allowed=True)


def allow_list(modules: Iterable[str] = ()) -> PicklePolicy:
    """Open pickles whose classes are the program's own, NumPy's arrays, or defined in the packages called `modules`."""
    return PicklePolicy(listed=True, modules=frozenset(modules))


def open_pickle(data: bytes, policy: PicklePolicy, classes: Classes | None) -> Any:
    """The object in `data`. Raises ResultRefusedError where the policy forbids it, ProtocolError where it cannot be opened."""
    try:
        if policy.allowed:
            return _TrustingUnpickler(io.BytesIO(data)).load()
        if policy.listed:
            return _ListUnpickler(io.BytesIO(data), policy.modules, classes).load()
    except (ResultRefusedError, ProtocolError, MemoryError):
        raise
    except Exception as error:
        raise ProtocolError(f"a pickle that cannot be opened: {type(error).__name__}: {str(error)[:200]}") from error
    raise ResultRefusedError(
        "the value contains a pickle, which may run code when it is opened, so it is not opened here: return plain "
        "data, dataclasses or arrays, or name the packages whose classes you trust"
    )


class _TrustingUnpickler(pickle.Unpickler):
    """Everything, and the submitter's script under whichever of its two names it has here."""

    def find_class(self, module: str, name: str) -> Any:
        if module == MAIN_ALIAS and MAIN_ALIAS not in sys.modules:
            module = "__main__"
        return super().find_class(module, name)


_BUILTINS = frozenset(
    [
        "object",
        "set",
        "frozenset",
        "complex",
        "bytearray",
        "range",
        "slice",
        "list",
        "dict",
        "tuple",
        "int",
        "float",
        "str",
        "bytes",
        "bool",
    ]
)
#: Data types of the standard library whose constructors only hold what they are given.
_STANDARD = frozenset(
    {
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("collections", "deque"),
        ("collections", "Counter"),
        ("datetime", "datetime"),
        ("datetime", "date"),
        ("datetime", "time"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("uuid", "UUID"),
    }
)
_NUMPY_CLASSES = frozenset({"ndarray", "dtype"})
_NUMPY_FUNCTIONS = frozenset({(".multiarray", "_reconstruct"), (".multiarray", "scalar"), (".numeric", "_frombuffer")})
_BUILD: int = pickle.BUILD[0]


class _ListUnpickler(pickle._Unpickler):
    """In Python rather than C, so that each step that changes an object can be looked at first."""

    def __init__(self, file: io.BytesIO, modules: frozenset[str], classes: Classes | None) -> None:
        super().__init__(file)
        self._modules_allowed = modules
        self._classes = classes

    def find_class(self, module: str, name: str) -> Any:
        on_wire = "__main__" if module == MAIN_ALIAS else module
        own = self._classes.resolve(on_wire, name) if self._classes is not None else None
        if own is not None:
            return own
        if module == "builtins" and name in _BUILTINS:
            return getattr(sys.modules["builtins"], name)
        if (module, name) in _STANDARD:
            return getattr(importlib.import_module(module), name)
        if (module, name) == ("copyreg", "_reconstructor"):
            return _reconstructed
        if module.partition(".")[0] == "numpy":
            found = _of_numpy(module, name)
            if found is not None:
                return found
        top = module.partition(".")[0]
        if top in self._modules_allowed:
            importlib.import_module(top)
            found = class_in(module, name)
            if found is not None and found.__module__.partition(".")[0] == top:
                return found
        raise ResultRefusedError(
            f"the value contains a pickle of {module}.{name}"[:300] + ", which is not among the classes you trust here "
            "(only classes of named packages that are imported already, no functions)"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise ResultRefusedError("the value contains a pickle that refers to objects outside of it")

    def load_build(self) -> None:
        target = self.stack[-2]  # type: ignore[attr-defined]
        if isinstance(target, (type, FunctionType, BuiltinFunctionType, ModuleType)):
            raise ResultRefusedError(f"the value contains a pickle that changes {target!r:.100}")
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(target, numpy.dtype):
            self._build_dtype(numpy, target)
        else:
            pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    def _build_dtype(self, numpy: Any, target: Any) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        made = _checked_dtype(numpy, target, state)
        self.stack[-1] = made  # type: ignore[attr-defined]
        for key, value in list(self.memo.items()):  # type: ignore[attr-defined]
            if value is target:
                self.memo[key] = made  # type: ignore[attr-defined]


_ListUnpickler.dispatch = {**pickle._Unpickler.dispatch, _BUILD: _ListUnpickler.load_build}  # type: ignore[dict-item]


def class_in(module_name: str, qualname: str) -> type | None:
    """The class that `qualname` names in a loaded module; looks into dictionaries only, and never through another module."""
    module = sys.modules.get(module_name)
    if not isinstance(module, ModuleType):
        return None
    found: object = module
    for part in qualname.split("."):
        found = vars(found).get(part) if found is module or isinstance(found, type) else None
        if not isinstance(found, type):
            return None
    return found if isinstance(found, type) else None


def _reconstructed(cls: Any, base: Any, state: Any) -> Any:
    """What `copyreg._reconstructor` does for a class whose base is a plain builtin, and for no other."""
    if not isinstance(cls, type) or base not in (object, list, dict, set, tuple, int, float, str, bytes):
        raise ResultRefusedError("the value contains a pickle of an unusual kind of object")
    return object.__new__(cls) if base is object else base.__new__(cls, state)


def _of_numpy(module: str, name: str) -> Any:
    if module == "numpy":
        return getattr(importlib.import_module("numpy"), name) if name in _NUMPY_CLASSES else None
    for core in ("numpy._core", "numpy.core"):
        if module.startswith(core) and (module.removeprefix(core), name) in _NUMPY_FUNCTIONS:
            for here in ("numpy._core", "numpy.core"):  # its name differs between NumPy 1 and 2
                try:
                    return getattr(importlib.import_module(here + module.removeprefix(core)), name)
                except ImportError:
                    continue
    return None


def _checked_dtype(numpy: Any, target: Any, state: Any) -> Any:
    """The dtype that `state` describes, built by its constructor, which works out sizes and flags itself."""
    if not isinstance(state, tuple) or len(state) < 5:
        raise ProtocolError("a pickled dtype of an unknown form")
    _, order, subdtype, names, fields = state[:5]
    if names is not None:
        return numpy.dtype(
            {
                "names": list(names),
                "formats": [fields[name][0] for name in names],
                "offsets": [fields[name][1] for name in names],
                "itemsize": target.itemsize if target.itemsize else state[5],
            }
        )
    if subdtype is not None:
        return numpy.dtype(tuple(subdtype))
    if target.kind in "mM" and len(state) > 8 and state[8]:
        unit, count = state[8][1][0], state[8][1][1]
        target = numpy.dtype(f"{target.kind}8[{int(count)}{unit.decode() if isinstance(unit, bytes) else unit}]")
    return target if order not in ("<", ">") else numpy.dtype(order + target.str[1:])
