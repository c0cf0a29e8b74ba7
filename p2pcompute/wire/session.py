"""The cryptography of a session between two peers: what a handshake signs, the keys that follow, sealing and replays.

The handshake is a signed Diffie-Hellman exchange (ISO/IEC 9798-3; analysed as SIGMA's relative by Krawczyk, CRYPTO
2003): X25519 keys that live for one handshake, and each side's Ed25519 signature over the network and everything that
was said so far, papers of both included on the answering side, so that nobody's session can be passed off as another's.
Keys are HKDF-SHA-256 (RFC 5869) of the shared secret, salted with the hash of the whole handshake; one key a direction.
Datagrams are sealed with ChaCha20-Poly1305 (RFC 8439), the counter being the nonce; a window of 2,048 tells replays from
late ones (RFC 6479).

Rules: a counter is never used twice with one key; a window moves only for what opened. Refuses to know: certificates,
addresses, time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.ids import NetworkId
from p2pcompute.model.seams import Entropy
from p2pcompute.wire.datagram import EPHEMERAL_BYTES, SEALED_HEAD, Kind

#: Prefixes of what is signed: a signature made for one of them is good for nothing else.
PROOF_CONTEXT = b"p2pc-datagram-proof-v1\0"
ACCEPT_CONTEXT = b"p2pc-datagram-accept-v1\0"
#: The channel of the session itself; on it, a question asks whether our keys work there, and an answer says that they do. What
#: follows a question's first byte comes back after the answer's.
OWN_CHANNEL = 0
QUESTION = b"?"
ANSWER = b"!"
_SESSION_CONTEXT = b"p2pc-session-v1\0"
_KEYS_INFO = b"p2pc-session-keys-v1"
_KEY_BYTES = 32
_NONCE_HEAD = bytes(4)
_COUNTER_AT = 5
_SEALED_AT = SEALED_HEAD.size
_CHANNEL_BYTES = tuple(bytes((number,)) for number in range(256))
#: A byte of the ring holds eight counters, and eight bytes more than the window are kept: clearing whole bytes ahead never touches it.
_RING_BYTES = limits.REPLAY_WINDOW // 8 + 8


class Ephemeral:
    """An X25519 key for one handshake. Never leaves the process, never written down."""

    __slots__ = ("_private", "public")

    def __init__(self, entropy: Entropy) -> None:
        self._private = X25519PrivateKey.from_private_bytes(entropy.bytes(EPHEMERAL_BYTES))
        #: 32 bytes, raw.
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def agree(self, theirs: bytes) -> bytes:
        """The shared secret with whoever holds `theirs`. Raises ProtocolError for a key that makes it zero."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError as error:
            raise ProtocolError("a key share that would make the session's keys known to everybody") from error


def proof_claim(network: NetworkId, signed: bytes) -> bytes:
    """What the initiator signs under PROOF_CONTEXT; `signed` is its PROOF up to the signature."""
    return network + signed


def accept_claim(network: NetworkId, proof_digest: bytes, signed: bytes) -> bytes:
    """What the responder signs under ACCEPT_CONTEXT; `signed` is its ACCEPT up to the signature."""
    return network + proof_digest + signed


def digest(datagram: bytes) -> bytes:
    """The SHA-256 of a whole datagram, signature included."""
    return hashlib.sha256(datagram).digest()


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What both sides compute at the end of a handshake. `id`: of the session, the same on both sides, not secret."""

    id: bytes
    from_initiator: bytes = field(repr=False)
    from_responder: bytes = field(repr=False)


def derive_keys(network: NetworkId, shared: bytes, proof_digest: bytes, accept_digest: bytes) -> SessionKeys:
    """The keys of the session that this PROOF and this ACCEPT made."""
    transcript = hashlib.sha256(_SESSION_CONTEXT + network + proof_digest + accept_digest).digest()
    keys = HKDF(hashes.SHA256(), 2 * _KEY_BYTES, salt=transcript, info=_KEYS_INFO).derive(shared)
    return SessionKeys(transcript[:16], keys[:_KEY_BYTES], keys[_KEY_BYTES:])


def check_payload(channel: int, payload: bytes) -> None:
    """Raise UsageError where no datagram carries `payload` on `channel`."""
    if len(payload) > limits.DATAGRAM_PAYLOAD_BYTES_MAX or not OWN_CHANNEL < channel < 256:
        raise UsageError(
            f"a datagram carries at most {limits.DATAGRAM_PAYLOAD_BYTES_MAX} bytes on a channel from 1 to 255, not "
            f"{len(payload)} bytes on channel {channel}"
        )


class Sealer:
    """Seals what one side of a session sends."""

    __slots__ = ("_cipher", "_receiver", "counter")

    def __init__(self, key: bytes, receiver: int) -> None:
        self._cipher = ChaCha20Poly1305(key)
        #: The other side's number for the session.
        self._receiver = receiver
        #: Of the next datagram; only rises.
        self.counter = 0

    def seal(self, channel: int, payload: bytes) -> bytes:
        """The datagram that carries `payload` on `channel` (0 to 255)."""
        head = SEALED_HEAD.pack(Kind.SEALED, self._receiver, self.counter)
        self.counter += 1
        return head + self._cipher.encrypt(_NONCE_HEAD + head[_COUNTER_AT:], _CHANNEL_BYTES[channel] + payload, None)


class Opener:
    """Opens what the other side of a session sends, each datagram once."""

    __slots__ = ("_cipher", "_ring", "newest")

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        #: The highest counter that opened, -1 before the first.
        self.newest = -1
        #: One bit a counter, round and round; a bit is set where that counter opened.
        self._ring = bytearray(_RING_BYTES)

    def is_fresh(self, counter: int) -> bool:
        """Whether `counter` is neither one that opened nor too old to tell."""
        if counter > self.newest:
            return True
        if counter + limits.REPLAY_WINDOW <= self.newest:
            return False
        return not self._ring[(counter >> 3) % _RING_BYTES] & (1 << (counter & 7))

    def open(self, datagram: bytes, counter: int) -> bytes | None:
        """Channel and payload of a sealed datagram, or None where it was not sealed with our keys.

        The caller has looked at its size (`SEALED_BYTES_MIN`), and at its `counter` with `is_fresh`.
        """
        try:
            plain = self._cipher.decrypt(_NONCE_HEAD + datagram[_COUNTER_AT:_SEALED_AT], datagram[_SEALED_AT:], None)
        except InvalidTag:
            return None
        ring = self._ring
        block = counter >> 3
        if counter > self.newest:
            ahead = block - (self.newest >> 3)
            if ahead >= _RING_BYTES:
                ring[:] = bytes(_RING_BYTES)
            else:
                for skipped in range(block - ahead + 1, block + 1):
                    ring[skipped % _RING_BYTES] = 0
            self.newest = counter
        ring[block % _RING_BYTES] |= 1 << (counter & 7)
        return plain
