"""The wire form of a program: sources, entries, data, and what it requires.

Only plain documents here: whoever reads one runs nothing of it. Strict like every decoder: a peer's bytes can cause only ProtocolError.

An entry or a value inside it is a *recipe*, a list whose first member names its kind:

    ["name", module, qualname]                            a function or class of a shipped or installed module
    ["cut", module, source, name, free, cells, defaults, keyword defaults, file, line, future]
                                                          a function cut out of its source, with its closure; `future`: under
                                                          `from __future__ import annotations`
    ["partial", recipe, arguments]                        functools.partial; arguments are an encoded (args, kwargs)
    ["method", value, name]                               a bound method of an encoded instance
    ["value", bytes]                                      an encoded value (a cell or a default)
    ["module", name]                                      a module (a cell)
    ["self"]                                              the function in whose closure this stands
    ["empty"]                                             a cell without content
    ["pickle", bytes]                                     a cloudpickle, for the same minor version of Python only
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from p2pcompute.execution.engines.document import DEMANDS, ENGINE
from p2pcompute.model import limits
from p2pcompute.model.engine import NOTHING_DEMANDED, Demands, Engine
from p2pcompute.model.errors import ProtocolError
from p2pcompute.wire.codec import Check, Inner, Many, Maybe, Raw, Row, Schema, Text, Truth, Whole, pack, unpack
from p2pcompute.wire.versions import PROGRAM

#: Under which name a shipped script is imported: its `__main__` guard stays shut.
MAIN_MODULE = "__p2pc_main__"
_RECIPE_DEPTH_MAX = 16
_KINDS = frozenset({"name", "cut", "partial", "method", "value", "module", "self", "empty", "pickle"})


class _RecipeCheck(Check):
    def load(self, value: Any) -> list[Any]:
        if type(value) is not list or not value or value[0] not in _KINDS:
            raise ProtocolError("a recipe is a list that begins with its kind")
        return value


_RECIPE = _RecipeCheck()
_NAME = Text(512)
#: What runs Python source.
_ENGINES = frozenset({Engine.PYTHON, Engine.WASM_PYTHON})


@dataclass(frozen=True, slots=True)
class Module:
    """One shipped source. `file`: where it was, for tracebacks; `is_package`: whether it is an `__init__`."""

    name: Annotated[str, _NAME]
    is_package: Annotated[bool, Truth()]
    source: Annotated[bytes, Raw(limits.PROGRAM_BYTES_MAX)]
    file: Annotated[str, Text(4096)]


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a peer must have installed. `version`: the submitter's, for messages; any version is taken."""

    module: Annotated[str, _NAME]
    distribution: Annotated[str, _NAME] = ""
    version: Annotated[str, Text(64)] = ""

    @property
    def text(self) -> str:
        """What to tell people when it is missing."""
        if self.module.startswith("Python "):
            return f"it needs {self.module}, {self.version}, and this is another version"
        known = f" (the submitter has {self.distribution} {self.version})" if self.distribution else ""
        return f"module {self.module!r} is not installed here{known}"


@dataclass(frozen=True, slots=True)
class Body:
    """Everything in a program."""

    version: Annotated[int, Whole(1, 255)]
    modules: Annotated[tuple[Module, ...], Many(Inner(Schema(Module)), 10_000)]
    #: Files beside the sources: (path within the program, content).
    files: Annotated[tuple[tuple[str, bytes], ...], Many(Row((Text(1024), Raw(limits.PROGRAM_BYTES_MAX))), 10_000)]
    #: (name, recipe)
    entries: Annotated[tuple[tuple[str, list[Any]], ...], Many(Row((_NAME, _RECIPE)), 255)]
    #: Data globals by value: (module, name, encoded value).
    data: Annotated[
        tuple[tuple[str, str, bytes], ...], Many(Row((_NAME, _NAME, Raw(limits.PROGRAM_BYTES_MAX))), 10_000)
    ]
    requires: Annotated[tuple[Requirement, ...], Many(Inner(Schema(Requirement)), 1_000)]
    #: The module that was `__main__` at the submitter, as it is called here; empty: none was shipped.
    main: Annotated[str, _NAME]
    #: The only minor version of Python that can load it, where it holds a cloudpickle.
    python_minor: Annotated[tuple[int, ...] | None, Maybe(Many(Whole(0, 255), 2))] = None
    #: Functions and modules that importing does not make, such as those under a main guard: (module, name, recipe).
    code: Annotated[tuple[tuple[str, str, list[Any]], ...], Many(Row((_NAME, _NAME, _RECIPE)), 10_000)] = ()
    engine: Annotated[Engine, ENGINE] = Engine.PYTHON
    demands: Annotated[Demands, DEMANDS] = NOTHING_DEMANDED
    unknown: dict[str, Any] = field(default_factory=dict)


_BODY = Schema(Body)


def pack_program(body: Body) -> bytes:
    """The bytes of a program."""
    return pack(_BODY.to_fields(body))


def open_program(data: bytes | bytearray | memoryview) -> Body:
    """The document in `data`; nothing of it is run. Raises ProtocolError."""
    body = _BODY.from_fields(unpack(data, bytes_max=limits.PROGRAM_BYTES_MAX))
    if body.version != PROGRAM:
        raise ProtocolError(
            f"a program of version {body.version}, this peer reads version {PROGRAM}: upgrade the older one"
        )
    if body.engine not in _ENGINES:
        raise ProtocolError(f"Python source for the engine {body.engine}")
    for module in body.modules:
        if not all(part.isidentifier() for part in module.name.split(".")):
            raise ProtocolError(f"{module.name[:80]!r} cannot be the name of a module")
    for need in body.requires:
        # A dotted name would have its parents imported by the search for it: code of the peer's own, but at a stranger's word.
        if not need.module.isidentifier() and not need.module.startswith("Python "):
            raise ProtocolError(f"{need.module[:80]!r} cannot be a required module")
    for path, _ in body.files:
        if path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise ProtocolError(f"{path[:80]!r} leads out of the program")
    for recipe in (*(recipe for _, recipe in body.entries), *(recipe for _, _, recipe in body.code)):
        _check_recipe(recipe, 0)
    return body


def _check_recipe(recipe: Any, depth: int) -> None:
    if depth > _RECIPE_DEPTH_MAX or type(recipe) is not list or not recipe or recipe[0] not in _KINDS:
        raise ProtocolError("a recipe of a shape that no submitter makes")
    shape = _SHAPES[recipe[0]]
    if len(recipe) != len(shape) + 1 or not all(map(isinstance, recipe[1:], shape)):
        raise ProtocolError(f"a recipe of kind {recipe[0]} with other members than it has")
    if recipe[0] == "partial":
        _check_recipe(recipe[1], depth + 1)
    if recipe[0] == "cut":
        free, cells = recipe[4], recipe[5]
        if len(free) != len(cells) or not all(type(name) is str and name.isidentifier() for name in free):
            raise ProtocolError("a cut function with other cells than free variables")
        for cell in cells:
            _check_recipe(cell, depth + 1)


#: Types of the members of each kind of recipe.
_SHAPES: dict[str, tuple[type, ...]] = {
    "name": (str, str),
    "cut": (str, str, str, list, list, bytes, bytes, str, int, bool),
    "partial": (list, bytes),
    "method": (bytes, str),
    "value": (bytes,),
    "module": (str,),
    "self": (),
    "empty": (),
    "pickle": (bytes,),
}


def program_entries(data: bytes) -> tuple[str, ...]:
    """The names of the entries. Raises ProtocolError."""
    return tuple(name for name, _ in open_program(data).entries)
