"""What hostile tasks try from within a worker; every function here is shipped as an entry of a program and runs there.

Each takes what it is to reach (`targets`, made by `escape_driver.py`) and gives what it reached in words, empty where it was refused. Only
standard modules, nothing of the product: this is the source of a program.
"""

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading


def _libc():
    return ctypes.CDLL(None, use_errno=True)


def _reached(what, attempt):
    """`what` if the attempt goes through, nothing if it is refused."""
    try:
        result = attempt()
    except (OSError, RuntimeError):
        return ""
    return "" if result is False else what


def _read(path):
    with open(path, "rb") as file:
        return file.read(4096)


def _write(path):
    with open(path, "ab") as file:
        file.write(b"x")


# --- files ------------------------------------------------------------------------------------------------------------


def read_secrets(targets):
    paths = [targets["secret"], targets["key"], "/etc/shadow", "/etc/passwd", "/etc/hostname"]
    return [path for path in paths if _reached(path, lambda path=path: _read(path))]


def list_folders(targets):
    paths = [targets["home"], "/", "/tmp", "/root", "/home", "/var", "/run"]
    hostile = []
    for path in paths:
        names = _reached("x", lambda path=path: os.listdir(path)) and os.listdir(path)
        if names and any(name in targets["markers"] for name in names):
            hostile.append(path)
    return hostile


def write_outside(targets):
    paths = [targets["writable"] + "/written", targets["writable"] + "/file", targets["secret"]]
    return [path for path in paths if _reached(path, lambda path=path: _write(path))]


def write_shared_memory(targets):
    """It may be the sandbox's own; whether the machine sees it the driver says."""
    return _reached("written", lambda: _write("/dev/shm/" + targets["shared"]))


def change_rights(targets):
    done = []
    for path in (targets["secret"], targets["home"], "/dev/null"):
        mode = {"/dev/null": 0o666}.get(path, 0o700)
        if _reached(path, lambda path=path, mode=mode: os.chmod(path, mode)):
            done.append(path)
        if path != "/dev/null" and _reached(path, lambda path=path: os.utime(path, (1, 1))):
            done.append(path + " (times)")
    return done


def write_kernel_settings(targets):
    def attempt():
        with open("/proc/sys/kernel/printk", "r+") as file:
            value = file.read()
            file.seek(0)
            file.write(value)

    return _reached("kernel settings", attempt)


def through_proc(targets):
    """Links in /proc that lead past a view."""
    done = []
    for number in ("self", "1", str(os.getppid()), str(targets["victim"])):
        for link in ("root", "cwd"):
            path = f"/proc/{number}/{link}{targets['secret']}"
            if _reached(path, lambda path=path: _read(path)):
                done.append(path)
    return done


def write_interpreter(targets):
    """Without changing it: opened for writing and closed. A program that runs cannot be, its libraries can."""
    paths = [os.__file__, socket.__file__, "/proc/self/exe"]
    return [path for path in paths if _reached(path, lambda path=path: os.close(os.open(path, os.O_WRONLY)))]


def open_devices(targets):
    paths = [os.path.join("/dev", name) for name in ("mem", "kmsg", "vda", "sda", "nvme0n1", "fuse", "loop0", "ptmx")]
    return [path for path in paths if _reached(path, lambda path=path: os.close(os.open(path, os.O_RDONLY)))]


def remount(targets):
    libc = _libc()
    remount_bind = 32 | 4096
    paths = (b"/", b"/usr", b"/proc", b"/tmp")
    done = [path.decode() for path in paths if libc.mount(None, path, None, remount_bind, None) == 0]
    if libc.unshare(0x00020000) == 0:
        done.append("a mount namespace")
    return done


def user_namespace(targets):
    # EINVAL, to a process with threads, says that the call was let through.
    libc = _libc()
    return "let through" if libc.unshare(0x10000000) == 0 or ctypes.get_errno() != 1 else ""


# --- processes --------------------------------------------------------------------------------------------------------


def trace(targets):
    libc = _libc()
    attach, detach = 16, 17
    done = []
    for pid in (targets["victim"], os.getppid()):
        if libc.ptrace(attach, pid, None, None) == 0:
            os.waitpid(pid, 0)
            libc.ptrace(detach, pid, None, None)
            done.append("ptrace")
            break
    return done


def read_memory(targets):
    libc = _libc()
    buffer = ctypes.create_string_buffer(8)
    own = ctypes.create_string_buffer(8)
    vector = struct.pack("@PN", ctypes.addressof(buffer), 8)
    # An address that every process has mapped is not known: EFAULT says that the call was let through.
    there = struct.pack("@PN", ctypes.addressof(own), 8)
    if libc.process_vm_readv(targets["victim"], vector, 1, there, 1, 0) >= 0 or ctypes.get_errno() == 14:
        return "process_vm_readv"
    return _reached("mem", lambda: _read(f"/proc/{targets['victim']}/maps"))


def read_environments(targets):
    """The environment of any process that has the marker in it."""
    found = []
    numbers = {str(targets["victim"]), str(os.getppid()), "1"}
    try:
        numbers |= {name for name in os.listdir("/proc") if name.isdecimal()}
    except OSError:
        pass
    for number in sorted(numbers):
        try:
            if targets["marker"].encode() in _read_whole(f"/proc/{number}/environ"):
                found.append(number)
        except OSError:
            continue
    if any(targets["marker"] in value for value in os.environ.values()):
        found.append("own")
    return found


def _read_whole(path):
    with open(path, "rb") as file:
        return file.read()


def see_processes(targets):
    try:
        names = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return ""
    return str(len(names)) if str(targets["victim"]) in names and _is_victim(targets) else ""


def _is_victim(targets):
    try:
        return targets["marker"].encode() in _read_whole(f"/proc/{targets['victim']}/cmdline")
    except OSError:
        return False


def send_signals(targets):
    done = []
    for name, pid in (("victim", targets["victim"]), ("other worker", targets["other"]), ("peer", targets["peer"])):
        if pid and _reached(name, lambda pid=pid: os.kill(pid, 0)):
            done.append(name)
    if _reached("template", lambda: os.kill(os.getppid(), 0)):
        done.append("template")
    return done


def send_signal_by_pipe(targets):
    """Have the kernel signal another when a pipe can be read."""
    read_end, write_end = os.pipe()
    try:
        fcntl.fcntl(read_end, fcntl.F_SETOWN, targets["victim"])
        fcntl.fcntl(read_end, 10, signal.SIGTERM)
        fcntl.fcntl(read_end, fcntl.F_SETFL, os.O_ASYNC)
        os.write(write_end, b"x")
    except OSError:
        return ""
    finally:
        os.close(read_end)
        os.close(write_end)
    return "accepted"


def change_others(targets):
    done = []
    victim = targets["victim"]
    if _reached(
        "limits", lambda: resource.prlimit(victim, resource.RLIMIT_CORE, resource.prlimit(victim, resource.RLIMIT_CORE))
    ):
        done.append("limits")
    if _reached("priority", lambda: os.setpriority(os.PRIO_PROCESS, victim, 5)):
        done.append("priority")
    if _reached("cores", lambda: os.sched_setaffinity(victim, os.sched_getaffinity(0))):
        done.append("cores")
    return done


def start_processes(targets):
    done = []

    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def spawn():
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    for name, attempt in (
        ("fork", fork),
        ("subprocess", lambda: subprocess.run(["true"], check=True)),
        ("posix_spawn", spawn),
    ):
        if _reached(name, attempt):
            done.append(name)
    return done


def threads_work(targets):
    """Not an attack: what must go on working."""
    seen = []
    threads = [threading.Thread(target=seen.append, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(seen)


def event_loops_work(targets):
    """Not an attack: what must go on working."""
    import asyncio

    async def wait():
        await asyncio.sleep(0)
        return "ran"

    return asyncio.run(wait())


# --- the network ------------------------------------------------------------------------------------------------------


def open_sockets(targets):
    done = []
    for family in range(1, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
            except (OSError, OverflowError):
                continue
            done.append(f"{family}/{int(kind)}")
    return done


def pair_of_datagram_sockets(targets):
    """One that could be turned to any socket with a path."""

    def attempt():
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.sendto(b"x", targets["datagram"])
        near.close()
        far.close()

    return _reached("sent", attempt)


def connect(targets):
    done = []
    tries = (
        (socket.AF_INET, ("127.0.0.1", targets["port"])),
        (socket.AF_UNIX, targets["socket"]),
        (socket.AF_UNIX, "\0" + targets["abstract"]),
    )
    for family, address in tries:

        def attempt(family=family, address=address):
            with socket.socket(family, socket.SOCK_STREAM) as stream:
                stream.connect(address)

        if _reached("x", attempt):
            done.append(str(address).replace("\0", "@"))
    return done


# --- the kernel -------------------------------------------------------------------------------------------------------

#: By number on x86_64 and on everything newer than that: calls with arguments that mean nothing.
CALLS = {
    "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "io_uring_setup": (425, 425), "setns": (308, 268), "open_by_handle_at": (304, 265), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429),
    "mount_setattr": (442, 442), "pivot_root": (155, 41), "chroot": (161, 51), "swapon": (167, 224), "mknodat": (259, 33),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279),
    "statmount": (457, 457), "clone3": (435, 435),
}  # fmt: skip


def call_kernel(targets):
    """The calls that were let through: whatever they said, it was not a refusal."""
    column = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)
    if column is None:
        return []
    libc = _libc()
    done = []
    for name, numbers in CALLS.items():
        ctypes.set_errno(0)
        result = libc.syscall(numbers[column], -1, 0, 0, 0, 0, 0)
        if result >= 0 or ctypes.get_errno() not in (1, 38):
            done.append(name)
    return done


def other_architecture(targets):
    """A call by the door for 32 bit programs, past a filter that knows one door: getpid through int 0x80."""
    if os.uname().machine != "x86_64":
        return ""
    # mov eax, 20; int 0x80; ret
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return "answered" if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == os.getpid() else ""


# --- hogs -------------------------------------------------------------------------------------------------------------


def fill_disk(targets):
    """How many MiB of the scratch folder can be filled, up to twice its size."""
    written = 0
    try:
        for number in range(64):
            with open(os.path.join(os.environ["TMPDIR"], f"hog-{number}"), "wb") as file:
                file.write(bytes(1 << 20))
            written += 1
    except OSError:
        pass
    return written


def open_files(targets):
    opened = []
    try:
        while len(opened) < 5000:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for each in opened:
        os.close(each)
    return len(opened)


def bomb(targets):
    """How many processes could be started that stay."""
    count = 0
    try:
        while count < 2000:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            count += 1
    except OSError:
        pass
    return count


# --- other submitters -------------------------------------------------------------------------------------------------


def leave_traces(targets):
    """Patch everything that a later task would meet here, and leave a file where one might be looked for."""
    import builtins
    import json

    builtins.len = lambda *_: 4711
    json.dumps = lambda *_: "cheated"
    for name, module in list(sys.modules.items()):
        if name.startswith("p2pcompute"):
            for attribute in ("encode", "decode", "pack"):
                if callable(getattr(module, attribute, None)):
                    setattr(module, attribute, lambda *_, **__: b"\xa7cheated")
    for folder in ("/tmp", os.environ["TMPDIR"], "/dev/shm", os.getcwd()):
        _reached("x", lambda folder=folder: _write(os.path.join(folder, targets["trace"])))
    return "done"


def honest(targets):
    """What the next submitter's task does; and which traces it finds."""
    import json

    names = [
        folder for folder in ("/tmp", os.environ["TMPDIR"], "/dev/shm", os.getcwd())
        if os.path.exists(os.path.join(folder, targets["trace"]))
    ]  # fmt: skip
    return [len("abc"), json.dumps({"a": 1}), names]


def read_other_worker(targets):
    done = []
    for path in (
        targets["other_folder"] + "/mine",
        f"/proc/{targets['other']}/cwd/mine",
        f"/proc/{targets['other']}/environ",
    ):
        try:
            data = _read_whole(path)
        except OSError:
            continue
        if targets["marker"].encode() in data:
            done.append(path)
    return done


def keep(targets):
    """What the other submitter's task does: it has something to hide."""
    with open("mine", "w") as file:
        file.write(targets["marker"])
    os.environ["MINE"] = targets["marker"]
    return [os.getpid(), os.getcwd()]
