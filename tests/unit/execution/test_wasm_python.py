"""The WebAssembly Python: the same programs, values and failures as native Python, and none of what could harm."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution import imports, values
from p2pcompute.execution.bundle import make_program
from p2pcompute.execution.engines import wasm_python_build as build
from p2pcompute.execution.engines.document import head_of
from p2pcompute.execution.engines.wasm_python_modules import MODULES, refuse_values, refuse_what_cannot_run
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.execution.memory_modules import MemoryModules
from p2pcompute.execution.pool import ProgramKey, TaskRun
from p2pcompute.execution.program import Body, Module, open_program, pack_program
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import CannotShipError, NotSerializableError, ResourceError, UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.wire.versions import PROGRAM
from tests.unit.execution import wasm_tasks
from tests.unit.execution.pool_help import bench
from tests.unit.execution.program_help import encode_arguments

#: Where nothing has made it yet, the first test here does.
pytestmark = pytest.mark.timeout(400)


class Ran:
    """Functions loaded in one instance."""

    def __init__(self, compiled: Path, monkeypatch: pytest.MonkeyPatch, data: dict[bytes, bytes] | None = None) -> None:
        monkeypatch.setenv(build.COMPILED_VARIABLE, str(compiled))
        self._data = data or {}
        self._module = importlib.import_module("p2pcompute.execution.engines.wasm_python_worker")

    def program(self, function: Callable[..., Any]) -> Any:
        self.made = make_program({"call": function}, Engine.WASM_PYTHON)
        return self._module.WasmPythonProgram(self.made.data, lambda handle: self._data[handle.blob], 1 << 20)

    def ended(self, outcome: Outcome, payload: bytes) -> Any:
        if outcome is Outcome.RETURNED:
            return values.decode(payload, classes=self.made.classes)
        if outcome is Outcome.RAISED:
            return values.decode_failure(payload, classes=self.made.classes)
        return outcome, payload.decode()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        runner = self.program(function)
        return self.ended(*runner.run(0, values.encode([list(args), {}], classes=self.made.classes)))


@pytest.fixture
def ran(wasm_python: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Runs a function once in a fresh instance."""
    return Ran(wasm_python, monkeypatch)


# --- the same as native Python ----------------------------------------------------------------------------------------


def test_functions_run_with_their_globals_and_classes(ran: Ran) -> None:
    assert ran(wasm_tasks.add, 1) == 9
    found = ran(wasm_tasks.moved, wasm_tasks.Point(1, 0.5))
    assert found == wasm_tasks.Point(2, 0.5)
    assert type(found) is wasm_tasks.Point
    assert ran(wasm_tasks.where)[0] == "wasi"


def test_lambdas_and_closures_run(ran: Ran) -> None:
    assert ran(wasm_tasks.adder(40), 2) == 42
    assert ran(wasm_tasks.UPPER, "a") == "A"


def test_every_kind_of_value_comes_back_as_itself(ran: Ran) -> None:
    import collections
    import datetime
    import decimal
    import fractions
    import uuid

    given = {
        "big": 10**40, "set": {1, 2}, "tuple": (1, "x", None), "bytes": bytes(range(256)), "float": 0.1, "text": "ä€😀\ud800",
        "decimal": decimal.Decimal("1.10"), "fraction": fractions.Fraction(1, 3), "when": datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
        "uuid": uuid.UUID(int=5), "counter": collections.Counter("aab"), "deque": collections.deque([1], 3), "complex": 1 + 2j,
        "array": bytearray(b"x"), "range": range(3),
    }  # fmt: skip
    found = ran(wasm_tasks.same, given)
    assert found == given
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in given.items()}


def test_exceptions_come_back_with_their_traceback(ran: Ran) -> None:
    failure = ran(wasm_tasks.broken, "{bad")
    assert isinstance(failure.exception, json.JSONDecodeError)
    assert "return json.loads(text)" in failure.traceback
    assert "wasm_tasks.py" in failure.traceback
    assert isinstance(ran(wasm_tasks.odd, 3).exception, wasm_tasks.OddError)


def test_coroutines_run_to_their_end(ran: Ran) -> None:
    assert ran(wasm_tasks.slept, 5) == 10
    assert "waits for what cannot happen here" in ran(wasm_tasks.stuck).message


def test_data_behind_a_handle_is_fetched(wasm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Ran(wasm_python, monkeypatch, {b"h" * 32: values.encode([1, 2, 3])})
    assert ran(wasm_tasks.total, values.Handle(b"h" * 32, 4)) == 6


def test_what_is_printed_and_told_is_the_task_s(wasm_python: Path) -> None:
    async def main() -> None:
        data = make_program({"call": wasm_tasks.told}, Engine.WASM_PYTHON).data
        # Address space is limited as for any other worker: memory is not reserved beforehand.
        async with bench(memory_bytes=1 << 30, wasm_python=wasm_python) as held:
            key = ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32)))
            worker = held.pool.spawn(key, data, head=head_of(data))
            held.pool.run(worker, [TaskRun(1, 0, 0, encode_arguments(("hello",)))])
            await held.ended(1)
            assert values.decode(held.seen.ends[1, 0].payload) == 5
            assert held.seen.printed(1, 1) == b"hello\n"
            assert held.seen.printed(1, 2) == b"not hello\n"
            assert held.seen.progress == [(1, 0.5, "half way")]

    asyncio.run(main())


def test_a_task_that_does_not_end_is_killed_with_its_worker(wasm_python: Path) -> None:
    async def main() -> None:
        data = make_program({"call": wasm_tasks.forever}, Engine.WASM_PYTHON).data
        async with bench(wasm_python=wasm_python) as held:
            key = ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32)))
            worker = held.pool.spawn(key, data, head=head_of(data))
            held.pool.run(worker, [TaskRun(1, 0, 0, encode_arguments(()), 0.5)])
            await held.ended(1)
            assert held.seen.outcome(1) is Outcome.TIMED_OUT

    asyncio.run(main())


def test_instances_do_not_share_their_dice(ran: Ran) -> None:
    assert ran(wasm_tasks.dice) != ran(wasm_tasks.dice), "random numbers of the moment when the picture was taken"


def test_fuel_is_counted(wasm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Ran(wasm_python, monkeypatch).program(wasm_tasks.counted)
    used = []
    for number in (1_000, 100_000):
        runner.run(0, encode_arguments((number,)))
        used.append(runner.last_fuel)
    assert 10_000 < used[0] < used[1] / 10


# --- what cannot be had there -----------------------------------------------------------------------------------------


def test_no_file_no_environment_and_no_peer_is_there(ran: Ran) -> None:
    assert ran(wasm_tasks.passwords).type_name == "FileNotFoundError"
    assert ran(wasm_tasks.environment) == {}
    assert "a task there can be no peer" in ran(wasm_tasks.be_a_peer).message
    assert ran(wasm_tasks.locked) == 1, "locks are harmless"


def test_too_much_memory_ends_the_task_and_not_its_worker(wasm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Ran(wasm_python, monkeypatch)
    runner = ran.program(wasm_tasks.greedy)
    for _ in range(2):
        assert runner.run(0, encode_arguments(()))[0] is Outcome.OUT_OF_MEMORY


def test_a_call_that_kills_its_interpreter_harms_only_itself(
    wasm_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Ran(wasm_python, monkeypatch)
    runner = ran.program(wasm_tasks.quit_at_once)
    for _ in range(2):
        failure = ran.ended(*runner.run(0, encode_arguments(())))
        assert failure.type_name.endswith("WasmTrapError")
        assert "ended its interpreter" in failure.message


def test_recursion_without_end_is_an_exception(ran: Ran) -> None:
    assert ran(wasm_tasks.deep, 500) == 500
    assert ran(wasm_tasks.deep, 100_000).type_name == "RecursionError"


def test_a_program_that_does_not_load_says_so(wasm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("p2pcompute.execution.engines.wasm_python_worker")
    monkeypatch.delenv(build.COMPILED_VARIABLE, raising=False)
    data = make_program({"call": wasm_tasks.add}, Engine.WASM_PYTHON).data
    with pytest.raises(ProgramLoadError, match="not ready at this peer"):
        module.WasmPythonProgram(data, None, 1)
    monkeypatch.setenv(build.COMPILED_VARIABLE, str(wasm_python))
    with pytest.raises(ProgramLoadError, match="division by zero"):
        module.WasmPythonProgram(_program_of("1/0\ndef f(): pass\n"), None, 1)
    with pytest.raises(ProgramLoadError) as caught:
        module.WasmPythonProgram(_program_of("import lzma\ndef f(): pass\n"), None, 1)
    assert (caught.value.reason, caught.value.module) == ("module", "lzma")


def _program_of(source: str) -> bytes:
    body = _body(source)
    return pack_program(body)


def _body(source: str, **more: Any) -> Body:
    fields: dict[str, Any] = {
        "version": PROGRAM, "modules": (Module("tasks_of_this_test", False, source.encode(), "tasks.py"),), "files": (),
        "entries": (("f", ["name", "tasks_of_this_test", "f"]),), "data": (), "requires": (), "main": "",
        "engine": Engine.WASM_PYTHON,
    }  # fmt: skip
    return Body(**(fields | more))


# --- what submitters are told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import socket\ndef f(): pass", "tasks.py imports socket, and there are no sockets"),
        ("import subprocess\ndef f(): pass", "there are no processes"),
        ("from multiprocessing import Pool\ndef f(): pass", "there are no processes"),
        ("import urllib.request\ndef f(): pass", "there are no sockets"),
        ("import lzma\ndef f(): pass", "there are no compiled parts"),
        ("import telnetlib\ndef f(): pass", "there are no sockets"),
        ("import wsgiref.util\ndef f(): pass", "there are no sockets"),
        ("import pydoc\ndef f(): pass", "not among the modules that were put in"),
        ("def f():\n    import ctypes", "f imports ctypes, and there are no compiled parts"),
        ("import threading\ndef f():\n    threading.Thread(target=f).start()", "f calls threading.Thread, and there are no threads"),
        ("import os\ndef f(): return os.system('ls')", "f calls os.system, and there are no processes"),
        ("from concurrent.futures import ThreadPoolExecutor\ndef f():\n    with ThreadPoolExecutor() as pool: pass", "no threads"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_is_sent(source: str, text: str) -> None:
    with pytest.raises(CannotShipError) as caught:
        refuse_what_cannot_run(_body(source))
    assert text in str(caught.value)
    assert "engine='python'" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "import threading, os, asyncio, json, xml.etree.ElementTree, collections.abc\ndef f(): pass",
        "from __future__ import annotations\nfrom p2pcompute import Peer\nimport p2pcompute.model.errors\ndef f(): pass",
        "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\ndef f(): pass",
        "import sys\nif sys.platform != 'wasi':\n    import socket\ndef f(): pass",
        "def other():\n    import subprocess\ndef f(): pass",
        "def f():\n    try:\n        import numpy\n    except ImportError:\n        pass",
        "class C:\n    def system(self): pass\ndef f(c): return c.system()",
        "if __name__ == '__main__':\n    import subprocess\ndef f(): pass",
    ],
)
def test_what_can_run_is_let_through(source: str) -> None:
    refuse_what_cannot_run(_body(source))


def test_packages_and_bytecode_are_refused_by_name() -> None:
    def with_numpy() -> object:
        import numpy

        return numpy.zeros(3)

    with pytest.raises(CannotShipError, match=r"the package numpy, and only Python's own modules"):
        refuse_what_cannot_run(open_program(make_program({"f": with_numpy}, Engine.WASM_PYTHON).data))
    with pytest.raises(CannotShipError, match="has no source that can be read"):
        refuse_what_cannot_run(_body("def f(): pass", python_minor=(3, 14)))


def test_values_of_packages_are_refused_by_name() -> None:
    import numpy

    with pytest.raises(NotSerializableError, match=r"numpy\.ndarray, and the package numpy does not exist"):
        refuse_values(([{"a": numpy.ones(2)}], {}), ())
    refuse_values(([{"a": wasm_tasks.Point(1, 2)}, 3], {"b": values.Handle(b"", 0)}), ())


# --- how it is made ---------------------------------------------------------------------------------------------------


def test_the_guest_has_all_of_our_own_modules_that_it_imports() -> None:
    own = build.own_modules()
    for name, path in own.items():
        for each in imports.imports_of(ast.parse(path.read_bytes()), name, path.name == "__init__.py"):
            if each.name.startswith("p2pcompute.") and not each.optional:
                assert each.name in own, f"{name} imports {each.name}: add it to OWN"


def test_the_list_of_modules_is_of_modules(wasm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Ran(wasm_python, monkeypatch)
    missing = ran(wasm_tasks.missing_of, list(MODULES))
    assert missing == []


def test_nobody_but_its_owner_may_write_the_compiled_form(wasm_python: Path) -> None:
    assert not stat.S_IMODE(wasm_python.stat().st_mode) & 0o022
    assert not stat.S_IMODE(wasm_python.parent.stat().st_mode) & 0o022
    assert build.is_there(wasm_python)
    assert build.can_be_run(wasm_python)


def test_what_others_may_write_is_not_run(wasm_python: Path, tmp_path: Path) -> None:
    copy = tmp_path / wasm_python.name
    copy.write_bytes(b"not ours")
    copy.chmod(0o666)
    assert not build.is_there(copy)
    copy.chmod(0o644)
    assert build.is_there(copy)
    assert not build.can_be_run(copy), "it is no compiled form"
    assert not build.is_there(tmp_path / "nothing")


def test_another_source_engine_or_machine_has_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wasmtime")
    own = build.place_of(tmp_path)
    assert own == build.place_of(tmp_path)
    given = tmp_path / "given.wasm"
    given.write_bytes(b"\0asm")
    elsewhere = build.place_of(tmp_path, given)
    assert elsewhere not in (own, build.place_of(tmp_path, _written(tmp_path / "other.wasm", b"\0asm2")))
    monkeypatch.setattr(build, "CONFIGURATION", 99)
    assert build.place_of(tmp_path) != own
    with pytest.raises(UsageError, match="cannot be read at"):
        build.place_of(tmp_path, tmp_path / "nothing.wasm")
    with pytest.raises(ResourceError, match="cannot be compiled"):
        build.prepare(tmp_path, given)
    assert not list(tmp_path.glob("compiled-*"))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_builder_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILDER", "no-such-builder")
    with pytest.raises(UsageError, match=r"no-such-builder, which is not installed here: pip install"):
        build.place_of(tmp_path)


def test_one_process_makes_it_and_others_wait(wasm_python: Path) -> None:
    code = "import sys; from p2pcompute.execution.engines.wasm_python_build import main; sys.exit(main(sys.argv[1:]))"
    commands = [[sys.executable, "-c", code, str(wasm_python.parent)] for _ in range(2)]
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in commands]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert output.splitlines()[-1] == str(wasm_python)


# --- modules without files --------------------------------------------------------------------------------------------


def test_modules_in_memory_import_as_from_a_folder() -> None:
    sources = {
        "mm_pkg": (b"from mm_pkg.inner import VALUE\n", True),
        "mm_pkg.inner": (b"import pkgutil\nVALUE = pkgutil.get_data('mm_pkg', 'data/a.txt')\n", False),
        "mm_space.deep.leaf": (b"X = 5\ndef fail():\n    raise ValueError('here')\n", False),
    }
    finder = MemoryModules(sources, {"mm_pkg/data/a.txt": b"text", "mm_pkg/b.bin": b"\0"})
    finder.install()
    try:
        package = importlib.import_module("mm_pkg")
        assert package.VALUE == b"text"
        assert package.__file__ == "/program/mm_pkg/__init__.py"
        leaf = importlib.import_module("mm_space.deep.leaf")
        assert leaf.X == 5
        files = importlib.import_module("importlib.resources").files("mm_pkg")
        assert (files / "b.bin").read_bytes() == b"\0"
        assert (files / "data" / "a.txt").read_text() == "text"
        assert sorted(each.name for each in files.iterdir()) == ["__init__.py", "b.bin", "data", "inner.py"]
        with pytest.raises(ValueError, match="here") as caught:
            leaf.fail()
        assert "raise ValueError('here')" in values.encode_failure(caught.value).decode("utf-8", "replace")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("mm_pkg.nothing")
        with pytest.raises(FileNotFoundError):
            finder.get_data("/etc/passwd")
        with pytest.raises(ImportError):
            finder.get_filename("os")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith(("mm_pkg", "mm_space"))]:
            del sys.modules[name]
