"""What the owner of a peer lets workers have beyond their sandbox, and what of it one program gets.

A grant is a text (`model/engine.py`). Refuses to know how anything is enforced.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from p2pcompute.model.errors import UsageError


@dataclass(frozen=True, slots=True)
class GrantedFolder:
    """A folder of the owner's, which tasks find where it is, and by the environment variable `folder_variable(name)`."""

    name: str
    path: Path
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Grants:
    """What one worker has beyond its sandbox."""

    folders: tuple[GrantedFolder, ...] = ()
    network: bool = False
    gpu: bool = False
    processes: bool = False


NO_GRANTS = Grants()
#: Why an address alone is refused.
ONE_ADDRESS = (
    "the kernel cannot hold a process to single addresses without a forwarder, which this peer has not; its owner can grant network as a "
    "whole, or the data can come with the job"
)


def folder_variable(name: str) -> str:
    """The variable that tells a task where a granted folder is: `P2PCOMPUTE_FOLDER_DATA` for "data"."""
    return "P2PCOMPUTE_FOLDER_" + "".join(each if each.isalnum() else "_" for each in name.upper())


def choose(asked: Collection[str], folders: Collection[GrantedFolder], *, whole_network: bool) -> Grants:
    """The grants that the texts `asked` stand for; whoever calls has made sure that the owner offers them.

    `folders`: the owner's; `whole_network`: whether who asks for one address may have them all, for a process cannot be held to one.
    Raises UsageError for a text that cannot be fulfilled here.
    """
    named = {folder.name: folder for folder in folders}
    chosen: dict[str, GrantedFolder] = {}
    network = gpu = processes = False
    for text in sorted(asked):
        kind, _, rest = text.partition(":")
        match kind:
            case "network":
                if rest and not whole_network:
                    raise UsageError(f"{text!r} cannot be granted: {ONE_ADDRESS}")
                network = True
            case "gpu":
                gpu = True
            case "processes":
                processes = True
            case "folder":
                name, _, right = rest.partition(":")
                folder = named.get(name)
                if folder is None or (right == "rw" and not folder.writable):
                    raise UsageError(f"{text!r} is not offered: the owner's configuration names no such folder")
                writable = right == "rw" or (name in chosen and chosen[name].writable)
                chosen[name] = GrantedFolder(name, Path(os.path.realpath(folder.path)), writable)
            case _:
                raise UsageError(f"{text!r} is no grant")
    return Grants(tuple(chosen[name] for name in sorted(chosen)), network, gpu, processes)
