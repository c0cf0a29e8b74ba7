"""What a worker's meter says of tasks, and what the pool believes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.pool_worker import usage_of
from p2pcompute.execution.worker_usage import Meter, trimmed
from p2pcompute.model import limits
from p2pcompute.model.job import SHORT_TASK_US, Usage

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of memory and bytes")


def spin(cpu_s: float) -> None:
    end = time.process_time() + cpu_s
    while time.process_time() < end:
        pass


def measured(meter: Meter, wall_us: int = 10 * SHORT_TASK_US) -> Usage:
    return Usage(*meter.end(wall_us))


def test_short_tasks_are_not_measured() -> None:
    meter = Meter()
    meter.begin(time.monotonic_ns())
    assert meter.end(SHORT_TASK_US - 1) == ()
    meter.fuel = lambda: 7
    assert meter.end(SHORT_TASK_US - 1) == (0, 0, 0, 0, 7), "but what an engine counts costs nothing to tell"


def test_cpu_is_of_the_task_alone() -> None:
    meter = Meter()
    spin(0.05)
    meter.begin(time.monotonic_ns())
    spin(0.02)
    assert 20_000 <= measured(meter).cpu_us < 50_000
    assert measured(meter).cpu_us < 20_000, "nor does it count twice"


@linux
def test_children_that_were_waited_for_count() -> None:
    meter = Meter()
    meter.begin(time.monotonic_ns())
    code = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert measured(meter).cpu_us >= 190_000


#: In a process of its own: what others have used of memory before, in this one, is no matter of a task.
_MEMORY = """
import os
from p2pcompute.execution.worker_usage import Meter

meter = Meter()
plain = meter.end(10_000)[1]
hog = bytearray(96 << 20)
del hog
heavy = meter.end(10_000)[1]
after = meter.end(10_000)[1]
print(plain, heavy, after, int(os.access("/proc/self/clear_refs", os.W_OK)))
"""


@linux
def test_memory_is_the_highest_of_the_task_and_not_of_its_predecessors() -> None:
    # A process begins with the mark of the one that made it: a shell's is low.
    made_by_shell = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, _MEMORY]
    done = subprocess.run(made_by_shell, check=True, capture_output=True, text=True)
    plain, heavy, after, may_set_back = map(int, done.stdout.split())
    assert heavy >= plain + (90 << 20)
    if may_set_back:
        assert after < heavy - (64 << 20)


@linux
def test_bytes_are_what_was_read_and_written(tmp_path: Path) -> None:
    meter = Meter()
    measured(meter)
    (tmp_path / "out").write_bytes(bytes(300_000))
    written = measured(meter)
    assert 300_000 <= written.written_bytes < 310_000
    (tmp_path / "out").read_bytes()
    assert 300_000 <= measured(meter).read_bytes < 320_000


def test_numbers_travel_without_zeros_at_the_end() -> None:
    assert trimmed((1, 0, 2, 0, 0)) == (1, 0, 2)
    assert trimmed((0, 0)) == ()
    assert Usage(5, 0, 0, 0, 9).numbers() == (5, 0, 0, 0, 9)
    assert Usage().numbers() == ()
    row = protocol.pack_end(1, 0, 2, b"x", (5, 6))
    assert protocol.parse_ends(row + protocol.pack_end(2, 0, 2, b"y")) == [[1, 0, 2, b"x", [5, 6]], [2, 0, 2, b"y"]]


@pytest.mark.parametrize("lie", [None, 7, [-1], ["1"], [limits.USAGE_MAX + 1], [1.5], [True], [0] * 7])
def test_what_no_worker_says_is_not_believed(lie: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        usage_of(lie)
