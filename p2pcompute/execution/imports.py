"""Which modules are the user's own, and which of them a module imports.

Local is what has a source that is neither Python's own nor installed: scripts, modules beside them, packages under development, editable
installations. Reads sources and imports nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

#: What every peer has in its own version.
OWN_PACKAGE = "p2pcompute"


@dataclass(frozen=True, slots=True)
class Found:
    """A module by its name. `file` None: built in, installed, or not found; `local`: to be shipped."""

    name: str
    file: str | None
    is_package: bool
    local: bool
    exists: bool


def _installed_folders() -> tuple[str, ...]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= set(site.getsitepackages()) | {site.getusersitepackages()}
    return tuple(sorted(str(Path(folder).resolve()) for folder in folders if folder))


def is_installed(file: str) -> bool:
    """Whether `file` belongs to Python or to an installed package."""
    path = str(Path(file).resolve())
    if "site-packages" in path or "dist-packages" in path:
        return True
    return any(path.startswith((folder + "/", folder + "\\")) for folder in _installed_folders())


def find(name: str) -> Found:
    """Where the module `name` comes from."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == OWN_PACKAGE:
        return Found(name, None, False, False, True)
    module = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    if module is not None and spec is None:
        file = getattr(module, "__file__", None)
        return Found(name, file, hasattr(module, "__path__"), file is not None and not is_installed(file), True)
    if spec is None:
        spec = _search(name)
    if spec is None:
        return Found(name, None, False, False, False)
    is_package = spec.submodule_search_locations is not None
    origin = spec.origin
    if origin is None and is_package:
        # A namespace package: local where one of its folders is.
        folders = [str(folder) for folder in spec.submodule_search_locations or []]
        return Found(name, None, True, any(not is_installed(folder) for folder in folders), True)
    if origin is None or not origin.endswith(".py"):
        return Found(name, None, is_package, False, True)
    return Found(name, origin, is_package, not is_installed(origin), True)


def _search(name: str) -> ModuleSpec | None:
    """As `importlib.util.find_spec`, which imports the parents; these may be slow or mean something by it."""
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(name)
        above = getattr(sys.modules.get(parent), "__spec__", None) or _search(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        return PathFinder.find_spec(name, list(above.submodule_search_locations))
    except (ImportError, ValueError, AttributeError):
        return None


def at(module: str, qualname: str) -> object:
    """What stands under a name in a loaded module, None where nothing does."""
    holder: object = sys.modules.get(module)
    for part in qualname.split("."):
        holder = getattr(holder, part, None)
    return holder


@dataclass(frozen=True, slots=True)
class Import:
    """A module that a source imports. `optional`: it goes on without; `inside`: within a function, so perhaps never."""

    name: str
    optional: bool
    inside: bool


def imports_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """What the module called `module` imports, relative names made absolute, `from x import y` as x and x.y."""
    package = module if is_package else module.rpartition(".")[0]
    yield from _walk(tree.body, package, optional=False, inside=False)


def _walk(nodes: list[ast.stmt], package: str, *, optional: bool, inside: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from (Import(name, optional, inside) for name in _with_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            if base:
                yield from (Import(name, optional, inside) for name in _with_parents(base))
                # What is imported from it may be a module or not: never required.
                yield from (Import(f"{base}.{alias.name}", True, inside) for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.If) and (_is_type_checking(node.test) or _is_main_guard(node.test)):
            yield from _walk(node.orelse, package, optional=optional, inside=inside)
        elif isinstance(node, ast.Try):
            tolerant = any(_catches_import_error(handler.type) for handler in node.handlers)
            yield from _walk(node.body, package, optional=optional or tolerant, inside=inside)
            for handler in node.handlers:
                yield from _walk(handler.body, package, optional=True, inside=inside)
            yield from _walk(node.orelse + node.finalbody, package, optional=optional, inside=inside)
        elif isinstance(node, (ast.If, ast.Match)):
            # Perhaps never: what a version or a platform decides may be decided otherwise over there.
            bodies = [node.body, node.orelse] if isinstance(node, ast.If) else [case.body for case in node.cases]
            for body in bodies:
                yield from _walk(body, package, optional=True, inside=inside)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            tolerant = any(
                isinstance(item.context_expr, ast.Call)
                and ast.unparse(item.context_expr.func) in ("suppress", "contextlib.suppress")
                and any(_catches_import_error(each) for each in item.context_expr.args)
                for item in node.items
            )
            yield from _walk(node.body, package, optional=optional or tolerant, inside=inside)
        else:
            deeper = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for field in ("body", "orelse", "finalbody"):
                inner = getattr(node, field, None)
                if isinstance(inner, list):
                    yield from _walk(inner, package, optional=optional, inside=deeper)


def _catches_import_error(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        ast.unparse(kind) in ("ImportError", "ModuleNotFoundError", "Exception", "BaseException") for kind in kinds
    )


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    kept = parts[: len(parts) - (node.level - 1)]
    return ".".join([*kept, node.module] if node.module else kept)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_main_guard(test: ast.expr) -> bool:
    return (
        isinstance(test, ast.Compare)
        and len(test.comparators) == 1
        and any(isinstance(side, ast.Name) and side.id == "__name__" for side in (test.left, test.comparators[0]))
        and any(
            isinstance(side, ast.Constant) and side.value == "__main__" for side in (test.left, test.comparators[0])
        )
    )


@dataclass(frozen=True, slots=True)
class Bindings:
    """What executing a module binds, outside of its main guard.

    `values`: names, with the value of those that one plain assignment at the top sets, else None. `plain_defs`: names set only by
    one undecorated `def` or `class`. `star`: some names cannot be known, as `from x import *` stands there.
    """

    values: dict[str, ast.expr | None]
    plain_defs: frozenset[str]
    star: bool

    def made_on_import(self, name: str) -> bool:
        """Whether `name` exists once the module is imported somewhere else."""
        return name in self.values or self.star


def bindings_of(tree: ast.Module) -> Bindings:
    """What executing the module binds; the bodies of functions and classes are scopes of their own."""
    values: dict[str, ast.expr | None] = {}
    defs: set[str] = set()
    bound_once: set[str] = set()

    def bind(name: str, value: ast.expr | None = None, *, plain_def: bool = False) -> None:
        bound_once.discard(name) if name in values else bound_once.add(name)
        values[name] = value if name not in values else None
        if plain_def:
            defs.add(name)

    def note(statements: list[ast.stmt], top: bool) -> None:
        for node in statements:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                bind(node.name, plain_def=not node.decorator_list)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    bind((alias.asname or alias.name).partition(".")[0])
            elif (
                isinstance(node, ast.Assign)
                and top
                and len(node.targets) == 1
                and isinstance(node.targets[0], ast.Name)
            ):
                bind(node.targets[0].id, node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if node.value is not None:
                    bind(node.target.id, node.value if top else None)
            elif isinstance(node, ast.If) and _is_main_guard(node.test):
                note(node.orelse, False)
            else:
                _bind_stored(node, bind)
                for field in ("body", "orelse", "finalbody"):
                    note(getattr(node, field, []), False)
                for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                    note(part.body, False)

    note(tree.body, True)
    return Bindings(values, frozenset(defs & bound_once), "*" in values)


def _bind_stored(node: ast.stmt, bind: Callable[[str], None]) -> None:
    """Names that a statement itself sets: targets of loops, `with … as`, `except … as`, patterns, `:=`."""
    waiting: list[ast.AST] = [node]
    while waiting:
        part = waiting.pop()
        waiting += [each for each in ast.iter_child_nodes(part) if not isinstance(each, (ast.stmt, ast.Lambda))]
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            bind(part.id)
        elif isinstance(part, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and part.name:
            bind(part.name)


def set_elsewhere(tree: ast.Module) -> set[str]:
    """Names that are set under the main guard, or by a function through `global`: not (only) by importing the module."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.If) and _is_main_guard(node.test):
            names |= bindings_of(ast.Module(node.body, [])).values.keys()
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Global):
            names |= set(inner.names)
    return names


def line_outside_guard(tree: ast.Module, line: int) -> bool:
    """Whether `line` belongs to a statement that runs on import."""
    return not any(
        isinstance(node, ast.If) and _is_main_guard(node.test) and node.lineno <= line <= (node.end_lineno or line)
        for node in tree.body
    )
