"""Functions of every kind become a program here and run in another process, of this Python and of others where they are installed."""

from __future__ import annotations

import builtins
import functools
import importlib
import linecache
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

from p2pcompute.execution.bundle import Program, make_program
from p2pcompute.execution.loader import missing_requirements
from p2pcompute.execution.program import open_program
from p2pcompute.execution.values import Failure, decode, decode_failure, encode
from p2pcompute.model.errors import CannotShipError, NotSerializableError, ProtocolError
from p2pcompute.model.job import Outcome
from tests.conftest import other_pythons

FIXTURES = Path(__file__).parent / "fixtures"
PYTHONS = (Path(sys.executable), *other_pythons())
TIMEOUT_S = 60

Call = tuple[int, Sequence[Any]]


@pytest.fixture(name="t")
def travellers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of functions, imported as a user's own would be, and forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FIXTURES))
    yield importlib.import_module("travellers")
    for name in set(sys.modules) - before:
        if str(FIXTURES) in str(getattr(sys.modules[name], "__file__", "") or "") or name.startswith("spaces"):
            del sys.modules[name]


@pytest.fixture(params=PYTHONS, ids=lambda path: path.parent.parent.name, name="worker")
def worker_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs calls in another process: values, and failures as `Failure`."""

    def run(program: Program, calls: Sequence[Call]) -> list[Any]:
        return run_there(request.param, tmp_path, program, calls)

    return run


def run_there(python: Path, folder: Path, program: Program, calls: Sequence[Call]) -> list[Any]:
    encoded = [[entry, encode([list(args), {}], classes=program.names)] for entry, args in calls]
    (folder / "program").write_bytes(program.data)
    (folder / "calls").write_bytes(encode(encoded))
    answer_of_worker(python, folder)
    if (folder / "refused").exists():
        return [(folder / "refused").read_text()]
    answers = []
    for outcome, payload in decode((folder / "answers").read_bytes()):
        if outcome == Outcome.RETURNED:
            answers.append(decode(payload, classes=program.classes))
        else:
            answers.append(decode_failure(payload, classes=program.classes))
    return answers


def answer_of_worker(python: Path, folder: Path) -> None:
    # -P: not the folder of the fixtures, where everything would be found without travelling.
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    done = subprocess.run(
        [python, "-P", FIXTURES / "worker_side.py", folder],
        cwd=scratch,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run_all(worker: Callable[..., list[Any]], calls: Sequence[tuple[Callable[..., Any], Sequence[Any], Any]]) -> None:
    """Each (function, arguments, expected) as an entry of one program."""
    program = make_program({str(number): function for number, (function, _, _) in enumerate(calls)})
    answers = worker(program, [(number, args) for number, (_, args, _) in enumerate(calls)])
    assert answers == [expected for _, _, expected in calls]


# --- kinds of functions -----------------------------------------------------------------------------------------------


def test_functions_of_modules_and_what_wraps_them(t: Any, worker: Callable[..., list[Any]]) -> None:
    counter = t.Counter(5)
    run_all(
        worker,
        [
            (t.plain, [4], 9),
            (functools.partial(t.plain, 4), [], 9),
            (functools.partial(t.Counter.still), [4], -4),
            (counter.add, [1], 8),
            (counter, [1], 80),
            (t.Counter.made, [3], 6),
            (t.SubCounter.made, [3], 9),
            (t.SubCounter(1).add, [1], 5),
            (t.Counter.still, [3], -3),
            (t.decorated, [1], ["noisy", 2]),
            (t.shy, [2], ["hidden", [2, ["hidden", 1]]]),
            (t.cached, [1], 2),
            (t.later, [1], 2),
            (t.locked, [1], 101),
            (t.namespaced, [], "deep"),
            (t.price, ["tea"], 300),
            (t.with_default, [], True),
            (len, [[1, 2]], 2),
            (math.sqrt, [4.0], 2.0),
            ("a-b".split, ["-"], ["a", "b"]),
            (str.upper, ["x"], "X"),
            (t.Point, [3], t.Point(3)),
            (t.partial_of(), [4], 7),
        ],
    )


def test_lambdas_closures_and_defaults(t: Any, worker: Callable[..., list[Any]]) -> None:
    run_all(
        worker,
        [
            (t.LAMBDAS[0], [3], 4),
            (t.LAMBDAS[1], [3], 30),
            (t.SAME[0], [3], 4),
            (t.SAME[1], [3], 5),
            (t.make_closure(7), [1], (t.Point(9), 38, "two\n    lines")),
            (t.make_closure(7, scale=3), [1], (t.Point(9), 45, "two\n    lines")),
            (t.make_recursive(), [5], 5),
            (t.make_counting(), [], [1, 2]),
            (t.make_with_classes(), [4], [t.Point(5), t.companion.Thing(4), 2]),
        ],
    )


def test_results_are_the_callers_own(t: Any, worker: Callable[..., list[Any]]) -> None:
    program = make_program(
        {"point": t.point, "rights": t.rights, "fails": t.fails, "array": t.array, "takes": t.takes, "exit": t.leaves}
        | {"file": t.file_missing}
    )
    point, rights, failure, array, taken, left, missing = worker(
        program, [(0, [3]), (1, []), (2, [8]), (3, [2]), (4, [t.Point(1)]), (5, []), (6, [])]
    )
    assert type(point) is t.Point
    assert point.colour is t.Colour.BLUE
    assert rights == (t.Right.READ | t.Right.WRITE, t.Point)
    assert isinstance(failure, Failure)
    assert type(failure.exception) is t.OwnError
    assert (failure.exception.code, failure.exception.hint) == (8, "try another")
    assert str(failure.exception) == "code 8"
    assert "raise OwnError(x" in failure.traceback
    assert array.tolist() == [[1.5, 1.5], [1.5, 1.5]]
    array[0, 0] = 2  # writable
    assert taken == ["Point", t.Point(1)]
    assert left.exception is None, "a task must not be able to end the submitter's program"
    assert left.type_name == "SystemExit"
    assert type(missing.exception) is FileNotFoundError
    assert missing.exception.filename == "/no/such/file"


def test_changed_data_globals_travel_by_value(
    t: Any, worker: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(t, "SETTING", 50)
    monkeypatch.setattr(t.companion, "OFFSET", 1000)
    t.TABLE["b"] = [3]
    run_all(
        worker,
        [
            (t.plain, [1], 52),
            (t.locked, [1], 1001),
            (t.table, [], {"a": [1, 2], "b": [3]}),
            (t.Counter(1).add, [0], 51),
        ],
    )


def test_cells_of_a_notebook_travel_through_their_source(
    worker: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    cells = [
        "import math\nfrom dataclasses import dataclass\nFACTOR = 2\n",
        "def helper(x):\n    return math.floor(x) * FACTOR\n",
        "@dataclass\nclass Spot:\n    x: int\n",
        "def entry(x):\n    return Spot(helper(x))\nFACTOR = 5\n",
    ]
    for number, text in enumerate(cells):
        name = f"/tmp/ipykernel_1/{number}.py"
        monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(True), name))
        exec(compile(text, name, "exec"), vars(main))
    program = make_program({"entry": main.entry})
    assert program.python_minor is None, "it travels as source"
    assert worker(program, [(0, [2.5])]) == [main.Spot(10)]


def test_without_any_source_only_the_same_python_takes_it(tmp_path: Path) -> None:
    scope: dict[str, Any] = {"__name__": "__nowhere__", "math": math}
    exec("def made(x):\n    return math.floor(x) + 1", scope)
    program = make_program({"made": scope["made"]})
    assert program.python_minor == sys.version_info[:2]
    for python in PYTHONS:
        folder = tmp_path / python.parent.parent.name
        folder.mkdir()
        answers = run_there(python, folder, program, [(0, [2.5])])
        if python == Path(sys.executable):
            assert answers == [3]
        else:
            assert "Python 3." in answers[0]


def test_a_script_and_its_main_guard(worker: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    python = request.node.callspec.params["worker"]

    def script(what: str) -> str:
        done = subprocess.run(
            [sys.executable, FIXTURES / "a_script.py", tmp_path, what],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    script("send")
    answer_of_worker(python, tmp_path)
    assert "all is well" in script("receive")


def test_a_script_without_a_guard_is_refused_before_it_multiplies() -> None:
    done = subprocess.run(
        [sys.executable, FIXTURES / "unguarded_script.py"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode != 0
    assert 'put it under `if __name__ == "__main__":`' in done.stderr


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_local_modules_are_shipped_and_installed_ones_named(t: Any) -> None:
    program = make_program({"plain": t.plain, "price": t.price})
    assert {"travellers", "companion", "shop", "shop.prices", "shop.units", "spaces.inner.depth"} == set(
        program.modules
    )
    assert [need.module for need in program.requires] == ["numpy"]
    assert program.requires[0].version == numpy.__version__
    assert [path for path, _ in open_program(program.data).files] == ["shop/data/prices.txt"]
    assert missing_requirements(program.data) == []


def test_the_same_functions_make_the_same_program(t: Any) -> None:
    assert make_program({"f": t.make_closure(1)}).id == make_program({"f": t.make_closure(1)}).id
    assert make_program({"f": t.make_closure(1)}).id != make_program({"f": t.make_closure(2)}).id


def test_the_product_itself_is_never_shipped() -> None:
    from p2pcompute.model.ids import format_job_id

    program = make_program({"f": format_job_id})
    assert program.modules == ()
    assert program.requires == ()


def test_a_missing_module_is_named_before_anything_runs(t: Any, worker: Callable[..., list[Any]]) -> None:
    program = make_program({"f": t.needs_later})
    assert "p2pcompute_no_such_module" in [need.module for need in program.requires]
    assert [need.module for need in missing_requirements(program.data)] == ["p2pcompute_no_such_module"]
    (refused,) = worker(program, [(0, [])])
    assert refused.startswith("module p2pcompute_no_such_module ")


def test_optional_imports_are_not_required(t: Any) -> None:
    names = {need.module for need in make_program({"f": t.plain}).requires}
    assert not names & {"p2pcompute_no_such_speedup", "p2pcompute_only_for_types"}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_travel_is_refused_by_name(t: Any) -> None:
    with pytest.raises(CannotShipError, match="'guard'"):
        make_program({"f": t.make_stuck()})
    with pytest.raises(CannotShipError, match="generator"):
        make_program({"f": t.generator})
    with pytest.raises(CannotShipError, match="call each other"):
        make_program({"f": t.make_mutual()})
    with pytest.raises(CannotShipError, match="made inside a function"):
        make_program({"f": t.make_local_class()})
    with pytest.raises(CannotShipError, match="cannot be called"):
        make_program({"f": 3})  # type: ignore[dict-item]


def test_a_lock_that_replaced_a_setting_is_refused(t: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t, "SETTING", t.LOCK)
    with pytest.raises(CannotShipError, match="'SETTING', which plain"):
        make_program({"f": t.plain})


def test_an_edited_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "edited_later.py"
    file.write_text("def work(x):\n    return x + 1\n\nclass Kind:\n    def call(self, x):\n        return work(x)\n")
    module = importlib.import_module("edited_later")
    monkeypatch.setitem(sys.modules, "edited_later", module)
    pick, bound = module.work, module.Kind().call
    make_program({"f": pick, "g": bound})
    file.write_text(file.read_text().replace("x + 1", "x + 2"))
    for function in (pick, bound):
        with pytest.raises(CannotShipError, match="edited after"):
            make_program({"f": function})
    file.write_text("def work(x:\n")
    with pytest.raises(CannotShipError, match="no valid Python"):
        make_program({"f": pick})


def test_arguments_of_classes_that_stay_behind_are_refused(t: Any) -> None:
    stranger = importlib.import_module("stranger")
    program = make_program({"f": t.takes})
    with pytest.raises(NotSerializableError, match=r"stranger\.Unknown.*import it"):
        encode([[stranger.Unknown(1)], {}], classes=program.names)
    with pytest.raises(NotSerializableError, match=r"\[0\]\[1\]\[0\].*top of a module"):
        encode([[1, [t.make_local_class()()]], {}], classes=program.names)


def test_no_code_runs_where_a_program_is_only_read(t: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_program({"f": t.make_closure(2)})

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("something of the program was run")

    monkeypatch.setattr(builtins, "exec", never)
    monkeypatch.setattr(importlib, "import_module", never)
    assert open_program(program.data).entries[0][0] == "f"
    assert missing_requirements(program.data) == []


@pytest.mark.parametrize("damage", [(b"cut", b"cat"), (b"\xa4name", b"\xa4nome"), (b"travellers", b"travel/ers")])
def test_a_damaged_program_is_refused(t: Any, damage: tuple[bytes, bytes]) -> None:
    program = make_program({"f": t.make_closure(2), "g": t.plain})
    with pytest.raises(ProtocolError):
        open_program(program.data.replace(*damage))
