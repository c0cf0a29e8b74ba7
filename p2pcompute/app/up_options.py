"""The flags of `p2pcompute up`: one for each key of the configuration that is worth saying there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--name", help="Name of this peer in tables (default: the name of this machine)."),
    click.option("--network", metavar="NAME", help="Network to take part in (default: the current one)."),
    click.option(
        "--port", metavar="PORT", help="TCP port for other peers; the next free one where it is taken (9876)."
    ),
    click.option("--host", metavar="ADDRESS", help="Address to listen at (default: every interface)."),
    click.option(
        "--slots", metavar="COUNT", help="Tasks to run for others at a time, 0 for none (default: usable cores)."
    ),
    click.option("--memory", "memory_bytes", metavar="SIZE", help="Memory of one worker process, such as 2GiB."),
    click.option(
        "--bootstrap", metavar="HOST:PORT,…", multiple=True, help="Peers to try at the start; may be repeated."
    ),
    click.option("--lan/--no-lan", default=None, help="Find peers by broadcast and multicast (default: yes)."),
    click.option("--beacon-port", metavar="PORT", help="UDP port of the broadcasts (9877)."),
    click.option(
        "--map-ports/--no-map-ports", default=None, help="Ask the router to forward a port if needed (default: yes)."
    ),
    click.option(
        "--relay/--no-relay",
        default=None,
        help="Relay for peers that nobody can dial, where this one can be (default: yes).",
    ),
    click.option("--timing", metavar="NAME", help="Pace of gossip: auto, lan, wan or test (auto)."),
    click.option(
        "--label",
        "labels",
        metavar="TEXT",
        multiple=True,
        help="Label of this peer, such as zone=lab; may be repeated.",
    ),
    click.option(
        "--cost-per-hour", metavar="PRICE", help="What an hour of one task costs here (0); submitters see it."
    ),
    click.option(
        "--tier", "performance_tier", metavar="NAME", help="What you promise: basic, standard or premium (standard)."
    ),
    click.option(
        "--isolation",
        metavar="LEVEL",
        help="How well to hold other people's code, at least: auto, process, restricted or sandbox.",
    ),
    click.option(
        "--engine",
        "engines",
        metavar="NAME",
        multiple=True,
        help="Engine to offer; may be repeated (all that work here).",
    ),
    click.option(
        "--cluster",
        metavar="NAME",
        help="Lend a cluster instead of this machine: dask://host:port, ray://host:port or module:factory.",
    ),
    click.option(
        "--grant",
        "grants",
        metavar="GRANT",
        multiple=True,
        help="What programs get that ask for it: network, network:HOST:PORT, gpu or processes; may be repeated.",
    ),
    click.option(
        "--folder",
        "folders",
        metavar="NAME=PATH[:rw]",
        multiple=True,
        help="Folder that programs may read, or with :rw write, where they ask for NAME; may be repeated.",
    ),
    click.option(
        "--pull-image",
        "pull_images",
        metavar="NAME",
        multiple=True,
        help="Image that programs may have pulled, * for any letters; never (default) or always; may be repeated.",
    ),
    click.option("--container-socket", metavar="PATH", help="Socket of dockerd or podman (default: the usual places)."),
    click.option(
        "--trust",
        "trusted",
        metavar="ID",
        multiple=True,
        help="Whole id of a peer, or of an invitation, that may use commands, containers and grants; may be repeated.",
    ),
    click.option(
        "--yield-to-load",
        metavar="SHARE",
        help="Lend fewer slots while other programs use more than this of the cores, such as 25% (never).",
    ),
    click.option("--on-battery", metavar="WHAT", help="On battery: pause, run, or how many slots to lend (pause)."),
    click.option(
        "--schedule",
        metavar="WINDOW",
        multiple=True,
        help="When to lend, such as 'mon-fri 18:00-08:00' or sat-sun; may be repeated (always).",
    ),
    click.option(
        "--yield-grace",
        "yield_grace_s",
        metavar="SECONDS",
        help="How long others' tasks go on when slots are taken back (60).",
    ),
    click.option("--reserved-slots", metavar="COUNT", help="Slots kept for urgent jobs, of priority 8 and 9 (0)."),
    click.option("--instance", metavar="NUMBER", help="Instance folder to use (default: the first free one)."),
    click.option("--log-format", type=click.Choice(["console", "json"]), help="How log lines look."),
)


def up_options(command: F) -> F:
    """`command` with all of them; each is given to it by the name of its key, None or empty where it was not said."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
