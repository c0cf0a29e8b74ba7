"""Landlock: this process, and all that come from it, keep only the rights on files that are listed here.

By ctypes, for a few calls do not deserve a dependency. What the kernel knows decides what is handled: files since ABI 1, renaming
between folders since 2, truncating since 3, TCP since 4, device ioctls since 5, signals and abstract sockets out of the domain since 6.
A process in a domain cannot trace one outside of it. UDP and sockets with a path are not covered: the filter of system calls is for those.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

#: The newest ABI whose rights are used; a newer kernel knows these, too.
ABI_KNOWN = 7
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
#: Rights that a file, unlike a folder, can have.
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_READ = _EXECUTE | _READ_FILE | _READ_DIR
#: Rights on files, of each ABI: all bits below this one.
_RIGHT_COUNTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
#: Making device files, which no grant allows.
_MAKE_DEVICES = 1 << 6 | 1 << 11
_TCP = 1 << 0 | 1 << 1
_SCOPES = 1 << 0 | 1 << 1


def abi() -> int:
    """The ABI of this kernel; 0 where it has no Landlock, or has it switched off."""
    if sys.platform != "linux":
        return 0
    found: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    return max(found, 0)


def handled_rights(version: int) -> tuple[int, int, int]:
    """(on files, on the network, scopes) that a kernel of ABI `version` can take away."""
    files = (1 << _RIGHT_COUNTS[min(version, max(_RIGHT_COUNTS))]) - 1
    return files, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0


def restrict(*, read: Iterable[str], write: Iterable[str], network: bool) -> None:
    """Give up, for this thread and all that it starts, every right on files but these; there is no way back.

    `read`: files and folders to read and execute from; `write`: to do all with but make devices; one that is missing is passed over.
    `network`: leave TCP alone. Raises OSError where the kernel refuses.
    """
    version = abi()
    if version < 1:
        raise OSError("the kernel has no Landlock")
    files, tcp, scopes = handled_rights(version)
    attributes = struct.pack("=QQQ", files, 0 if network else tcp, scopes)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for paths, rights in ((read, _READ), (write, files & ~_MAKE_DEVICES)):
            for path in paths:
                _allow(ruleset, path, rights & files)
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs was refused")
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # what cannot be reached now cannot be reached afterwards
    try:
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            rights &= _FILE_RIGHTS
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = _libc().syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock refused: {os.strerror(code)}")
    return int(result)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
