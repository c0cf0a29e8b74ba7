"""The command line: help, suggestions, exit codes, JSON, and what needs no running peer."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from p2pcompute import __version__
from p2pcompute.app.common import Group
from p2pcompute.app.main import cli

PROGRAM = [sys.executable, "-m", "p2pcompute"]


class Shell:
    """Runs the program in this process with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {"P2PCOMPUTE_HOME": str(home), "NO_COLOR": "1"}

    def __call__(self, *arguments: str, stdin: str | bytes | None = None, **environ: str) -> Result:
        return CliRunner(env={**self.environ, **environ}).invoke(cli, list(arguments), input=stdin)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in list(os.environ):
        if name.startswith("P2PCOMPUTE_"):
            monkeypatch.delenv(name)
    return Shell(tmp_path / "home")


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands())
LEAVES = [(path, command) for path, command in ALL if not isinstance(command, click.Group)]


def test_the_commands_that_the_product_promises() -> None:
    promised = ["up", "peers", "invite", "join", "submit", "map", "jobs", "doctor", "demo", "version", "completion"]
    promised += [f"network {name}" for name in ["create", "list", "use", "revoke", "export", "import", "open"]]
    promised += [f"job {name}" for name in ["show", "result", "cancel", "logs"]]
    assert set(promised) <= {" ".join(path) for path, _ in LEAVES}


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_every_command_has_help(shell: Shell, path: tuple[str, ...]) -> None:
    result = shell(*path, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert result.stdout == shell(*path, "-h").stdout


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=" ".join)
def test_every_command_shows_examples_that_begin_with_itself(shell: Shell, path: tuple[str, ...]) -> None:
    examples = shell(*path, "--help").stdout.partition("Examples:")[2]
    assert f"p2pcompute {' '.join(path)}" in examples


@pytest.mark.parametrize(
    ("path", "command"), LEAVES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_option_says_what_it_does(path: tuple[str, ...], command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.opts}"


PRINTS_NO_DATA = {"down", "completion", "network use", "network open", "network export", "network import", "job cancel"}


@pytest.mark.parametrize(
    ("path", "command"), LEAVES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_everything_that_prints_data_prints_json(path: tuple[str, ...], command: click.Command) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert ("--json" in options) == (" ".join(path) not in PRINTS_NO_DATA)


def test_version(shell: Shell) -> None:
    assert __version__ in shell("version").stdout
    assert json.loads(shell("version", "--json").stdout)["version"] == __version__
    assert __version__ in shell("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["uq"], "did you mean 'up'?"),
        (["peer"], "did you mean 'peers'?"),
        (["netwrk", "list"], "did you mean 'network'?"),
        (["network", "lst"], "did you mean 'list'?"),
        (["job", "shw", "x"], "did you mean 'show'?"),
        (["peers", "--jsn"], "--json"),
        (["up", "--bootstap", "x"], "--bootstrap"),
        (["frobnicate"], "no such command: 'frobnicate'"),
    ],
)
def test_what_is_unknown_is_answered_with_the_nearest_name(shell: Shell, arguments: list[str], hint: str) -> None:
    result = shell(*arguments)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["peers"], ["jobs"], ["job", "show", "abc"], ["down"], ["peers", "--json"], ["job", "cancel", "x"]]
)
def test_without_a_running_peer_the_exit_code_and_the_advice_are_clear(shell: Shell, arguments: list[str]) -> None:
    result = shell(*arguments)
    assert result.exit_code == 69
    assert "p2pcompute up" in result.stderr
    assert result.stdout == ""


def test_a_wrong_configuration_stops_every_command(shell: Shell) -> None:
    file = shell.home / "config" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("prot = 1\n")
    result = shell("network", "list")
    assert result.exit_code == 78
    assert "config.toml:prot" in result.stderr
    assert "did you mean 'port'?" in result.stderr
    assert file.read_text() == "prot = 1\n"
    other = shell.home / "other.toml"
    other.write_text("port = 1\n")
    assert shell("network", "list", "--config", str(other)).exit_code == 0
    assert shell("network", "list", "--config", str(shell.home / "missing.toml")).exit_code == 2
    assert shell("network", "list", "--config", str(other), P2PCOMPUTE_PROT="1").exit_code == 78
    assert shell("up", "--port", "many", "--config", str(other)).exit_code == 78


def test_networks_by_hand(shell: Shell) -> None:
    assert json.loads(shell("network", "list", "--json").stdout) == []
    assert shell("network", "create", "home").exit_code == 0
    assert shell("network", "create", "home").exit_code == 2
    assert shell("network", "open", "garden").exit_code == 0
    rows = {row["name"]: row for row in json.loads(shell("network", "list", "--json").stdout)}
    assert rows["home"]["kind"] == "owned"
    assert rows["garden"]["current"]
    assert "home" in shell("network", "list").stdout
    assert shell("network", "use", "home").exit_code == 0
    result = shell("network", "use", "hoem")
    assert result.exit_code == 2
    assert "did you mean 'home'?" in result.stderr


def test_invite_and_join_without_a_running_peer(shell: Shell, tmp_path: Path) -> None:
    shell("network", "create", "home")
    invited = shell("invite", "--label", "bert")
    assert invited.exit_code == 0
    token = invited.stdout.strip()
    assert token.startswith("p2pc1-")
    assert "\n" not in token
    other = Shell(tmp_path / "bert")
    joined = other("join", token, "--json")
    assert joined.exit_code == 0
    assert json.loads(joined.stdout)["roles"] == ["compute", "submit"]
    third = Shell(tmp_path / "cleo")
    assert third("join", stdin=f"{token}\n").exit_code == 0
    assert third("join", token[:-9]).exit_code == 77
    assert third("join", "hello").exit_code == 77
    document = json.loads(shell("invite", "--role", "compute", "--no-submit", "--json").stdout)
    assert document["roles"] == ["compute"]
    assert json.loads(shell("invite", "--role", "compute", "--json").stdout)["roles"] == ["compute", "submit"]
    assert "admin" in json.loads(shell("invite", "--role", "admin", "--json").stdout)["roles"]
    assert shell("invite", "--valid", "soon").exit_code == 2
    assert shell("invite", "--role", "kng").exit_code == 2
    assert other("invite").exit_code == 77, "a member without the role may not invite"


def test_revoke_without_a_running_peer(shell: Shell) -> None:
    shell("network", "create", "home")
    shell("invite", "--label", "bert")
    result = shell("network", "revoke", "bert", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["invitations"] == 1
    assert shell("network", "revoke", "nobody").exit_code == 2


def test_export_and_import(shell: Shell, tmp_path: Path) -> None:
    shell("network", "create", "home")
    file = tmp_path / "owner.p2pc"
    assert shell("network", "export", "home", str(file)).exit_code == 2, "no terminal to ask at"
    secret = {"P2PCOMPUTE_PASSPHRASE": "a long passphrase"}
    assert shell("network", "export", "home", str(file), **secret).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert shell("network", "export", "home", str(file), **secret).exit_code == 2
    assert file.read_bytes() == before
    other = Shell(tmp_path / "bert")
    assert other("network", "import", str(file), P2PCOMPUTE_PASSPHRASE="a wrong passphrase").exit_code == 2
    assert other("network", "import", str(file), **secret).exit_code == 0
    assert [row["kind"] for row in json.loads(other("network", "list", "--json").stdout)] == ["owned"]
    assert other("network", "import", str(tmp_path / "missing"), **secret).exit_code == 75


def test_doctor_on_a_fresh_home(shell: Shell) -> None:
    findings = json.loads(shell("doctor", "--json").stdout)
    assert {"Python", "packages", "configuration", "keys", "isolation", "running peers"} <= {
        f["subject"] for f in findings
    }
    assert all(finding["level"] in ("OK", "WARN") for finding in findings)
    assert shell("doctor").exit_code == 0
    assert not shell.home.exists(), "looking changes nothing"


def test_doctor_fails_on_what_is_broken_and_says_what_to_do(shell: Shell) -> None:
    shell("network", "create", "home")
    (shell.home / "data" / "networks" / "home" / "owner").write_bytes(b"damaged")
    instance = shell.home / "data" / "peers" / "1"
    instance.mkdir(parents=True)
    (instance / "key.pem").write_text("no key")
    (instance / "key.pem").chmod(0o644)
    (shell.home / "config").mkdir()
    (shell.home / "config" / "config.toml").write_text("port = [")
    result = shell("doctor", "--json")
    assert result.exit_code == 1
    failed = [finding for finding in json.loads(result.stdout) if finding["level"] == "FAIL"]
    assert {"configuration", "keys", "network home"} <= {finding["subject"] for finding in failed}
    assert any("chmod 600" in finding["advice"] for finding in failed)
    assert (instance / "key.pem").read_text() == "no key"


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: Shell, shell_name: str) -> None:
    assert "_P2PCOMPUTE_COMPLETE" in shell("completion", shell_name).stdout


def test_completion_completes(shell: Shell) -> None:
    done = subprocess.run(
        PROGRAM,
        env={
            **os.environ,
            **shell.environ,
            "_P2PCOMPUTE_COMPLETE": "bash_complete",
            "COMP_WORDS": "p2pcompute pe",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "peers" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    heavy = ["numpy", "scipy", "aiohttp", "cryptography", "rich", "structlog", "msgpack", "psutil", "asyncio.sslproto"]
    code = (
        "import sys\nfrom p2pcompute.app.main import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {[name for name in heavy if '.' not in name]!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Commands:" in done.stdout


def test_output_to_a_reader_that_leaves(shell: Shell) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "version", "--json"],
        env={**os.environ, **shell.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(30)
    process.stderr.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_with_their_code(tmp_path: Path, number: signal.Signals, code: int) -> None:
    program = (
        "import asyncio, sys\nimport click\nfrom p2pcompute.app.common import Command, run_async\n"
        "async def wait():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "@click.command(cls=Command)\n"
        "def command():\n    run_async(wait())\n"
        "command.main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"cleaned\n"
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(30) == code


def test_groups_within_groups_suggest_too() -> None:
    assert all(isinstance(command, Group) for _, command in ALL if isinstance(command, click.Group))
