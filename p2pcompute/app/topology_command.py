"""The command `topology`: the picture of the network in the terminal or in files, its figures as JSON.

Refuses to know how pictures look; those modules are loaded only when one is drawn.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pcompute.app.common import (
    Command,
    Settings,
    json_option,
    note,
    peer_option,
    run_async,
    settings_of,
    usage,
)
from p2pcompute.app.render import console, print_json, print_json_line
from p2pcompute.model.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.text import Text

#: Between two pictures, seconds: a peer looks at its network every other second.
WATCH_INTERVAL_S = 3.0


@click.command(
    cls=Command,
    examples="""
    p2pcompute topology
    p2pcompute topology --watch
    p2pcompute topology --svg network.svg --png network.png
    p2pcompute topology --json | jq '.peers[] | select(.key_node) | .name'
    """,
)
@peer_option
@click.option(
    "--svg", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help='Write an SVG ("-": stdout).'
)
@click.option(
    "--png", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help='Write a PNG ("-": stdout).'
)
@click.option("--watch", is_flag=True, help="Draw again every few seconds, until Ctrl-C.")
@json_option
@click.pass_context
def topology(
    ctx: click.Context, peer: str | None, svg: Path | None, png: Path | None, watch: bool, as_json: bool
) -> None:
    """Draw the network by its spectral coordinates: communities, key nodes and the links between them.

    Peers that are well connected stand together. Files need matplotlib; an existing file is replaced.
    """
    files = [(path, kind) for path, kind in ((svg, "svg"), (png, "png")) if path is not None]
    if watch and files:
        usage("--watch draws in the terminal: leave it out, or --svg and --png")
    if sum(str(path) == "-" for path, _ in files) + (as_json and any(str(path) == "-" for path, _ in files)) > 1:
        usage('only one thing can go to stdout: give a file name instead of "-"')
    settings = settings_of(ctx)
    settings.load()
    run_async(_topology(settings, peer, files, watch, as_json))


async def _topology(
    settings: Settings, wanted: str | None, files: list[tuple[Path, str]], watch: bool, as_json: bool
) -> None:
    from p2pcompute.node.running import connect

    async with await connect(settings.folders, wanted) as client:
        if watch:
            await _watch(lambda: client.call("topology"), as_json)
            return
        document = await client.call("topology")
    for path, kind in files:
        _write(document, path, kind)
    if as_json:
        print_json(document)
    elif not files:
        shown = console()
        for line in _lines(document):
            shown.print(line, no_wrap=True, overflow="crop", crop=False)


async def _watch(ask: Callable[[], Awaitable[dict[str, Any]]], as_json: bool) -> None:
    if as_json:
        while True:
            print_json_line(await ask())
            await asyncio.sleep(WATCH_INTERVAL_S)
    from p2pcompute.app.topology_scene import with_letters_of

    document: dict[str, Any] | None = None
    if not sys.stdout.isatty():
        while True:
            document = with_letters_of(document, await ask())
            click.echo("\n".join(line.plain for line in _lines(document)) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(WATCH_INTERVAL_S)
    from rich.console import Group
    from rich.live import Live

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            document = with_letters_of(document, await ask())
            live.update(Group(*_lines(document)), refresh=True)
            await asyncio.sleep(WATCH_INTERVAL_S)


def _lines(document: dict[str, Any]) -> list[Text]:
    from p2pcompute.app.topology_scene import scene_of
    from p2pcompute.app.topology_terminal import Screen, drawn

    # A terminal's size, or COLUMNS and LINES where there is none.
    size = shutil.get_terminal_size()
    height = size.lines if sys.stdout.isatty() else None
    return drawn(scene_of(document), Screen(size.columns, height, sys.stdout.encoding or "ascii"))


def _write(document: dict[str, Any], path: Path, kind: str) -> None:
    from p2pcompute.app.topology_figure import picture
    from p2pcompute.app.topology_scene import scene_of

    data = picture(scene_of(document), "svg" if kind == "svg" else "png")
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
    note(f"wrote {path}")
