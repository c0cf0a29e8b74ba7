"""How the workers of one pool are held: the layers that work here, and what they leave to a worker with given grants.

Refuses to know: processes, pools.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from p2pcompute.execution.sandbox import bubblewrap
from p2pcompute.execution.sandbox.bubblewrap import View
from p2pcompute.execution.sandbox.cgroups import Cgroups
from p2pcompute.execution.sandbox.confine import Confinement
from p2pcompute.execution.sandbox.enclosure import Enclosure
from p2pcompute.execution.sandbox.grants import GrantedFolder, Grants, choose, folder_variable
from p2pcompute.execution.sandbox.interpreter import NETWORK_FILES, SYSTEM_FILES, SYSTEM_FOLDERS, Interpreter
from p2pcompute.execution.sandbox.probe import SandboxReport
from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Isolation

#: Scratch folders of one sandbox: how many workers of one program share namespaces.
BERTHS = 16
#: Where they are.
SCRATCH_AT = "/tmp"
#: What a sandbox has in place of the machine's: neither these nor what holds them can be granted, nor anything within the trees.
_OWN_PLACES = ("/proc", "/dev", "/sys", "/usr", "/etc", f"{SCRATCH_AT}/1")
_OWN_TREES = ("/proc/", "/dev/", "/sys/")
#: Devices to write to.
_DEVICES = tuple(f"/dev/{name}" for name in bubblewrap.DEVICES)
_CORES = ("/sys/devices/system/cpu", "/sys/devices/system/node")
#: Of the machine's `/proc`, where a worker has none of its own: what libraries look at, and the worker itself.
_PROC = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/filesystems", "/proc/version", "/proc/uptime", "/proc/sys/vm", "/proc/sys/kernel/osrelease")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shelter:
    """See the file's docstring. `enclosure`: None where workers are ordinary processes."""

    level: Isolation
    interpreter: Interpreter | None
    enclosure: Enclosure | None
    seccomp: bool
    landlock: bool
    scratch_bytes: int
    folders: tuple[GrantedFolder, ...] = ()
    whole_network: bool = False
    #: Where groups for workers can be made.
    cgroups: Cgroups | None = None

    def choose(self, asked: Collection[str]) -> Grants:
        """See `grants.choose`."""
        return choose(asked, self.folders, whole_network=self.whole_network)

    def view(self, grants: Grants) -> View:
        """What a new sandbox shows; a program that may start processes has it to itself, for its processes may outlive its worker."""
        assert self.interpreter is not None
        count = 1 if grants.processes else BERTHS
        return View(
            self.interpreter,
            grants,
            tuple(f"{SCRATCH_AT}/{number}" for number in range(1, count + 1)),
            self.scratch_bytes,
        )

    def confinement(self, folder: str, grants: Grants) -> Confinement:
        """What a worker with this scratch folder does to itself."""
        if not self.landlock and not self.seccomp:
            return Confinement()
        inside = self.enclosure is not None
        own_files = self.enclosure is not None and (self.enclosure.user is not None or os.geteuid() != 0)
        read = [
            *SYSTEM_FOLDERS,
            *SYSTEM_FILES,
            *_CORES,
            *(self.interpreter.paths if self.interpreter is not None else ()),
        ]
        write = [folder, *_DEVICES]
        if grants.network:
            read += NETWORK_FILES
        if grants.gpu:
            write += bubblewrap.gpu_nodes()
            read += bubblewrap.GPU_FILES
        read += ("/proc",) if inside else _PROC
        if inside:
            write.append("/dev/shm")
        for granted in grants.folders:
            (write if granted.writable else read).append(str(granted.path))
        return Confinement(
            landlock=self.landlock,
            seccomp=self.seccomp,
            read=tuple(read),
            write=tuple(write),
            network=grants.network,
            gpu=grants.gpu,
            processes=grants.processes,
            own_processes=inside,
            own_files=own_files,
        )

    def variables(self, grants: Grants) -> dict[str, str]:
        """Environment variables that tell a worker where its grants are."""
        return {folder_variable(granted.name): str(granted.path) for granted in grants.folders}


def make_shelter(
    report: SandboxReport,
    *,
    least: Isolation | None,
    most: Isolation,
    scratch_bytes: int,
    folders: tuple[GrantedFolder, ...] = (),
    whole_network: bool = False,
) -> Shelter:
    """The best that this machine can, up to `most`. Raises UsageError where that is below `least`."""
    lacking = "" if least is None else report.lacking(least)
    if lacking:
        raise UsageError(f'{lacking}; `p2pcompute doctor` says more, or ask for less with isolation = "auto"')
    confined = most.rank >= Isolation.RESTRICTED.rank and report.level.rank >= Isolation.RESTRICTED.rank
    enclosure = report.enclosure if most.rank >= Isolation.SANDBOX.rank else None
    for each in folders:
        _check_folder(each)
    without = report.seccomp and report.landlock
    level = min((report.level, most), key=lambda each: each.rank)
    if enclosure is None and not without:
        confined, level = False, Isolation.PROCESS
    return Shelter(
        level=level,
        interpreter=report.interpreter,
        enclosure=enclosure,
        seccomp=confined and report.seccomp,
        landlock=confined and report.landlock,
        scratch_bytes=scratch_bytes,
        folders=tuple(GrantedFolder(each.name, Path(os.path.realpath(each.path)), each.writable) for each in folders),
        whole_network=whole_network,
        cgroups=report.cgroups,
    )


def _check_folder(folder: GrantedFolder) -> None:
    real = os.path.realpath(folder.path)
    if not os.path.isdir(real):
        raise UsageError(
            f"the folder {folder.path}, granted as {folder.name!r}, does not exist: make it, or grant another"
        )
    if any(place == real or place.startswith(real.rstrip("/") + "/") for place in _OWN_PLACES) or real.startswith(
        _OWN_TREES
    ):
        raise UsageError(
            f"the folder {folder.path} cannot be granted: sandboxes have their own there; grant a folder of your own"
        )
