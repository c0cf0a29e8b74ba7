"""Blobs: bytes named by their BLAKE3 digest, in memory first, spilled to a folder beyond a quota.

Holders are counted: each `put` adds a hold under the caller's label, and a blob goes when its last hold is released. What
was fetched from peers is held by the job that needed it. Refuses to know who may read what.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from pathlib import Path

from blake3 import blake3

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, CorruptFileError
from p2pcompute.model.ids import BlobId


def blob_id_of(data: bytes | bytearray | memoryview) -> BlobId:
    """The BLAKE3 digest of `data`, 32 bytes."""
    return BlobId(blake3(data).digest())


class BlobStore:
    """The blobs of one peer.

    `folder`: where blobs beyond `memory_bytes_max` go; emptied at start, since nothing in it outlives the process.
    """

    def __init__(
        self,
        folder: Path,
        memory_bytes_max: int = limits.BLOB_MEMORY_BYTES_MAX,
        disk_bytes_max: int = limits.BLOB_DISK_BYTES_MAX,
    ) -> None:
        self._folder = folder
        self._memory_bytes_max = memory_bytes_max
        self._disk_bytes_max = disk_bytes_max
        #: Blobs in memory, least recently used first.
        self._memory: OrderedDict[BlobId, bytes | bytearray | memoryview] = OrderedDict()
        #: Sum of their sizes.
        self._memory_bytes = 0
        #: Sizes of blobs on disk.
        self._disk: dict[BlobId, int] = {}
        self._disk_bytes = 0
        #: Who holds each blob, and how often.
        self._holds: dict[BlobId, dict[object, int]] = {}
        if folder.is_dir():
            for stale in folder.glob("*.blob"):
                stale.unlink()

    def put(self, data: bytes | bytearray | memoryview, holder: object, blob: BlobId | None = None) -> BlobId:
        """Keep `data` for `holder`; its id. Give `blob` where the digest is known already. Raises BusyError when full."""
        name = blob if blob is not None else blob_id_of(data)
        if name not in self._memory and name not in self._disk:
            if self._memory_bytes + len(data) - self._memory_bytes_max > self._disk_bytes_max - self._disk_bytes:
                raise BusyError(
                    f"no room for {len(data)} bytes: {self._memory_bytes} are held in memory and {self._disk_bytes} on disk; "
                    "release results or handles that are not needed any more"
                )
            self._memory[name] = data
            self._memory_bytes += len(data)
        holds = self._holds.setdefault(name, {})
        holds[holder] = holds.get(holder, 0) + 1
        self._spill()
        return name

    def get(self, blob: BlobId) -> bytes | bytearray | memoryview | None:
        """The bytes, or None where they are not held."""
        data = self._memory.get(blob)
        if data is not None:
            self._memory.move_to_end(blob)
            return data
        if blob not in self._disk:
            return None
        content = self._path(blob).read_bytes()
        if blob_id_of(content) != blob:
            raise CorruptFileError(
                f"{self._path(blob)} has changed on disk: it is given up, and its task will be run again"
            )
        return content

    def has(self, blob: BlobId) -> bool:
        """Whether `get` would find it."""
        return blob in self._memory or blob in self._disk

    def hold(self, blob: BlobId, holder: object) -> bool:
        """Add a hold to a blob that is here; False where it is not."""
        if not self.has(blob):
            return False
        holds = self._holds.setdefault(blob, {})
        holds[holder] = holds.get(holder, 0) + 1
        return True

    def is_held(self, blob: BlobId, holder: object) -> bool:
        """Whether `holder` holds it."""
        return holder in self._holds.get(blob, {})

    def release(self, blob: BlobId, holder: object) -> None:
        """Take back one hold; the last one frees the bytes."""
        holds = self._holds.get(blob)
        if holds is None or holder not in holds:
            return
        holds[holder] -= 1
        if holds[holder] == 0:
            del holds[holder]
        if not holds:
            self._free(blob)

    def release_all(self, holder: object) -> None:
        """Take back every hold of `holder`."""
        for blob in [blob for blob, holds in self._holds.items() if holder in holds]:
            del self._holds[blob][holder]
            if not self._holds[blob]:
                self._free(blob)

    @property
    def bytes_held(self) -> int:
        """In memory and on disk."""
        return self._memory_bytes + self._disk_bytes

    def close(self) -> None:
        """Forget everything, remove the files."""
        for blob in list(self._holds):
            self._free(blob)

    def _free(self, blob: BlobId) -> None:
        self._holds.pop(blob, None)
        data = self._memory.pop(blob, None)
        if data is not None:
            self._memory_bytes -= len(data)
        size = self._disk.pop(blob, None)
        if size is not None:
            self._disk_bytes -= size
            with contextlib.suppress(FileNotFoundError):
                self._path(blob).unlink()

    def _spill(self) -> None:
        # A small write per blob on the loop: spilling starts only beyond the memory quota, where speed is lost anyway.
        while self._memory_bytes > self._memory_bytes_max and len(self._memory) > 1:
            blob, data = self._memory.popitem(last=False)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path(blob).write_bytes(data)
            self._memory_bytes -= len(data)
            self._disk[blob] = len(data)
            self._disk_bytes += len(data)

    def _path(self, blob: BlobId) -> Path:
        return self._folder / f"{blob.hex()}.blob"
