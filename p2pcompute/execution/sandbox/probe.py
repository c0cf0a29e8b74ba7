"""What of the sandbox works on this machine, found by running something trivial in it; once for each interpreter of a process.

The level that a peer states follows from layers that were seen to hold, never from a version or a setting:

    sandbox      namespaces (bubblewrap) and the filter of system calls
    restricted   Landlock and the filter in an ordinary process; or namespaces without the filter
    process      limits alone

Refuses to know: pools, workers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2pcompute.execution.sandbox import bubblewrap, cgroups
from p2pcompute.execution.sandbox.enclosure import NOBODY, Enclosure
from p2pcompute.execution.sandbox.interpreter import Interpreter, ask
from p2pcompute.model.errors import ResourceError
from p2pcompute.model.peer import Isolation

#: A trial that takes longer has failed.
TRIAL_TIMEOUT_S = 30.0
_TRIAL = "import sys; from p2pcompute.execution.sandbox.trial import main; main(sys.argv[1:])"
_SCRATCH = ("/tmp/1", "/tmp/2")
_SCRATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `active`: it was seen to hold; `text`: what it is here, or why not and what to do about it."""

    name: str
    active: bool
    text: str


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What of the sandbox works for one interpreter. `enclosure`: what makes namespaces, None where nothing does."""

    level: Isolation
    layers: tuple[Layer, ...]
    interpreter: Interpreter | None = None
    enclosure: Enclosure | None = None
    seccomp: bool = False
    landlock: bool = False
    cgroups: cgroups.Cgroups | None = field(default=None, compare=False)

    def lacking(self, wanted: Isolation) -> str:
        """Why `wanted` is not reached, in words; empty where it is."""
        if self.level.rank >= wanted.rank:
            return ""
        reasons = "; ".join(f"{layer.name}: {layer.text}" for layer in self.layers if not layer.active)
        return f"this machine holds tasks at the level {self.level}, {wanted} is wanted ({reasons})"


#: Reports by what was asked; probing runs processes, and nothing that it finds changes while a peer runs.
_known: dict[tuple[object, ...], SandboxReport] = {}
_probing = threading.Lock()


def probe(python: str, environment: Mapping[str, str], private: Collection[Path]) -> SandboxReport:
    """The report for workers that `python` runs with `environment`. Blocks for a fifth of a second at first, then not at all.

    `private`: folders that no worker may see. Never raises for what the machine lacks.
    """
    path, wrapper = environment.get("PYTHONPATH", ""), bubblewrap.find()
    asked = (python, path, wrapper, tuple(sorted(map(str, private))))
    with _probing:
        if asked not in _known:
            _known[asked] = _probe(python, environment, private)
        return _known[asked]


def _probe(python: str, environment: Mapping[str, str], private: Collection[Path]) -> SandboxReport:
    if sys.platform != "linux":
        text = f"sandboxes need Linux, this is {sys.platform}"
        return SandboxReport(Isolation.PROCESS, (Layer("namespaces", False, text),))
    try:
        interpreter = ask(python, environment, private)
    except ResourceError as error:
        return SandboxReport(Isolation.PROCESS, (Layer("interpreter", False, str(error)),))
    program, why = _usable_bwrap()
    enclosure: Enclosure | None = None
    found: dict[str, str] = {}
    # As root, rather as nobody; with root's own number where nobody may not read the interpreter.
    for user in () if not program else (NOBODY, None) if os.geteuid() == 0 else (None,):
        enclosure = Enclosure(program, python, user)
        found, why = _try_enclosed(enclosure, interpreter, environment)
        if found:
            break
        enclosure = None
    if enclosure is None:
        with tempfile.TemporaryDirectory(prefix="p2pcompute-trial-") as folder:
            kept, lost = Path(folder, "1"), Path(folder, "2")
            kept.mkdir()
            lost.mkdir()
            words = [python, "-P", "-c", _TRIAL, str(kept), str(lost), "shared"]
            found, broken = _try(
                lambda: subprocess.Popen(
                    words,
                    env=dict(environment),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            if not found:
                found = {"landlock": broken, "seccomp": broken}
    limits = cgroups.find()
    layers = (
        Layer("namespaces", enclosure is not None, _whose(enclosure) if enclosure is not None else why),
        Layer("system calls", not found["seccomp"], found["seccomp"] or "filtered by seccomp"),
        Layer("landlock", not found["landlock"], found["landlock"] or "files, signals and TCP held by Landlock"),
        Layer("cgroup", limits.kind != "", limits.text),
        Layer(
            "limits",
            True,
            "memory, open files and priority of each process; its family's memory and threads are watched",
        ),
    )
    namespaces, filters, files = (layer.active for layer in layers[:3])
    if namespaces and filters:
        level = Isolation.SANDBOX
    elif namespaces or (filters and files):
        level = Isolation.RESTRICTED
    else:
        level = Isolation.PROCESS
    return SandboxReport(level, layers, interpreter, enclosure, filters, files, limits)


def _whose(enclosure: Enclosure) -> str:
    if enclosure.user is not None:
        return f"by {enclosure.program}, with nobody's rights"
    rights = "root's number without its capabilities" if os.geteuid() == 0 else "this user's number"
    return f"by {enclosure.program}, with {rights}"


def _usable_bwrap() -> tuple[str, str]:
    """(the program, or empty; why not)."""
    program = bubblewrap.find()
    if program is None:
        return "", "bubblewrap is not installed: install the package bubblewrap with the system's package manager"
    found = bubblewrap.version(program)
    if found < bubblewrap.VERSION_MIN:
        has, wants = (".".join(map(str, each)) or "unknown" for each in (found, bubblewrap.VERSION_MIN))
        return "", f"{program} is version {has}: install {wants} or newer"
    return program, ""


def _try_enclosed(
    enclosure: Enclosure, interpreter: Interpreter, environment: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    view = bubblewrap.View(interpreter, scratch=_SCRATCH, scratch_bytes=_SCRATCH_BYTES)
    command = [interpreter.python, "-P", "-c", _TRIAL, *_SCRATCH, "own"]

    try:
        enclosed = enclosure.start(view, command, (), environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        return {}, f"a trial could not be started: {error}"
    try:
        return _try(lambda: enclosed.process)
    finally:
        enclosed.close()


def _try(start: Callable[[], subprocess.Popen[bytes]]) -> tuple[dict[str, str], str]:
    """(what the trial found, or nothing; why it could not run)."""
    try:
        with start() as process:
            try:
                out, err = process.communicate(timeout=TRIAL_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return {}, f"a trial did not end within {TRIAL_TIMEOUT_S:g} s"
        found = json.loads(out) if process.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {}, f"a trial failed: {error}"
    if found is None:
        said = err.decode(errors="replace").strip().splitlines()
        return {}, _advice(said[-1] if said else f"a trial ended with status {process.returncode}")
    return {str(name): str(value) for name, value in found.items()}, ""


def _advice(said: str) -> str:
    if (
        "Operation not permitted" in said
        or "Permission denied" in said
        or "setting up uid map" in said
        or "namespace" in said
    ):
        return (
            f"user namespaces are refused ({said}): allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns), or, in a container, run it with rights to make them"
        )
    return f"a trial failed: {said}"
