"""Where the control socket is, in the operating system's terms.

Owns the Unix socket with mode 0600, the kernel's word about who calls (SO_PEERCRED on Linux), and, where Unix sockets are
missing, the file of mode 0600 that holds the port on loopback and the secret.

Refuses to know what is said over the connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from pathlib import Path

import structlog

from p2pcompute.model.errors import NotRunningError, ResourceError

_log = structlog.get_logger("control")


def is_our_user(transport: asyncio.Transport) -> bool:
    """Whether the kernel says that this user (or root, who may do everything anyway) is at the other end."""
    if sys.platform != "linux":
        return True  # the rights of socket and folder, or the secret, are the proof there
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return True
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", packed)
    if user in (os.getuid(), 0):
        return True
    _log.warning("control.foreign_user", user=user)
    return False


def listening_socket(path: Path) -> socket.socket:
    """A listening Unix socket at `path` that only this user can reach; its folder exists. Raises ResourceError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket that a killed peer left behind; its successor owns the instance's lock and may take its place.
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before listening: until then nobody can connect
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ResourceError(f"cannot make the control socket {path}: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def write_endpoint(path: Path, port: int, secret: bytes) -> None:
    """Say in a file of mode 0600 where on loopback the peer answers, and the secret. Raises ResourceError."""
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{port} {secret.hex()}\n")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def read_endpoint(path: Path) -> tuple[int, bytes]:
    """Port and secret from that file. Raises NotRunningError where it is damaged, OSError where it is not there."""
    try:
        port, secret = path.read_text(encoding="ascii").split()
        return int(port), bytes.fromhex(secret)
    except ValueError as error:
        raise NotRunningError(f"{path} is damaged: stop the peer and start it again") from error
