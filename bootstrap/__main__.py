"""Runs a peer that lends no computing power and only helps others to find each other: `python -m bootstrap`.

It is the same program as every other peer, with no slots: who dials it learns of everybody whom it knows. It takes part in the
network whose invitation it was given (`p2pcompute join TOKEN` beforehand, as the same user), so that it can admit others
of that network and nobody else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import short_peer_id

if TYPE_CHECKING:
    from p2pcompute.node.peer import Peer


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags as attributes; ends the process with status 2 and a usage line where they cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m bootstrap",
        description="Run a peer that lends no computing power and helps others to find each other.",
        epilog="Peers reach it with: p2pcompute up --bootstrap HOST:PORT",
    )
    parser.add_argument("--host", help="address to listen at (default: every interface)")
    parser.add_argument(
        "--port", type=int, help=f"TCP port for peers (default: {limits.PEER_PORT}, or the next free one)"
    )
    parser.add_argument("--network", help="name of the network to take part in (default: this user's current one)")
    parser.add_argument(
        "--bootstrap", metavar="HOST:PORT[,…]", help="other well-known peers, so that all of them form one network"
    )
    parser.add_argument("--name", help="what people see in tables (default: the name of this machine)")
    parser.add_argument("--no-lan", action="store_true", help="neither call nor listen on the local network")
    parser.add_argument("--log-level", default="info", help="least severe line that is written (default: info)")
    return parser.parse_args(arguments)


def _say_ready(peer: Peer) -> None:
    sys.stdout.write(f"ready: {short_peer_id(peer.peer_id)} at port {peer.port}, lends nothing, helps others to join\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; the exit status."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    # Only now: `--help` must not pay for a peer.
    from p2pcompute.node.config import CONFIG_FILE, load_config
    from p2pcompute.node.folders import Folders
    from p2pcompute.node.service import run_peer

    try:
        folders = Folders.locate(os.environ)
        flags = {
            "host": options.host,
            "port": options.port,
            "network": options.network,
            "bootstrap": options.bootstrap,
            "name": options.name,
            "lan": False if options.no_lan else None,
            "log_level": options.log_level,
            "slots": 0,
        }
        config = load_config(flags, os.environ, folders.config / CONFIG_FILE)
        asyncio.run(run_peer(config, folders=folders, on_ready=_say_ready))
    except P2PComputeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
