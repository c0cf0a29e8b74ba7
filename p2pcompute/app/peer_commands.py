"""Commands about peers: up, down, peers, invite, join."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pcompute.app.common import (
    EXIT_BY_SIGNAL,
    Command,
    Settings,
    json_option,
    note,
    peer_option,
    run_async,
    settings_of,
    usage,
)
from p2pcompute.app.render import (
    duration,
    gpu_text,
    moment,
    number,
    peer_columns,
    print_json,
    print_json_line,
    print_table,
    printable,
)
from p2pcompute.app.up_options import up_options
from p2pcompute.model.errors import NotRunningError
from p2pcompute.model.limits import PEER_PORT

if TYPE_CHECKING:
    from p2pcompute.model.ids import PeerId
    from p2pcompute.node.config import PeerConfig
    from p2pcompute.node.peer import Peer

ROLES = ("observe", "submit", "compute", "admin")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w|y)?")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800, "y": 31_536_000, None: 1}


# --- up ---------------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples="""
    p2pcompute up
    p2pcompute up --name kitchen --slots 2
    p2pcompute up --bootstrap 203.0.113.7:9876,198.51.100.2:9876 --no-lan
    p2pcompute up --json | jq .event
    """,
)
@up_options
@json_option
@click.pass_context
def up(ctx: click.Context, /, as_json: bool, **flags: Any) -> None:
    """Start a peer and run it until Ctrl-C.

    It joins your current network (on a fresh machine: a private one that is made now), lends this machine's cores and
    prints peers as they appear and go.
    """
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    settings = settings_of(ctx)
    run_async(_up(settings, settings.load(**given), as_json))


async def _up(settings: Settings, config: PeerConfig, as_json: bool) -> None:
    from p2pcompute.node.service import run_peer

    ended_by = await run_peer(config, on_ready=lambda peer: _Announcer(peer, as_json).ready(), folders=settings.folders)
    if not as_json:
        note("stopped")
    if ended_by is not None:
        raise click.exceptions.Exit(EXIT_BY_SIGNAL + ended_by)


class _Announcer:
    """Prints what happens in the network while a peer runs."""

    def __init__(self, peer: Peer, as_json: bool) -> None:
        self._peer = peer
        self._as_json = as_json

    def ready(self) -> None:
        peer = self._peer
        own = peer.own.record
        addresses = [str(address) for address in own.addresses]
        if peer.config.port not in (0, PEER_PORT, peer.port):  # who asked for no port is told by the line below
            note(f"port {peer.config.port} is taken: listening at port {peer.port}")
        if self._as_json:
            print_json_line(
                {
                    "event": "ready",
                    "name": own.name,
                    "short": _short(own.peer),
                    "network": peer.network.name,
                    "port": peer.port,
                    "instance": peer.instance.number,
                    "addresses": addresses,
                }
            )
        else:
            self._say(
                f"peer {own.name} ({_short(own.peer)}) is up: network {peer.network.name}, port {peer.port}, "
                f"instance {peer.instance.number}, {peer.lender.slots} slots. Ctrl-C stops it."
            )
        peer.watch(self._heard)

    def _heard(self, kind: str, whom: PeerId, text: str) -> None:
        words = {"peer_appeared": "appeared", "peer_died": "is gone", "peer_left": "has left"}.get(kind)
        if words is None:
            return
        entry = self._peer.view.entry(whom)
        record = entry.record if entry is not None else None
        capability = record.capability if record is not None else None
        name = record.name if record is not None else _short(whom)
        if self._as_json:
            print_json_line(
                {
                    "event": kind,
                    "name": name,
                    "short": _short(whom),
                    "text": text,
                    "cores": capability.cores if capability is not None else None,
                    "memory_gb": round(capability.memory_gb, 2) if capability is not None else None,
                    "gpus": [gpu.name for gpu in capability.gpus] if capability is not None else [],
                    "slots": record.slots if record is not None else None,
                }
            )
            return
        line = f"{name} ({_short(whom)}) {words}"
        if kind == "peer_appeared" and record is not None and capability is not None:
            gpus = gpu_text([gpu.name for gpu in capability.gpus])
            line += f": {capability.cores} cores, {capability.memory_gb:.1f} GB" + (f", {gpus}" if gpus != "-" else "")
            line += f", {record.slots} slots, Python {record.python}"
        elif text:
            line += f": {text}"
        self._say(line)

    def _say(self, line: str) -> None:
        click.echo(printable(line))
        sys.stdout.flush()


def _short(peer: PeerId) -> str:
    from p2pcompute.model.ids import short_peer_id

    return short_peer_id(peer)


@click.command(cls=Command, examples="p2pcompute down\np2pcompute down --peer 2\np2pcompute down --all")
@peer_option
@click.option("--all", "every", is_flag=True, help="Stop every peer of yours that runs here.")
@click.pass_context
def down(ctx: click.Context, peer: str | None, every: bool) -> None:
    """Stop a peer that runs here, as Ctrl-C at its terminal would."""
    settings = settings_of(ctx)
    settings.load()
    for number_ in run_async(_down(settings, peer, every)):
        note(f"peer {number_} is stopping")


async def _down(settings: Settings, wanted: str | None, every: bool) -> list[str]:
    from p2pcompute.node.running import connect

    folders = settings.folders
    numbers: list[str | None] = [str(number_) for number_, _ in folders.list_instances()] if every else [wanted]
    stopped: list[str] = []
    for number_ in numbers:
        async with await connect(folders, number_) as client:
            stopped.append(str((await client.call("status"))["instance"]))
            await client.call("stop")
    return stopped


# --- peers ------------------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples="""
    p2pcompute peers
    p2pcompute peers --wide
    p2pcompute peers --json | jq '.peers[] | {name, cores, rtt_ms}'
    p2pcompute peers --watch
    """,
)
@peer_option
@click.option(
    "--wide",
    is_flag=True,
    help="Show why each path, reach, labels, prices, roles, platform, addresses, errors and whole ids.",
)
@click.option("--watch", is_flag=True, help="Go on and print a line for every change, until Ctrl-C.")
@json_option
@click.pass_context
def peers(ctx: click.Context, peer: str | None, wide: bool, watch: bool, as_json: bool) -> None:
    """List the peers that a peer running here knows, with what they can do."""
    settings = settings_of(ctx)
    settings.load()
    run_async(_peers(settings, peer, wide, watch, as_json))


async def _peers(settings: Settings, wanted: str | None, wide: bool, watch: bool, as_json: bool) -> None:
    from p2pcompute.node.running import connect

    async with await connect(settings.folders, wanted) as client:
        document = await client.call("peers")
        if watch:
            await client.call("watch", on_notice=print_json_line if as_json else _print_event)
        elif as_json:
            print_json(document)
        else:
            print_table("", peer_columns(wide=wide), [document["own"], *document["peers"]], empty="no peers")
            if document["own"].get("yields_because"):
                note(printable(f"this peer {document['own']['yields_because']}"))
            for whom, trouble in document.get("troubles", {}).items():
                note(printable(f"trouble with {whom}: {trouble}"))


def _print_event(event: dict[str, Any]) -> None:
    row = event.get("row")
    words = str(event["event"]).removeprefix("peer_")
    if row is None:
        click.echo(printable(f"{words} {event.get('text', '')}"))
    else:
        click.echo(
            printable(
                f"{words:9} {row['name']} ({row['short']}) {number(row['cores'])} cores, "
                f"{number(row['memory_gb'], 1)} GB, {number(row['rtt_ms'], 2)} ms {event.get('text', '')}"
            ).rstrip()
        )
    sys.stdout.flush()


# --- invite, join -----------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples="""
    p2pcompute invite
    p2pcompute invite --label "Bo's laptop" --valid 30d
    p2pcompute invite --role compute --no-submit
    p2pcompute invite --role admin --label "second owner"
    """,
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(ROLES),
    help="What it allows; may be repeated (submit and compute).",
)
@click.option("--no-submit", is_flag=True, help="Leave out the role submit, which compute brings along.")
@click.option("--valid", metavar="DURATION", default="365d", show_default=True, help="How long: 12h, 30d, 1y.")
@click.option("--label", default="", help="For whom it is; every peer of the network can read it.")
@peer_option
@json_option
@click.pass_context
def invite(
    ctx: click.Context, roles: tuple[str, ...], no_submit: bool, valid: str, label: str, peer: str | None, as_json: bool
) -> None:
    """Print a token with which somebody else's machine can join your network.

    Whoever holds the token can bring in any number of peers: give it to one person, over a channel that you trust.
    """
    settings = settings_of(ctx)
    settings.load()
    document = run_async(_invite(settings, chosen_roles(roles, no_submit), parse_duration(valid), label, peer))
    if as_json:
        print_json(document)
        return
    click.echo(document["token"])
    note(
        f"Invitation to {document['network']} for {', '.join(document['roles']) or 'anything'}, until "
        f"{moment(document['expires_wall'])}. At the other machine: p2pcompute join TOKEN, then p2pcompute up"
    )
    if not document["addresses"]:
        note("No peer of yours runs here, so the token names no address: it works where broadcasts of yours are heard.")


def chosen_roles(roles: tuple[str, ...], no_submit: bool) -> list[str]:
    """The roles of an invitation: submit and compute unless told otherwise; compute brings submit unless forbidden."""
    chosen = set(roles) or {"submit", "compute"}
    if "compute" in chosen:
        chosen.add("submit")
    if no_submit:
        chosen.discard("submit")
    if not chosen:
        usage("an invitation without a role allows nothing: give --role compute, --role observe …")
    return sorted(chosen)


def parse_duration(text: str) -> float:
    """Seconds from "90", "12h", "30d". Raises UsageError."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        usage(f"not a duration: {text!r}; write a number and s, min, h, d, w or y, for example 30d")
    return float(match[1]) * _SECONDS[match[2]]


async def _invite(settings: Settings, roles: list[str], valid_s: float, label: str, peer: str | None) -> dict[str, Any]:
    from p2pcompute.node.running import connect

    arguments: dict[str, Any] = {"roles": roles, "valid_s": valid_s, "label": label, "may_invite": "admin" in roles}
    try:
        client = await connect(settings.folders, peer)
    except NotRunningError:
        if peer is not None:
            raise
        return _invite_offline(settings, roles, valid_s, label)
    async with client:
        document: dict[str, Any] = await client.call("invite", **arguments)
        return document


def _invite_offline(settings: Settings, roles: list[str], valid_s: float, label: str) -> dict[str, Any]:
    from p2pcompute.app.network_commands import networks_of
    from p2pcompute.model.peer import Role

    invitation = (
        networks_of(settings)
        .get(settings.load().network)
        .invite(
            roles=frozenset(Role(role) for role in roles), valid_s=valid_s, label=label, may_invite="admin" in roles
        )
    )
    return {
        "token": invitation.token(),
        "network": invitation.network_name,
        "roles": sorted(role.value for role in invitation.roles),
        "expires_wall": invitation.expires_wall,
        "invitation": invitation.id.hex(),
        "addresses": [],
    }


@click.command(
    cls=Command,
    examples="""
    p2pcompute join p2pc1-AbCd…
    p2pcompute join < token.txt
    """,
)
@click.argument("token", required=False)
@json_option
@click.pass_context
def join(ctx: click.Context, token: str | None, as_json: bool) -> None:
    """Join the network that TOKEN invites to; without TOKEN it is read from stdin.

    Peers that you start from now on take part in that network.
    """
    from p2pcompute.app.network_commands import networks_of

    settings = settings_of(ctx)
    settings.load()
    if token is None or token == "-":
        if sys.stdin.isatty():
            note("Paste the token and press Enter:")
            token = sys.stdin.readline()
        else:
            token = sys.stdin.read(1 << 20)
    if len(token) < 1_024 and "\n" not in token.strip() and not token.startswith("p2pc") and Path(token).is_file():
        usage(f"{token!r} is a file: give the token itself, or `p2pcompute join < {token}`")
    joined = networks_of(settings).join(token)
    invitation = joined.network.invitation
    if as_json:
        print_json(
            {
                "network": joined.network.name,
                "network_id": invitation.network.hex(),
                "renamed": joined.renamed,
                "known": joined.known,
                "roles": sorted(role.value for role in invitation.roles),
                "expires_wall": invitation.expires_wall,
                "addresses": [str(address) for address in invitation.addresses],
            }
        )
        return
    if joined.renamed:
        note(
            f"another network called {invitation.network_name!r} is here already and stays as it is: "
            f"this one is called {joined.network.name!r}"
        )
    left_s = invitation.expires_wall - _now()
    note(f"joined {joined.network.name} (membership ends in {duration(left_s)}). Start a peer with: p2pcompute up")


def _now() -> float:
    from p2pcompute.node.seams import SystemClock

    return SystemClock().wall()


COMMANDS = (up, down, peers, invite, join)
