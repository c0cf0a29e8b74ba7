"""What is wrong gets an error that says what, where and what to do; nothing is lost and the peers live on."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers import WAIT_S, Machine, machine, own_ports, until_now

PROGRAM = """
import os, sys, threading, time

handle = threading.Lock()

def same(x):
    return x

def around(held):
    def holds_a_lock(x):
        with held:
            return x
    return holds_a_lock

holds_a_lock = around(handle)

def returns_a_lock(x):
    return threading.Lock()

def leaves(x):
    os._exit(7)

def naps(x):
    time.sleep(x)
    return x

def floods(x):
    while True:
        print("y" * 1000)

def eats(x):
    return len(bytearray(1 << 36))

def of_another_peer(x):
    import only_at_one_peer
    return only_at_one_peer.VALUE + x
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "home", environ=own_ports()) as found:
        yield found


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program_with_faults.py"
    path.write_text(PROGRAM)
    return str(path)


def refused(at: Machine, *arguments: str, code: int, says: tuple[str, ...]) -> str:
    """stderr of a command that ends with `code`, tells all of `says` and prints no data and no trace of our own."""
    done = at.run(*arguments, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    for words in says:
        assert words in done.stderr, done.stderr
    return done.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_tokens_that_cannot_be_used(here: Machine, tmp_path: Path) -> None:
    token = here.json("invite")["token"]
    with machine(tmp_path / "other", environ=here.environ) as other:
        refused(other, "join", "nonsense", code=77, says=("p2pc1-",))
        refused(other, "join", token[:-9], code=77, says=("copy the whole line",))
        middle = len(token) // 2
        changed = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
        refused(other, "join", changed, code=77, says=("mistyped or changed",))
        assert other.json("network", "list") == []


def test_an_invitation_that_has_expired(here: Machine, tmp_path: Path) -> None:
    short = here.json("invite", "--valid", "1s")
    with machine(tmp_path / "other", environ=here.environ) as other:

        def expired() -> str:
            done = other.run("join", short["token"], check=False)
            return done.stderr if done.returncode == 77 else ""

        assert "expired" in until_now(expired, "a token of one second has expired", step_s=0.3)


@pytest.mark.parametrize("name", ["key.pem", "peer.db"])
def test_a_corrupt_file_of_a_peer_is_named_and_left_as_it_is(here: Machine, name: str) -> None:
    peer = here.up("anna")
    path = peer.folders.instance_folder(peer.number) / name
    here.stop()
    for rest in path.parent.glob("peer.db-*"):
        rest.unlink()
    path.write_bytes(b"this was a file of a peer " * 400)
    before = digest(path)
    refused(here, "up", code=65, says=(str(path),))
    assert digest(path) == before
    assert "FAIL" in here.run("doctor", check=False).stdout or name == "peer.db"


def test_a_corrupt_configuration_is_named_and_left_as_it_is(here: Machine) -> None:
    path = here.home / "config" / "config.toml"
    path.parent.mkdir()
    path.write_bytes(b"slots = [1\n\xff")
    before = digest(path)
    refused(here, "up", code=78, says=(str(path),))
    assert digest(path) == before


def test_inputs_and_functions_that_cannot_travel(here: Machine, tmp_path: Path, program: str) -> None:
    here.up("anna")
    stderr = refused(here, "map", program, "holds_a_lock", "1", code=2, says=("held", "lock"))
    assert "Traceback" not in stderr
    stderr = refused(here, "map", program, "returns_a_lock", "1", code=70, says=("task 0", "anna", "cannot travel"))
    assert "Traceback" not in stderr
    refused(here, "map", program, "sam", "1", code=2, says=("did you mean 'same'?",))
    refused(here, "submit", program, "--map", "same", "--aggregation", "avrage", program, code=2, says=("'average'",))
    refused(here, "submit", program, "--map", "same", str(tmp_path / "gone"), code=2, says=("gone", "nothing was run"))


def test_an_input_that_vanishes_on_the_way(here: Machine, tmp_path: Path) -> None:
    here.up("anna", "--slots", "1")
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for path in paths:
        path.write_text("text")
    # Inputs are looked at before the program is loaded, and read after it.
    program = tmp_path / "program_that_removes.py"
    program.write_text(f"import os\nif os.path.exists({str(paths[2])!r}):\n    os.unlink({str(paths[2])!r})\n")
    program.write_text(program.read_text() + "def size(data):\n    return len(data)\n")
    done = here.run("submit", str(program), "--map", "size", *map(str, paths), check=False)
    assert done.returncode == 2, done.stderr
    assert f"the input {paths[2]} cannot be read any more" in done.stderr
    # Depending on when the reading broke off, the peer had heard of the job or not; it must not go on with it.
    until_now(
        lambda: all(job["state"] in ("failed", "cancelled") for job in here.json("jobs")), "no job is left running"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("leaves", "1"), ("killed its worker process in every attempt", "status 7", "attempt 1 at anna")),
        (("naps", "100", "--timeout", "0.5"), ("longer than its time-out", "anna")),
        (("naps", "100", "--job-timeout", "0.5"), ("the job took longer than its time-out of 0.5 s",)),
        (("eats", "1", "--memory", "300MB"), ("memory", "attempt 1 at anna")),
        (("floods", "1", "--timeout", "1"), ("longer than its time-out",)),
    ],
    ids=["os._exit", "time-out", "job time-out", "memory", "endless output"],
)
def test_a_task_that_misbehaves_is_the_jobs_failure_only(
    here: Machine, program: str, arguments: tuple[str, ...], says: tuple[str, ...]
) -> None:
    anna = here.up("anna")
    stderr = refused(here, "map", program, *arguments, code=70, says=says)
    assert len(stderr) < 2 << 20, "output without end was shown without end"
    assert here.run("map", program, "same", "5").stdout == "5\n"
    assert anna.process.poll() is None


def test_a_module_that_one_peer_lacks_sends_the_task_to_another(here: Machine, tmp_path: Path, program: str) -> None:
    anna = here.up("anna")
    refused(here, "map", program, "of_another_peer", "1", code=70, says=("anna", "only_at_one_peer", "install"))
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "only_at_one_peer.py").write_text("VALUE = 40\n")
    with machine(here.home, environ={**here.environ, "PYTHONPATH": str(extra)}) as same_user:
        bert = same_user.up("bert")
        until_now(lambda: anna.linked_names == {"bert"} and bert.linked_names == {"anna"}, "both are linked")
        with subprocess.Popen(
            here.command("map", program, "of_another_peer", "2", "--json"),
            env=here.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            stdout, stderr = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, stderr.decode()
        assert json.loads(stdout)["result"] == 42
