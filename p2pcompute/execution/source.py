"""From a live function to the text that made it, and back to the same code.

Finds the piece of source that a code object was compiled from, and compares the two: code that differs from its file (edited
after import, or patched) must not travel, because another machine would run something else than this one does. What stands in a module
by name travels as the module; lambdas and functions inside functions are cut out, keep their lines, and get their closure, defaults
and names from the live function: nothing of the text is run but the `def` itself.
"""

from __future__ import annotations

import ast
import dis
import inspect
import linecache
import os
import symtable
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType

from p2pcompute.model.errors import CannotShipError

#: Under which name the maker of a cut function is compiled.
MAKER = "__p2pc_make__"
#: What a lambda is called in the text that is cut out.
LAMBDA = "p2pc_lambda"
#: `from __future__ import annotations`, as a flag of code and of the compiler: the same number in every version.
FUTURE_ANNOTATIONS = 0x1000000
#: Flags of other `from __future__ import …`, which only say how the text was compiled; CO_NESTED.
_FLAGS_OF_NO_EFFECT = 0xFFFE0000 | 0x10

_Function = ast.Lambda | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Cut:
    """One function's text. `line`: where it stands in its file; `future`: compiled with postponed annotations."""

    text: str
    name: str
    line: int
    future: bool


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """`code` and every code object inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def same_code(a: CodeType, b: CodeType) -> bool:
    """Whether two code objects do the same, wherever they were compiled and whatever encloses them."""
    if (
        a.co_code != b.co_code
        or a.co_names != b.co_names
        or a.co_varnames != b.co_varnames
        or a.co_freevars != b.co_freevars
        or a.co_cellvars != b.co_cellvars
        or a.co_argcount != b.co_argcount
        or a.co_posonlyargcount != b.co_posonlyargcount
        or a.co_kwonlyargcount != b.co_kwonlyargcount
        or (a.co_flags ^ b.co_flags) & ~_FLAGS_OF_NO_EFFECT
        or len(a.co_consts) != len(b.co_consts)
    ):
        return False
    return all(_same_constant(x, y) for x, y in zip(a.co_consts, b.co_consts, strict=True))


def _same_constant(x: object, y: object) -> bool:
    if isinstance(x, CodeType) and isinstance(y, CodeType):
        return same_code(x, y)
    if isinstance(x, frozenset) and isinstance(y, frozenset):
        return x == y and set(map(type, x)) == set(map(type, y))
    if isinstance(x, str) and isinstance(y, str) and x != y:
        return False
    return type(x) is type(y) and repr(x) == repr(y)


def module_source(module_name: str, file: str) -> str:
    """The text of a module's file. Raises CannotShipError."""
    try:
        with tokenize.open(file) as opened:
            return opened.read()
    except (OSError, SyntaxError, UnicodeError) as error:
        raise CannotShipError(
            f"the source of module {module_name!r} cannot be read at {file} ({error}): functions travel as source, keep the file"
        ) from error


def is_in_file(code: CodeType, file: str) -> bool:
    """Whether `code` was compiled from `file`, not made by a decorator or by `exec`."""
    return os.path.abspath(code.co_filename) == os.path.abspath(file)


def check_unchanged(function: FunctionType, codes: dict[str, list[CodeType]], file: str) -> None:
    """Raise CannotShipError where `function` is not among `codes`, those that its module's `file` compiles to, by qualified name."""
    code = function.__code__
    if not any(same_code(code, candidate) for candidate in codes.get(code.co_qualname, [])):
        raise CannotShipError(
            f"{code.co_qualname}() is not what {file} says: the file was edited after it was imported, or the function was "
            "changed while running. Restart the program, or reload the module"
        )


def compiled_codes(source: str, file: str) -> dict[str, list[CodeType]]:
    """All code that a module's text compiles to, by qualified name. Raises CannotShipError."""
    try:
        compiled = compile(source, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise CannotShipError(f"{file} was edited after it was imported and is no valid Python now: {error}") from error
    found: dict[str, list[CodeType]] = {}
    for code in codes_in(compiled):
        found.setdefault(code.co_qualname, []).append(code)
    return found


def cut_out(function: FunctionType, *, compare: bool = True) -> Cut | None:
    """The text of a lambda, a nested function or one of a notebook; None where there is no text.

    Raises CannotShipError where text and code differ, unless not told to `compare` (the importer rewrites code, as pytest does).
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    has_file = not code.co_filename.startswith("<")
    whole = "".join(lines)
    try:
        tree = ast.parse(whole)
    except (SyntaxError, ValueError):
        tree = ast.Module([], [])
    is_lambda = code.co_name == "<lambda>"
    name = LAMBDA if is_lambda else code.co_name
    future = bool(code.co_flags & FUTURE_ANNOTATIONS)
    imported = _imported(whole)
    near = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda if is_lambda else (ast.FunctionDef, ast.AsyncFunctionDef))
        and _first_line(node) == code.co_firstlineno
        and (isinstance(node, ast.Lambda) or node.name == code.co_name)
    ]
    cuts = [
        (node, cut)
        for node in near
        if (cut := Cut(_text_of(node, name, whole), name, node.lineno, future))
        and (not compare or _makes(code, cut, imported))
    ]
    if not cuts:
        if not lines or not (has_file or near):
            return None
        raise CannotShipError(
            f"{code.co_qualname}() is not what {code.co_filename} says at line {code.co_firstlineno}: the file was edited after "
            "it was loaded. Restart the program"
        )
    if len({cut.text for _, cut in cuts}) > 1:
        cuts = [(node, cut) for node, cut in cuts if _stands_at(node, code)]
        if len(cuts) != 1:
            raise CannotShipError(
                f"several lambdas at line {code.co_firstlineno} of {code.co_filename} cannot be told apart: give each a line"
            )
    return cuts[0][1]


def cut_class(cls: type) -> tuple[str, str, int] | None:
    """(text, file, line) of a class of a notebook, from the cell that defined it last; None where no cell did."""
    for file, entry in reversed(list(linecache.cache.items())):
        lines = entry[2] if len(entry) > 2 else []
        text = "".join(lines)
        if f"class {cls.__name__}" not in text:
            continue
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        for node in reversed(tree.body):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                return "".join(lines[first - 1 : node.end_lineno]), file, first
    return None


def class_node(tree: ast.Module, qualname: str) -> ast.ClassDef | None:
    """The definition of a class in its module's tree."""
    body: list[ast.stmt] = tree.body
    found: ast.ClassDef | None = None
    for part in qualname.split("."):
        found = next(
            (each for stmt in body for each in _blocks(stmt) if isinstance(each, ast.ClassDef) and each.name == part),
            None,
        )
        if found is None:
            return None
        body = found.body
    return found


def _blocks(node: ast.stmt) -> Iterator[ast.stmt]:
    """A statement, or those inside it if it opens no scope of its own."""
    yield node
    if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.stmt):
                yield from _blocks(inner)


def _first_line(node: _Function) -> int:
    if isinstance(node, ast.Lambda) or not node.decorator_list:
        return node.lineno
    return min(decorator.lineno for decorator in node.decorator_list)


def _stands_at(node: ast.AST, code: CodeType) -> bool:
    """Whether the body of the lambda stands exactly where the code says that it does."""
    body = getattr(node, "body", None)
    if not isinstance(body, ast.expr):
        return False
    span = (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset)
    return span in set(code.co_positions())


def _text_of(node: _Function, name: str, whole: str) -> str:
    """The function as text that keeps its lines where that is possible."""
    if isinstance(node, ast.Lambda):
        return f"{name} = {ast.unparse(node)}\n"
    lines = whole.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    text = textwrap.dedent("".join(lines))
    bare = ast.unparse(_bare(node))
    try:
        parsed = ast.parse(text).body
    except (SyntaxError, ValueError):
        return bare + "\n"
    # A text constant over several lines changes when its lines are moved to the left.
    fits = len(parsed) == 1 and isinstance(parsed[0], (ast.FunctionDef, ast.AsyncFunctionDef))
    return text if fits and ast.dump(_bare(parsed[0])) == ast.dump(_bare(node)) else bare + "\n"  # type: ignore[arg-type]


def _bare(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The function without what is evaluated when it is defined: decorators, defaults, annotations."""
    fields = {field: getattr(node, field) for field in node._fields}
    fields |= {"decorator_list": [], "returns": None, "args": _bare_arguments(node.args)}
    if "type_params" in fields:
        fields["type_params"] = []
    bare = type(node)(**fields)
    return ast.fix_missing_locations(ast.copy_location(bare, node))


def _bare_arguments(arguments: ast.arguments) -> ast.arguments:
    def plain(argument: ast.arg) -> ast.arg:
        return ast.copy_location(ast.arg(argument.arg, None), argument)

    return ast.arguments(
        posonlyargs=[plain(each) for each in arguments.posonlyargs],
        args=[plain(each) for each in arguments.args],
        vararg=plain(arguments.vararg) if arguments.vararg else None,
        kwonlyargs=[plain(each) for each in arguments.kwonlyargs],
        kw_defaults=[None if default is None else ast.Constant(None) for default in arguments.kw_defaults],
        kwarg=plain(arguments.kwarg) if arguments.kwarg else None,
        defaults=[ast.Constant(None) for _ in arguments.defaults],
    )


def maker_tree(cut: Cut, free: tuple[str, ...]) -> ast.Module:
    """A module with one function, `MAKER(*free)`, that makes the function of `cut` with cells for its free variables.

    Raises SyntaxError. Annotations and defaults are left out: they would be evaluated.
    """
    body = ast.parse(cut.text).body[0]
    name = cut.name
    if isinstance(body, (ast.FunctionDef, ast.AsyncFunctionDef)):
        body = _bare(body)
        if name not in free:
            # Under its own name it would hide the global of that name, which may be another: itself, decorated.
            body.name = name = LAMBDA
    elif isinstance(body, ast.Assign) and isinstance(body.value, ast.Lambda):
        body.value.args = _bare_arguments(body.value.args)
    else:
        raise SyntaxError("not the text of one function")
    maker = ast.parse(f"def {MAKER}({', '.join(free)}):\n    return {name}\n")
    inner = maker.body[0]
    assert isinstance(inner, ast.FunctionDef)
    ast.increment_lineno(body, cut.line - 1)
    inner.body.insert(0, body)
    return ast.fix_missing_locations(maker)


def compile_maker(cut: Cut, free: tuple[str, ...], file: str) -> CodeType:
    """The compiled `maker_tree`. Raises SyntaxError, ValueError."""
    flags = FUTURE_ANNOTATIONS if cut.future else 0
    code: CodeType = compile(maker_tree(cut, free), file, "exec", flags=flags, dont_inherit=True)
    return code


def _imported(whole: str) -> tuple[str, ...]:
    """The names that a module's text imports for all of it."""
    try:
        table = symtable.symtable(whole, "<whole>", "exec")
    except (SyntaxError, ValueError):
        return ()
    return tuple(sorted(symbol.get_name() for symbol in table.get_symbols() if symbol.is_imported()))


def _makes(code: CodeType, cut: Cut, imported: tuple[str, ...]) -> bool:
    """Whether compiling the text gives `code` again.

    Calls such as `time.sleep()` compile to other instructions where the module imports `time`; so the same is imported here.
    """
    try:
        tree = maker_tree(cut, code.co_freevars)
        if imported:
            tree.body.insert(0, ast.Import([ast.alias("_", name) for name in imported]))
        flags = FUTURE_ANNOTATIONS if cut.future else 0
        compiled = compile(ast.fix_missing_locations(tree), "<cut>", "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return any(same_code(code, inner) for inner in codes_in(compiled) if inner.co_name in (code.co_name, LAMBDA))


def globals_of(code: CodeType) -> set[str]:
    """Names that are looked up in the module by `code` and what is inside it."""
    return {
        str(each.argval)
        for inner in codes_in(code)
        for each in dis.get_instructions(inner)
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_CLASSDEREF")
    }


def cell_content(cell: CellType) -> object:
    """What a cell of a closure holds, None where it holds nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def tree_of(function: FunctionType) -> ast.Module:
    """The source of one function as a tree whose statements count as the function's own; empty where there is none."""
    try:
        tree = ast.parse(textwrap.dedent("".join(inspect.getsourcelines(function.__code__)[0])))
    except (OSError, SyntaxError, IndentationError, TypeError):
        return ast.Module([], [])
    body = tree.body[0] if tree.body else None
    if isinstance(body, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return ast.Module(body.body, [])
    return ast.Module([], [])


def same_value(a: object, b: object) -> bool:
    """Whether two plain values are the same, types included."""
    return type(a) is type(b) and repr(a) == repr(b)
