"""The command that runs an executable at a peer: exec."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from p2pcompute.app.common import EXIT_BY_SIGNAL, Command, json_option, note, peer_option, run_async, settings_of, usage
from p2pcompute.app.placement_options import chosen_options
from p2pcompute.app.render import print_json
from p2pcompute.app.submit_commands import a_door

#: Flags of `submit` that mean nothing for a single command.
_NOT_HERE = {
    "fallback": None,
    "target": None,
    "cache": None,
    "task_type": None,
    "coordination": None,
    "engine": None,
    "task_seconds": None,
}


@click.command(
    "exec",
    cls=Command,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    examples="""
    p2pcompute exec --file in.png --out . -- convert in.png -resize 50% small.png
    p2pcompute exec --file build.sh --file src --out dist --get 'build/**' --timeout 600 -- ./build.sh
    sort -R words.txt | p2pcompute exec --stdin - --require 'cpu_cores>=4' -- sort --parallel 4
    """,
)
@click.argument("line", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [WORD]...")
@click.option(
    "--file",
    "files",
    metavar="[NAME=]PATH",
    multiple=True,
    help="A file, or a folder with all in it, that the command finds in its folder; may be repeated.",
)
@click.option("--stdin", metavar="FILE", help='What the command reads from its stdin ("-": this program\'s own).')
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where to write the files that it made.",
)
@click.option(
    "--get",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Bring back only these, such as '*.png', 'logs/**' or 'results/'; may be repeated.",
)
@click.option(
    "--env", "variables", metavar="NAME=VALUE", multiple=True, help="A variable of its environment; may be repeated."
)
@click.option("--timeout", type=float, metavar="S", help="Seconds that one attempt may take.")
@click.option("--retries", type=int, help="Attempts after one that died with its worker or peer (3).")
@click.option("--priority", type=int, help="0 (last) to 9 (first); default 5.")
@click.option("--memory", metavar="SIZE", help="Memory of the worker, such as 512MB.")
@click.option("--strategy", metavar="NAME", help="Who is given work first; default hlig (see the README).")
@click.option(
    "--require", "requirements", metavar="EXPR", multiple=True, help="What a peer must have; may be repeated."
)
@click.option("--label", "labels", metavar="TEXT", multiple=True, help="Only peers with this label; may be repeated.")
@click.option(
    "--isolation", metavar="LEVEL", help="How well peers must hold it, at least: process, restricted or sandbox."
)
@click.option(
    "--grant", "grants", metavar="GRANT", multiple=True, help="What it needs of a peer's owner; may be repeated."
)
@click.option(
    "--prefer", "preferences", metavar="WISH", multiple=True, help="local, max_latency=100ms or cost_limit=10."
)
@click.option("--max-cost", type=float, metavar="SUM", help="What it may cost at the peers' prices.")
@click.option("--wait", "waits", is_flag=True, help="Wait where no peer meets the requirements.")
@peer_option
@json_option
@click.pass_context
def exec_(
    ctx: click.Context,
    /,
    line: tuple[str, ...],
    files: tuple[str, ...],
    stdin: str | None,
    out: Path | None,
    patterns: tuple[str, ...],
    variables: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Run COMMAND at a peer whose owner offers that (`p2pcompute up --engine command`), in a fresh folder with --file in it.

    No shell reads the words; `./NAME` runs one of the files. What it prints is printed here, and its exit status is that of this
    program.
    """
    from p2pcompute.node.commands import read_files, write_files

    settings = settings_of(ctx)
    settings.load()
    if patterns and out is None:
        usage("--get says which files to bring back: give --out DIR, where they go, too")
    if out is not None and out.exists() and not out.is_dir():
        usage(f"--out {out} is no folder")
    content = read_files(files)
    options = chosen_options(_NOT_HERE | given)

    async def perform() -> dict[str, Any]:
        async with a_door(settings, given["peer"]) as door:
            return await door.command(
                line,
                files=content,
                stdin=_stdin(stdin),
                out=() if out is None else (patterns or None),
                environment=_variables(variables),
                check=False,
                **options,
            )

    answer = run_async(perform())
    if out is not None:
        write_files(out, answer["files"])
    status = answer["status"]
    if as_json:
        print_json({**answer, "files": sorted(answer["files"])})
    else:
        sys.stdout.buffer.write(answer["stdout"])
        sys.stdout.flush()
        sys.stderr.buffer.write(answer["stderr"])
        sys.stderr.flush()
        if answer["dropped_bytes"]:
            note(
                f"{answer['dropped_bytes']} more bytes were printed: let the command write a file, and bring that back"
            )
    if status:
        raise click.exceptions.Exit(status if status > 0 else EXIT_BY_SIGNAL - status)


def _stdin(name: str | None) -> bytes:
    if name is None:
        return b""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        usage(f"cannot read {name}: {error.strerror}; nothing was run")


def _variables(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            usage(f"--env {text!r}: write NAME=VALUE")
        found[name] = value
    return found


COMMANDS = (exec_,)
