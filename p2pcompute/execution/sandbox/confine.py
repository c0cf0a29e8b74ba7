"""What a worker does to itself before it loads a program: gives up rights on files, signals and system calls, for good.

Runs in the worker's first thread, before any other exists: neither layer reaches threads that are there already. A layer that was found to
work and now does not is an error that ends the worker; nothing is ever run with less than was said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from p2pcompute.execution.sandbox import capabilities, landlock, seccomp
from p2pcompute.execution.sandbox.seccomp import FilterRules


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a worker may keep; it travels to the worker as a msgpack map. `read`, `write`: as in `landlock.restrict`."""

    landlock: bool = False
    seccomp: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    network: bool = False
    gpu: bool = False
    processes: bool = False
    #: Whether the worker sees no processes but those of its sandbox, and has rights on no files but its own.
    own_processes: bool = False
    own_files: bool = False

    def rules(self) -> FilterRules:
        """Of its filter of system calls."""
        return FilterRules(
            processes=self.processes,
            network=self.network,
            gpu=self.gpu,
            own_processes=self.own_processes,
            own_files=self.own_files,
        )

    def to_map(self) -> dict[str, Any]:
        """For the first frame."""
        return asdict(self)

    @classmethod
    def from_map(cls, given: Mapping[str, Any]) -> Confinement:
        """As the peer sent it."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        return cls(**plain)


def apply(confinement: Confinement) -> None:
    """Confine this process. Raises OSError where a layer fails."""
    if confinement.landlock or confinement.seccomp:
        capabilities.drop()
    if confinement.landlock:
        landlock.restrict(read=confinement.read, write=confinement.write, network=confinement.network)
    if confinement.seccomp:
        seccomp.restrict(confinement.rules())
