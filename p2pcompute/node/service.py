"""Running a peer as a program: the peer, its control socket, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

from p2pcompute.net.control import ControlServer
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.control_methods import ControlMethods
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


@contextlib.asynccontextmanager
async def serving(config: PeerConfig, stop: Callable[[], None], folders: Folders | None = None) -> AsyncIterator[Peer]:
    """A started peer that answers on its control socket. `stop`: called when a client asks it to end."""
    async with Peer(config, folders=folders) as peer:
        methods = ControlMethods(peer, stop)
        async with ControlServer(peer.instance.socket_path, methods.handle):
            yield peer


async def run_peer(
    config: PeerConfig, *, on_ready: Callable[[Peer], None] | None = None, folders: Folders | None = None
) -> signal.Signals | None:
    """Run a peer until SIGINT, SIGTERM, SIGHUP or the control method "stop"; the signal that ended it, if one did.

    `on_ready`: called when it serves.
    """
    ended = asyncio.Event()
    heard: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        heard.append(number)
        ended.set()

    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for number in _ENDING_SIGNALS:
            with contextlib.suppress(NotImplementedError, RuntimeError):
                loop.add_signal_handler(number, end, number)
                stack.callback(loop.remove_signal_handler, number)
        async with serving(config, ended.set, folders) as peer:
            if on_ready is not None:
                on_ready(peer)
            await ended.wait()
    return heard[0] if heard else None
