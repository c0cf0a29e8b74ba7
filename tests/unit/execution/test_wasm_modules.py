"""WebAssembly modules as a worker runs them: typed calls, bytes, fuel, time, memory, and modules that mean harm."""

from __future__ import annotations

import asyncio
import importlib
import math
import struct
from typing import Any

import pytest

pytest.importorskip("wasmtime", reason="wasmtime is not installed: pip install 'p2pcompute[wasm]'")

from p2pcompute.execution import values
from p2pcompute.execution.engines.document import head_of
from p2pcompute.execution.engines.wasm_binary import interface_of
from p2pcompute.execution.engines.wasm_program import (
    Convention,
    WasmBody,
    WasmLimits,
    binary_of,
    make_wasm_program,
    open_wasm_program,
)
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.execution.pool import ProgramKey, TaskRun
from p2pcompute.model import limits
from p2pcompute.model.engine import Demands, Engine
from p2pcompute.model.errors import CannotShipError, ProtocolError, UnknownNameError, UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.wire.codec import Schema, pack
from tests.support.wasm import WAT, module_program
from tests.unit.execution.pool_help import bench
from tests.unit.execution.program_help import encode_arguments


def load(program: bytes, data: dict[bytes, bytes] | None = None) -> Any:
    """The class that a worker makes of it; imported here, for it needs wasmtime."""
    module = importlib.import_module("p2pcompute.execution.engines.wasm_worker")
    return module.WasmProgram(program, lambda handle: (data or {})[handle.blob], 1 << 20)


def call(entry: str, *args: Any, convention: Convention = Convention.NUMBERS, **allowed: Any) -> Any:
    """What one call gives: its value, or (outcome, text)."""
    runner = load(module_program(entry, convention, WasmLimits(**allowed)))
    return ended(*runner.run(0, encode_arguments(args)))


def ended(outcome: Outcome, payload: bytes) -> Any:
    if outcome is Outcome.RETURNED:
        return values.decode(payload)
    if outcome is Outcome.RAISED:
        failure = values.decode_failure(payload)
        return failure.type_name.rpartition(".")[2], failure.message
    return outcome, payload.decode()


# --- what is called, and how ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "args", "value"),
    [
        ("add", (1, 2), 3),
        ("add", (2**31, 0), -(2**31)),  # the bits of an unsigned number
        ("add", (-1, -1), -2),
        ("add64", (2**62, 2**62 - 1), 2**63 - 1),
        ("half", (3,), 1.5),
        ("half", (math.inf,), math.inf),
        ("third", (1.0,), struct.unpack("<f", struct.pack("<f", 1 / 3))[0]),
        ("both", (-5, 0.5), (-5, 0.5)),
        ("nothing", (), None),
        ("add", ([1, 2],), 3),  # one input of a map
    ],
)
def test_numbers_go_in_and_come_out(entry: str, args: tuple[Any, ...], value: Any) -> None:
    assert call(entry, *args) == value


@pytest.mark.parametrize(
    ("entry", "args", "text"),
    [
        ("add", (1,), "add(i32, i32) -> i32 takes 2 arguments, 1 was given"),
        ("half", (), "half(f64) -> f64 takes 1 argument, 0 were given"),
        ("add", (1, 2.0), "argument 2 of add(i32, i32) -> i32 is a whole number, not float"),
        ("add", (1, 2**32), "is a number of 32 bits, and 4294967296 does not fit"),
        ("add64", (2**64, 0), "is a number of 64 bits"),
        ("half", ("1",), "argument 1 of half(f64) -> f64 is a number, not str"),
        ("half", (10**400,), "is a number that is too large"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_types(entry: str, args: tuple[Any, ...], text: str) -> None:
    kind, message = call(entry, *args)
    assert kind == "UsageError"
    assert text in message


def test_a_name_for_an_argument_is_refused() -> None:
    runner = load(module_program("add"))
    kind, message = ended(*runner.run(0, encode_arguments((1,), {"b": 2})))
    assert (kind, "by position, not as b=" in message) == ("UsageError", True)


def test_bytes_go_in_and_come_out() -> None:
    assert call("shout", b"hello", convention=Convention.BYTES) == b"HELLO"
    assert call("shout", b"", convention=Convention.BYTES) == b""
    assert call("shout", bytearray(b"abc" * 10_000), convention=Convention.BYTES) == b"ABC" * 10_000


def test_data_behind_a_handle_is_fetched() -> None:
    runner = load(module_program("shout", Convention.BYTES), {b"b" * 32: values.encode(b"data")})
    handle = values.Handle(b"b" * 32, 7)
    assert ended(*runner.run(0, encode_arguments((handle,)))) == b"DATA"


def test_a_module_that_points_outside_of_its_memory_harms_nobody() -> None:
    kind, message = call("lie", b"x", convention=Convention.BYTES)
    assert kind == "WasmTrapError"
    assert "outside of the module's memory" in message
    kind, message = call("shout", bytes(100_000), convention=Convention.BYTES)
    assert kind == "WasmTrapError", "one page has 65,536 bytes"


def test_no_call_sees_what_another_left() -> None:
    runner = load(module_program("calls"))
    assert [ended(*runner.run(0, encode_arguments(()))) for _ in range(3)] == [1, 1, 1]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_same_call_takes_the_same_fuel_whatever_ran_before() -> None:
    runner = load(module_program("triangle"))
    used = []
    for number in (1000, 10, 1000, 2000, 1000):
        assert ended(*runner.run(0, encode_arguments((number,)))) == number * (number + 1) // 2
        used.append(runner.last_fuel)
    assert used[0] == used[2] == used[4] > used[1] > 0
    assert used[3] - used[0] == 1000 * (used[0] - used[1]) // 990, "so much a turn of the loop"
    other = load(module_program("triangle"))
    other.run(0, encode_arguments((1000,)))
    assert other.last_fuel == used[0]


def test_fuel_that_is_used_up_is_a_failure_of_its_own() -> None:
    runner = load(module_program("forever", allowed=WasmLimits(fuel=100_000)))
    kind, message = ended(*runner.run(0, encode_arguments(())))
    assert kind == "OutOfFuelError"
    assert "forever() -> nothing used up the 100000 units of fuel" in message
    assert runner.last_fuel == 100_000
    enough = load(module_program("triangle"))
    enough.run(0, encode_arguments((1000,)))
    assert call("triangle", 1000, fuel=enough.last_fuel) == 500_500
    assert call("triangle", 1000, fuel=enough.last_fuel // 2)[0] == "OutOfFuelError"


def test_time_that_is_used_up_ends_the_call_and_not_its_worker() -> None:
    runner = load(module_program("forever", allowed=WasmLimits(timeout_s=0.05)))
    for _ in range(2):
        outcome, text = ended(*runner.run(0, encode_arguments(())))
        assert outcome is Outcome.TIMED_OUT
        assert "forever() -> nothing ran longer than 0.05 s" in text
    # The next call has its own time, and an end that comes first needs no interruption.
    short = load(module_program("triangle", allowed=WasmLimits(timeout_s=20)))
    assert [ended(*short.run(0, encode_arguments((9,)))) for _ in range(3)] == [45, 45, 45]


@pytest.mark.parametrize(
    ("entry", "args", "text"),
    [
        ("unreachable", (), "`unreachable` instruction"),
        ("deep", (), "call stack exhausted"),
        ("divide", (0,), "integer divide by zero"),
        ("outside", (), "out of bounds memory access"),
    ],
)
def test_a_trap_is_the_task_s_failure_and_says_which(entry: str, args: tuple[Any, ...], text: str) -> None:
    kind, message = call(entry, *args)
    assert kind == "WasmTrapError"
    assert message.startswith(f"{entry}(")
    assert text in message


def test_memory_ends_where_its_limit_is() -> None:
    assert call("grow", 15, memory_bytes=1 << 20) == 1
    assert call("grow", 16, memory_bytes=1 << 20) == -1
    assert call("grow", 65_000) == -1, "nobody said how much: less than all that there is"


@pytest.mark.parametrize(
    ("wat", "outcome"),
    [
        ('(module (memory 65536) (func (export "f")))', Outcome.OUT_OF_MEMORY),
        ('(module (memory 10000) (func (export "f")))', Outcome.OUT_OF_MEMORY),
        ('(module (table 1000000000 funcref) (func (export "f")))', Outcome.RAISED),
        ('(module (func $loop (loop (br 0))) (start $loop) (func (export "f")))', Outcome.RAISED),
    ],
)
def test_a_module_that_is_greedy_from_the_start_is_stopped(wat: str, outcome: Outcome) -> None:
    runner = load(module_program("f", allowed=WasmLimits(fuel=10_000), wat=wat))
    assert runner.run(0, encode_arguments(()))[0] is outcome


# --- what is refused before it runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wat", "text"),
    [
        ('(module (import "env" "print" (func (param i32))) (func (export "f")))', "imports env.print (function)"),
        ('(module (import "env" "m" (memory 1)) (func (export "f")))', "imports env.m (memory)"),
        (
            '(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))) (func (export "f")))',
            "granted nothing (WASI: ",
        ),
        ("(module (memory 1))", "exports no function"),
        ('(module (func (export "f") (i32.const 1)))', None),
        ("(module (func (oops)))", "text cannot be read"),
        ("no module", "text cannot be read"),
    ],
)
def test_submitters_are_told_what_no_peer_would_run(wat: str, text: str | None) -> None:
    if text is None:  # whether code is valid is the engine's to say
        with pytest.raises(ProgramLoadError, match="no valid WebAssembly module"):
            load(make_wasm_program(wat)[0].data)
        return
    with pytest.raises(CannotShipError) as caught:
        make_wasm_program(wat)
    assert text in str(caught.value)


def test_a_worker_refuses_imports_that_a_submitter_has_let_through() -> None:
    binary = binary_of('(module (import "env" "print" (func)) (func (export "f")))')
    body = WasmBody(Engine.WASM, 1, binary, (("f", Convention.NUMBERS),))
    with pytest.raises(ProgramLoadError, match=r"imports env\.print"):
        load(pack(Schema(WasmBody).to_fields(body)))


def test_texts_that_are_too_long_are_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.execution.engines.wasm_program.WAT_CHARS_MAX", 1000)
    with pytest.raises(CannotShipError, match="at most 1000 are read"):
        make_wasm_program("(module " + " " * 1000 + ")")


def test_modules_that_are_too_large_do_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROGRAM_BYTES_MAX", 100)
    with pytest.raises(CannotShipError, match="at most 100 can travel"):
        make_wasm_program(WAT)


def test_an_export_that_is_not_there_is_named_with_its_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'triangle'"):
        make_wasm_program(WAT, {"triangel": Convention.NUMBERS})


def test_an_export_that_cannot_take_bytes_is_refused() -> None:
    with pytest.raises(CannotShipError, match=r"for that it is \(i32, i32\) -> i64"):
        make_wasm_program(WAT, {"add": Convention.BYTES})
    bare = '(module (func (export "f") (param i32 i32) (result i64) (i64.const 0)))'
    with pytest.raises(CannotShipError, match="must export `memory` and `alloc"):
        make_wasm_program(bare, {"f": Convention.BYTES})


@pytest.mark.parametrize("allowed", [{"fuel": 0}, {"fuel": 1 << 63}, {"memory_bytes": 1}, {"timeout_s": 0.0}])
def test_limits_that_make_no_sense_are_refused(allowed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(allowed))):
        WasmLimits(**allowed)


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_says_all_that_a_worker_needs() -> None:
    demands = Demands(grants=("gpu",))
    made, interface = make_wasm_program(WAT, {"add": Convention.NUMBERS}, WasmLimits(7, 1 << 20, 1.5), demands)
    body = open_wasm_program(made.data)
    assert body.limits == WasmLimits(7, 1 << 20, 1.5)
    assert body.entries == (("add", Convention.NUMBERS),)
    assert body.demands == demands
    assert interface.functions["both"].text == "both(i64, f64) -> (i64, f64)"
    assert interface_of(body.module) == interface


@pytest.mark.parametrize(
    "fields",
    [
        {"engine": "python", "version": 1, "module": b"", "entries": []},
        {"engine": "wasm", "version": 2, "module": b"", "entries": []},
        {"engine": "wasm", "version": 1, "module": b"", "entries": [["f", 9]]},
        {"engine": "wasm", "version": 1, "module": b"", "entries": [], "fuel": 0},
    ],
)
def test_a_document_that_no_submitter_makes_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        open_wasm_program(pack(fields))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (b"", "does not begin"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm\x02\0\0\0", "unknown version"),
        (b"\0asm\x01\0\0\0\x01\x7f", "cut off"),
        (b"\0asm\x01\0\0\0\x01\x01\x7f", "with 127 members"),
        (b"\0asm\x01\0\0\0\x07\x05\x01\x01f\x00\x05", "does not exist"),
        (b"\0asm\x01\0\0\0\x01" + b"\xff" * 11, "too long"),
    ],
)
def test_bytes_that_are_no_module_are_named(module: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        interface_of(module)


# --- in a worker process ----------------------------------------------------------------------------------------------


def test_a_pool_runs_modules_and_kills_those_that_do_not_end() -> None:
    async def main() -> None:
        data, endless = module_program("triangle"), module_program("forever")
        key = ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32)))
        async with bench(memory_bytes=1 << 30) as held:
            worker = held.pool.spawn(key, data, head=head_of(data))
            held.pool.run(worker, [TaskRun(n, 0, 0, encode_arguments((n,))) for n in (1, 2, 3)])
            await held.ended(1, 2, 3)
            assert [values.decode(held.seen.ends[n, 0].payload) for n in (1, 2, 3)] == [1, 3, 6]
            worker = held.pool.spawn(key, endless, head=head_of(endless))
            held.pool.run(worker, [TaskRun(9, 0, 0, encode_arguments(()), 0.3)])
            await held.ended(9)
            assert held.seen.outcome(9) is Outcome.TIMED_OUT

    asyncio.run(main())
