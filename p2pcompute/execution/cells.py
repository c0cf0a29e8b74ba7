"""The script of a notebook or prompt, whose `__main__` has no file: put together from the cells that defined what is used.

Cells are what `linecache` holds of sources that are no files. Definitions stand in the order in which the cells ran, after the imports; data does
not stand there, it travels by value. Refuses to know what is reached.
"""

from __future__ import annotations

import ast
import linecache
import os
from types import FunctionType, ModuleType

from p2pcompute.model.errors import CannotShipError


def _cells() -> list[tuple[str, list[str]]]:
    """(name, lines) of every source that is no file, in the order in which they came."""
    return [
        (name, entry[2])
        for name, entry in list(linecache.cache.items())
        if len(entry) > 2 and entry[1] is None and entry[2] and not os.path.exists(name)
    ]


def has_cells() -> bool:
    """Whether there is any source that is no file."""
    return bool(_cells())


class CellScript:
    """The definitions and imports that are used, as the text of one module."""

    def __init__(self) -> None:
        self._imports: dict[str, str] = {}
        #: Text by its place, (number of the cell, line).
        self._definitions: dict[tuple[int, int], str] = {}

    @property
    def source(self) -> str:
        """The module."""
        parts = ["from __future__ import annotations\n", *(self._imports[name] for name in sorted(self._imports))]
        return "\n".join([*parts, *(text for _, text in sorted(self._definitions.items()))])

    def define(self, value: FunctionType | type) -> set[str]:
        """Add the definition of a function or class from its cell, the last one of that name; names that defining it needs.

        Raises CannotShipError.
        """
        file = value.__code__.co_filename if isinstance(value, FunctionType) else None
        wanted = value.__qualname__.partition(".")[0]
        for number, (name, lines) in reversed(list(enumerate(_cells()))):
            if file not in (None, name):
                continue
            for node in reversed(_statements(lines)):
                if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == wanted:
                    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                    self._definitions[number, first] = "".join(lines[first - 1 : node.end_lineno]) + "\n"
                    return _needed_by(node)
        raise CannotShipError(
            f"{value.__qualname__} has no source that can be read: define it in a cell of its own, or in a file"
        )

    def import_(self, name: str, value: object, at: object) -> None:
        """Add the import that gives `value` the name `name`; `at`: what stands under the value's own name."""
        if isinstance(value, ModuleType):
            self._imports[name] = f"import {value.__name__} as {name}"
        elif at is value and "." not in str(getattr(value, "__qualname__", ".")):
            module, original = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
            self._imports[name] = f"from {module} import {original} as {name}"


def _needed_by(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    parts: list[ast.AST] = [*node.decorator_list]
    if isinstance(node, ast.ClassDef):
        parts += [*node.bases, *node.keywords, *node.body]
    else:
        parts += [*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]
    return {inner.id for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Name)}


def _statements(lines: list[str]) -> list[ast.stmt]:
    # Magics are no Python; the lines keep their numbers.
    plain = ["\n" if line.lstrip().startswith(("%", "!", "?")) else line for line in lines]
    try:
        return ast.parse("".join(plain)).body
    except SyntaxError:
        return []
