"""How WebAssembly is run here: one configuration of the engine, its limits, and what each way of ending means.

Rules: the same fuel and the same result everywhere for the same call (NaNs are canonical, nothing reads a clock unless it was granted); each memory
reserves 4 GiB of addresses, so that growing moves nothing and accesses need no checks: workers are limited in what they can write to, not in addresses
(`resources.apply_limits`); compiled forms are made here and come from nowhere else. Refuses to know: programs, values, tasks.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import wasmtime

from p2pcompute.model.errors import OutOfFuelError, WasmTrapError
from p2pcompute.model.job import Outcome

#: What a call may use where nobody said: so much that time-outs come first. The engine counts in signed 64 bits.
FUEL_UNLIMITED = (1 << 63) - 1
_STACK_BYTES = 1 << 20
#: Of everything but memory that a hostile module could ask for.
TABLE_ELEMENTS_MAX = 1 << 20
INSTANCES_MAX = 64
#: Each reserves 4 GiB of addresses.
MEMORIES_MAX = 4


def make_engine(*, parallel: bool = False) -> wasmtime.Engine:
    """The one configuration; `wasm_python_build.CONFIGURATION` changes with it. `parallel`: compile with all cores, outside of workers only."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = True
    config.parallel_compilation = parallel
    config.max_wasm_stack = _STACK_BYTES
    config.wasm_threads = False
    config.wasm_relaxed_simd_deterministic = True
    config.wasm_component_model = True
    return wasmtime.Engine(config)


class Deadline:
    """Interrupts a call of `engine` after so many seconds of the wall clock, by its epoch; one thread, started when first needed."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        #: Seconds of the call that runs now, None while none does; the number tells calls apart.
        self._seconds: float | None = None
        self._number = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def within(self, store: wasmtime.Store, seconds: float | None) -> Iterator[None]:
        """Let what is called in here on `store` take no longer; None: as long as it likes."""
        # One step of the epoch is the end; without a deadline no step comes.
        store.set_epoch_deadline(1)
        if seconds is None:
            yield
            return
        if self._thread is None:
            previous = threading.stack_size(512 * 1024)
            self._thread = threading.Thread(target=self._watch, name="p2pcompute-deadline", daemon=True)
            self._thread.start()
            threading.stack_size(previous)
        with self._changed:
            self._seconds = seconds
            self._number += 1
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._seconds = None
                self._changed.notify()

    def _is_over(self, number: int) -> bool:
        return self._seconds is None or self._number != number

    def _watch(self) -> None:
        with self._changed:
            while True:
                if self._seconds is None:
                    self._changed.wait()
                    continue
                number = self._number
                ended = self._changed.wait_for(functools.partial(self._is_over, number), self._seconds)
                if not ended:
                    self._engine.increment_epoch()
                    self._seconds = None


class FuelMeter:
    """Gives a store the fuel of one call and says how much of it is used. `fuel_max`: None for no limit."""

    def __init__(self, store: wasmtime.Store, fuel_max: int | None) -> None:
        self._store = store
        self._given = FUEL_UNLIMITED if fuel_max is None else fuel_max
        store.set_fuel(self._given)

    @property
    def used(self) -> int:
        """Units so far."""
        return self._given - self._store.get_fuel()


def ending_of(
    error: wasmtime.WasmtimeError | wasmtime.Trap, what: str, *, fuel_max: int | None, timeout_s: float | None
) -> tuple[Outcome, BaseException | str]:
    """What a call that ended in `error` means: an outcome, and its exception (RAISED) or its sentence (all others)."""
    code = getattr(error, "trap_code", None)
    text = str(error)
    if code is wasmtime.TrapCode.OUT_OF_FUEL or "all fuel consumed" in text:
        allowed = "of fuel" if fuel_max is None else f"{fuel_max} units of fuel"
        return Outcome.RAISED, OutOfFuelError(
            f"{what} used up the {allowed} that it may use: allow more, or do less in one call"
        )
    if code is wasmtime.TrapCode.INTERRUPT or "wasm trap: interrupt" in text:
        limit = "its limit" if timeout_s is None else f"{timeout_s:g} s"
        return Outcome.TIMED_OUT, f"{what} ran longer than {limit} and was interrupted"
    if (
        code is wasmtime.TrapCode.ALLOCATION_TOO_LARGE
        or "exceeds memory limits" in text
        or "Cannot allocate memory" in text
    ):
        return Outcome.OUT_OF_MEMORY, f"{what} asked for more memory than it may use: {reason_of(text)}"
    return Outcome.RAISED, WasmTrapError(f"{what} trapped: {reason_of(text)}")


def reason_of(text: str) -> str:
    """The one line of the engine's many that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    trap = next((line.rpartition("wasm trap:")[2].strip() for line in reversed(lines) if "wasm trap:" in line), "")
    if trap:
        return trap[:500]
    if "Caused by:" in lines:
        return lines[-1].removeprefix("0: ").strip()[:500]
    return (lines[0] if lines else "no reason was given")[:500]
