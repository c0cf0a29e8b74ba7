"""A program's sources, importable without any file: for interpreters that have no file system, such as the one in WebAssembly.

Serves what a folder would: packages, namespace packages, files beside the sources through `importlib.resources` and `pkgutil`, and text for
tracebacks. Refuses to know: programs, recipes, entries.
"""

from __future__ import annotations

import importlib.abc
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.resources.simple import SimpleReader, TraversableReader
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any, BinaryIO

#: Where sources seem to lie: for `__file__` and tracebacks only.
ROOT = "/program"


class MemoryModules(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):  # type: ignore[misc]
    """Finder and loader of the modules of one program.

    `sources`: text by module name, with whether it is a package; `files`: content by path within the program.
    """

    def __init__(self, sources: Mapping[str, tuple[bytes, bool]], files: Mapping[str, bytes]) -> None:
        #: Path of each module by its name.
        self._paths = {name: _path_of(name, is_package) for name, (_, is_package) in sources.items()}
        #: Everything by path.
        self._content = {self._paths[name]: source for name, (source, _) in sources.items()}
        self._content |= {f"{ROOT}/{path}": content for path, content in files.items()}
        #: Packages that are folders and nothing more.
        self._folders = {
            name.rsplit(".", count)[0] for name in sources for count in range(1, name.count(".") + 1)
        } - set(sources)

    def install(self) -> None:
        """Be asked first for every module that is imported from now on."""
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if fullname in self._paths:
            return spec_from_loader(fullname, self, origin=self._paths[fullname])
        if fullname in self._folders:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [f"{ROOT}/{fullname.replace('.', '/')}"]
            return spec
        return None

    def get_filename(self, fullname: str) -> str:
        """See importlib.abc.ExecutionLoader."""
        found = self._paths.get(fullname)
        if found is None:
            raise ImportError(f"{fullname} is not part of the program")
        return found

    def get_data(self, path: str) -> bytes:
        """See importlib.abc.ResourceLoader."""
        if path not in self._content:
            raise FileNotFoundError(f"{path} is not part of the program")
        return self._content[path]

    def get_resource_reader(self, fullname: str) -> Any:
        """What `importlib.resources` asks for the files of a package."""
        return _Files(fullname, f"{ROOT}/{fullname.replace('.', '/')}", self._content)


class _Files(TraversableReader):
    """The files of one folder of the program."""

    def __init__(self, package: str, folder: str, content: Mapping[str, bytes]) -> None:
        self._package = package
        self._folder = folder
        self._content = content

    @property
    def package(self) -> str:
        return self._package

    @property
    def name(self) -> str:
        return self._folder.rpartition("/")[2]

    def _below(self) -> Iterator[str]:
        prefix = self._folder + "/"
        return (path.removeprefix(prefix) for path in self._content if path.startswith(prefix))

    def children(self) -> list[SimpleReader]:
        names = sorted({path.partition("/")[0] for path in self._below() if "/" in path})
        return [_Files(f"{self._package}.{name}", f"{self._folder}/{name}", self._content) for name in names]

    def resources(self) -> list[str]:
        return sorted(path for path in self._below() if "/" not in path)

    def open_binary(self, resource: str) -> BinaryIO:
        return io.BytesIO(self._content[f"{self._folder}/{resource}"])


def _path_of(name: str, is_package: bool) -> str:
    path = f"{ROOT}/{name.replace('.', '/')}"
    return f"{path}/__init__.py" if is_package else f"{path}.py"
