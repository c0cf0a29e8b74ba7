"""Giving up what makes root more than a number: every capability of this process, and the way to get one back by running a program."""

from __future__ import annotations

import ctypes
import os
import struct

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 23, 24, 28, 38
#: No capabilities for root's number, and none kept over a change of it; both for good.
_SECURE_BITS = 0x01 | 0x02 | 0x04 | 0x08
_VERSION = 0x20080522
_COUNT_MAX = 64


def drop() -> None:
    """Drop all capabilities of this thread and all that it starts. Raises OSError where some are left."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_COUNT_MAX):
        if libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # refused where there is nothing to give up
    libc.prctl(_PR_SET_SECUREBITS, _SECURE_BITS, 0, 0, 0)
    header, nothing = struct.pack("=Ii", _VERSION, 0), bytes(24)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or libc.capset(header, nothing) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capabilities cannot be dropped: {os.strerror(code)}")
