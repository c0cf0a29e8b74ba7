"""Who holds what was put: found by digests in encoded bytes, known until a link is gone."""

from __future__ import annotations

from pathlib import Path

from p2pcompute.execution.values import encode
from p2pcompute.model.ids import BlobId, PeerId
from p2pcompute.node.handles import Handles
from p2pcompute.node.holders import HANDLES_SCANNED, Holders
from p2pcompute.storage.blobs import BlobStore

A, B = (PeerId(bytes([number]) * 32) for number in (1, 2))


def test_handles_are_found_in_encoded_arguments(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    handles = Handles(store)
    holders = Holders(lambda: handles.sizes)
    first, second = handles.put(b"x" * 100), handles.put(b"y" * 200)
    arguments = encode([[{"deep": [first]}], {}])
    assert holders.found_in([encode([[1], {}]), arguments], 4096) == {BlobId(first.blob): 100}
    assert holders.found_in([arguments], len(arguments) - 1) == {}, "too large to look at"
    assert handles.put(b"x" * 100) == first
    handles.drop(first)
    assert holders.found_in([arguments], 4096), "put twice, dropped once"
    handles.drop(first)
    assert holders.found_in([arguments], 4096) == {}
    newer = [handles.put(bytes([number]) * 3) for number in range(HANDLES_SCANNED)]
    assert holders.found_in([encode(second), encode(newer[0])], 4096) == {BlobId(newer[0].blob): 3}
    store.close()


def test_what_peers_hold() -> None:
    sizes = {BlobId(b"1" * 32): 10, BlobId(b"2" * 32): 20}
    holders = Holders(lambda: sizes)
    one, two = sizes
    assert holders.sent(B, one)
    assert holders.sent(B, two)
    assert holders.sent(A, two)
    assert not holders.sent(A, BlobId(b"3" * 32)), "nothing that was put"
    assert holders.held(sizes) == ((A, 20), (B, 30))
    assert holders.held({one: 10}) == ((B, 10),)
    holders.gone(B)
    assert holders.held(sizes) == ((A, 20),)
