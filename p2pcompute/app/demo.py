"""`p2pcompute demo`: three peers on this machine find each other and count words together.

Owns the whole show: a fresh folder for everything, three `p2pcompute up` in processes of their own that find each other by
broadcast alone, the job submitted at the second one, and the proof against a serial run. Whatever happens, also Ctrl-C, the
three are stopped and the folder is removed.

Refuses to use anything that a user could not: control sockets, and a program file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from p2pcompute.app.common import Command, json_option, note, run_async, settings_of
from p2pcompute.app.program_file import FileInputs, load_program
from p2pcompute.app.progress import Progress
from p2pcompute.app.render import console, duration, peer_columns, print_json, table_of
from p2pcompute.model.errors import NotRunningError, P2PComputeError, ResourceError, UsageError

if TYPE_CHECKING:
    from p2pcompute.node.door import JobOutcome
    from p2pcompute.node.folders import Folders

PEERS = ("north", "east", "south")
#: Generous: three interpreters start at once on what may be one slow core.
FOUND_WITHIN_S = 40.0
STOPPED_WITHIN_S = 8.0
POLL_INTERVAL_S = 0.1
WORDS_SHOWN = 20
#: Texts between two looks at whether Ctrl-C was pressed.
_SERIAL_STRIDE = 16


@dataclass(slots=True)
class _Crew:
    """The three processes and their folder."""

    folders: Folders
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def check(self) -> None:
        """Raise NotRunningError where one has ended, with its last words."""
        for name, process, log in zip(PEERS, self.processes, self.logs, strict=True):
            if process.poll() is not None:
                words = "\n".join(log.read_text(errors="replace").strip().splitlines()[-12:])
                raise NotRunningError(f"peer {name} ended with exit code {process.returncode}:\n{words}")


@click.command(
    cls=Command,
    examples="""
    p2pcompute demo
    p2pcompute demo --texts ~/Documents
    """,
)
@click.option(
    "--texts",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of texts (default: the source files of Python's standard library).",
)
@json_option
@click.pass_context
def demo(ctx: click.Context, texts: Path | None, as_json: bool) -> None:
    """Three peers on this machine find each other and count words together.

    Takes well under a minute, leaves nothing behind, and touches neither your networks nor your peers.
    """
    settings_of(ctx).load()
    run_async(_demo(chosen_texts(texts), as_json))


def chosen_texts(folder: Path | None) -> tuple[Path, ...]:
    """The files to count, in order. Raises UsageError where there is none."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and os.access(path, os.R_OK))
    else:
        library = Path(sysconfig.get_path("stdlib"))
        packages = {"site-packages", "dist-packages", "__pycache__"}
        paths = sorted(
            path for path in library.rglob("*.py") if not packages.intersection(path.parts) and path.is_file()
        )
    if not paths:
        raise UsageError(f"no readable file in {folder or 'the standard library'}: give a folder with --texts")
    return tuple(paths)


def word_count() -> ModuleType:
    """The program of the demo, `examples/wordcount.py`. Raises UsageError where this installation lacks it."""
    path = Path(__file__).resolve().parents[2] / "examples" / "wordcount.py"
    if not path.is_file():
        raise UsageError(
            "examples/wordcount.py is not here: the demo runs from a clone of the repository (`make demo`)"
        )
    return load_program(path)


async def _demo(texts: tuple[Path, ...], as_json: bool) -> None:
    module = word_count()
    size_mb = sum(path.stat().st_size for path in texts) / 1e6
    note(
        f"Starting three peers; they know nothing of each other and look around by broadcast. ({len(texts)} texts, {size_mb:.1f} MB)"
    )
    began_s = time.monotonic()
    async with _crew() as crew:
        rows = await _see_each_other(crew, began_s)
        found_s = time.monotonic() - began_s
        if not as_json:
            note(f"All three see each other after {duration(found_s)}:")
            console().print(table_of("", peer_columns(), rows))
        outcome = await _count(crew, module, texts)
        by_peer = dict(await _tasks_by_peer(crew, outcome))
    note("Peers stopped. Counting again on one core of this process, for the proof …")
    serial, serial_s = await _serially(module, texts)
    equal = serial == outcome.value
    common = outcome.value.most_common(WORDS_SHOWN)
    elapsed_s = outcome.progress.elapsed_s
    if as_json:
        print_json(
            {
                "peers": rows,
                "found_s": round(found_s, 3),
                "texts": len(texts),
                "megabytes": round(size_mb, 3),
                "words": [[word, times] for word, times in common],
                "different_words": len(serial),
                "tasks_by_peer": by_peer,
                "elapsed_s": round(elapsed_s, 3),
                "serial_s": round(serial_s, 3),
                "equal_to_serial": equal,
            }
        )
    else:
        _show(common, by_peer, elapsed_s, serial_s, sum(serial.values()), len(serial), equal)
    if not equal:
        raise P2PComputeError(
            "the answer differs from the serial run: this is a defect of p2pcompute, please report it"
        )


def _show(
    common: Sequence[tuple[str, int]],
    by_peer: dict[str, int],
    elapsed_s: float,
    serial_s: float,
    words: int,
    different: int,
    equal: bool,
) -> None:
    from rich.columns import Columns

    ranked = [{"rank": number, "word": word, "times": times} for number, (word, times) in enumerate(common, 1)]
    half = (len(ranked) + 1) // 2
    tables = [
        table_of(
            "",
            [
                ("#", lambda row: str(row["rank"]), "right"),
                ("word", lambda row: row["word"], "left"),
                ("times", lambda row: f"{row['times']:,}", "right"),
            ],
            part,
        )
        for part in (ranked[:half], ranked[half:])
    ]
    done = table_of(
        "",
        [("peer", lambda row: row["peer"], "left"), ("tasks", lambda row: f"{row['tasks']:,}", "right")],
        [{"peer": name, "tasks": count} for name, count in sorted(by_peer.items())],
    )
    console().print(Columns([*tables, done], padding=(0, 4)))
    verdict = "equal to the last count" if equal else "NOT EQUAL"
    click.echo(
        f"{words:,} words, {different:,} different ones. Network: {duration(elapsed_s)}; serially: {duration(serial_s)}; "
        f"the two answers are {verdict}."
    )


# --- the three peers --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _crew() -> AsyncIterator[_Crew]:
    from p2pcompute.node.folders import Folders

    home = Path(tempfile.mkdtemp(prefix="p2pcompute-demo-"))
    crew = _Crew(Folders.beneath(home))
    try:
        for number, name in enumerate(PEERS, 1):
            _start(crew, home, name, str(number))
        yield crew
    finally:
        # Not asynchronous: it must run to its end even while this command is being cancelled.
        _stop(crew)
        shutil.rmtree(home, ignore_errors=True)


def _start(crew: _Crew, home: Path, name: str, number: str) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("P2PCOMPUTE_")}
    environ["P2PCOMPUTE_HOME"] = str(home)
    log = home / f"{name}.log"
    try:
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "p2pcompute", "up", "--name", name, "--instance", number, "--port", "0"],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal goes to this process alone, which stops the three in order.
                start_new_session=True,
            )
    except OSError as error:
        raise ResourceError(f"cannot start a peer: {error.strerror}") from error
    crew.processes.append(process)
    crew.logs.append(log)


def _stop(crew: _Crew) -> None:
    for process in crew.processes:
        if process.poll() is None:
            process.terminate()
    deadline_s = time.monotonic() + STOPPED_WITHIN_S
    for process in crew.processes:
        try:
            process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _see_each_other(crew: _Crew, began_s: float) -> list[dict[str, Any]]:
    """Wait until every peer is linked to the two others, telling of each as it appears; rows as the second one sees them."""
    seen: set[str] = set()
    deadline_s = time.monotonic() + FOUND_WITHIN_S
    while True:
        crew.check()
        views = await _views(crew)
        for document in views:
            own = document["own"]
            if own["short"] not in seen:
                seen.add(own["short"])
                note(
                    f"  {time.monotonic() - began_s:5.2f} s  {own['name']} ({own['short']}) is up: {own['cores']} cores, {own['memory_gb']:.1f} GB"
                )
            for row in document["peers"]:
                pair = f"{own['short']} {row['short']}"
                if row["linked"] and row["rtt_ms"] is not None and pair not in seen:
                    seen.add(pair)
                    note(
                        f"  {time.monotonic() - began_s:5.2f} s  {own['name']} found {row['name']}, round trip {row['rtt_ms']:.2f} ms"
                    )
        complete = [
            document
            for document in views
            if len([row for row in document["peers"] if row["linked"] and row["rtt_ms"] is not None]) >= len(PEERS) - 1
        ]
        if len(complete) == len(PEERS):
            second = complete[1]
            return [second["own"], *second["peers"]]
        if time.monotonic() > deadline_s:
            raise NotRunningError(
                f"the three peers did not find each other within {FOUND_WITHIN_S:.0f} s: does a firewall block UDP broadcasts "
                "on this machine? `p2pcompute doctor` tells more"
            )
        await asyncio.sleep(POLL_INTERVAL_S)


async def _views(crew: _Crew) -> list[dict[str, Any]]:
    """What each peer that answers knows, lowest instance first."""
    from p2pcompute.node.running import connect

    documents: list[dict[str, Any]] = []
    for number, _ in crew.folders.list_instances():
        with contextlib.suppress(P2PComputeError):  # still starting; `check` notices one that ended
            async with await connect(crew.folders, str(number)) as client:
                documents.append(await client.call("peers"))
    return documents


async def _count(crew: _Crew, module: ModuleType, texts: tuple[Path, ...]) -> JobOutcome:
    from p2pcompute.node.remote import RemotePeer

    note(
        f"Submitting the job to the second peer: {module.__name__}.count over {len(texts)} texts, merged by {module.__name__}.merge"
    )
    async with await RemotePeer.connect(crew.folders.list_instances()[1][1]) as remote:
        with Progress(quiet=not sys.stderr.isatty()) as progress:
            return await remote.map_reduce(
                module.count, module.merge, FileInputs(texts, "bytes"), on_progress=progress.show, name="word count"
            )


async def _tasks_by_peer(crew: _Crew, outcome: JobOutcome) -> Iterator[tuple[str, int]]:
    from p2pcompute.model.ids import format_job_id
    from p2pcompute.node.running import connect

    async with await connect(crew.folders, str(crew.folders.list_instances()[1][0])) as client:
        details = await client.call("job.show", job=format_job_id(outcome.progress.job))
    return iter(sorted(details["done_by_peer"].items()))


async def _serially(module: ModuleType, texts: tuple[Path, ...]) -> tuple[Any, float]:
    """The same functions over the same texts, one after the other in this process, and how long that took."""
    began_s = time.monotonic()
    counters: list[Any] = []
    for number, path in enumerate(texts):
        counters.append(module.count(path.read_bytes()))
        if number % _SERIAL_STRIDE == 0:
            await asyncio.sleep(0)
    return module.merge(counters), time.monotonic() - began_s
