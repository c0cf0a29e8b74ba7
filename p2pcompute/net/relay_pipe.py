"""What keeps a circuit private: TLS 1.3 between its two ends, as bytes in and bytes out.

The contexts are those of a direct connection, so the ends prove to each other exactly what they prove there, and a relay that changes a bit or joins the
wrong two sees the handshake fail. `ClearPipes` does without, for networks in memory, where a side shows its leaf as it is.
Refuses to know: circuits, links.
"""

from __future__ import annotations

import ssl
from typing import Protocol

from p2pcompute.model.errors import LinkClosedError, P2PComputeError
from p2pcompute.net.tls import read_leaf
from p2pcompute.wire.versions import ALPN_STREAM

#: Plain bytes taken out of TLS at once.
_READ_BYTES = 256 * 1024
_LEAF_LENGTH_BYTES = 2


class PipeIdentity(Protocol):
    """What a pipe needs of a peer's identity."""

    def server_context(self) -> ssl.SSLContext:
        """For accepting."""

    def client_context(self) -> ssl.SSLContext:
        """For dialling."""

    def tls_error(self, error: Exception, dialled: bool) -> P2PComputeError:
        """What a failed handshake means."""


class PipeBroken(Exception):
    """What came is nothing that the other end of this pipe has sent, or it refuses us. `error`: what that means."""

    def __init__(self, error: P2PComputeError) -> None:
        super().__init__(str(error))
        self.error = error


class Pipe(Protocol):
    """One end of a private connection. `ready`: the handshake is through; `ended`: the other end has said that it is over."""

    ready: bool
    ended: bool

    def start(self) -> None:
        """Begin the handshake; the end that dialled does."""

    def feed(self, data: bytes) -> list[bytes]:
        """The plain bytes that `data`, from the other end, completes. Raises PipeBroken."""

    def write(self, data: bytes | memoryview) -> None:
        """Send plain bytes; only when `ready`."""

    def end(self) -> None:
        """Say that it is over."""

    def take(self) -> bytes:
        """What has to go to the other end, once."""

    def leaf(self) -> bytes:
        """The other end's certificate, DER; empty before `ready`."""


class Pipes(Protocol):
    """Makes pipes for one peer."""

    def pipe(self, *, dialled: bool) -> Pipe:
        """A new one."""


class TlsPipe:
    """TLS with both certificates, in memory."""

    def __init__(self, identity: PipeIdentity, *, dialled: bool) -> None:
        self.ready = False
        self.ended = False
        #: Says what errors mean.
        self._identity = identity
        #: Whether this end dialled.
        self._dialled = dialled
        #: Ciphertext from the other end, and for it.
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = identity.client_context() if dialled else identity.server_context()
        if dialled:
            # Here, right before it is used: the context is shared with the carriers that dial.
            context.set_alpn_protocols([ALPN_STREAM])
        #: TLS itself.
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialled)

    def start(self) -> None:
        """Begin the handshake."""
        self._shake()

    def feed(self, data: bytes) -> list[bytes]:
        """The plain bytes that `data` completes. Raises PipeBroken."""
        self._incoming.write(data)
        plain: list[bytes] = []
        try:
            if not self.ready and not self._shake():
                return plain
            while True:
                piece = self._tls.read(_READ_BYTES)
                if not piece:
                    self.ended = True
                    return plain
                plain.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return plain
        except ssl.SSLZeroReturnError:
            self.ended = True
            return plain
        except ssl.SSLError as error:
            raise PipeBroken(self._meaning(error)) from error

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.ready = True
        return True

    def _meaning(self, error: ssl.SSLError) -> P2PComputeError:
        cause = getattr(error, "reason", None) or str(error)
        if self.ready and "_ALERT_" not in cause:
            return LinkClosedError(
                f"what came through the relay was changed on its way, or is no TLS ({cause}): try another relay"
            )
        return self._identity.tls_error(error, self._dialled)

    def write(self, data: bytes | memoryview) -> None:
        """Send plain bytes."""
        view = memoryview(data)
        while len(view):
            view = view[self._tls.write(view) :]

    def end(self) -> None:
        """Say that it is over."""
        if self.ready:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                return  # it waits for the other end's word, which this end does not; or nothing can be said any more

    def take(self) -> bytes:
        """What has to go to the other end."""
        return self._outgoing.read()

    def leaf(self) -> bytes:
        """The other end's certificate."""
        return read_leaf(self._tls) if self.ready else b""


class TlsPipes:
    """Pipes of the product."""

    def __init__(self, identity: PipeIdentity) -> None:
        self._identity = identity

    def pipe(self, *, dialled: bool) -> Pipe:
        """A new one."""
        return TlsPipe(self._identity, dialled=dialled)


class ClearPipe:
    """Shows a leaf and hides nothing: for networks in memory. Each end begins with its leaf, two bytes of length before it."""

    def __init__(self, leaf: bytes) -> None:
        self.ready = False
        self.ended = False
        #: What this end shows, and what the other one has shown.
        self._own = leaf
        self._theirs = b""
        #: What came before the other end's leaf was complete; empty afterwards.
        self._unread = bytearray()
        #: What `take` gives next.
        self._outgoing = bytearray()
        #: Whether the own leaf was shown.
        self._started = False

    def start(self) -> None:
        """Show the leaf."""
        if not self._started:
            self._started = True
            self._outgoing += len(self._own).to_bytes(_LEAF_LENGTH_BYTES) + self._own

    def feed(self, data: bytes) -> list[bytes]:
        """The plain bytes that `data` completes."""
        if self.ready:
            return [data]
        self.start()
        self._unread += data
        end = _LEAF_LENGTH_BYTES + int.from_bytes(self._unread[:_LEAF_LENGTH_BYTES])
        if len(self._unread) < max(end, _LEAF_LENGTH_BYTES):
            return []
        self._theirs = bytes(self._unread[_LEAF_LENGTH_BYTES:end])
        self.ready = True
        rest = bytes(self._unread[end:])
        self._unread.clear()
        return [rest] if rest else []

    def write(self, data: bytes | memoryview) -> None:
        """Send plain bytes."""
        self._outgoing += data

    def end(self) -> None:
        """Nothing to say: the circuit's end is enough."""

    def take(self) -> bytes:
        """What has to go to the other end."""
        taken = bytes(self._outgoing)
        self._outgoing.clear()
        return taken

    def leaf(self) -> bytes:
        """What the other end has shown."""
        return self._theirs


class ClearPipes:
    """Pipes of a network in memory, for the peer that shows `leaf` there."""

    def __init__(self, leaf: bytes) -> None:
        self._leaf = leaf

    def pipe(self, *, dialled: bool) -> Pipe:
        """A new one."""
        return ClearPipe(self._leaf)
