"""The command line as its users meet it: real processes, one fresh data folder and one beacon port a test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from p2pcompute.app.demo import PEERS
from p2pcompute.node.folders import Folders
from tests.support.peers import WAIT_S, Machine, PeerProcess, machine, own_ports, until_now

ROOT = Path(__file__).resolve().parents[2]
WORD_COUNT = str(ROOT / "examples" / "wordcount.py")
PROGRAM = """
import sys, time
print("this line is no result")

def same(x):
    return x

def kind_of(x):
    return [type(x).__name__, len(x) if isinstance(x, bytes) else x]

def fails(x):
    raise ValueError(f"no good: {x}")

def shout(x):
    print("said", x)
    print("wailed", x, file=sys.stderr)
    return x

def nap(x):
    print("naps", flush=True)
    time.sleep(x)
    return x

def size(path):
    return len(open(path, "rb").read())
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "home", environ=own_ports()) as found:
        yield found


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program_of_a_user.py"
    path.write_text(PROGRAM)
    return str(path)


def texts(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"the cat {number} the dog\nA word, twice: word\n" * (number + 1))
    return [str(path) for path in sorted(folder.iterdir())]


def expected_words(paths: list[str]) -> Counter[str]:
    return sum((Counter(re.findall("[a-z]+", Path(path).read_text().lower())) for path in paths), Counter())


def linked(*peers: PeerProcess) -> None:
    for peer in peers:
        until_now(lambda peer=peer: len(peer.linked_names) >= len(peers) - 1, f"all are linked to {peer.number}")


def one_job(at: Machine, *state: str) -> dict[str, Any]:
    """The latest job at `at` in one of these states, waited for."""
    found = until_now(lambda: [row for row in at.json("jobs") if row["state"] in state], f"a job is {state}")
    return dict(found[-1])


def leftovers(home: Path) -> list[str]:
    """Processes of this system whose environment names `home`, and its control sockets."""
    mine = f"P2PCOMPUTE_HOME={home}".encode()
    folders = Folders.beneath(home)
    found = [str(path) for path in map(folders.socket_path, range(1, 9)) if path.exists()]
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and mine in (folder / "environ").read_bytes().split(b"\0"):
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()!r}")
    return found


# --- up, peers --------------------------------------------------------------------------------------------------------


def test_two_peers_list_each_other_soon(here: Machine) -> None:
    first = here.up("anna")
    second = here.up("bert")
    # By the calls of the first seconds: the next ones come after 24 s at least.
    until_now(lambda: first.linked_names and second.linked_names, "two idle peers on one host are linked", 20)
    document = here.json("peers")
    assert document["own"]["name"] == "anna"
    assert [row["name"] for row in document["peers"]] == ["bert"]
    row = document["peers"][0]
    assert row["linked"]
    assert row["cores"] >= 1
    assert row["memory_gb"] > 0
    until_now(lambda: here.json("peers")["peers"][0]["rtt_ms"] is not None, "the round trip is measured")
    table = here.run("peers").stdout
    assert "anna" in table
    assert "alive, linked" in table
    assert here.json("peers", "--peer", "bert")["own"]["name"] == "bert"
    assert here.json("peers", "--peer", str(second.number))["own"]["name"] == "bert"
    assert here.json("peers", "--peer", document["peers"][0]["short"])["own"]["name"] == "bert"
    refused = here.run("peers", "--peer", "brt", check=False)
    assert refused.returncode != 0
    assert "1 (anna), 2 (bert)" in refused.stderr
    until_now(lambda: "bert (" in first.log.read_text(), "the first peer tells of the second")


def test_an_instance_is_used_again_with_its_key_and_port(here: Machine) -> None:
    first, second = here.up("anna"), here.up("bert")
    before = [peer.ask("status") for peer in (first, second)]
    assert [row["instance"] for row in before] == [1, 2]
    assert before[0]["port"] != before[1]["port"]
    here.stop()
    again = [here.up("anna"), here.up("bert")]
    after = [peer.ask("status") for peer in again]
    for name in ("peer", "port", "instance"):
        assert [row[name] for row in after] == [row[name] for row in before], name


def test_the_control_socket_is_the_users_own(here: Machine) -> None:
    peer = here.up("anna")
    path = peer.folders.socket_path(peer.number)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_taken_port_means_the_next_free_one_and_that_is_said(here: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        peer = here.up("anna", "--port", str(port))
        assert peer.ask("status")["port"] != port
        until_now(lambda: f"port {port} is taken" in peer.log.read_text(), "it says so")


def test_up_is_quiet_and_its_events_are_json(here: Machine) -> None:
    with subprocess.Popen(
        here.command("up", "--name", "anna", "--json"),
        env=here.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        ready = next_event(process)
        assert ready["event"] == "ready"
        assert ready["name"] == "anna"
        other = here.up("bert")
        appeared = next_event(process)
        assert (appeared["event"], appeared["name"]) == ("peer_appeared", "bert")
        # Both may have dialled: what one of them breaks off in mid-handshake the other one tells of.
        until_now(lambda: other.linked_names == {"anna"}, "both are linked")
        until_now(lambda: connections(process.pid) == connections(other.process.pid) == 1, "by one connection")
        other.process.send_signal(signal.SIGINT)
        left = next_event(process)
        assert (left["event"], left["name"]) == ("peer_left", "bert")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert other.process.wait(WAIT_S) == 130
    assert (stdout, stderr) == (b"", b"")
    assert leftovers(here.home) == []


def connections(pid: int) -> int:
    """TCP connections of a process that are up or about to be; who listens is not counted."""
    resting = (psutil.CONN_LISTEN, psutil.CONN_TIME_WAIT, psutil.CONN_CLOSE)
    return sum(each.status not in resting for each in psutil.Process(pid).net_connections("tcp"))


def next_event(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What it tells next, but for whom it suspects: on a busy machine that may be anybody for a moment."""
    assert process.stdout is not None
    while True:
        event: dict[str, Any] = json.loads(process.stdout.readline())
        if event["event"] != "peer_suspected":
            return event


def test_flags_beat_the_environment_which_beats_the_file(here: Machine) -> None:
    config = here.home / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text('name = "of-the-file"\nslots = 1\nmemory_bytes = "700MiB"\n')
    here.environ.update(P2PCOMPUTE_SLOTS="2", P2PCOMPUTE_NAME="of-the-environment")
    here.up("of-the-flag")
    own = here.json("peers")["own"]
    assert own["name"] == "of-the-flag"
    assert own["slots"] == 2
    here.environ["P2PCOMPUTE_SLOTS"] = "many"
    wrong = here.run("peers", check=False)
    assert wrong.returncode == 78
    assert "P2PCOMPUTE_SLOTS" in wrong.stderr


def test_down_stops_peers(here: Machine) -> None:
    first, second = here.up("anna"), here.up("bert")
    assert "peer 2" in here.run("down", "--peer", "bert").stderr
    assert second.process.wait(WAIT_S) == 0
    assert first.process.poll() is None
    here.run("down", "--all")
    assert first.process.wait(WAIT_S) == 0
    assert leftovers(here.home) == []


# --- submit, map, jobs ------------------------------------------------------------------------------------------------


def test_any_peer_takes_the_word_count(here: Machine, tmp_path: Path) -> None:
    linked(here.up("anna"), here.up("bert"))
    paths = texts(tmp_path / "texts")
    for name in ("anna", "bert"):
        arguments = ["submit", WORD_COUNT, "--map", "count", "--reduce", "merge", "--peer", name, *paths]
        plain = here.run(*arguments)
        assert Counter(json.loads(plain.stdout)) == expected_words(paths)
        assert plain.stderr == ""
        document = here.json(*arguments)
        assert Counter(document["result"]) == expected_words(paths)
        assert document["state"] == "succeeded"
        assert set(document["done_by_peer"]) <= {"anna", "bert"}
        assert sum(document["done_by_peer"].values()) == document["tasks_done"]
        assert document["job"] in {row["job"] for row in here.json("jobs", "--peer", name)}


def test_without_a_peer_one_is_started_for_the_job(here: Machine, tmp_path: Path) -> None:
    paths = texts(tmp_path / "texts")
    done = here.run("submit", WORD_COUNT, "--map", "count", "--reduce", "merge", "--json", *paths)
    assert Counter(json.loads(done.stdout)["result"]) == expected_words(paths)
    assert "starting one for this job" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert leftovers(here.home) == []
    refused = here.run("submit", WORD_COUNT, "--map", "count", "--peer", "2", *paths, check=False)
    assert refused.returncode == 69


def test_inputs_and_outputs_of_every_kind(here: Machine, tmp_path: Path, program: str) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    # Where root runs the peer its tasks are nobody, who may see what others may.
    texts.chmod(0o755)
    here.up("anna", "--folder", f"texts={texts}")
    text = texts / "a.txt"
    text.write_text("one\ntwo\n")
    document = texts / "b.json"
    document.write_text('{"a": [1, null]}')

    def kinds(path: Path, *arguments: str) -> list[Any]:
        done = here.run("submit", program, "--map", "kind_of", *arguments, str(path), "--json")
        return [json.loads(line)["result"] for line in done.stdout.splitlines()]

    assert kinds(text) == [["bytes", 8]]
    assert kinds(text, "--as", "text") == [["str", "one\ntwo\n"]]
    assert kinds(text, "--as", "path") == [["str", str(text)]]
    assert kinds(text, "--as", "lines") == [["str", "one"], ["str", "two"]]
    assert kinds(document, "--as", "json") == [["dict", {"a": [1, None]}]]
    output = tmp_path / "out.txt"
    done = here.run("submit", program, "--map", "kind_of", "--as", "lines", str(text), "--output", str(output))
    assert done.stdout == ""
    assert [json.loads(line) for line in output.read_text().splitlines()] == [["str", "one"], ["str", "two"]]
    total = here.run(
        "submit",
        program,
        "--map",
        "size",
        "--as",
        "path",
        "--grant",
        "folder:texts",
        "--aggregation",
        "sum",
        str(text),
        str(document),
    )
    assert json.loads(total.stdout) == 8 + len('{"a": [1, null]}')
    mapped = here.run("map", program, "same", "1", '"x"', "[2]", "--json")
    assert [json.loads(line) for line in mapped.stdout.splitlines()] == [
        {"index": 0, "result": 1},
        {"index": 1, "result": "x"},
        {"index": 2, "result": [2]},
    ]
    lines = tmp_path / "inputs.jsonl"
    lines.write_text("1\n\n2\n")
    assert here.run("map", program, "same", "--jsonl", str(lines)).stdout == "1\n2\n"
    assert "this line is no result" in done.stderr, "what a file prints while it is loaded is no data"


def test_a_job_can_be_looked_into(here: Machine, program: str) -> None:
    here.up("anna")
    done = here.run("map", program, "shout", "1", "2")
    assert done.stdout == "1\n2\n"
    assert "[anna task 0] said 1" in done.stderr
    job = one_job(here, "succeeded")["job"]
    assert here.json("job", "show", job[:6])["job"] == job
    assert job in here.run("jobs").stdout
    assert job in here.run("job", "show", job).stdout
    assert here.run("job", "result", job).stdout == "1\n2\n"
    logs = [json.loads(line) for line in here.run("job", "logs", job, "--json").stdout.splitlines()]
    assert {(row["task"], row["stream"], row["peer"]) for row in logs} == {
        (task, stream, "anna") for task in (0, 1) for stream in ("stdout", "stderr")
    }
    assert "said 2" in here.run("job", "logs", job).stdout
    unknown = here.run("job", "show", "zz", check=False)
    assert unknown.returncode == 2
    assert "no job 'zz' is known" in unknown.stderr


def test_a_running_job_can_be_cancelled_from_elsewhere(here: Machine, program: str) -> None:
    peer = here.up("anna")
    with subprocess.Popen(
        here.command("map", program, "nap", "100"), env=here.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        job = one_job(here, "running")["job"]
        assert "--wait" in here.run("job", "result", job, check=False).stderr
        until_now(lambda: here.json("peers")["own"]["load"] > 0, "the peer says that it is busy")
        here.run("job", "cancel", job)
        _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 70
    assert b"cancelled" in stderr
    assert one_job(here, "cancelled")["job"] == job
    until_now(lambda: here.json("peers")["own"]["load"] == 0, "the task is stopped")
    assert peer.process.poll() is None


def test_a_failing_task_is_told_with_its_traceback_and_may_be_left_out(here: Machine, program: str) -> None:
    here.up("anna")
    done = here.run("map", program, "fails", "5", check=False)
    assert done.returncode == 70
    assert done.stdout == ""
    assert 'raise ValueError(f"no good: {x}")' in done.stderr
    assert done.stderr.count("Traceback") == 1
    skipped = here.run("map", program, "fails", "5", "--on-error", "skip")
    assert skipped.stdout == ""
    assert "1 input was left out" in skipped.stderr


# --- networks ---------------------------------------------------------------------------------------------------------


def test_a_second_home_joins_by_a_token_and_is_thrown_out(here: Machine, tmp_path: Path, program: str) -> None:
    anna = here.up("anna")
    invitation = here.json("invite", "--label", "the laptop")
    assert invitation["addresses"], "a running peer puts its addresses into the token"
    assert sorted(invitation["roles"]) == ["compute", "submit"]
    with machine(tmp_path / "other", environ=here.environ) as other:
        joined = other.json("join", invitation["token"])
        assert joined["network"] == "private"
        bert = other.up("bert", "--no-lan")
        linked(anna, bert)
        assert other.run("map", program, "same", "7").stdout == "7\n"
        refused = other.run("invite", check=False)
        assert refused.returncode == 77
        assert "does not allow to invite" in refused.stderr
        revoked = here.run("network", "revoke", "the laptop")
        assert "revoked the laptop" in revoked.stderr
        until_now(lambda: not anna.linked_names and not bert.linked_names, "the link is closed")
        assert bert.process.poll() is None
        assert anna.process.poll() is None
        doctor = other.run("doctor", "--json", check=False)
        assert any(row["level"] != "OK" for row in json.loads(doctor.stdout)), "doctor says nothing of the revocation"


def test_networks_are_made_chosen_moved_and_kept_apart(here: Machine, tmp_path: Path) -> None:
    assert here.json("network", "create", "home")["network"] == "home"
    here.run("network", "open", "reading-club")
    rows = {row["name"]: row for row in here.json("network", "list")}
    assert rows["reading-club"]["current"]
    assert rows["reading-club"]["kind"] == "open"
    assert not rows["home"]["current"]
    here.run("network", "use", "home")
    in_home = here.up("anna")
    in_club = here.up("bert", "--network", "reading-club")
    assert in_home.ask("status")["network"] == "home"
    assert in_club.ask("status")["network"] == "reading-club"
    file = tmp_path / "owner.p2pc"
    here.environ["P2PCOMPUTE_PASSPHRASE"] = "correct horse battery"
    here.run("network", "export", "home", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with machine(tmp_path / "moved", environ=here.environ) as other:
        other.run("network", "import", str(file))
        moved = other.up("cleo", "--network", "home")
        linked(in_home, moved)
        other.run("network", "open", "reading-club")
        fourth = other.up("dora")
        linked(in_club, fourth)
        assert in_home.linked_names == {"cleo"}
        assert fourth.linked_names == {"bert"}


# --- what prints data -------------------------------------------------------------------------------------------------


def test_everything_that_prints_data_prints_json(here: Machine, program: str) -> None:
    here.up("anna")
    here.run("map", program, "same", "1")
    job = one_job(here, "succeeded")["job"]
    for arguments in (
        ["version"],
        ["peers"],
        ["peers", "--wide"],
        ["jobs"],
        ["job", "show", job],
        ["network", "list"],
        ["network", "create", "other"],
        ["invite"],
        ["doctor"],
    ):
        done = here.run(*arguments, "--json")
        json.loads(done.stdout)
        assert done.stderr == "", arguments
    assert "anna" in here.run("peers", "--wide").stdout
    doctor = here.run("doctor")
    assert "FAIL" not in doctor.stdout
    assert "anna at port" in doctor.stdout


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_up_and_leaves_nothing(here: Machine, program: str) -> None:
    peer = here.up("anna")
    here.run("map", program, "same", "1")  # its workers are warm now
    peer.process.send_signal(signal.SIGINT)
    assert peer.process.wait(WAIT_S) == 130
    assert leftovers(here.home) == []
    assert "Traceback" not in peer.log.read_text()


@pytest.mark.parametrize("running", [True, False], ids=["at a running peer", "with a peer of its own"])
def test_ctrl_c_ends_a_job_and_its_code(here: Machine, tmp_path: Path, program: str, running: bool) -> None:
    if running:
        here.up("anna")
    said = tmp_path / "stderr"
    with (
        said.open("wb") as sink,
        subprocess.Popen(
            here.command("map", program, "nap", "100", "100"),
            env=here.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
        ) as process,
    ):
        until_now(lambda: "naps" in said.read_text(), "a task runs")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert stdout == b""
    assert "Traceback" not in said.read_text()
    if running:
        until_now(lambda: here.json("peers")["own"]["load"] == 0, "the code is stopped")
        assert one_job(here, "cancelled")
    else:
        assert leftovers(here.home) == []


def demo_environment(folder: Path) -> dict[str, str]:
    folder.mkdir()
    base = {name: value for name, value in os.environ.items() if not name.startswith("P2PCOMPUTE_")}
    return {**base, "TMPDIR": str(folder), "NO_COLOR": "1"}


def start_demo(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "p2pcompute", "demo", "--texts", str(folder), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def of_demo(folder: Path) -> list[str]:
    """Processes that live in a folder of the demo below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"P2PCOMPUTE_HOME={folder}".encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
    return found


def test_the_demo_proves_its_answer_and_leaves_nothing(tmp_path: Path) -> None:
    paths = texts(tmp_path / "texts")
    temporary = tmp_path / "tmp"
    with start_demo(tmp_path / "texts", demo_environment(temporary), "--json") as process:
        stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert document["equal_to_serial"] is True
    assert dict(document["words"]) == dict(expected_words(paths).most_common(20))
    assert {row["name"] for row in document["peers"]} == set(PEERS)
    assert sum(document["tasks_by_peer"].values()) >= len(paths)
    assert f"{PEERS[0]} found" in stderr
    assert [path for path in temporary.rglob("*") if not path.is_dir()] == []
    assert list(temporary.glob("p2pcompute-demo-*")) == []
    assert of_demo(temporary) == []


@pytest.mark.parametrize("moment", ["peers start", "peers are up"])
def test_ctrl_c_ends_the_demo_and_leaves_nothing(tmp_path: Path, moment: str) -> None:
    texts(tmp_path / "texts")
    temporary = tmp_path / "tmp"
    with start_demo(tmp_path / "texts", demo_environment(temporary)) as process:
        wanted = 1 if moment == "peers start" else 3
        until_now(lambda: len(of_demo(temporary)) >= wanted, "processes of the demo run")
        if moment == "peers are up":
            until_now(lambda: len(list(temporary.rglob("peer.db"))) == 3, "three peers have begun")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, (stdout, stderr)
    assert "Traceback" not in stderr
    assert of_demo(temporary) == []
    assert [path for path in temporary.rglob("*") if not path.is_dir()] == []
    assert list(temporary.glob("p2pcompute-demo-*")) == []
