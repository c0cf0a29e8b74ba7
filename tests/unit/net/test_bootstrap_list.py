"""Lists of well-known peers."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Address
from p2pcompute.net.bootstrap_list import parse_bootstrap_list, resolve


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("", []),
        ("# nothing\n\n   # more nothing\n", []),
        ("10.0.0.1:1\n10.0.0.2", ["10.0.0.1:1", "10.0.0.2:9876"]),
        ("a.example:5, b.example:6 # two\r\n[2001:db8::1]:7", ["a.example:5", "b.example:6", "[2001:db8::1]:7"]),
        ("10.0.0.1:1\n10.0.0.1:1\n", ["10.0.0.1:1"]),
        ("\ufeff10.0.0.1:1", ["10.0.0.1:1"]),
    ],
)
def test_lists_are_read(text: str, addresses: list[str]) -> None:
    assert [str(address) for address in parse_bootstrap_list(text)] == addresses


@pytest.mark.parametrize("line", ["10.0.0.1:port", "host:0", "host:70000", ":9876"])
def test_a_line_that_cannot_be_read_is_named(line: str) -> None:
    with pytest.raises(UsageError, match="line 2"):
        parse_bootstrap_list(f"10.0.0.1:1\n{line}\n")


def test_a_list_without_end_is_refused() -> None:
    text = "\n".join(f"10.0.{number >> 8}.{number & 255}:1" for number in range(limits.CANDIDATES_MAX + 1))
    with pytest.raises(UsageError, match="remove some"):
        parse_bootstrap_list(text)


def test_the_list_that_comes_with_the_program_can_be_read() -> None:
    text = Path(__file__).parents[3].joinpath("bootstrap", "peers.txt").read_text(encoding="utf-8")
    assert parse_bootstrap_list(text) == ()


def test_numbers_stay_and_names_are_resolved() -> None:
    numeric = Address("10.1.2.3", 9)
    assert asyncio.run(resolve(numeric)) == (numeric,)
    found = asyncio.run(resolve(Address("localhost", 9)))
    assert found
    assert all(address.is_numeric and address.port == 9 for address in found)


@pytest.mark.parametrize("name", ["x" * 64 + ".example", "\ud800"])
def test_a_name_that_cannot_be_resolved_is_no_error(name: str) -> None:
    assert asyncio.run(resolve(Address(name, 9))) == ()


def test_the_bootstrap_program_serves_until_it_is_told_to_stop(home: Path) -> None:
    command = [sys.executable, "-m", "bootstrap", "--host", "127.0.0.1", "--port", "0", "--no-lan"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            first = program.stdout.readline()
            assert first.startswith("ready: "), program.communicate()
            program.send_signal(signal.SIGTERM)
            out, err = program.communicate(timeout=20)
        finally:
            program.kill()
    assert program.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert list(home.iterdir()), "it lives where it was told to"


def test_the_bootstrap_program_names_what_it_cannot_use(home: Path) -> None:
    command = [sys.executable, "-m", "bootstrap", "--bootstrap", "nowhere:port"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78
    assert "nowhere:port" in done.stderr
    assert "Traceback" not in done.stderr
