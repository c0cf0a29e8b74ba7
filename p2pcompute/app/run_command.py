"""`p2pcompute run`: a command in a container, or a ZIP program, at whichever peer is best.

What it writes and its status are passed on as if it had run here; its files go into a folder, an archive, or both.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from p2pcompute.app.common import Command, Settings, json_option, note, peer_option, run_async, settings_of, usage
from p2pcompute.app.render import print_json, printable
from p2pcompute.app.submit_commands import a_door
from p2pcompute.model.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from p2pcompute.model.ids import JobId
    from p2pcompute.model.job import JobProgress
    from p2pcompute.node.program_doors import TaskResult

#: As coreutils' timeout: it was stopped by its limit.
EXIT_STOPPED = 124
_HEARD_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class _Heard:
    """What came from the task while it ran: the result of one that is stopped here."""

    follow: bool
    job: JobId | None = None
    texts: dict[int, list[str]] = field(default_factory=lambda: {1: [], 2: []})
    size: int = 0

    def take(self, rows: Sequence[Any]) -> None:
        for row in rows:
            if self.size < _HEARD_BYTES_MAX:
                self.texts[row.stream].append(row.text)
                self.size += len(row.text)
            if self.follow:
                for line in row.text.splitlines():
                    note(printable(line))

    def note_job(self, progress: JobProgress) -> None:
        self.job = progress.job

    def bytes_of(self, stream: int) -> bytes:
        return "".join(self.texts[stream]).encode("utf-8", "replace")


@click.command(
    cls=Command,
    context_settings={"allow_interspersed_args": False},
    examples="""
    p2pcompute run --image alpine -- sh -c 'echo hello from $(hostname)'
    p2pcompute run --image ffmpeg --file in.mp4=holiday.mp4 --out clips -- ffmpeg -i in.mp4 -t 10 out/clip.mp4
    p2pcompute run --zip result.zip program.zip 21 --fast
    """,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--image", metavar="NAME", help="Image to run in; for a ZIP program default p2pcompute-python.")
@click.option(
    "--file",
    "files",
    metavar="PATH=FILE",
    multiple=True,
    help="Give the task FILE as PATH in /work; may be repeated. FILE alone keeps its name.",
)
@click.option("--env", "variables", metavar="NAME=VALUE", multiple=True, help="Variable of its environment.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write what it leaves in /work/out to DIR.")
@click.option(
    "--zip",
    "archive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write files and logs to the ZIP archive FILE.",
)
@click.option(
    "--outputs", metavar="PATH", default="out", show_default=True, help="Folder in /work whose files come back."
)
@click.option(
    "--start", metavar="NAME", default="", help="File of the ZIP program to run (run.py, main.py, app.py, …)."
)
@click.option("--entrypoint", metavar="WORD", help="Instead of the image's own entry point.")
@click.option("--limit", type=float, metavar="S", help="Stop it after S seconds and keep what it has by then.")
@click.option("--timeout", type=float, metavar="S", help="Fail an attempt that takes longer than S seconds.")
@click.option("--retries", type=int, help="Attempts after one that died with its peer (3).")
@click.option("--memory", metavar="SIZE", help="Memory that it may use, such as 512MB.")
@click.option("--cpus", type=float, metavar="COUNT", help="Cores that it may use, such as 0.5.")
@click.option("--scratch", metavar="SIZE", help="What it may write to /work, such as 100MB.")
@click.option(
    "--grant",
    "grants",
    metavar="GRANT",
    multiple=True,
    help="What it needs: network, gpu, folder:NAME, folder:NAME:rw.",
)
@click.option(
    "--require", "requirements", metavar="EXPR", multiple=True, help="What a peer must have, such as 'memory>=8GB'."
)
@click.option("--follow", is_flag=True, help="Show what it writes on stderr while it runs.")
@peer_option
@json_option
@click.pass_context
def run(ctx: click.Context, /, words: tuple[str, ...], **given: Any) -> None:
    """Run a command in a container, or a ZIP program, at a peer that has a container engine.

    With --image the WORDS are the command, after `--`. Without it the first of WORDS is a ZIP archive of a Python program and the others
    are its arguments. The command ends with the status of what it ran, or with 124 where --limit stopped it.
    """
    settings = settings_of(ctx)
    settings.load()
    if given["image"] is None and not words:
        usage("nothing to run: give --image NAME -- COMMAND, or a ZIP program")
    out = given["out"]
    if out is not None and (out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))):
        usage(f"--out {out} is there already and not an empty folder: name another one, nothing was run")
    is_zip = bool(words) and words[0].lower().endswith(".zip") and Path(words[0]).is_file()
    if given["image"] is None and not is_zip:
        usage(f"{words[0]!r} is no ZIP archive here: name one, or give --image NAME -- COMMAND")
    run_async(_run(settings, words, given, is_zip=is_zip))


async def _run(settings: Settings, words: tuple[str, ...], given: dict[str, Any], *, is_zip: bool) -> None:
    heard = _Heard(given["follow"])
    names = ("outputs", "memory", "cpus", "scratch", "retries")
    named: dict[str, Any] = {name: given[name] for name in names if given[name] is not None}
    named |= {
        "files": _files(given["files"]),
        "environment": _pairs("--env", given["variables"]),
        "limit_s": given["limit"],
        "check": False,
        "on_output": heard.take,
        "on_progress": heard.note_job,
    }
    if given["timeout"] is not None:
        named["timeout_s"] = given["timeout"]
    named |= {name: list(given[name]) for name in ("grants", "requirements") if given[name]}
    if given["entrypoint"] is not None:
        named["entrypoint"] = [given["entrypoint"]]
    async with a_door(settings, given["peer"]) as door:
        try:
            if is_zip and given["entrypoint"] is None:
                image = {} if given["image"] is None else {"image": given["image"]}
                result = await door.run_zip(Path(words[0]), words[1:], start=given["start"], **image, **named)
            else:
                result = await door.container(given["image"], words, **named)
        except asyncio.CancelledError:
            if given["archive"] is not None:
                _write_archive(given["archive"], _stopped_here(heard))
            raise
    kept = ""
    if heard.job is not None:
        from p2pcompute.node.kept_results import keep_result

        try:
            kept = await asyncio.to_thread(keep_result, settings.folders, heard.job, result)
        except (ResourceError, UsageError) as error:
            note(f"not kept: {error}")
    _finish(result, given, kept)


def _stopped_here(heard: _Heard) -> TaskResult:
    from p2pcompute.node.program_doors import TaskResult

    return TaskResult(130, heard.bytes_of(1), heard.bytes_of(2), stopped="it was stopped by whoever submitted it")


def _finish(result: TaskResult, given: dict[str, Any], kept: str) -> None:
    out, archive = given["out"], given["archive"]
    if out is not None:
        result.write_to(out)
    if archive is not None:
        _write_archive(archive, result)
    if given["as_json"]:
        print_json(
            {
                "status": result.status,
                "stopped": result.stopped,
                "stdout": result.stdout.decode("utf-8", "replace"),
                "stderr": result.stderr.decode("utf-8", "replace"),
                "files": {path: len(data) for path, data in result.files.items()},
                "left_out": list(result.left_out),
                "log": result.log.splitlines(),
                "kept": kept,
            }
        )
    else:
        for stream, data in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
            _pass_on(stream, data)
        if result.files and out is None and archive is None:
            where = f"they are in {kept} for a day" if kept else "--out DIR would write them"
            note(f"it left {len(result.files)} files in /work/{given['outputs']}: {where}")
    for reason in result.left_out:
        note(f"not taken: {printable(reason)}")
    if result.stopped:
        note(f"stopped: {printable(result.stopped)}")
        raise click.exceptions.Exit(EXIT_STOPPED)
    if result.status:
        raise click.exceptions.Exit(min(result.status, 255) if result.status > 0 else 1)


def _pass_on(stream: TextIO, data: bytes) -> None:
    """As it is into files and pipes; a terminal gets nothing from a stranger that it would obey."""
    if stream.isatty():
        for line in data.decode("utf-8", "replace").splitlines():
            click.echo(printable(line.expandtabs()), file=stream)
    else:
        stream.buffer.write(data)
        stream.flush()


def _write_archive(path: Path, result: TaskResult) -> None:
    """Beside its place first, so that an older one is replaced by a whole one or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(result.archive())
        part.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _files(given: tuple[str, ...]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in given:
        path, equals, file = text.partition("=")
        place = Path(file if equals else text)
        if not place.is_file():
            usage(f"--file {text}: there is no file {place} here; write PATH=FILE")
        name = path if equals else place.name
        if name in files:
            usage(f"--file {text}: {name} was given twice")
        files[name] = place
    return files


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            usage(f"{option} {text}: write NAME=VALUE")
        pairs[name] = value
    return pairs
