"""What of WebAssembly a peer offers, in which network, and what submitters get where they say nothing."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution.engines import wasm_python_build as build
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.model.job import JobOptions
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.offers import offers_of
from p2pcompute.node.programs import Programs, options_for
from p2pcompute.node.wasm_engines import WasmEngines, engine_by_default, offered_engines
from tests.support.wasm import place_compiled

ALL = (Engine.PYTHON, Engine.WASM, Engine.WASM_PYTHON)


@pytest.mark.parametrize(
    ("works", "chosen", "is_open", "offered"),
    [
        (ALL, (), False, ALL),
        (ALL, (), True, (Engine.WASM, Engine.WASM_PYTHON)),
        ((Engine.PYTHON,), (), True, ()),
        (ALL, ("python",), True, (Engine.PYTHON,)),
        (ALL, ("python", "wasm"), False, (Engine.PYTHON, Engine.WASM)),
        ((Engine.PYTHON,), ("wasm",), False, ()),
    ],
)
def test_strangers_get_what_holds_them_best_unless_the_owner_says_otherwise(
    works: tuple[Engine, ...], chosen: tuple[str, ...], is_open: bool, offered: tuple[Engine, ...]
) -> None:
    assert offered_engines(works, chosen, is_open=is_open) == offered
    config = PeerConfig.test(engines=chosen)
    if Engine.PYTHON in works:
        assert offers_of(config, works[1:], is_open=is_open).engines == offered


def test_functions_run_where_the_network_s_kind_suggests() -> None:
    among_strangers = engine_by_default(is_open=True)
    assert options_for(len, JobOptions(), among_strangers).engine is Engine.WASM_PYTHON
    assert [str(each) for each in options_for(len, JobOptions(), among_strangers).requirements]
    plain = JobOptions()
    assert options_for(len, plain, engine_by_default(is_open=False)) is plain
    told = JobOptions(engine=Engine.PYTHON)
    assert options_for(len, told, among_strangers) is told


def test_functions_are_for_engines_that_run_functions() -> None:
    with pytest.raises(UsageError, match="engine='container' runs no Python functions"):
        Programs().of({"f": len}, JobOptions(engine=Engine.CONTAINER))


def test_a_program_is_remembered_by_its_engine() -> None:
    programs = Programs()
    plain = programs.of({"f": engine_by_default}, JobOptions())
    other = programs.of({"f": engine_by_default}, JobOptions(engine=Engine.WASM_PYTHON))
    assert plain.id != other.id
    assert programs.of({"f": engine_by_default}, JobOptions()) is plain


def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILDER", "no-such-builder")
    found = WasmEngines.look(Folders.beneath(tmp_path))
    assert found.place is None
    assert not found.python_is_ready
    assert "pip install 'p2pcompute[wasm]'" in found.problem
    with pytest.raises(UsageError, match="no-such-builder"):
        asyncio.run(found.prepare())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert WasmEngines.look(Folders.beneath(tmp_path)).engines == ()


def test_what_is_there_is_used_as_it_is(tmp_path: Path, wasm_python: Path) -> None:
    place_compiled(tmp_path, wasm_python)
    found = WasmEngines.look(Folders.beneath(tmp_path))
    assert found.engines == (Engine.WASM, Engine.WASM_PYTHON)
    assert asyncio.run(found.prepare()) == tmp_path / "data" / "engines" / wasm_python.name


def test_a_component_that_is_none_is_an_error_in_words(tmp_path: Path) -> None:
    pytest.importorskip("wasmtime", reason="wasmtime is not installed: pip install 'p2pcompute[wasm]'")
    given = tmp_path / "given.wasm"
    given.write_bytes(b"\0asm\x0d\0\x01\0broken")
    found = WasmEngines.look(Folders.beneath(tmp_path), given)
    said: list[Any] = []
    with pytest.raises(ResourceError, match=r"could not be made: .*given\.wasm cannot be compiled"):
        asyncio.run(found.prepare(said.append))
    assert said == ["compiling the WebAssembly Python for this machine; this takes half a minute, once"]
    assert not list((tmp_path / "data" / "engines").glob("*.cwasm"))
