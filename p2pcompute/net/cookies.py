"""Cookies: proof that somebody receives at the address that his datagrams name, without remembering him.

A cookie is a MAC (keyed BLAKE2s, RFC 7693) over address and ephemeral under a secret that changes every two minutes, as in DTLS
(RFC 9147) and WireGuard. The secret before is good for as long again. Whatever a flood costs, it costs no memory.
"""

from __future__ import annotations

import hashlib
import hmac

from p2pcompute.model import limits
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Entropy
from p2pcompute.wire.datagram import COOKIE_BYTES

_SECRET_BYTES = 32


class Cookies:
    """Makes and checks cookies."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        #: Drawn at `_since`; the second is the one before it, unguessable from the start.
        self._secrets = (entropy.bytes(_SECRET_BYTES), entropy.bytes(_SECRET_BYTES))
        #: When the first secret was drawn, None before the first use.
        self._since: float | None = None

    def bake(self, source: Address, ephemeral: bytes, now: float) -> bytes:
        """The cookie for who shows `ephemeral` from `source`."""
        self._rotate(now)
        return _mac(self._secrets[0], source, ephemeral)

    def holds(self, cookie: bytes, source: Address, ephemeral: bytes, now: float) -> bool:
        """Whether `cookie` was baked for exactly these, four minutes ago at most."""
        self._rotate(now)
        return any(hmac.compare_digest(cookie, _mac(secret, source, ephemeral)) for secret in self._secrets)

    def _rotate(self, now: float) -> None:
        if self._since is None:
            self._since = now
        age_s = now - self._since
        if age_s < limits.COOKIE_SECRET_S:
            return
        earlier = self._secrets[0] if age_s < 2 * limits.COOKIE_SECRET_S else self._entropy.bytes(_SECRET_BYTES)
        self._secrets = (self._entropy.bytes(_SECRET_BYTES), earlier)
        self._since = now


def _mac(secret: bytes, source: Address, ephemeral: bytes) -> bytes:
    place = source.host.encode() + source.port.to_bytes(2)
    return hashlib.blake2s(ephemeral + place, key=secret, digest_size=COOKIE_BYTES).digest()
