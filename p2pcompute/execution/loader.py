"""A program in a worker: its sources become importable again, its entries callable.

`load_program` executes other people's code and must only be called in a worker process; `missing_requirements` executes nothing
and is what a peer asks before it accepts.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import linecache
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

from p2pcompute.execution.program import Body, Requirement, open_program
from p2pcompute.execution.source import LAMBDA, MAKER, Cut, compile_maker
from p2pcompute.execution.values import ALLOW, ClassResolver, HandleSource, decode, encode
from p2pcompute.model.errors import NotSerializableError


class ProgramLoadError(Exception):
    """A program that does not load here. `reason`: "module" or "bundle"; `module`: the one that is missing, or empty."""

    def __init__(self, reason: str, module: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.module = module
        self.text = text


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """What a worker calls: entries by name, in their order; the program's classes, and where its handles lead."""

    entries: Mapping[str, Callable[..., Any]]
    classes: ClassResolver
    handles: HandleSource | None = None


def missing_requirements(data: bytes | bytearray | memoryview) -> list[Requirement]:
    """What this machine lacks for the program. Executes nothing of it. Raises ProtocolError."""
    body = open_program(data)
    own = {module.name.partition(".")[0] for module in body.modules}
    missing = [need for need in body.requires if need.module not in own and not _is_here(need.module)]
    if body.python_minor is not None and tuple(body.python_minor) != tuple(sys.version_info[:2]):
        wanted = ".".join(map(str, body.python_minor))
        missing.append(
            Requirement(f"Python {wanted}", f"Python {wanted}", "as its function has no source to travel as")
        )
    return missing


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return module in sys.modules


def load_program(
    data: bytes | bytearray | memoryview, *, handles: Callable[[ClassResolver], HandleSource] | None = None
) -> LoadedProgram:
    """Make the program callable in this process, a worker's. Raises ProgramLoadError, ProtocolError, and what its modules raise.

    `handles`: makes the source of the values behind handles, once the program's classes are known; without it handles stay handles.
    """
    body = open_program(data)
    for need in missing_requirements(data):
        raise ProgramLoadError("module", need.module, need.text)
    _lay_out(body)
    if body.main:
        # Pickles and annotations of the submitter say __main__.
        sys.modules["__main__"] = importlib.import_module(body.main)
    names = {module.name: module.name for module in body.modules}
    if body.main:
        names["__main__"] = names.pop(body.main)
    classes = _ImportingResolver(names)
    source = handles(classes) if handles is not None else None
    for module, name, value in body.data:
        home: Any = importlib.import_module(module)
        *owners, name = name.split(".")
        for owner in owners:
            home = getattr(home, owner)
        if not _is_already(vars(home).get(name), value, classes):
            setattr(home, name, decode(value, classes=classes, pickles=ALLOW, handles=source))
    loader = _Loader(classes, source)
    for module, name, recipe in body.code:
        setattr(importlib.import_module(module), name, loader.make(recipe))
    return LoadedProgram({name: _entry(loader.make(recipe)) for name, recipe in body.entries}, classes, source)


class _ImportingResolver(ClassResolver):
    """Imports a module of the program when one of its classes is asked for: here its code may run."""

    def resolve(self, module: str, qualname: str) -> type | None:
        """The class of that name if it is one of this program, else None."""
        here = self._modules.get(module)
        if here is not None and here not in sys.modules:
            importlib.import_module(here)
        return super().resolve(module, qualname)


def _is_already(value: object, data: bytes, classes: ClassResolver) -> bool:
    """Whether importing the module has made what `data` says. Then it stays: other names in the module may mean the same object."""
    if value is None:
        return False
    try:
        return encode(value, classes=classes, allow_pickle=False) == data
    except NotSerializableError:
        return False


def _lay_out(body: Body) -> None:
    """Write the sources into a folder of the worker's own and put it first among those where modules are found."""
    if sys.platform == "wasi":  # no files there
        from p2pcompute.execution.memory_modules import MemoryModules

        sources = {module.name: (module.source, module.is_package) for module in body.modules}
        MemoryModules(sources, dict(body.files)).install()
        return
    root = Path(tempfile.mkdtemp(prefix="program-", dir=os.getcwd()))
    for module in body.modules:
        parts = module.name.split(".")
        path = root.joinpath(*parts, "__init__.py") if module.is_package else root.joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module.source)
    for name, content in body.files:
        path = root.joinpath(*name.split("/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()


class _Loader:
    def __init__(self, classes: ClassResolver, handles: HandleSource | None) -> None:
        self._classes = classes
        self._handles = handles

    def _value(self, data: bytes) -> Any:
        return decode(data, classes=self._classes, pickles=ALLOW, handles=self._handles)

    def make(self, recipe: list[Any], itself: FunctionType | None = None) -> Any:
        match recipe:
            case ["name", module, qualname]:
                found: Any = importlib.import_module(module)
                for part in qualname.split("."):
                    found = getattr(found, part)
                return found
            case ["partial", inner, arguments]:
                args, keywords = self._value(arguments)
                return functools.partial(self.make(inner, itself), *args, **keywords)
            case ["method", value, name]:
                return getattr(self._value(value), name)
            case ["value", value]:
                return self._value(value)
            case ["module", name]:
                return importlib.import_module(name)
            case ["self"]:
                return itself
            case ["pickle", data]:
                import cloudpickle

                return cloudpickle.loads(data)
            case ["cut", *_]:
                return self._cut(recipe)
        raise ProgramLoadError("bundle", "", f"a recipe of kind {recipe[0]} cannot be followed")

    def _cut(self, recipe: list[Any]) -> FunctionType:
        _, module, source, name, free, cells, defaults, keywords, file, line, future = recipe
        scope: dict[str, Any] = vars(importlib.import_module(module)) if module else {"__name__": "__p2pc_cut__"}
        # With the lines of the file, and a name of its own: another file may be at this path here.
        shown = f"{file}, cut out: {name}"
        linecache.cache[shown] = (len(source), None, ["\n"] * (line - 1) + source.splitlines(True), shown)
        local: dict[str, Any] = {}
        exec(compile_maker(Cut(source, name, line, future), tuple(free), shown), scope, local)
        function: FunctionType = local[MAKER](*[None] * len(free))
        if name == LAMBDA:
            name = "<lambda>"
        function.__name__ = function.__qualname__ = name
        function.__code__ = function.__code__.replace(co_name=name, co_qualname=name)
        by_name: dict[str, CellType] = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        for variable, cell in zip(free, cells, strict=True):
            if variable not in by_name:
                continue
            if cell[0] == "empty":
                del by_name[variable].cell_contents
            else:
                by_name[variable].cell_contents = self.make(cell, function)
        function.__defaults__ = self._value(defaults) or None
        function.__kwdefaults__ = self._value(keywords) or None
        return function


def _entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function runs in a loop of its own for each call."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if not inspect.iscoroutinefunction(inner):
        return function

    @functools.wraps(inner)
    def run(*args: Any, **kwargs: Any) -> Any:
        import asyncio  # a third of the time that a worker's template needs to start, and few programs use it

        return asyncio.run(function(*args, **kwargs))

    return run
