"""What exists in the WebAssembly Python, and what of a program could not run there.

The check is the submitter's, before anything is sent. It looks at what is sure to run: imports at the top of shipped sources, and what entries
themselves import and start; what else fails there fails as an exception of the task. Refuses to know: how the component is built or run.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator

from p2pcompute.execution import imports
from p2pcompute.execution.program import Body
from p2pcompute.execution.values import classes_in
from p2pcompute.model.errors import CannotShipError, NotSerializableError

_NAMES = """
__future__ abc annotationlib argparse array ast asyncio asyncio.events asyncio.exceptions asyncio.locks
asyncio.queues asyncio.runners asyncio.taskgroups asyncio.tasks asyncio.timeouts atexit base64 bdb binascii bisect
builtins cProfile calendar cmath cmd code codecs codeop collections collections.abc colorsys compression concurrent
concurrent.futures configparser contextlib contextvars copy copyreg csv dataclasses datetime decimal difflib dis
doctest email email.base64mime email.charset email.contentmanager email.encoders email.errors email.feedparser
email.header email.headerregistry email.iterators email.message email.mime email.mime.base email.mime.multipart
email.mime.nonmultipart email.mime.text email.parser email.policy email.quoprimime email.utils encodings
encodings.aliases encodings.ascii encodings.cp1252 encodings.cp437 encodings.cp850 encodings.idna
encodings.iso8859_15 encodings.latin_1 encodings.mac_roman encodings.punycode encodings.unicode_escape
encodings.utf_16 encodings.utf_16_be encodings.utf_16_le encodings.utf_32 encodings.utf_8 encodings.utf_8_sig enum
errno filecmp fileinput fnmatch fractions functools gc genericpath getopt gettext glob graphlib gzip hashlib heapq
hmac html html.entities html.parser http http.cookies importlib importlib.abc importlib.machinery
importlib.resources importlib.resources.abc importlib.resources.simple importlib.util inspect io ipaddress itertools
json json.decoder json.encoder json.scanner keyword linecache locale logging logging.config logging.handlers marshal
math mimetypes modulefinder ntpath numbers opcode operator optparse os os.path pathlib pickle pickletools pkgutil
platform plistlib posixpath pprint profile pstats queue quopri random re reprlib runpy sched secrets selectors
shelve shlex shutil signal sqlite3 stat statistics string string.templatelib stringprep struct symtable sys
sysconfig tarfile tempfile textwrap threading time timeit token tokenize tomllib trace traceback tracemalloc types
typing unicodedata unittest unittest.case unittest.mock urllib urllib.error urllib.parse uuid warnings wave weakref
xml xml.dom xml.dom.minidom xml.dom.pulldom xml.etree xml.etree.ElementTree xml.parsers xml.parsers.expat xml.sax
xml.sax.handler xml.sax.saxutils xml.sax.xmlreader zipfile zipimport zlib zoneinfo _pydecimal _pyio _strptime
"""
#: Of the standard library, all that is of use without files, sockets, threads and processes: imported when the component is made, and what was not
#: imported then does not exist.
MODULES: tuple[str, ...] = tuple(_NAMES.split())
#: Modules that cannot work there whatever they are, by what they are for.
_WHY = {
    "files and devices": "fcntl mmap termios tty pty readline curses grp pwd resource syslog dbm",
    "sockets": "socket socketserver select ssl http.client http.server urllib.request ftplib imaplib poplib smtplib smtpd telnetlib nntplib xmlrpc "
    "wsgiref asyncio.streams webbrowser",
    "processes": "subprocess multiprocessing concurrent.futures.process concurrent.futures.thread asyncio.subprocess venv ensurepip",
    "compiled parts": "ctypes lzma bz2 compression.zstd compression.lzma compression.bz2 tkinter turtle idlelib",
}
_REASON = {name: reason for reason, names in _WHY.items() for name in names.split()}
_HERE = frozenset(MODULES)
#: Calls that start what does not exist there.
_STARTERS = {
    "Thread": "threads", "Timer": "threads", "start_new_thread": "threads", "ThreadPoolExecutor": "threads", "to_thread": "threads",
    "ProcessPoolExecutor": "processes", "Popen": "processes", "check_output": "processes", "create_subprocess_exec": "processes",
    "create_subprocess_shell": "processes", "fork": "processes", "system": "processes",
    "create_connection": "sockets", "open_connection": "sockets", "urlopen": "sockets",
}  # fmt: skip


def refuse_what_cannot_run(body: Body) -> None:
    """Raise CannotShipError where the program could not run in the WebAssembly Python, naming what stands in the way."""
    for reason in _reasons(body):
        raise CannotShipError(
            f"this cannot run in the WebAssembly Python: {reason}. Leave that out, or choose engine='python' with peers that run native "
            "Python for you"
        )


def refuse_values(value: object, modules: Collection[str]) -> None:
    """Raise NotSerializableError where `value` holds what only an installed package can make, such as NumPy's arrays. `modules`: the program's."""
    for cls in classes_in(value):
        top = cls.__module__.partition(".")[0]
        if (
            top not in sys.stdlib_module_names
            and top not in ("__main__", imports.OWN_PACKAGE)
            and cls.__module__ not in modules
        ):
            found = imports.find(top)
            if not found.local:
                raise NotSerializableError(
                    f"an argument is a {cls.__module__}.{cls.__qualname__}, and the package {top} does not exist in the WebAssembly Python: pass plain "
                    "values, or choose engine='python'"
                )


def _reasons(body: Body) -> Iterator[str]:
    if body.python_minor is not None:
        yield "its function has no source that can be read, and bytecode is of one version of Python only: put it into a file"
    own = {module.name.partition(".")[0] for module in body.modules}
    for need in body.requires:
        if need.module not in own:
            yield f"it needs the package {need.distribution or need.module}, and only Python's own modules exist there"
    trees: dict[str, ast.Module] = {}
    for module in body.modules:
        trees[module.name] = ast.parse(module.source)
        for each in imports.imports_of(trees[module.name], module.name, module.is_package):
            reason = None if each.inside or each.optional else missing(each.name, own)
            if reason is not None:
                yield f"{module.file} imports {each.name}, and {reason}"
    for name, recipe in body.entries:
        yield from _reasons_of_entry(name, recipe, trees, own)


def missing(name: str, own: set[str]) -> str | None:
    """Why the module `name` cannot be had there, or None where it can. `own`: top names of what the program brings."""
    top = name.partition(".")[0]
    if top in own or top == imports.OWN_PACKAGE or name in _HERE:
        return None
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        reason = _REASON.get(".".join(parts[:length]))
        if reason is not None:
            return f"there are no {reason}"
    if top not in sys.stdlib_module_names:
        return "only Python's own modules exist there"
    return "it is not among the modules that were put in" if not top.startswith("_") else None


def _reasons_of_entry(name: str, recipe: list[object], trees: dict[str, ast.Module], own: set[str]) -> Iterator[str]:
    function: ast.Module | ast.stmt | None
    match recipe:
        case ["name", str(module), str(qualname)]:
            function = _function(trees.get(module), qualname)
        case ["cut", _, str(source), *_]:
            try:
                function = ast.parse(source)
            except SyntaxError:
                return
        case ["partial", list(inner), _]:
            yield from _reasons_of_entry(name, inner, trees, own)
            return
        case _:
            return
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _STARTERS and _is_from_a_module(node.func):
                yield f"{name} calls {ast.unparse(node.func)}, and there are no {_STARTERS[called]}"
    if function is not None:
        tree = function if isinstance(function, ast.Module) else ast.Module([function], [])
        for each in imports.imports_of(tree, "", False):
            reason = None if each.optional else missing(each.name, own)
            if reason is not None:
                yield f"{name} imports {each.name}, and {reason}"


def _is_from_a_module(called: ast.expr) -> bool:
    """`threading.Thread(…)` or `Thread(…)`, but no method of an object with a lower-case name of its own such as `self.system()`."""
    if isinstance(called, ast.Attribute):
        return isinstance(called.value, ast.Name) and called.value.id in (
            "threading", "_thread", "subprocess", "os", "asyncio", "socket", "futures", "request", "multiprocessing",
        )  # fmt: skip
    return isinstance(called, ast.Name) and called.id not in ("system", "fork")


def _function(tree: ast.Module | None, qualname: str) -> ast.stmt | None:
    found: ast.stmt | None = None
    for part in qualname.split("."):
        holder = tree if found is None else found
        found = next(
            (
                node
                for node in getattr(holder, "body", ())
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == part
            ),
            None,
        )
        if found is None:
            return None
    return found
