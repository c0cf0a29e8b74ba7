"""Keys: what makes a peer the peer that it is, and the signatures that prove it.

Rules: every signature is over a context and the data, contexts are distinct (see `CONTEXTS`), and a signature is
checked over the bytes that were received. Keys are drawn from the `Entropy` that the caller passes, never from
ambient dice. Refuses to know: certificates (`certificates.py`), files and their modes (the composition root keeps the
PEM under mode 0600).
"""

from __future__ import annotations

from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pcompute.model.errors import CorruptFileError
from p2pcompute.model.ids import PeerId, peer_id_of
from p2pcompute.model.seams import Entropy

PUBLIC_KEY_BYTES = 32
PRIVATE_KEY_BYTES = 32
SIGNATURE_BYTES = 64

#: Prefixes of what admission signs; records and beacons define theirs beside their formats. None is a prefix of another.
REVOCATIONS_CONTEXT = b"p2pc-revocations-v1\0"
SUCCESSION_CONTEXT = b"p2pc-succession-v1\0"
CONTEXTS = (REVOCATIONS_CONTEXT, SUCCESSION_CONTEXT)


def verify_signature(public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is the Ed25519 signature of `public_key` (32 bytes, raw) over context || data."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, context + data)
    except (InvalidSignature, ValueError):
        return False
    return True


class SigningKey:
    """An Ed25519 private key. Immutable; equal to another with the same public key; shows only the public half."""

    __slots__ = ("private", "public_key")

    def __init__(self, raw: bytes) -> None:
        #: For building certificates; never leaves this process except through `raw` and `to_pem`.
        self.private = Ed25519PrivateKey.from_private_bytes(raw)
        #: 32 bytes, raw.
        self.public_key: bytes = self.private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """A new key from 32 bytes of `entropy`."""
        return cls(entropy.bytes(PRIVATE_KEY_BYTES))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """The key in an unencrypted PKCS #8 PEM file. Raises CorruptFileError."""
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CorruptFileError(
                "this key file is not an unencrypted PKCS #8 private key; it was left as it is. Restore it from a backup, "
                "or move it away to start with a new key, which is a new identity"
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise CorruptFileError(
                f"this key file holds a key of another kind ({type(private).__name__}) than Ed25519; it was left as it is. "
                "Restore the right one from a backup, or move it away to start with a new key, which is a new identity"
            )
        return cls(private.private_bytes_raw())

    def to_pem(self) -> bytes:
        """The key as unencrypted PKCS #8 PEM: for a file of mode 0600 and nothing else."""
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def raw(self) -> bytes:
        """The 32 secret bytes."""
        return self.private.private_bytes_raw()

    def sign(self, context: bytes, data: bytes) -> bytes:
        """64 bytes: the Ed25519 signature over context || data."""
        return self.private.sign(context + data)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.public_key == self.public_key

    def __hash__(self) -> int:
        return hash(self.public_key)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.public_key[:4].hex()}…>"

    def __reduce__(self) -> str:
        # A key that could be pickled would sooner or later travel with somebody's function.
        raise TypeError(f"a {type(self).__name__} cannot be pickled: it is secret")


class PeerKey(SigningKey):
    """The key that a peer is."""

    __slots__ = ()

    @property
    def peer_id(self) -> PeerId:
        """SHA-256 of the public key under its prefix."""
        return peer_id_of(self.public_key)
