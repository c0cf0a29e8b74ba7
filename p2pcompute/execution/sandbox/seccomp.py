"""Which system calls a worker may not make, as a filter of the kernel's for this process and all that come from it.

Refused with EPERM, so that code sees an ordinary error; calls with another way around them get ENOSYS, and libraries take that way.
What is not named is allowed: numeric libraries make calls of many kinds, and what can reach beyond the process is known and finite.

`clone3` is refused as unknown, because a filter cannot look at arguments behind a pointer; the C library then uses `clone`, whose
flags tell a thread from a process. A worker may signal itself alone. Memory that no limit counts (memfd, System V segments) is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

_CLONE_THREAD = 0x00010000
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME.
_NAMESPACE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00000080)
_SOCKET_TYPE_MASK = 0xF
_WORD = 0xFFFFFFFF
_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15

#: Stands for the number of the process: no process has one so high.
_NO_PID = 0x7A5EC0DE
#: struct sock_filter: code, jump if true, jump if false, value.
_INSTRUCTION = struct.Struct("=HBBI")
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_BINARY_TREE = 2

#: Never allowed, whatever is granted: looking into others, changing the machine, wide doors into the kernel.
DENIED = (
    # other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "pidfd_getfd", "kcmp",
    "move_pages", "migrate_pages",
    # file systems and namespaces
    "mount", "umount", "umount2", "pivot_root", "chroot", "unshare", "setns", "swapon", "swapoff", "quotactl", "quotactl_fd",
    "open_by_handle_at", "name_to_handle_at", "fanotify_init", "mknod", "mknodat",
    # keys
    "keyctl", "add_key", "request_key",
    # the kernel and the machine
    "bpf", "perf_event_open", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "syslog",
    "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "stime", "acct", "sethostname", "setdomainname", "iopl", "ioperm",
    "vhangup", "nfsservctl", "lookup_dcookie", "modify_ldt", "vm86", "vm86old", "uselib", "_sysctl", "sysfs",
    # objects that outlive the worker
    "shmget", "shmat", "msgget", "msgsnd", "semget", "semop", "semtimedop", "mq_open", "mq_unlink",
)  # fmt: skip
#: Refused as unknown: there is another way, or nobody misses them.
UNKNOWN = (
    "clone3", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_secret",
    "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr",
)  # fmt: skip
#: The same, newer than the library may know their names; one number on every architecture. statmount, listmount, open_tree_attr.
UNKNOWN_NUMBERS = (457, 458, 467)
#: Changes to files that Landlock does not look at: on files of this user that a worker may only read, or not even that.
FILE_RIGHTS = (
    "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "utimensat", "futimesat",
    "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "truncate", "inotify_add_watch",
)  # fmt: skip
#: The same, newer than the library may know their names: fchmodat2, setxattrat, removexattrat, file_setattr.
FILE_RIGHTS_NUMBERS = (452, 463, 466, 469)
#: What makes or joins connections.
NETWORK = ("connect", "bind", "listen", "accept", "accept4")
#: What starts or becomes another program.
PROCESSES = ("fork", "vfork", "execve", "execveat", "pidfd_send_signal", "tkill")


@dataclass(frozen=True, slots=True)
class FilterRules:
    """What a filter leaves open. `own_processes`: the worker sees no processes but its own (a pid namespace);
    `own_files`: whatever it could change the rights of is its own.
    """

    processes: bool = False
    network: bool = False
    gpu: bool = False
    own_processes: bool = False
    own_files: bool = False


def missing() -> str:
    """Why there can be no filter here, in words; empty where there can."""
    if sys.platform != "linux":
        return "system call filters are of Linux only"
    try:
        import pyseccomp
    except ImportError as error:
        return f"the package pyseccomp is not installed: pip install pyseccomp ({error})"
    except (OSError, RuntimeError) as error:
        return f"the library libseccomp is missing: install libseccomp2 (Debian) or libseccomp (Fedora, Arch) ({error})"
    return "" if pyseccomp.get_api() >= 1 else "this kernel has no system call filters"


def restrict(rules: FilterRules) -> None:
    """Filter the system calls of this thread and all that it starts; there is no way back. Raises OSError."""
    program = for_process(compiled(rules), os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: count of instructions, and where they are
    description = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, description, 0, 0) != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"the filter of system calls was refused: {os.strerror(number)}")


@functools.cache
def compiled(rules: FilterRules) -> bytes:
    """The program of a filter, for a process of no number yet; making it takes ten milliseconds, so templates make it before they fork."""
    with open(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as file:
        build(rules, _NO_PID).export_bpf(file)
        file.seek(0)
        return file.read()


def for_process(program: bytes, pid: int) -> bytes:
    """`program` with the number of the process that it is to be loaded into."""
    made = bytearray(program)
    for at in range(0, len(made), _INSTRUCTION.size):
        code, if_true, if_false, value = _INSTRUCTION.unpack_from(made, at)
        if value == _NO_PID:
            _INSTRUCTION.pack_into(made, at, code, if_true, if_false, pid)
    return bytes(made)


def build(rules: FilterRules, pid: int) -> Any:
    """The filter of a process `pid`, not loaded."""
    import pyseccomp as seccomp

    made = seccomp.SyscallFilter(seccomp.ALLOW)
    # A call by the door of another architecture: else its thread alone dies, and the worker hangs.
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    with contextlib.suppress(OSError, ValueError):  # libseccomp before 2.5 has it not
        made.set_attr(seccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    refuse, unknown = seccomp.ERRNO(errno.EPERM), seccomp.ERRNO(errno.ENOSYS)

    def deny(action: int, name: str | int, *conditions: Any) -> None:
        if isinstance(name, str):
            try:
                seccomp.resolve_syscall(seccomp.system_arch(), name)
            except (OSError, ValueError):
                return  # the library is older than the call, or this architecture never had it
        made.add_rule(action, name, *conditions)

    def argument(place: int, value: int, mask: int = _WORD) -> Any:
        return seccomp.Arg(place, seccomp.MASKED_EQ, mask, value)

    def other_than(place: int, value: int) -> Any:
        return seccomp.Arg(place, seccomp.NE, value)

    for name in DENIED:
        deny(refuse, name)
    for each in (*UNKNOWN, *UNKNOWN_NUMBERS):
        deny(unknown, each)
    if not rules.gpu:
        deny(unknown, "memfd_create")
    for flag in _NAMESPACE_FLAGS:
        deny(refuse, "clone", argument(0, flag, flag))
    for request in (_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP):
        deny(refuse, "ioctl", argument(1, request))
    for command in (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX):
        deny(refuse, "fcntl", argument(1, command))
    deny(refuse, "personality", seccomp.Arg(0, seccomp.NE, _WORD))
    _rule_sockets(rules, deny, refuse, seccomp)
    if not rules.processes:
        for name in PROCESSES:
            deny(refuse, name)
        deny(refuse, "clone", argument(0, 0, _CLONE_THREAD))
        for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
            deny(refuse, name, other_than(0, pid))
    if not rules.own_files:
        for each in (*FILE_RIGHTS, *FILE_RIGHTS_NUMBERS):
            deny(refuse, each)
    if not rules.own_processes:
        # A number of a process that is not the worker's: limits, priority and cores of everything of this user.
        for name in ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"):
            deny(refuse, name, other_than(0, 0))
        for name in ("setpriority", "ioprio_set"):
            deny(refuse, name, other_than(1, 0))
        deny(refuse, "setpriority", other_than(0, 0))
        deny(refuse, "ioprio_set", other_than(0, 1))
    return made


def _rule_sockets(rules: FilterRules, deny: Any, refuse: int, seccomp: Any) -> None:
    # A pair of stream sockets is a pipe with two ends, which event loops need; of datagrams, it could send to any socket with a path.
    deny(refuse, "socketpair", seccomp.Arg(0, seccomp.NE, socket.AF_UNIX))
    for kind in range(_SOCKET_TYPE_MASK + 1):
        if kind != socket.SOCK_STREAM:
            deny(refuse, "socketpair", seccomp.Arg(1, seccomp.MASKED_EQ, _SOCKET_TYPE_MASK, kind))
    if not rules.network:
        deny(refuse, "socket")
        for name in NETWORK:
            deny(refuse, name)
        return
    allowed = sorted((socket.AF_INET, socket.AF_INET6))
    deny(refuse, "socket", seccomp.Arg(0, seccomp.LT, allowed[0]))
    deny(refuse, "socket", seccomp.Arg(0, seccomp.GT, allowed[-1]))
    for family in range(allowed[0] + 1, allowed[-1]):
        deny(refuse, "socket", seccomp.Arg(0, seccomp.EQ, family))
    for kind in range(_SOCKET_TYPE_MASK + 1):
        if kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            deny(refuse, "socket", seccomp.Arg(1, seccomp.MASKED_EQ, _SOCKET_TYPE_MASK, kind))
