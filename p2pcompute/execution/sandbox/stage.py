"""Steps down from root before bubblewrap starts: in a mount namespace of its own, show what a sandbox is to show, then become nobody.

A sandbox that root starts would belong to root's number, which owns the machine's files even without a capability. Nobody cannot walk into
folders such as root's home, where an interpreter may well lie: so everything that bubblewrap is to bind is first bound beneath one
folder that anybody may enter. The mount namespace takes all of that along when it ends.

Run as a script by a bare interpreter, which takes a few milliseconds; it imports nothing of the product. Arguments: number of user and group;
descriptor of bubblewrap's arguments; the program; the command.
"""

import ctypes
import os
import sys

STAGE = "/mnt"
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_BINDS = frozenset({b"--bind", b"--ro-bind", b"--ro-bind-try", b"--dev-bind"})
_PARTS_MAX = 1 << 20


def main(arguments: list[str]) -> None:
    """Entry; ends by becoming bubblewrap."""
    user, source, program, *command = arguments
    words = _read(int(source)).split(b"\0")[:-1]
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.unshare(_CLONE_NEWNS), "a mount namespace")
    _must(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "private mounts")
    # Opened before the stage is set up: it hides what lies beneath it.
    found = {word: os.open(word, os.O_PATH) for word in _sources(words) if os.path.exists(word)}
    _must(libc.mount(b"tmpfs", STAGE.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=755,size=1m"), STAGE)
    staged: dict[bytes, bytes] = {}
    for number, (word, descriptor) in enumerate(found.items()):
        place = f"{STAGE}/{number}".encode()
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        _must(
            libc.mount(f"/proc/self/fd/{descriptor}".encode(), place, None, _MS_BIND | _MS_REC, None), os.fsdecode(word)
        )
        os.close(descriptor)
        staged[word] = place
    for at, word in enumerate(words[:-2]):
        if word in _BINDS:
            words[at + 1] = staged.get(words[at + 1], words[at + 1])
    target = os.memfd_create("sandbox", 0)
    os.write(target, b"".join(word + b"\0" for word in words))
    os.lseek(target, 0, os.SEEK_SET)
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
    os.execv(program, [program, "--args", str(target), "--", *command])


def _sources(words: list[bytes]) -> list[bytes]:
    return [words[at + 1] for at, word in enumerate(words[:-2]) if word in _BINDS]


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read(_PARTS_MAX)


def _must(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise SystemExit(f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    main(sys.argv[1:])
