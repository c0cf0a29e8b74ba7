"""Engines, which run the tasks of one kind of program, and what a program demands of whoever runs it.

A demand is part of the program, so its id covers how it must be run. A peer's record says which engines and grants its owner offers.
A grant is written as a text:

    network            the network as the peer sees it          folder:NAME       a folder of the owner's, read only
    network:HOST:PORT  one address                              folder:NAME:rw    the same, also to be written
    gpu                its accelerators                         processes         to start processes

Refuses to know how anything is enforced: `execution/` does.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Isolation

#: What a grant may begin with, and how it goes on.
_GRANT = re.compile(
    r"network(:[A-Za-z0-9.\-]{1,253}:[1-9][0-9]{0,4}|:\[[0-9A-Fa-f:.]{2,45}\]:[1-9][0-9]{0,4})?|gpu|processes|folder:[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:rw)?"
)
_WRITABLE = ":rw"


class Engine(enum.StrEnum):
    """What runs the tasks of a program."""

    #: Python source in worker processes.
    PYTHON = "python"
    #: A WebAssembly module with typed calls.
    WASM = "wasm"
    #: Python source in a Python that is WebAssembly itself.
    WASM_PYTHON = "wasm-python"
    #: An executable with files.
    COMMAND = "command"
    #: An image of a container engine, by name.
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Demands:
    """What a program asks of whoever runs it. `isolation`: at least this, None for whatever the peer has; `grants`: see above, sorted."""

    isolation: Isolation | None = None
    grants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "grants", grants_of(self.grants))


def grants_of(given: object) -> tuple[str, ...]:
    """Grants from texts, or one text with commas between them; sorted, each once. Raises UsageError."""
    texts = given.split(",") if isinstance(given, str) else given
    if not isinstance(texts, Iterable):
        raise UsageError(f"grants are {given!r}: give a list of texts such as 'folder:data' or 'network'")
    found = set()
    for text in texts:
        if not isinstance(text, str) or not _GRANT.fullmatch(text.strip()):
            raise UsageError(
                f"{text!r} is no grant: write network, network:HOST:PORT, folder:NAME, folder:NAME:rw, gpu or processes"
            )
        found.add(text.strip())
    if len(found) > limits.GRANTS_MAX:
        raise UsageError(f"{len(found)} grants: {limits.GRANTS_MAX} at most")
    return tuple(sorted(found))


def is_granted(asked: str, offered: Collection[str]) -> bool:
    """Whether who offers `offered` grants `asked`: exactly that, or what includes it."""
    if asked in offered:
        return True
    if asked.startswith("network:"):
        return "network" in offered
    return asked.startswith("folder:") and not asked.endswith(_WRITABLE) and asked + _WRITABLE in offered


NOTHING_DEMANDED = Demands()
