"""The WebAssembly Python, made and compiled once per user and machine: `python -m p2pcompute.execution.engines.wasm_python_build FOLDER`.

`componentize-py` puts CPython, the modules of `wasm_python_modules.py` and our loader into a component, a picture of memory taken after everything was
imported; `wasmtime` compiles that for this machine. Both are kept in one folder under digests of all that they were made from, moved into place
when whole, and nobody but their owner may write there: a worker runs what it finds. One process makes them, others wait. Refuses to know: who
asks, and when.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import p2pcompute
from p2pcompute.model.errors import ResourceError, UsageError

if sys.platform != "win32":
    import fcntl

BUILDER = "componentize-py"
GUEST = "p2pcompute.execution.engines.wasm_python_guest"
WIT = """package p2pcompute:guest;

world program {
  /// (status, text) for the data behind a handle: see FETCHED, MISSING and NO_MEMORY of the guest.
  import fetch: func(blob: string, size-bytes: u64) -> tuple<u32, string>;
  import progress: func(fraction: f64, message: string);
  /// The reason, module and text of a program that does not load, or three empty texts.
  export load: func(program: string, kept-bytes-max: u64) -> tuple<string, string, string>;
  /// The outcome and payload of one call.
  export run: func(entry: u32, arguments: string) -> tuple<u32, string>;
}
"""
_APP = f"""import importlib
import wit_world
from {GUEST} import Guest
from p2pcompute.execution.engines.wasm_python_modules import MODULES

# Only what is imported before the picture of memory is taken exists in it.
for name in (*MODULES, *OWN):
    importlib.import_module(name)
_guest = Guest(wit_world.fetch, wit_world.progress)


class WitWorld(wit_world.WitWorld):
    def load(self, program, kept_bytes_max):
        return _guest.load(program, kept_bytes_max)

    def run(self, entry, arguments):
        return _guest.run(entry, arguments)
"""
_OWN = """
execution execution.engines execution.engines.document execution.engines.wasm_python_guest
execution.engines.wasm_python_modules execution.imports execution.loader execution.memory_modules execution.pickles
execution.program execution.source execution.task execution.values execution.worker_handles execution.worker_program
model model.capability model.engine model.errors model.ids model.job model.limits model.peer model.placement
model.requirement wire wire.codec wire.versions
"""
#: Our own modules that the guest imports, however deep, now or later.
OWN: tuple[str, ...] = ("p2pcompute", *(f"p2pcompute.{name}" for name in _OWN.split()))
#: What runs in the guest beside them: the packer's form in plain Python.
_PACKER_FILES = ("__init__.py", "exceptions.py", "ext.py", "fallback.py")
_LOCK = "wasm-python.lock"
#: Where a peer tells its workers which compiled form to run.
COMPILED_VARIABLE = "P2PCOMPUTE_WASM_PYTHON_COMPILED"
#: Changes with `wasm_runtime.make_engine`: compiled forms of another configuration cannot be used.
CONFIGURATION = 2

Progress = Callable[[str], None]


def own_modules() -> dict[str, Path]:
    """Files of our own modules that the guest has, by name."""
    root = Path(p2pcompute.__file__).resolve().parent
    found: dict[str, Path] = {}
    for name in OWN:
        place = root.joinpath(*name.split(".")[1:])
        found[name] = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return found


def _staged() -> dict[str, bytes]:
    """Everything that the component is made from, by path."""
    import msgpack

    packer = Path(msgpack.__file__).parent
    files = {f"app/msgpack/{name}": (packer / name).read_bytes() for name in _PACKER_FILES}
    for name, path in own_modules().items():
        parts = name.split(".")
        target = "/".join([*parts, "__init__.py"]) if path.name == "__init__.py" else "/".join(parts) + ".py"
        files[f"app/{target}"] = path.read_bytes()
    app = f"OWN = {OWN}\n{_APP}"
    return files | {"app/p2pcompute_guest.py": app.encode(), "program.wit": WIT.encode()}


def component_name() -> str:
    """The file name of the component that this version of the product makes with the builder that is installed. Raises UsageError."""
    digest = hashlib.sha256(builder_version().encode())
    for path, content in sorted(_staged().items()):
        digest.update(f"\0{path}\0{len(content)}\0".encode() + content)
    return f"wasm-python-{digest.hexdigest()[:24]}.wasm"


def builder_version() -> str:
    """Raises UsageError where it is not installed."""
    try:
        return importlib.metadata.version(BUILDER)
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(
            f"the WebAssembly Python is made with {BUILDER}, which is not installed here: pip install 'p2pcompute[wasm]', or name "
            "one that was made elsewhere (wasm_python)"
        ) from error


def build(folder: Path, target: Path) -> None:
    """Make the component as `target`, working beneath `folder`. Raises ResourceError with what the builder said."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as name:
        work = Path(name)
        for path, content in _staged().items():
            file = work / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        # The builder takes the packages of whatever environment it finds: give it an empty one.
        empty = work / "empty"
        (empty / "lib" / "python3" / "site-packages").mkdir(parents=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= {"VIRTUAL_ENV": str(empty), "PATH": os.defpath, "RUST_BACKTRACE": "0"}
        command = [
            sys.executable, "-c", "import sys, componentize_py; sys.exit(componentize_py.script())",
            "-d", str(work / "program.wit"), "-w", "program",
            "componentize", "-p", str(work / "app"), "p2pcompute_guest", "-o", str(work / "made.wasm"),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not (work / "made.wasm").is_file():
            said = (done.stderr or done.stdout).strip()[:2000]
            raise ResourceError(f"the WebAssembly Python could not be made ({BUILDER} {builder_version()}): {said}")
        _move_into_place(work / "made.wasm", target)


def compile_component(component: Path, target: Path) -> None:
    """Compile the component for this machine. Raises ResourceError where it is no such component."""
    import wasmtime
    from wasmtime.component import Component

    from p2pcompute.execution.engines import wasm_runtime

    try:
        made = Component.from_file(wasm_runtime.make_engine(parallel=True), component)
        data = bytes(made.serialize())
    except (wasmtime.WasmtimeError, OSError) as error:
        raise ResourceError(f"{component} cannot be compiled: {error}") from error
    descriptor, name = tempfile.mkstemp(prefix="compiled-", dir=target.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    _move_into_place(Path(name), target)


def place_of(folder: Path, component: Path | None = None) -> Path:
    """Where in `folder` the compiled form is, once it is made. Raises UsageError where it cannot be made here, with what is missing.

    `component`: one that was made elsewhere, by the same version of the product.
    """
    try:
        engine = importlib.metadata.version("wasmtime")
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(
            "WebAssembly is run by wasmtime, which is not installed here: pip install 'p2pcompute[wasm]'"
        ) from error
    if component is None:
        source = component_name()
    else:
        try:
            source = hashlib.sha256(component.read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"the WebAssembly Python cannot be read at {component}: {error.strerror}") from error
    kind = f"{source}|{engine}|{platform.machine()}|{platform.system()}|{CONFIGURATION}"
    return folder / f"wasm-python-{hashlib.sha256(kind.encode()).hexdigest()[:24]}.cwasm"


def make_folder(folder: Path) -> None:
    """Make the folder; workers in sandboxes may look into it, nobody else may write to it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)


def is_there(compiled: Path) -> bool:
    """Whether the compiled form is there, and nobody else could have written it."""
    try:
        status = compiled.stat()
    except OSError:
        return False
    return os.name != "posix" or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def can_be_run(compiled: Path) -> bool:
    """Whether it is there and this machine's processor and engine take it."""
    import wasmtime
    from wasmtime.component import Component

    from p2pcompute.execution.engines import wasm_runtime

    if not is_there(compiled):
        return False
    try:
        Component.deserialize_file(wasm_runtime.make_engine(), str(compiled))
    except (OSError, wasmtime.WasmtimeError):
        return False
    return True


def prepare(folder: Path, component: Path | None = None, progress: Progress = lambda text: None) -> Path:
    """The compiled form in `folder`, made if it is not there; a minute, once. Raises UsageError, ResourceError.

    `progress`: gets a few sentences.
    """
    compiled = place_of(folder, component)
    make_folder(folder)
    with _locked(folder / _LOCK, progress):
        if can_be_run(compiled):
            return compiled
        source = component
        if source is None:
            source = folder / component_name()
            if not is_there(source):
                progress(
                    f"making the WebAssembly Python with {BUILDER} {builder_version()}; this takes half a minute, once"
                )
                build(folder, source)
        progress("compiling the WebAssembly Python for this machine; this takes half a minute, once")
        compile_component(source, compiled)
        _remove_others(folder, keep={source.name, compiled.name})
    return compiled


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Forms of earlier versions. One that a worker has open stays with it until it ends."""
    for path in folder.glob("wasm-python-*.*wasm"):
        if path.name not in keep:
            with contextlib.suppress(OSError):
                path.unlink()


def _move_into_place(made: Path, target: Path) -> None:
    # Workers in sandboxes read it as nobody in particular.
    made.chmod(0o644)
    shutil.move(made, target)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("another process is making it; waiting for that")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> int:
    """FOLDER [COMPONENT]: prepare; the last line printed is the path of the compiled form."""
    try:
        component = Path(arguments[1]) if len(arguments) > 1 else None
        made = prepare(Path(arguments[0]).absolute(), component, lambda text: _say(text))
    except (UsageError, ResourceError) as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    _say(str(made))
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
