"""Nested functions are cut out of their file only where the file still says what they do."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from p2pcompute.execution.source import cut_out
from p2pcompute.model.errors import CannotShipError

TEXT = """
import math, os.path as paths
from math import floor

def make(offset):
    def inner(x):
        return math.sqrt(x) + floor(offset) + len(paths.join("a", "b"))
    return inner

def make_lambda():
    return lambda x: math.sqrt(x)
"""


def load(path: Path, text: str) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nested(module: ModuleType) -> list[FunctionType]:
    return [module.make(1), module.make_lambda()]


def test_calls_of_functions_of_imported_modules_are_no_change(tmp_path: Path) -> None:
    """Python compiles `math.sqrt()` to other instructions where its module imports `math`."""
    for function in nested(load(tmp_path / "calls_of_imports.py", TEXT)):
        cut = cut_out(function)
        assert cut is not None
        assert "math.sqrt(x)" in cut.text


def test_a_change_of_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "changed_since.py"
    functions = nested(load(path, TEXT))
    path.write_text(TEXT.replace("sqrt", "cbrt"))
    os.utime(path, (1, 1))
    for function in functions:
        with pytest.raises(CannotShipError, match="edited"):
            cut_out(function)
