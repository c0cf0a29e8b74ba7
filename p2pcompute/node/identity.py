"""Who this peer is on its links: key, membership and trust, as `net/links.py` wants them.

Rebuilt when the membership is renewed or the owner revokes: links ask anew for each handshake.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from p2pcompute.model.errors import CorruptFileError, P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.net.tls import admission_error_from_tls, client_context, server_context
from p2pcompute.storage.files import InstanceDisk
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Admitted, Membership, Trust
from p2pcompute.wire.messages import Hello
from p2pcompute.wire.versions import ALPN_HTTP, ALPN_STREAM, PROTOCOL, PROTOCOL_OLDEST

KEY_FILE = "key.pem"


class NodeIdentity:
    """One peer's proof of itself and its judgement of others."""

    def __init__(
        self,
        key: PeerKey,
        membership: Membership,
        trust: Trust,
        clock: Clock,
        *,
        agent: str,
        instance: bytes,
        record_wire: Callable[[], bytes],
    ) -> None:
        self.key = key
        self.peer: PeerId = key.peer_id
        self.membership = membership
        self.trust = trust
        self._clock = clock
        self._agent = agent
        self._instance = instance
        self._record_wire = record_wire
        self._server: ssl.SSLContext | None = None
        self._client: ssl.SSLContext | None = None

    def server_context(self) -> ssl.SSLContext:
        """What this peer's port demands and shows."""
        if self._server is None:
            self._server = server_context(self.membership, self.key, [ALPN_STREAM, ALPN_HTTP])
        return self._server

    def client_context(self) -> ssl.SSLContext:
        """What this peer shows when it dials, and whom it believes."""
        if self._client is None:
            self._client = client_context(self.membership, self.key, [ALPN_STREAM])
        return self._client

    def hello(self) -> Hello:
        """The first message of a link."""
        return Hello(
            newest=PROTOCOL,
            oldest=PROTOCOL_OLDEST,
            network=self.membership.network,
            invitations=self.membership.chain,
            record=self._record_wire(),
            agent=self._agent,
            instance=self._instance,
            clock_ms=max(int(self._clock.wall() * 1000), 0),
        )

    def admit(self, leaf_der: bytes, hello: Hello, expected: PeerId | None) -> Admitted:
        """Whom the certificate and the Hello prove the other side to be. Raises AdmissionError."""
        return self.judge(leaf_der, hello.invitations, expected)

    def judge(self, leaf_der: bytes, chain: Sequence[bytes], expected: PeerId | None) -> Admitted:
        """Whom a leaf under the invitations `chain` proves somebody to be. Raises AdmissionError."""
        return self.trust.admit(leaf_der, chain, self._clock.wall(), expected=expected)

    @property
    def for_datagrams(self) -> DatagramSide:
        """The same peer, as sealed datagrams want it."""
        return DatagramSide(self)

    def tls_error(self, error: Exception, dialled: bool) -> P2PComputeError:
        """The error of our tree that a failed handshake means."""
        return admission_error_from_tls(error, dialled)

    def renew(self, membership: Membership) -> None:
        """Use `membership` for every handshake from now on."""
        self.membership = membership
        self._server = None
        self._client = None


class DatagramSide:
    """A `NodeIdentity` as `net/udp.py` wants it: there is no Hello in a datagram."""

    def __init__(self, identity: NodeIdentity) -> None:
        self._identity = identity

    @property
    def peer(self) -> PeerId:
        """Who this is."""
        return self._identity.peer

    @property
    def key(self) -> PeerKey:
        """Signs handshakes."""
        return self._identity.key

    @property
    def membership(self) -> Membership:
        """What is shown; renewed now and then."""
        return self._identity.membership

    def admit(self, leaf_der: bytes, chain: Sequence[bytes], expected: PeerId | None) -> Admitted:
        """Whom these certificates prove the other side to be. Raises AdmissionError."""
        return self._identity.judge(leaf_der, chain, expected)


def load_key(folder: Path, entropy: Entropy) -> PeerKey:
    """The key of the instance in `folder`, made where there is none. Raises CorruptFileError."""
    disk = InstanceDisk(folder)
    pem = disk.read(KEY_FILE)
    if pem is not None:
        try:
            return PeerKey.from_pem(pem)
        except CorruptFileError as error:
            raise CorruptFileError(f"{folder / KEY_FILE}: {error}") from error
    key = PeerKey.generate(entropy)
    disk.write(KEY_FILE, key.to_pem())
    return key
