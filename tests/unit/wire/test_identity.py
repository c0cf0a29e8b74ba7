"""Keys and signatures."""

from __future__ import annotations

import copy
import pickle

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2pcompute.model.errors import CorruptFileError
from p2pcompute.model.ids import peer_id_of
from p2pcompute.wire.delegation import DELEGATION_CONTEXT, MANIFEST_CONTEXT
from p2pcompute.wire.identity import CONTEXTS, PeerKey, SigningKey, verify_signature
from p2pcompute.wire.record import CONTEXT as RECORD_CONTEXT
from tests.support.networks import SeededEntropy

KEY = PeerKey.generate(SeededEntropy("key"))


def test_a_key_comes_from_the_entropy_alone() -> None:
    assert PeerKey.generate(SeededEntropy("key")) == KEY
    assert PeerKey.generate(SeededEntropy("other")) != KEY
    assert len(KEY.public_key) == 32
    assert KEY.peer_id == peer_id_of(KEY.public_key)


def test_the_public_key_is_that_of_rfc_8032() -> None:
    # Section 7.1, test 2.
    key = SigningKey(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert key.public_key.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"", b"\x72").hex().startswith("92a009a9f0d4cab8720e820b5f642540")


def test_a_signature_holds_for_its_key_context_and_data_only() -> None:
    signature = KEY.sign(b"context\0", b"data")
    assert verify_signature(KEY.public_key, b"context\0", b"data", signature)
    other = PeerKey.generate(SeededEntropy("other"))
    assert not verify_signature(other.public_key, b"context\0", b"data", signature)
    assert not verify_signature(KEY.public_key, b"other\0", b"data", signature)
    assert not verify_signature(KEY.public_key, b"context\0", b"date", signature)
    for place in range(64):
        changed = bytearray(signature)
        changed[place] ^= 1
        assert not verify_signature(KEY.public_key, b"context\0", b"data", bytes(changed))


@pytest.mark.parametrize(
    ("public_key", "signature"), [(b"", b""), (bytes(31), bytes(64)), (bytes(32), bytes(63)), (b"\xff" * 32, bytes(64))]
)
def test_nonsense_is_no_signature(public_key: bytes, signature: bytes) -> None:
    assert not verify_signature(public_key, b"", b"", signature)


def test_no_context_is_the_start_of_another() -> None:
    contexts = [*CONTEXTS, RECORD_CONTEXT, MANIFEST_CONTEXT, DELEGATION_CONTEXT]
    assert len(set(contexts)) == len(contexts)
    for one in contexts:
        assert one.endswith(b"\0")
        assert not any(other.startswith(one) for other in contexts if other is not one)


def test_a_key_survives_its_file() -> None:
    assert PeerKey.from_pem(KEY.to_pem()) == KEY
    assert b"BEGIN PRIVATE KEY" in KEY.to_pem()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        KEY.to_pem()[:-40],
        KEY.to_pem().replace(b"M", b"N", 1),
        X25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        KEY.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        ),
    ],
)
def test_a_broken_key_file_says_what_to_do(content: bytes) -> None:
    with pytest.raises(CorruptFileError, match=r"left as it is.*backup"):
        PeerKey.from_pem(content)


def test_a_key_shows_and_leaks_nothing_secret() -> None:
    assert KEY.raw.hex()[:8] not in repr(KEY)
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(KEY)
    with pytest.raises(TypeError):
        copy.deepcopy(KEY)


def test_a_peers_key_is_another_thing_than_an_invitations() -> None:
    assert SigningKey(KEY.raw) != KEY
    assert len({KEY, PeerKey(KEY.raw)}) == 1
