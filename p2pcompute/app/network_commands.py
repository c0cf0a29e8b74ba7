"""Commands about networks: network create, list, use, open, revoke, export, import."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pcompute.app.common import Group, Settings, json_option, note, peer_option, run_async, settings_of, usage
from p2pcompute.app.render import moment, print_json, print_table
from p2pcompute.model.errors import NotRunningError, ResourceError

if TYPE_CHECKING:
    from p2pcompute.node.networks import Networks

PASSPHRASE_VARIABLE = "P2PCOMPUTE_PASSPHRASE"


def networks_of(settings: Settings) -> Networks:
    """The networks of this user."""
    from p2pcompute.node.networks import Networks
    from p2pcompute.node.seams import SystemClock, SystemEntropy

    return Networks(settings.folders, SystemClock(), SystemEntropy())


@click.group(cls=Group)
def network() -> None:
    """Make networks, choose among them, keep people out, keep the owner's key safe."""


@network.command(examples="p2pcompute network create home\np2pcompute invite")
@click.argument("name")
@json_option
@click.pass_context
def create(ctx: click.Context, name: str, as_json: bool) -> None:
    """Make a network called NAME that you own, and make it the current one."""
    settings = settings_of(ctx)
    settings.load()
    made = networks_of(settings).create(name)
    if as_json:
        print_json({"network": made.name, "network_id": made.invitation.network.hex()})
    else:
        note(
            f"network {made.name} is made and current. Keep a copy of its owner: p2pcompute network export {made.name} FILE"
        )


@network.command("list", examples="p2pcompute network list\np2pcompute network list --json")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the networks that you may take part in from this machine."""
    settings = settings_of(ctx)
    settings.load()
    summaries = networks_of(settings).summaries()
    if as_json:
        print_json([{**asdict(summary), "roles": list(summary.roles)} for summary in summaries])
        return
    print_table(
        "",
        [
            ("", lambda row: "*" if row["current"] else "", "left"),
            ("network", lambda row: row["name"], "left"),
            ("kind", lambda row: row["kind"], "left"),
            ("roles", lambda row: ", ".join(row["roles"]) or "-", "left"),
            ("ends", lambda row: moment(row["expires_wall"]), "left"),
            ("id", lambda row: row["network"][:16], "left"),
            ("problem", lambda row: row["problem"], "left"),
        ],
        [asdict(summary) for summary in summaries],
        empty="no network yet: `p2pcompute up` makes a private one, `p2pcompute join TOKEN` joins another's",
    )


@network.command(examples="p2pcompute network use home")
@click.argument("name")
@click.pass_context
def use(ctx: click.Context, name: str) -> None:
    """Make NAME the network that peers started from now on take part in."""
    settings = settings_of(ctx)
    settings.load()
    networks_of(settings).select(name)
    note(f"current network: {name}")


@network.command("open", examples="p2pcompute network open reading-club")
@click.argument("name")
@click.pass_context
def open_(ctx: click.Context, name: str) -> None:
    """Take part in the open network called NAME, which everybody who knows the name belongs to.

    Nobody is kept out there and no role counts: only what needs no trust may run.
    """
    settings = settings_of(ctx)
    settings.load()
    made = networks_of(settings).open(name)
    note(f"open network {made.name} is current: anybody who knows its name is in it")


@network.command(
    examples="""
    p2pcompute network revoke kitchen
    p2pcompute network revoke "Bo's laptop"
    p2pcompute network revoke QSIZJAFZ
    """
)
@click.argument("whom")
@peer_option
@json_option
@click.pass_context
def revoke(ctx: click.Context, whom: str, peer: str | None, as_json: bool) -> None:
    """Keep WHOM out from now on: a peer (name or id) with its invitation, or an invitation (label or id).

    Every link to it is closed as the news spreads. Nobody can undo this; invite again instead.
    """
    settings = settings_of(ctx)
    config = settings.load()
    document = run_async(_revoke(settings, config.network, whom, peer))
    if as_json:
        print_json(document)
    else:
        note(f"revoked {whom}: {document['invitations']} invitations and {document['peers']} peers are out now")


async def _revoke(settings: Settings, name: str | None, whom: str, peer: str | None) -> dict[str, Any]:
    from p2pcompute.node.running import connect

    try:
        client = await connect(settings.folders, peer)
    except NotRunningError:
        if peer is not None:
            raise
        revocations = networks_of(settings).get(name).revoke(whom)
        note("no peer of yours runs here: the others hear of it once one does (p2pcompute up)")
        return {
            "number": revocations.number,
            "peers": len(revocations.peers),
            "invitations": len(revocations.invitations),
        }
    async with client:
        document: dict[str, Any] = await client.call("revoke", whom=whom)
        return document


@network.command(
    examples="p2pcompute network export home owner-of-home.p2pc\nP2PCOMPUTE_PASSPHRASE=… p2pcompute network export home - > owner.p2pc"
)
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def export(ctx: click.Context, name: str, file: Path) -> None:
    """Write the owner of network NAME to FILE ("-": stdout), encrypted under a passphrase that is asked for.

    With it a lost machine is not a lost network. The passphrase may stand in P2PCOMPUTE_PASSPHRASE.
    """
    settings = settings_of(ctx)
    settings.load()
    networks = networks_of(settings)
    networks.get(name).owner()  # asks for no passphrase where there is nothing to export
    if str(file) != "-" and file.exists():
        usage(f"{file} exists already and is not overwritten: name another file")
    data = networks.export_owner(name, _passphrase(settings, confirm=True))
    if str(file) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    from p2pcompute.node.folders import write_private

    write_private(file, data)
    note(f"wrote {file}. Keep it apart from this machine, and the passphrase apart from it.")


@network.command("import", examples="p2pcompute network import owner-of-home.p2pc")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the network here (default: the name that its owner gave it).")
@click.pass_context
def import_(ctx: click.Context, file: Path, name: str | None) -> None:
    """Become the owner that FILE ("-": stdin) holds, as `network export` wrote it."""
    settings = settings_of(ctx)
    settings.load()
    try:
        data = sys.stdin.buffer.read(1 << 20) if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise ResourceError(f"cannot read {file}: {error.strerror}") from error
    networks = networks_of(settings)
    made = networks.import_owner(data, _passphrase(settings, confirm=False), name)
    if networks.current_name() == made.name:
        note(f"you own {made.name} here now, and it is the current network")
    else:
        note(f"you own {made.name} here now. Make it the current network with: p2pcompute network use {made.name}")


def _passphrase(settings: Settings, *, confirm: bool) -> str:
    given = settings.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given
    if not sys.stdin.isatty():
        usage(f"no terminal to ask for the passphrase at: set {PASSPHRASE_VARIABLE}")
    passphrase: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return passphrase
