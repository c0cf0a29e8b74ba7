"""The program in the README does what it says, as a newcomer would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_python_example_runs(home: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "first.py"
    script.write_text(code.replace("async with Peer()", "async with Peer(lan=False, port=0, host='127.0.0.1')"))
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    squares = [x * x for x in range(10)]
    expected = [49, *squares, sum(x * x for x in range(1000)), sum(range(1_000_000))]
    assert done.stdout.split() == [str(number) for number in expected]
    assert done.stderr == "", "a library is quiet"
