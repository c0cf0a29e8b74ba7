"""The peers of this user that run on this machine, as another program finds them.

Owns the way from what a person types after `--peer` (an instance number, a name, a short or whole id, or nothing) to the control
socket of one running peer. Nothing typed means the lowest instance number.

Refuses to know what is then asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pcompute.model.errors import NoSuchPeerError, NotRunningError, P2PComputeError, UsageError
from p2pcompute.net.control import START_HINT, ControlClient
from p2pcompute.node.folders import Folders


@dataclass(frozen=True, slots=True)
class RunningPeer:
    """A running instance. `status`: its answer to the method "status", or None where it did not answer (`problem` says why)."""

    number: int
    socket_path: Path
    status: dict[str, Any] | None
    problem: str = ""


async def find_running(folders: Folders) -> list[RunningPeer]:
    """Every running instance of this user, lowest number first, each asked for its status."""
    found: list[RunningPeer] = []
    for number, path in folders.list_instances():
        try:
            async with await ControlClient.connect(path) as client:
                found.append(RunningPeer(number, path, await client.call("status")))
        except P2PComputeError as error:
            found.append(RunningPeer(number, path, None, str(error)))
    return found


async def socket_of(folders: Folders, wanted: str | None) -> Path:
    """The control socket of the peer that `wanted` means. Raises NotRunningError, NoSuchPeerError, UsageError."""
    instances = folders.list_instances()
    if not instances:
        raise NotRunningError(f"no peer of yours is running here: {START_HINT}")
    if wanted is None:
        return instances[0][1]
    by_number = dict(instances)
    if wanted.isascii() and wanted.isdigit() and int(wanted) in by_number:
        return by_number[int(wanted)]
    running = [peer for peer in await find_running(folders) if peer.status is not None]
    matching = [peer for peer in running if _is_called(peer, wanted)]
    if len(matching) == 1:
        return matching[0].socket_path
    names = ", ".join(f"{peer.number} ({(peer.status or {}).get('name')})" for peer in running) or "none that answers"
    if matching:
        raise UsageError(
            f"{len(matching)} peers that run here are called {wanted!r}: give the number; running are {names}"
        )
    raise NoSuchPeerError(f"no peer that runs here is called {wanted!r}: running are {names}")


async def connect(folders: Folders, wanted: str | None = None) -> ControlClient:
    """A connection to the running peer that `wanted` means. Raises as `socket_of`, and NotRunningError."""
    return await ControlClient.connect(await socket_of(folders, wanted))


def _is_called(peer: RunningPeer, wanted: str) -> bool:
    status = peer.status or {}
    plain = wanted.replace("-", "").upper()
    return (
        wanted == status.get("name")
        or wanted.upper() == status.get("short")
        or (len(plain) == 56 and plain == str(status.get("peer", "")).replace("-", ""))
    )
