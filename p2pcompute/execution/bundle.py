"""From functions to a program: the sources that they need, the data that they refer to, and how to find them there.

Code travels as source, because bytecode of one Python version crashes another. Shipped are the function's module and every local module
that it imports; installed packages are named. Data globals that reached functions refer to travel by value, so that a setting made under the main guard is
the same there. What cannot travel is refused here, before anything is sent, with a sentence that says how to write it.

A shipped script is imported by a worker: its module body runs there, its main guard does not. A script without a guard would submit again
from there, and so for ever, so functions are refused while the body of their script is running outside of a guard.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from blake3 import blake3

from p2pcompute.execution import imports
from p2pcompute.execution.program import MAIN_MODULE, Body, Module, Requirement, open_program, pack_program
from p2pcompute.execution.shipment import Shipment
from p2pcompute.execution.source import (
    cell_content,
    check_unchanged,
    class_node,
    codes_in,
    compiled_codes,
    cut_out,
    globals_of,
    same_value,
    tree_of,
)
from p2pcompute.execution.values import ClassResolver, encode
from p2pcompute.model import limits
from p2pcompute.model.engine import NOTHING_DEMANDED, Demands, Engine
from p2pcompute.model.errors import CannotShipError, NotSerializableError, ProtocolError
from p2pcompute.model.ids import ProgramId
from p2pcompute.wire.versions import PROGRAM

_RECIPE_DEPTH_MAX = 12
#: Types of class attributes that are settings rather than parts of the class.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict, set, frozenset})


@dataclass(frozen=True, slots=True)
class Program:
    """A program ready to travel. `classes`: finds the caller's own classes when results come back.

    `is_settled`: whether the same functions give the same program later: no global, closure or object of theirs holds data that may change.
    """

    id: ProgramId
    data: bytes = field(repr=False)
    entries: tuple[str, ...]
    modules: tuple[str, ...]
    requires: tuple[Requirement, ...]
    python_minor: tuple[int, ...] | None
    classes: ClassResolver = field(repr=False, compare=False)
    is_settled: bool = field(default=False, compare=False)

    @property
    def names(self) -> ClassResolver:
        """Names the caller's own classes when arguments are encoded."""
        return self.classes


def make_program(
    entries: Mapping[str, Callable[..., Any]], engine: Engine = Engine.PYTHON, demands: Demands = NOTHING_DEMANDED
) -> Program:
    """The program whose entries are these callables, for `engine`, which runs Python source. Raises CannotShipError."""
    return _Maker(engine, demands).make(entries)


def program_of(data: bytes, entries: tuple[str, ...]) -> Program:
    """A program of another engine than Python, which was made elsewhere; no classes travel with it."""
    return Program(ProgramId(blake3(data).digest()), data, entries, (), (), None, ClassResolver({}), True)


class _Maker:
    def __init__(self, engine: Engine, demands: Demands) -> None:
        self._engine = engine
        self._demands = demands
        #: Modules, files and requirements.
        self._shipment = Shipment()
        self._codes: dict[str, dict[str, list[CodeType]]] = {}
        self._data: dict[tuple[str, str], bytes] = {}
        #: Functions and modules that importing does not make: (module, name) to recipe.
        self._code: dict[tuple[str, str], list[Any]] = {}
        #: Code and classes that were looked at for globals.
        self._reached: set[CodeType | type] = set()
        self._pickled = False
        #: Whether any data was looked at: another look may find other data.
        self._saw_data = False
        self._stack: list[FunctionType] = []

    def make(self, entries: Mapping[str, Callable[..., Any]]) -> Program:
        recipes: list[tuple[str, list[Any]]] = []
        for name, function in entries.items():
            if not callable(function):
                raise CannotShipError(f"{name} is a {type(function).__name__}, which cannot be called: give a function")
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise CannotShipError(
                    f"{_name(function)} is a generator, whose state cannot be sent back: return a list of what it yields"
                )
            recipes.append((name, self._recipe(function, 0)))
        self._reach_classes()
        self._shipment.refuse_running_script()
        if self._shipment.cells is not None:
            self._shipment.modules[MAIN_MODULE] = Module(
                MAIN_MODULE, False, self._shipment.cells.source.encode(), "a notebook"
            )
        modules = self._shipment.modules
        requires = tuple(self._shipment.requires[name] for name in sorted(self._shipment.requires))
        data = pack_program(
            Body(
                version=PROGRAM,
                modules=tuple(modules[name] for name in sorted(modules)),
                files=tuple(sorted(self._shipment.package_files().items())),
                entries=tuple(recipes),
                data=tuple((module, name, value) for (module, name), value in sorted(self._data.items())),
                requires=requires,
                main=self._shipment.main,
                python_minor=(sys.version_info.major, sys.version_info.minor) if self._pickled else None,
                code=tuple((module, name, recipe) for (module, name), recipe in sorted(self._code.items())),
                engine=self._engine,
                demands=self._demands,
            )
        )
        if len(data) > limits.PROGRAM_BYTES_MAX:
            raise CannotShipError(
                f"the program has {len(data)} bytes, at most {limits.PROGRAM_BYTES_MAX} can travel: pass large data as an "
                "argument, or through put()"
            )
        try:
            open_program(data)
        except ProtocolError as error:
            raise CannotShipError(f"the program is of a shape that peers do not take: {error}") from error
        return Program(
            ProgramId(blake3(data).digest()),
            data,
            tuple(entries),
            tuple(sorted(modules)),
            requires,
            (sys.version_info.major, sys.version_info.minor) if self._pickled else None,
            ClassResolver(self._shipment.here),
            not (self._saw_data or self._data or self._code or self._pickled),
        )

    # --- recipes --------------------------------------------------------------------------------------------------------

    def _recipe(self, function: Any, depth: int) -> list[Any]:
        if depth > _RECIPE_DEPTH_MAX:
            raise CannotShipError(f"{_name(function)} is wrapped more than {_RECIPE_DEPTH_MAX} times")
        if isinstance(function, functools.partial):
            for argument in (*function.args, *function.keywords.values()):
                self._reach_value(argument)
            return [
                "partial",
                self._recipe(function.func, depth + 1),
                self._encoded((function.args, function.keywords), f"an argument of partial {_name(function.func)}"),
            ]
        if isinstance(function, MethodType):
            if isinstance(function.__self__, type):
                owner = self._recipe(function.__self__, depth + 1)
                if owner[0] == "name":
                    return ["name", owner[1], f"{owner[2]}.{function.__name__}"]
            if getattr(function.__self__, function.__name__, None) != function:
                raise CannotShipError(
                    f"{_name(function)} is bound to an object that does not have it under this name: use a function"
                )
            return ["method", self._instance(function.__self__, function), function.__name__]
        if isinstance(function, FunctionType):
            return self._function(function, depth)
        if isinstance(function, type):
            return self._by_name(function, function.__module__, function.__qualname__)
        if isinstance(function, BuiltinFunctionType):
            bound: object = function.__self__
            if bound is not None and not isinstance(bound, (ModuleType, type)):
                return ["method", self._encoded(bound, f"the object of {_name(function)}"), function.__name__]
            return self._by_name(function, function.__module__ or "builtins", function.__qualname__)
        wrapped = getattr(function, "__wrapped__", None)
        module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
        if isinstance(module, str) and isinstance(qualname, str) and imports.at(module, qualname) is function:
            self._shipment.ship(module)
            if isinstance(wrapped, FunctionType):
                self._reach(wrapped)
            return self._by_name(function, module, qualname)
        return ["method", self._instance(function, function), "__call__"]

    def _instance(self, owner: Any, function: Any) -> bytes:
        return self._encoded(owner, f"the object of {_name(function)}")

    def _by_name(self, function: Any, module: str, qualname: str) -> list[Any]:
        if "<locals>" in qualname:
            raise CannotShipError(
                f"{qualname} is a class made inside a function, which other machines cannot find: define it at the top of a module"
            )
        if imports.at(module, qualname) is not function:
            raise CannotShipError(
                f"{module}.{qualname} is another object now than the one that was given: give that one"
            )
        self._shipment.ship(module)
        if isinstance(function, type):
            self._reach_class(function)
        return ["name", self._shipment.there(module), qualname]

    def _function(self, function: FunctionType, depth: int) -> list[Any]:
        if function in self._stack:
            if function is self._stack[-1]:
                return ["self"]
            raise CannotShipError(
                f"{_name(function)} and another function inside a function call each other: define them at the top of a module"
            )
        module, qualname = function.__module__ or "", function.__qualname__
        if "<locals>" not in qualname and function.__name__ != "<lambda>" and imports.at(module, qualname) is function:
            found = self._shipment.ship(module)
            there = self._shipment.there(module)
            late = found and "." not in qualname and there in self._shipment.trees and self._shipment.cells is None
            if late and self._is_made_later(there, qualname):
                return self._cut(function, depth)
            if found or not self._shipment.is_local(module):
                self._reach(function)
                return ["name", self._shipment.there(module), qualname]
        return self._cut(function, depth)

    def _cut(self, function: FunctionType, depth: int) -> list[Any]:
        cut = cut_out(function)
        if cut is None:
            return self._cloudpickled(function)
        module = function.__globals__.get("__name__") or ""
        shipped = self._shipment.ship(module)
        code = function.__code__
        self._stack.append(function)
        try:
            cells = [
                self._cell(f"{variable!r}, which {_name(function)} uses,", cell, depth)
                for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
            ]
        finally:
            self._stack.pop()
        defaults = self._encoded(function.__defaults__ or (), f"a default argument of {_name(function)}")
        keywords = self._encoded(function.__kwdefaults__ or {}, f"a default argument of {_name(function)}")
        if not shipped and self._shipment.is_local(module):
            return self._cloudpickled(function)
        self._reach(function)
        home = self._shipment.there(module) if shipped or module in sys.modules else ""
        return [
            "cut", home, cut.text, cut.name, list(code.co_freevars), cells, defaults, keywords,
            code.co_filename, cut.line, cut.future,
        ]  # fmt: skip

    def _cell(self, what: str, cell: Any, depth: int) -> list[Any]:
        try:
            value = cell.cell_contents
        except ValueError:
            self._saw_data = True
            return ["empty"]
        if isinstance(value, ModuleType):
            self._shipment.ship(value.__name__)
            return ["module", self._shipment.there(value.__name__)]
        if isinstance(value, (FunctionType, type, BuiltinFunctionType, functools.partial)):
            return self._recipe(value, depth + 1)
        if isinstance(value, MethodType):
            return self._recipe(value, depth + 1)
        return ["value", self._encoded(value, what)]

    def _cloudpickled(self, function: FunctionType) -> list[Any]:
        """No source: only the same minor version of Python can run it."""
        import cloudpickle

        try:
            data = cloudpickle.dumps(function, protocol=5)
        except Exception as error:
            raise CannotShipError(
                f"{_name(function)} has no source that can be read and cannot be pickled either ({error}): put it into a file"
            ) from error
        self._pickled = True
        return ["pickle", data]

    def _encoded(self, value: object, what: str) -> bytes:
        # Empty tuples and dicts are the missing defaults of nearly every function.
        self._saw_data = self._saw_data or not (type(value) in (tuple, dict) and not value)
        try:
            data = encode(value, classes=_ShippingNames(self._ship_class), allow_pickle=True)
            self._shipment.require_classes_of(value)
            return data
        except NotSerializableError as error:
            raise CannotShipError(
                f"{what} cannot travel: {error}. Make it inside the function, or pass what it is made from"
            ) from error

    def _ship_class(self, module: str, cls: type | None) -> ClassResolver:
        """Ship the module of a class whose instance travels; the names of all classes that do by now."""
        if module in sys.modules and self._shipment.ship(module) and cls is not None:
            self._reach_class(cls)
        return ClassResolver(self._shipment.here)

    # --- globals --------------------------------------------------------------------------------------------------------

    def _reach(self, function: FunctionType) -> None:
        """Look after what `function` refers to, and what it wraps."""
        code = function.__code__
        if code in self._reached:
            return
        self._reached.add(code)
        inner = getattr(function, "__wrapped__", None)
        for other in (inner, *(cell_content(cell) for cell in function.__closure__ or ())):
            self._reach_value(other)
        module = function.__globals__.get("__name__") or ""
        there = self._shipment.there(module) if module in sys.modules else ""
        if module in sys.modules:
            self._shipment.ship(module)
        if there in self._shipment.modules:
            # What has no file was generated while the module was imported, as by `dataclass`, and so it will be there.
            generated = code.co_filename.startswith("<")
            at_top = not generated and "<locals>" not in code.co_qualname and code.co_name != "<lambda>"
            if self._shipment.cells is not None and there == MAIN_MODULE:
                if at_top and "." not in code.co_qualname:
                    self._define_in_cells(function)
            elif at_top:
                check_unchanged(function, self._codes_of(there), self._shipment.modules[there].file)
        elif module in sys.modules and not self._shipment.is_local(module):
            return  # an installed package looks after itself
        for imported in imports.imports_of(tree_of(function), there or "_", False):
            self._shipment.import_(imported, runs=True)
        attributes = {name for each in codes_in(code) for name in each.co_names}
        for name in sorted(globals_of(code) & function.__globals__.keys()):
            self._global(there, name, function.__globals__[name], attributes, _name(function))

    def _reach_value(self, value: object) -> None:
        """Look after the code in `value`, if it is code."""
        if isinstance(value, functools.partial):
            self._reach_value(value.func)
        elif isinstance(value, MethodType):
            self._reach_value(value.__func__)
        elif isinstance(value, FunctionType):
            self._reach(value)
        elif isinstance(value, type):
            if value.__module__ in sys.modules and self._shipment.ship(value.__module__):
                self._reach_class(value)
        elif isinstance(getattr(value, "__wrapped__", None), FunctionType):
            self._reach(value.__wrapped__)  # type: ignore[attr-defined]

    def _define_in_cells(self, value: FunctionType | type) -> None:
        assert self._shipment.cells is not None
        scope = vars(sys.modules["__main__"])
        for name in sorted(self._shipment.cells.define(value) & scope.keys()):
            self._global(MAIN_MODULE, name, scope[name], set(), _name(value))

    def _codes_of(self, there: str) -> dict[str, list[CodeType]]:
        if there not in self._codes:
            shipped = self._shipment.modules[there]
            self._codes[there] = compiled_codes(shipped.source.decode(), shipped.file)
        return self._codes[there]

    def _global(self, there: str, name: str, value: object, attributes: set[str], user: str) -> None:
        if isinstance(value, ModuleType):
            if self._shipment.cells is not None and there == MAIN_MODULE:
                self._shipment.cells.import_(name, value, value)
            elif there in self._shipment.modules and self._is_made_later(there, name):
                self._code[there, name] = ["module", self._shipment.there(value.__name__)]
            if self._shipment.ship(value.__name__):
                for inner in sorted(attributes & vars(value).keys()):
                    if not inner.startswith("__"):
                        self._global(self._shipment.there(value.__name__), inner, vars(value)[inner], set(), user)
            return
        self._reach_value(value)
        if name.startswith("__") or there not in self._shipment.modules:
            return
        if isinstance(value, (FunctionType, type, BuiltinFunctionType)):
            if self._shipment.cells is not None and there == MAIN_MODULE:
                if value.__module__ != "__main__":
                    self._shipment.cells.import_(name, value, imports.at(value.__module__ or "", value.__qualname__))
            elif self._is_made_later(there, name) or self._is_replaced(there, name, value):
                self._code_global(there, name, value, user)
            return
        self._data_global(there, name, value, user)

    def _is_made_later(self, there: str, name: str) -> bool:
        """Whether importing the module does not make the name at all."""
        return not imports.bindings_of(self._shipment.trees[there]).made_on_import(name)

    def _is_replaced(self, there: str, name: str, value: FunctionType | type | BuiltinFunctionType) -> bool:
        """Whether the module's source defines the name, and something else stands there now."""
        if name not in imports.bindings_of(self._shipment.trees[there]).plain_defs:
            return False
        code_name = value.__code__.co_qualname if isinstance(value, FunctionType) else value.__qualname__
        return code_name != name or self._shipment.there(value.__module__ or "") != there

    def _code_global(self, there: str, name: str, value: Any, user: str) -> None:
        """A function or class that stands under the main guard, or was put into the module from outside."""
        if (there, name) in self._code:
            return
        if isinstance(value, type) and self._shipment.there(value.__module__ or "") == there:
            raise CannotShipError(
                f"the global {name!r}, which {user} uses, is a class made under the main guard or by another function: define it "
                "at the top of its module"
            )
        self._code[there, name] = ["empty"]  # for one that refers to itself
        self._code[there, name] = self._recipe(value, 0)

    def _is_set_later(self, there: str, name: str) -> bool:
        """Whether a global is (also) set by something else than importing its module."""
        tree = self._shipment.trees[there]
        return name in imports.set_elsewhere(tree) or not imports.bindings_of(tree).made_on_import(name)

    def _data_global(self, there: str, name: str, value: object, user: str) -> None:
        self._saw_data = True
        node = imports.bindings_of(self._shipment.trees[there]).values.get(name)
        changed = False
        if node is not None:
            try:
                if same_value(ast.literal_eval(node), value):
                    return  # executing the module gives the same
                changed = True
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                pass
        try:
            self._data[there, name] = encode(value, classes=_ShippingNames(self._ship_class), allow_pickle=False)
            self._shipment.require_classes_of(value)
        except NotSerializableError as error:
            if not changed and not self._is_set_later(there, name):
                return  # made when the module is imported, so it is made there too
            raise CannotShipError(
                f"the global {name!r}, which {user} uses, cannot travel: {error}. Make it inside the function, or where "
                "the module is imported rather than under its main guard"
            ) from error

    def _reach_class(self, cls: type) -> None:
        if cls in self._reached:
            return
        self._reached.add(cls)
        if self._shipment.cells is not None and cls.__module__ == "__main__":
            self._define_in_cells(cls)
        for member in vars(cls).values():
            parts = [member]
            if isinstance(member, (staticmethod, classmethod)):
                parts = [member.__func__]
            elif isinstance(member, property):
                parts = [member.fget, member.fset, member.fdel]
            elif isinstance(member, functools.cached_property):
                parts = [member.func]
            for part in parts:
                if not isinstance(part, type):
                    self._reach_value(part)
        self._class_data(cls)
        for base in cls.__mro__[1:]:
            if base.__module__ in sys.modules and self._shipment.ship(base.__module__):
                self._reach_class(base)

    def _class_data(self, cls: type) -> None:
        """Plain attributes of a class that its source does not give: settings made later, like globals."""
        there = self._shipment.there(cls.__module__)
        node = class_node(self._shipment.trees[there], cls.__qualname__) if there in self._shipment.trees else None
        if node is None or issubclass(cls, enum.Enum):
            return
        written = imports.bindings_of(ast.Module(node.body, [])).values
        for name, value in vars(cls).items():
            if type(value) not in _PLAIN or (name.startswith("_") and name not in written):
                continue
            try:
                text = written.get(name)
                if name in written and (text is None or same_value(ast.literal_eval(text), value)):
                    continue
                data = encode(value, classes=_ShippingNames(self._ship_class), allow_pickle=False)
            except (NotSerializableError, ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue  # what the class body computes, it computes there as well
            self._data[there, f"{cls.__qualname__}.{name}"] = data

    def _reach_classes(self) -> None:
        """Look after all classes of shipped modules: arguments may be instances, whose methods nothing in the program names.

        What cannot travel or is not installed counts only once a method runs into it.
        """
        required = dict(self._shipment.requires)
        for there in sorted(self._shipment.modules):
            module = sys.modules.get(self._shipment.here.get(there, there))
            for value in list(vars(module).values()) if module is not None else []:
                if isinstance(value, type) and self._shipment.there(value.__module__) == there:
                    with contextlib.suppress(CannotShipError):
                        self._reach_class(value)
        self._shipment.requires = required


class _ShippingNames:
    """Names the classes of values that travel with a program, shipping their modules as it goes."""

    def __init__(self, ship: Callable[[str, type | None], ClassResolver]) -> None:
        self._ship = ship

    def name_of(self, cls: type) -> tuple[str, str] | None:
        """(module, qualified name) on the wire, or None for a class that is not local."""
        return self._ship(cls.__module__, cls).name_of(cls)

    def holds(self, module: str) -> bool:
        """Whether the module is part of the program now."""
        return self._ship(module, None).holds(module)


def _name(function: object) -> str:
    return f"{getattr(function, '__qualname__', type(function).__qualname__)}()"
