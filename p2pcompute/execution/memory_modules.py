"""A program's sources, importable without any file: for interpreters that have no file system, such as the one in WebAssembly.

Serves what a folder would: packages, namespace packages, files beside the sources through `importlib.resources` and `pkgutil`, and text for
tracebacks. Refuses to know: programs, recipes, entries.
"""

from __future__ import annotations

import importlib.abc
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.resources.abc import Traversable, TraversableResources
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

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
            return spec_from_file_location(fullname, self._paths[fullname], loader=self)
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

    def get_resource_reader(self, fullname: str) -> TraversableResources:
        """What `importlib.resources` asks for the files of a package."""
        return _Resources(_Node(f"{ROOT}/{fullname.replace('.', '/')}", self._content))


class _Resources(TraversableResources):
    def __init__(self, root: _Node) -> None:
        self._root = root

    def files(self) -> Traversable:
        return self._root


class _Node(Traversable):
    """A file or folder of the program, by its path."""

    def __init__(self, path: str, content: Mapping[str, bytes]) -> None:
        self._path = path
        self._content = content

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    def is_file(self) -> bool:
        return self._path in self._content

    def is_dir(self) -> bool:
        return any(path.startswith(self._path + "/") for path in self._content)

    def iterdir(self) -> Iterator[_Node]:
        prefix = self._path + "/"
        below = (path.removeprefix(prefix) for path in self._content if path.startswith(prefix))
        for name in sorted({path.partition("/")[0] for path in below}):
            yield _Node(prefix + name, self._content)

    def joinpath(self, *descendants: str | os.PathLike[str]) -> _Node:
        parts = (os.fspath(part).strip("/") for part in descendants)
        return _Node("/".join((self._path, *parts)), self._content)

    def __truediv__(self, child: str | os.PathLike[str]) -> _Node:
        return self.joinpath(child)

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not self.is_file():
            raise FileNotFoundError(f"{self._path} is not part of the program")
        data = io.BytesIO(self._content[self._path])
        return data if "b" in mode else io.TextIOWrapper(data, *args, **kwargs)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            content: bytes = file.read()
        return content

    def read_text(self, encoding: str | None = None) -> str:
        with self.open(encoding=encoding) as file:
            text: str = file.read()
        return text


def _path_of(name: str, is_package: bool) -> str:
    path = f"{ROOT}/{name.replace('.', '/')}"
    return f"{path}/__init__.py" if is_package else f"{path}.py"
