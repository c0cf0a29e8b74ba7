"""Half a TLS 1.3 client, just enough to show a certificate without holding its key, which no TLS library lets one do.

RFC 8446 with TLS_AES_128_GCM_SHA256, X25519 and Ed25519 alone. It believes every server.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2pcompute.wire.identity import SigningKey

_CLIENT_HELLO, _CERTIFICATE, _CERTIFICATE_VERIFY, _FINISHED = 1, 11, 15, 20
_CHANGE_CIPHER, _ALERT, _HANDSHAKE, _APPLICATION = 20, 21, 22, 23


def _vector(length_bytes: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return len(content).to_bytes(length_bytes) + content


def _expand(secret: bytes, label: str, context: bytes, length: int) -> bytes:
    info = struct.pack(">H", length) + _vector(1, b"tls13 " + label.encode()) + _vector(1, context)
    return hmac.digest(secret, info + b"\1", "sha256")[:length]


def _extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, secret, "sha256")


class _Keys:
    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._cipher = AESGCM(_expand(secret, "key", b"", 16))
        self._vector = int.from_bytes(_expand(secret, "iv", b"", 12))
        self._count = 0

    def _nonce(self) -> bytes:
        nonce = (self._vector ^ self._count).to_bytes(12)
        self._count += 1
        return nonce

    def seal(self, kind: int, content: bytes) -> bytes:
        head = struct.pack(">BHH", _APPLICATION, 0x0303, len(content) + 17)
        return head + self._cipher.encrypt(self._nonce(), content + bytes([kind]), head)

    def open(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        plain = self._cipher.decrypt(self._nonce(), body, head).rstrip(b"\0")
        return plain[-1], plain[:-1]


def shake_hands(connection: socket.socket, chain: list[bytes], key: SigningKey) -> None:
    """Do the client's part of a handshake on a blocking socket: show `chain` (DER, leaf first), sign with `key`."""
    reader = connection.makefile("rb")

    def record() -> tuple[bytes, bytes]:
        head = reader.read(5)
        return head, reader.read(int.from_bytes(head[3:5]))

    share = X25519PrivateKey.generate()
    public = share.public_key().public_bytes_raw()
    extensions = (
        (43, _vector(1, b"\x03\x04")),
        (10, _vector(2, b"\x00\x1d")),
        (13, _vector(2, b"\x08\x07")),
        (51, _vector(2, b"\x00\x1d" + _vector(2, public))),
    )
    hello = b"\x03\x03" + bytes(32) + _vector(1, bytes(32)) + _vector(2, b"\x13\x01") + _vector(1, b"\0")
    hello += _vector(2, *(struct.pack(">H", number) + _vector(2, content) for number, content in extensions))
    transcript = bytes([_CLIENT_HELLO]) + _vector(3, hello)
    connection.sendall(struct.pack(">BH", _HANDSHAKE, 0x0301) + _vector(2, transcript))

    head, server_hello = record()
    assert head[0] == _HANDSHAKE, "the server refused the hello"
    transcript += server_hello
    at = server_hello.index(b"\x00\x33\x00\x24\x00\x1d\x00\x20") + 8
    shared = share.exchange(X25519PublicKey.from_public_bytes(server_hello[at : at + 32]))
    derived = _expand(_extract(bytes(32), bytes(32)), "derived", hashlib.sha256().digest(), 32)
    handshake = _extract(derived, shared)
    so_far = hashlib.sha256(transcript).digest()
    mine = _Keys(_expand(handshake, "c hs traffic", so_far, 32))
    theirs = _Keys(_expand(handshake, "s hs traffic", so_far, 32))

    flight = b""
    while True:
        head, body = record()
        if head[0] == _CHANGE_CIPHER:
            continue
        kind, content = theirs.open(head, body)
        assert kind == _HANDSHAKE
        flight += content
        position, last = 0, 0
        while position + 4 <= len(flight):
            last = flight[position]
            position += 4 + int.from_bytes(flight[position + 1 : position + 4])
        if last == _FINISHED and position == len(flight):
            break
    transcript += flight

    entries = b"".join(_vector(3, der) + _vector(2) for der in chain)
    certificate = bytes([_CERTIFICATE]) + _vector(3, _vector(1), _vector(3, entries))
    transcript += certificate
    proof = key.sign(b" " * 64 + b"TLS 1.3, client CertificateVerify\0", hashlib.sha256(transcript).digest())
    verify = bytes([_CERTIFICATE_VERIFY]) + _vector(3, b"\x08\x07" + _vector(2, proof))
    transcript += verify
    finished_key = _expand(mine.secret, "finished", b"", 32)
    finished = hmac.digest(finished_key, hashlib.sha256(transcript).digest(), "sha256")
    last_words = certificate + verify + bytes([_FINISHED]) + _vector(3, finished)
    connection.sendall(mine.seal(_HANDSHAKE, last_words))
