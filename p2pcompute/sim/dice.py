"""The dice of a run: one seed, separate dice for each purpose.

With one generator for all, a peer that draws once more would change every later event of the run, and a shrunken scenario would
have nothing in common with the one that failed. Each purpose has its own stream, derived with SHA-256 from the seed and the
purpose's name, so it depends neither on who else draws nor on PYTHONHASHSEED. Refuses to know what is drawn.
"""

from __future__ import annotations

import hashlib
import random


class Dice:
    """All the randomness of one run."""

    def __init__(self, seed: int) -> None:
        #: What every stream is derived from.
        self.seed = seed
        #: The streams made so far, by purpose; the same purpose goes on where it was.
        self._streams: dict[tuple[str | int, ...], random.Random] = {}

    def of(self, *purpose: str | int) -> random.Random:
        """The dice of `purpose` (`of("peer", 3, "gossip")`), the same object at each call.

        Asking for it again continues it: what is made anew under an old name, such as a peer that restarts, does not draw the same again.
        """
        if (found := self._streams.get(purpose)) is None:
            found = self._streams[purpose] = random.Random(self.derived(*purpose))
        return found

    def derived(self, *purpose: str | int) -> int:
        """A seed of 256 bits for `purpose`; 1 and "1" are different purposes."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *purpose)).encode()).digest())
