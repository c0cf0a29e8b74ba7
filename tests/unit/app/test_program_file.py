"""The user's own file and inputs: what is wrong is said before anything runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.app.demo import chosen_texts, word_count
from p2pcompute.app.program_file import (
    FileInputs,
    file_inputs,
    function_of,
    json_arguments,
    json_lines,
    load_program,
    read_input,
)
from p2pcompute.model.errors import UnknownNameError, UsageError


@pytest.fixture(autouse=True)
def _modules_are_forgotten() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("prog", "neighbour", "wordcount")):
            del sys.modules[name]


def program(folder: Path, text: str, name: str = "prog_one.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_file_is_loaded_with_its_neighbours_and_its_guard_shut(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("def twice(x): return 2 * x\n")
    module = load_program(
        program(tmp_path, "from neighbour import twice\nran = []\nif __name__ == '__main__': ran.append(1)\n")
    )
    assert module.__name__ == "prog_one"
    assert module.ran == []
    assert function_of(module, "twice")(3) == 6
    assert sys.modules["prog_one"] is module


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("prog_two.py", "def f(:\n    pass\n", r"prog_two\.py, line 1: "),
        ("prog_three.py", "x = 1\nraise ValueError('no')\n", r"ValueError: no \(line 2\)"),
        ("prog_four.py", "import no_such_module_at_all\n", "no_such_module_at_all"),
        ("prog_five.py", "import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("json.py", "", "module that Python uses itself"),
        ("prog-six.py", "", "letters, digits and underscores"),
        ("prog.txt", "", "letters, digits and underscores"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_program(program(tmp_path, text, name))
    assert Path(name).stem not in sys.modules or Path(name).stem == "json"


def test_a_missing_file_and_a_missing_function(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        load_program(tmp_path / "prog_none.py")
    module = load_program(program(tmp_path, "def count(x): return x\ndef merge(x): return x\nvalue = 3\n"))
    with pytest.raises(UnknownNameError, match=r"'cuont': did you mean 'count'\? valid are count, merge"):
        function_of(module, "cuont")
    with pytest.raises(UnknownNameError):
        function_of(module, "value")


def test_inputs_of_every_kind(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a\nß\n")
    two.write_text('{"x": [1]}')
    assert list(file_inputs((one, two), "bytes")) == ["a\nß\n".encode(), b'{"x": [1]}']
    assert list(file_inputs((one,), "text")) == ["a\nß\n"]
    assert list(file_inputs((one, two), "lines")) == ["a", "ß", '{"x": [1]}']
    assert list(file_inputs((one,), "path")) == [str(one)]
    assert list(file_inputs((two,), "json")) == [{"x": [1]}]
    inputs = file_inputs((one, two), "bytes")
    assert isinstance(inputs, FileInputs)
    assert len(inputs) == 2


def test_a_wrong_input_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    with pytest.raises(UsageError, match=r"cannot read the input .*missing.*nothing was run"):
        file_inputs((tmp_path / "there", tmp_path / "missing"), "bytes")
    with pytest.raises(UsageError, match="is a folder"):
        file_inputs((tmp_path,), "bytes")


def test_an_input_that_vanishes_on_the_way_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    for kind in ("bytes", "lines"):
        (tmp_path / "b").write_text("b")
        inputs = iter(file_inputs((tmp_path / "a", tmp_path / "b"), kind))
        next(inputs)
        (tmp_path / "b").unlink()
        with pytest.raises(UsageError, match="cannot be read any more"):
            next(inputs)


def test_an_input_that_is_not_what_was_said(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\xff\xfe")
    (tmp_path / "bad.json").write_text("{\n'x': 1}")
    for kind in ("text", "json"):
        with pytest.raises(UsageError, match="not UTF-8"):
            read_input(tmp_path / "raw", kind)
    with pytest.raises(UsageError, match=r"bad\.json, line 2: not JSON"):
        read_input(tmp_path / "bad.json", "json")
    with pytest.raises(UsageError, match="not UTF-8"):
        list(file_inputs((tmp_path / "raw",), "lines"))


def test_arguments_and_lines_in_json() -> None:
    assert json_arguments(("1", '"a"', "[null]")) == [1, "a", [None]]
    with pytest.raises(UsageError, match="argument 2 is not a JSON value: 'a'"):
        json_arguments(("1", "a"))
    assert list(json_lines(["1\n", "\n", '"a"\n'], "stdin")) == [1, "a"]
    with pytest.raises(UsageError, match="stdin, line 2"):
        list(json_lines(["1\n", "oops\n"], "stdin"))


def test_the_word_count_of_the_demo() -> None:
    module = word_count()
    assert module.count(b"The cat, the CAT and a hat \xff") == Counter({"the": 2, "cat": 2, "and": 1, "a": 1, "hat": 1})
    parts = [Counter(a=1, b=2), Counter(b=1), Counter()]
    assert module.merge(parts) == Counter(a=1, b=3)
    assert module.merge([module.merge(parts[:2]), parts[2]]) == module.merge(parts)
    assert module.merge([]) == Counter()


def test_the_texts_of_the_demo(tmp_path: Path) -> None:
    library = chosen_texts(None)
    assert len(library) > 100
    assert all(path.suffix == ".py" and "site-packages" not in path.parts for path in library)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.txt").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    assert [path.name for path in chosen_texts(tmp_path)] == ["a.txt", "b.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no readable file"):
        chosen_texts(tmp_path / "empty")
