"""What an owner says to a peer that runs: pause, resume."""

from __future__ import annotations

from typing import Any

import click

from p2pcompute.app.common import Command, Settings, json_option, note, peer_option, run_async, settings_of
from p2pcompute.app.peer_commands import parse_duration
from p2pcompute.app.render import print_json, printable


@click.command(
    cls=Command, examples="p2pcompute pause\np2pcompute pause --for 2h\np2pcompute pause --for 30min --peer 2"
)
@click.option("--for", "how_long", metavar="DURATION", help="Such as 30min or 2h (default: until `p2pcompute resume`).")
@peer_option
@json_option
@click.pass_context
def pause(ctx: click.Context, how_long: str | None, peer: str | None, as_json: bool) -> None:
    """Lend nothing to others, also after a restart; jobs of your own go on.

    What waits here goes elsewhere at once, what runs may end within the grace (`yield_grace_s`).
    """
    for_s = None if how_long is None else parse_duration(how_long)
    _tell_owner_word(settings_of(ctx), peer, as_json, "pause", for_s=for_s)


@click.command(cls=Command, examples="p2pcompute resume\np2pcompute resume --peer 2")
@peer_option
@json_option
@click.pass_context
def resume(ctx: click.Context, peer: str | None, as_json: bool) -> None:
    """Lend again after `p2pcompute pause`."""
    _tell_owner_word(settings_of(ctx), peer, as_json, "resume")


def _tell_owner_word(settings: Settings, peer: str | None, as_json: bool, method: str, **arguments: Any) -> None:
    settings.load()
    document = run_async(_call(settings, peer, method, arguments))
    if as_json:
        print_json(document)
    else:
        note(printable(f"this peer {document['yields_because'] or 'lends all its slots'}"))


async def _call(settings: Settings, peer: str | None, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    from p2pcompute.node.running import connect

    async with await connect(settings.folders, peer) as client:
        document: dict[str, Any] = await client.call(method, **arguments)
        return document


COMMANDS = (pause, resume)
