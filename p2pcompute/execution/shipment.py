"""What a program carries: sources of local modules, files of their packages, and the names of installed packages.

Shipping a module ships what it imports. The script is shipped under another name, so that its main guard stays shut; a notebook's cells become a
script of their own. Refuses to know: functions, recipes and globals.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from p2pcompute.execution import imports
from p2pcompute.execution.cells import CellScript, has_cells
from p2pcompute.execution.program import MAIN_MODULE, Module, Requirement
from p2pcompute.execution.source import module_source
from p2pcompute.execution.values import classes_in
from p2pcompute.model.errors import CannotShipError

#: Files beside the sources of a package that travel with it, in all. They do where a shipped source says one of the words.
PACKAGE_FILES_BYTES_MAX = 8 << 20
_FILE_WORDS = (b"resources", b"pkgutil", b"__file__", b"__path__")
_NOT_DATA = frozenset({".py", ".pyc", ".pyo", ".pyi", ".so", ".pyd"})


class Shipment:
    """The modules of one program, growing."""

    def __init__(self) -> None:
        #: Shipped modules by the name that they have there.
        self.modules: dict[str, Module] = {}
        #: Their sources as trees.
        self.trees: dict[str, ast.Module] = {}
        #: Folders of shipped packages, by name.
        self.folders: dict[str, Path] = {}
        #: Installed packages by the name of their top module.
        self.requires: dict[str, Requirement] = {}
        #: What the script is called there; empty: none is shipped.
        self.main = ""
        #: Name on the wire to name here, for classes.
        self.here: dict[str, str] = {}
        #: The script of a notebook, where `__main__` has no file.
        self.cells: CellScript | None = None

    def there(self, module: str) -> str:
        """The name of a module in the worker."""
        if module != "__main__":
            return module
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        return spec.name if spec is not None and spec.name and spec.name != "__main__" else MAIN_MODULE

    def is_local(self, module: str) -> bool:
        """Whether the module is the user's own."""
        return module == "__main__" or module not in sys.modules or imports.find(module).local

    def ship(self, module: str) -> bool:
        """Ship `module` and what it imports if it is local; whether it is among the shipped ones now."""
        there = self.there(module)
        if there in self.modules:
            return True
        if module == "__main__":
            file = getattr(sys.modules["__main__"], "__file__", None)
            if file is None or not Path(file).is_file():
                return self._ship_cells()
            found = imports.Found(there, file, False, True, True)
            self.main = there
        else:
            found = imports.find(module)
        if not found.local:
            self.require(found)
            return False
        self.here["__main__" if module == "__main__" else there] = module
        if module == "__main__":
            self.here.setdefault(there, module)  # what a worker's pickles call it
        if found.file is None:
            return False  # a namespace package: a folder and nothing more
        source = module_source(module, found.file)
        self.modules[there] = Module(there, found.is_package, source.encode(), found.file)
        if found.is_package:
            self.folders[there] = Path(found.file).parent
        parents = there.rpartition(".")[0]
        if parents:
            self.ship(parents)
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise CannotShipError(f"{found.file} is no valid Python (any more): {error}") from error
        self.trees[there] = tree
        for imported in imports.imports_of(tree, there, found.is_package):
            self.import_(imported, runs=not imported.inside)
        return True

    def _ship_cells(self) -> bool:
        if not has_cells():
            return False
        self.cells = CellScript()
        self.main = MAIN_MODULE
        self.here |= {"__main__": "__main__", MAIN_MODULE: "__main__"}
        self.modules[MAIN_MODULE] = Module(MAIN_MODULE, False, b"", "a notebook")  # its text is known at the end
        self.trees[MAIN_MODULE] = ast.Module([], [])
        return True

    def import_(self, imported: imports.Import, *, runs: bool) -> None:
        """Ship a module that shipped code imports, or require it where that is sure to happen (`runs`)."""
        top = imported.name.partition(".")[0]
        found = imports.find(top)
        if found.local:
            if imports.find(imported.name).exists:
                self.ship(imported.name)
        elif runs and not imported.optional:
            self.require(found)

    def require(self, found: imports.Found) -> None:
        """Name an installed package that workers must have."""
        top = found.name.partition(".")[0]
        if (
            top in sys.stdlib_module_names
            or top in (imports.OWN_PACKAGE, "builtins", "", "__main__")
            or top in self.requires
        ):
            return
        distribution, version = _distribution_of(top) if found.exists else ("", "")
        self.requires[top] = Requirement(top, distribution, version)

    def package_files(self) -> dict[str, bytes]:
        """Data files of shipped packages, for `importlib.resources`; sources travel by themselves."""
        files: dict[str, bytes] = {}
        total = 0
        if not any(word in module.source for module in self.modules.values() for word in _FILE_WORDS):
            return files
        for package, folder in self.folders.items():
            root = "/".join(package.split("."))
            for path in _data_files(folder):
                total += path.stat().st_size
                if total > PACKAGE_FILES_BYTES_MAX:
                    raise CannotShipError(
                        f"the data files of package {package!r} have more than {PACKAGE_FILES_BYTES_MAX} bytes: pass large data "
                        "as an argument, or through put()"
                    )
                files[f"{root}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        return files

    def require_classes_of(self, value: object) -> None:
        """Name the installed packages whose classes are in `value`."""
        for cls in classes_in(value):
            if not self.is_local(cls.__module__):
                self.require(imports.find(cls.__module__))

    def refuse_running_script(self) -> None:
        """Refuse while the script's own body runs outside of its guard: the worker would run this very call."""
        tree = self.trees.get(self.main)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        while tree is not None and frame is not None:
            in_body = frame.f_code.co_name == "<module>" and frame.f_globals is vars(sys.modules["__main__"])
            if in_body and imports.line_outside_guard(tree, frame.f_lineno):
                raise CannotShipError(
                    f"line {frame.f_lineno} of {self.modules[self.main].file} runs whenever the script is imported, and workers "
                    'import it to find its functions: put it under `if __name__ == "__main__":`'
                )
            frame = frame.f_back


def _data_files(folder: Path) -> Iterator[Path]:
    """Files of a package and of its folders that are no packages themselves."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir() and not path.is_symlink() and not (path / "__init__.py").exists():
            yield from _data_files(path)
        elif path.is_file() and path.suffix not in _NOT_DATA:
            yield path


@functools.cache
def _distribution_of(module: str) -> tuple[str, str]:
    """(distribution, version) that provides a top-level module."""
    try:
        return module, importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(module)
        return (names[0], importlib.metadata.version(names[0])) if names else ("", "")
