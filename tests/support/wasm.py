"""WebAssembly modules for tests, and the compiled WebAssembly Python in a data folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.execution.engines.wasm_program import Convention, WasmLimits, make_wasm_program

#: What honest and hostile modules do, one export each.
WAT = """
(module
  (memory (export "memory") 1)
  (global $top (mut i32) (i32.const 1024))
  (global $calls (mut i32) (i32.const 0))
  (func (export "alloc") (param i32) (result i32) (local i32)
    global.get $top local.set 1
    global.get $top local.get 0 i32.add global.set $top
    local.get 1)
  (func (export "shout") (param i32 i32) (result i64) (local $i i32)
    (block (loop
      (br_if 1 (i32.ge_u (local.get $i) (local.get 1)))
      (i32.store8 (i32.add (local.get 0) (local.get $i))
        (i32.sub (i32.load8_u (i32.add (local.get 0) (local.get $i))) (i32.const 32)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br 0)))
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32)) (i64.extend_i32_u (local.get 1))))
  (func (export "lie") (param i32 i32) (result i64) (i64.const -1))
  (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add)
  (func (export "add64") (param i64 i64) (result i64) local.get 0 local.get 1 i64.add)
  (func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))
  (func (export "third") (param f32) (result f32) (f32.div (local.get 0) (f32.const 3)))
  (func (export "both") (param i64 f64) (result i64 f64) local.get 0 local.get 1)
  (func (export "nothing"))
  (func (export "calls") (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1))) (global.get $calls))
  (func (export "triangle") (param i32) (result i64) (local $sum i64)
    (loop
      (local.set $sum (i64.add (local.get $sum) (i64.extend_i32_u (local.get 0))))
      (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
    local.get $sum)
  (func (export "forever") (loop (br 0)))
  (func $deep (export "deep") (call $deep))
  (func (export "unreachable") unreachable)
  (func (export "divide") (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "outside") (result i32) (i32.load (i32.const 0x7fffffff)))
)
"""


def module_program(
    entry: str, convention: Convention = Convention.NUMBERS, allowed: WasmLimits | None = None, wat: str = WAT
) -> bytes:
    """The program of one export."""
    pytest.importorskip("wasmtime", reason="wasmtime is not installed: pip install 'p2pcompute[wasm]'")
    program, _ = make_wasm_program(wat, {entry: convention}, allowed)
    return program.data


def place_compiled(home: Path, compiled: Path) -> None:
    """Let the peers of the data folder beneath `home` find what was compiled for all tests."""
    data = home / "data"
    data.mkdir(mode=0o700, parents=True)
    (data / "engines").symlink_to(compiled.parent)
