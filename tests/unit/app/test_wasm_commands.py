"""`p2pcompute wasm`: what is said before any peer is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2pcompute.app.main import cli
from tests.support.wasm import WAT

pytest.importorskip("wasmtime", reason="wasmtime is not installed: pip install 'p2pcompute[wasm]'")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What says how tests are run is no configuration."""
    for name in list(os.environ):
        if name.startswith("P2PCOMPUTE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def wat(tmp_path: Path) -> Path:
    """A module's text as a file."""
    path = tmp_path / "module.wat"
    path.write_text(WAT)
    return path


def run(home: Path, *arguments: str) -> Result:
    return CliRunner(env={"P2PCOMPUTE_HOME": str(home / "home"), "NO_COLOR": "1"}).invoke(cli, list(arguments))


def test_exports_are_listed_with_their_types(tmp_path: Path, wat: Path) -> None:
    lines = run(tmp_path, "wasm", str(wat)).stdout.splitlines()
    assert "add(i32, i32) -> i32" in lines
    assert "both(i64, f64) -> (i64, f64)" in lines
    assert "nothing() -> nothing" in lines
    rows = [json.loads(line) for line in run(tmp_path, "wasm", str(wat), "--json").stdout.splitlines()]
    assert {"name": "half", "parameters": ["f64"], "results": ["f64"]} in rows


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ad", "1"), "unknown export 'ad': did you mean 'add'"),
        (("add", "1"), "add(i32, i32) -> i32 takes 2 arguments, 1 was given"),
        (("add", "--each", "[1, 2]", "[3]"), "takes 2 arguments, 1 was given"),
        (("add", "1", '"x"'), "argument 2 of add(i32, i32) -> i32 is a whole number, not str"),
        (("add", "1", "x"), "argument 2 is not a JSON value"),
        (("add", "--each"), "at least one argument"),
        (("add", "1", "2", "--fuel", "0"), "fuel is 0: give units of work above 0"),
        (("add", "1", "2", "--engine", "python"), None),
    ],
)
def test_calls_that_cannot_be_are_refused_in_words(
    tmp_path: Path, wat: Path, arguments: tuple[str, ...], text: str | None
) -> None:
    done = run(tmp_path, "wasm", str(wat), *arguments)
    assert done.exit_code == 2
    assert (text or "leave engine out") in done.stderr


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\0asm\x01\0\0\0", "exports no function"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\xff\xfe", "no WebAssembly module"),
        (b"(module (oops))", "text cannot be read"),
        (b'(module (import "env" "log" (func)) (func (export "f")))', "imports env.log (function)"),
    ],
)
def test_what_is_no_module_is_refused_in_words(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "module.wasm"
    path.write_bytes(content)
    done = run(tmp_path, "wasm", str(path))
    assert done.exit_code == 2
    assert text in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "wasm", str(tmp_path / "no.wasm"), "f")
    assert done.exit_code == 2
    assert "no.wasm: No such file" in done.stderr


def test_a_component_that_is_not_there_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home" / "config"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(f'wasm_python = "{tmp_path}/none.wasm"\n')
    done = run(tmp_path, "wasm-python")
    assert done.exit_code == 2
    assert "cannot be read at" in done.stderr
    (home / "config.toml").write_text('wasm_python = "none.wasm"\n')
    assert "absolute path" in run(tmp_path, "wasm-python").stderr
