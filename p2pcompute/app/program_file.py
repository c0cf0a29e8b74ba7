"""The user's own FILE.py and inputs: loaded, checked and read before anything is sent anywhere.

Owns the loading of a file as an ordinary module (its folder first on the path, its `__main__` guard shut) and the kinds of
inputs. Every input file is opened once before the job starts, so that a name that is wrong costs nothing.

Refuses to know how a job runs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from p2pcompute.model import limits
from p2pcompute.model.errors import UnknownNameError, UsageError

KINDS = ("bytes", "text", "lines", "path", "json")


def load_program(path: Path) -> ModuleType:
    """`path` as a module named after its file. Raises UsageError naming what is wrong with it."""
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UsageError(
            f"{path} cannot be loaded as a module: its name must be letters, digits and underscores, and .py"
        )
    if not path.is_file():
        raise UsageError(f"{path} is not there: give the Python file that defines the function")
    resolved = path.resolve()
    name = resolved.stem
    if name in sys.stdlib_module_names or name in sys.modules:
        raise UsageError(
            f"{path} has the name of a module that Python uses itself: call the file something else than {name}.py"
        )
    sys.path.insert(0, str(resolved.parent))
    importlib.invalidate_caches()
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its functions and classes are found by this name
    try:
        # What the file prints while it is loaded is no result: stdout is for data alone.
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        raise UsageError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"loading {path} failed: {type(error).__name__}: {error}{_place(error, resolved)}") from error
    return module


def function_of(module: ModuleType, name: str) -> Callable[..., Any]:
    """The function called `name`. Raises UnknownNameError with the nearest one that the file defines."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        own = [
            known
            for known, member in vars(module).items()
            if callable(member) and not known.startswith("_") and getattr(member, "__module__", None) == module.__name__
        ]
        raise UnknownNameError(f"function in {module.__name__}.py", name, own)
    function: Callable[..., Any] = found
    return function


class FileInputs:
    """One input a file, read when the job asks for it. `len()` is known, which makes progress bars honest."""

    def __init__(self, paths: tuple[Path, ...], kind: str) -> None:
        self.paths = paths
        self._kind = kind

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Any]:
        for path in self.paths:
            yield read_input(path, self._kind)


def file_inputs(paths: tuple[Path, ...], kind: str) -> FileInputs | Iterable[str]:
    """The inputs that `paths` hold. Raises UsageError at once for a file that is missing or cannot be read."""
    for path in paths:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name its files, for example {path}/*.txt")
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise UsageError(f"cannot read the input {path}: {error.strerror}; nothing was run") from error
        if kind != "lines" and path.stat().st_size > limits.VALUE_BYTES_MAX:
            raise UsageError(f"{path} has more than {limits.VALUE_BYTES_MAX} bytes: split it, or use --as lines")
    if kind == "lines":
        return itertools.chain.from_iterable(_lines(path) for path in paths)
    return FileInputs(paths, kind)


def read_input(path: Path, kind: str) -> Any:
    """One file as one input. Raises UsageError where it vanished, or is not what `kind` says."""
    if kind == "path":
        return str(path.resolve())
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the input {path} cannot be read any more: {error.strerror}; the job was cancelled"
        ) from error
    if kind == "bytes":
        return content
    try:
        text = content.decode()
        return text if kind == "text" else json.loads(text)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: leave --as {kind} out to give its bytes") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error


def json_arguments(texts: tuple[str, ...]) -> list[Any]:
    """One input an argument, each a JSON value. Raises UsageError naming the one that is not."""
    values: list[Any] = []
    for number, text in enumerate(texts, 1):
        try:
            values.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise UsageError(
                f"argument {number} is not a JSON value: {text[:80]!r} ({error.msg}); write a text as '\"text\"'"
            ) from error
    return values


def json_lines(lines: Iterable[str], place: str) -> Iterator[Any]:
    """One input a line, each a JSON value; empty lines are skipped. Raises UsageError naming the line."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"{place}, line {number}: not a JSON value: {error.msg}") from error


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except OSError as error:
        raise UsageError(
            f"the input {path} cannot be read any more: {error.strerror}; the job was cancelled"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: leave --as lines out to give its bytes") from error


def _place(error: BaseException, path: Path) -> str:
    trace = error.__traceback__
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""
