"""Sends a function to a worker process of any Python version and brings back what it returned or raised.

For scripts that the tests write and run: the script is the submitter, a second interpreter the worker, files between them the wire. Like a
real worker's folder, the worker's one has nothing of the submitter's in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from p2pcompute.execution import values
from p2pcompute.execution.bundle import Program, make_program

ROOT = Path(__file__).parents[3]

_WORKER = """
import sys
from pathlib import Path
from p2pcompute.execution import loader, values
program, arguments, answer = (Path(name) for name in sys.argv[1:])
assert not loader.missing_requirements(program.read_bytes())
loaded = loader.load_program(program.read_bytes())
for number, function in enumerate(loaded.entries.values()):
    args = values.decode(arguments.read_bytes(), classes=loaded.classes, pickles=values.ALLOW)
    try:
        payload = b"r" + values.encode(function(*args), classes=loaded.classes)
    except Exception as error:
        payload = b"e" + values.encode_failure(error, classes=loaded.classes)
    Path(f"{answer}{number}").write_bytes(payload)
"""


def there(function: Any, *args: Any, pythons: list[str] | None = None) -> Any:
    """What `function(*args)` gives in a worker; where several `pythons` are given, in each of them, all the same."""
    program = make_program({"entry": function})
    answers = [send(program, args, python) for python in pythons or [sys.executable]]
    assert all(_shown(answer) == _shown(answers[0]) for answer in answers), answers
    if isinstance(answers[0], values.Failure):
        failure = answers[0]
        raise failure.exception or RuntimeError(failure.traceback)
    return answers[0]


def _shown(answer: Any) -> str:
    """What must be the same everywhere: tracebacks name folders and show lines as each version does."""
    return answer.message if isinstance(answer, values.Failure) else repr(answer)


def send(program: Program, args: tuple[Any, ...], python: str) -> Any:
    """The first entry's answer, from a worker that `python` runs: a value, or a Failure."""
    with tempfile.TemporaryDirectory(prefix="p2pc-travel-") as name:
        folder = Path(name)
        for part in ("worker", "wire"):
            (folder / part).mkdir()
        wire = folder / "wire"
        (wire / "program").write_bytes(program.data)
        (wire / "arguments").write_bytes(values.encode(list(args), classes=program.classes))
        command = [python, "-c", _WORKER, *(str(wire / part) for part in ("program", "arguments", "answer"))]
        environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        done = subprocess.run(command, cwd=folder / "worker", env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the worker ended with {done.returncode}:\n{done.stderr}")
        payload = (wire / "answer0").read_bytes()
    if payload[:1] == b"r":
        return values.decode(payload[1:], classes=program.classes)
    return values.decode_failure(payload[1:], classes=program.classes)
