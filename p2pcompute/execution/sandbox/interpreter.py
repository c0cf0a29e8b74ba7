"""What a Python interpreter needs to see of the disk: its own folders, the packages on its path, the product itself.

Asked of the interpreter itself, once, in the environment of a worker: virtual environments, links to other folders and paths of
path files are its business. Folders that hold the owner's own things (the home folder, the product's data, or anything above
them) are never on the list, even if a path variable names them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pcompute.model.errors import ResourceError

#: An interpreter that cannot be asked within this does not work.
ASK_TIMEOUT_S = 30.0
#: Links of one path that are followed.
_LINKS_MAX = 16
_QUESTION = """
import json, sys, sysconfig, importlib.util
spec = importlib.util.find_spec("p2pcompute")
json.dump({
    "prefixes": [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, sysconfig.get_paths()["stdlib"]],
    "executable": sys.executable, "path": sys.path, "package": list(spec.submodule_search_locations) if spec else [],
}, sys.stdout)
"""
#: What systems keep for all programs.
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
#: Read by the C library and by Python; nothing about people or secrets.
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
)
#: Read besides where the network is granted.
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/services", "/etc/protocols", "/etc/gai.conf", "/etc/ssl", "/etc/pki", "/etc/ca-certificates")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`paths`: files and folders that must be there for `python`, as they are called; each is read only."""

    python: str
    paths: tuple[str, ...]


def ask(python: str, environment: Mapping[str, str], private: Collection[Path]) -> Interpreter:
    """What `python` needs. Blocks for some tens of milliseconds. Raises ResourceError where it does not run.

    `private`: folders that must never be in sight, nor anything that holds them.
    """
    try:
        asked = subprocess.run(
            [python, "-P", "-c", _QUESTION],
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_TIMEOUT_S,
            check=True,
        )
        answer = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ResourceError(f"the interpreter {python} does not run: {error}; give another, or repair it") from error
    package = [str(each) for each in answer["package"]]
    roots = {os.path.realpath(os.path.dirname(each)) for each in package}
    wanted = [*map(str, answer["prefixes"]), *package]
    # The folder in which the product lies is on the path, too, and may be a whole checkout: the package alone is shown.
    wanted += [each for each in map(str, answer["path"]) if os.path.realpath(each) not in roots]
    wanted += [each for each in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep) if each]
    kept: list[str] = []
    for path in wanted:
        if not os.path.isabs(path) or not os.path.exists(path) or _holds(path, private):
            continue
        for form in (os.path.normpath(path), os.path.realpath(path)):
            if not _beneath(form, (*SYSTEM_FOLDERS, *kept)):
                kept.append(form)
    for hop in (*_links(python), *_links(str(answer["executable"]))):
        if not _beneath(hop, (*SYSTEM_FOLDERS, *kept)):
            kept.append(hop)
    return Interpreter(python, tuple(sorted(kept)))


def _holds(path: str, private: Collection[Path]) -> bool:
    real = Path(os.path.realpath(path))
    return any(real == each or real in each.parents for each in map(Path, map(os.path.realpath, private)))


def _beneath(path: str, folders: Collection[str]) -> bool:
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in folders)


def _links(path: str) -> list[str]:
    """A path and all that it leads to, link by link."""
    found = []
    for _ in range(_LINKS_MAX):
        found.append(os.path.normpath(path))
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return found
