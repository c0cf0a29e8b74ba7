"""The house itself: rooms and their imports, a light import, one version, docstrings, alarms."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import grimp
import pytest
from importlinter.application import use_cases
from importlinter.application.user_options import UserOptions
from importlinter.configuration import configure
from importlinter.domain.contract import Contract, registry

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "p2pcompute"

#: The table of rooms: what each may import.
MAY_IMPORT: dict[str, frozenset[str]] = {
    room: frozenset(allowed.split())
    for room, allowed in {
        "model": "",
        "wire": "model",
        "membership": "wire model",
        "topology": "model",
        "trust": "wire model",
        "jobs": "topology trust wire model",
        "net": "wire model",
        "execution": "wire model",
        "storage": "wire model",
        "node": "model wire membership topology trust jobs net execution storage",
        "sim": "model wire membership topology trust jobs net execution storage node",
        "api": "node model",
        "app": "sim api node model",
    }.items()
}
PURE = ("model", "wire", "membership", "topology", "trust", "jobs")
HEAVY = "numpy scipy aiohttp cryptography click rich psutil kademlia structlog blake3 msgpack asyncio ssl sqlite3 cloudpickle"

configure()


def _modules() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


# --- rooms ------------------------------------------------------------------------------------------------------------


def _user_options() -> UserOptions:
    return use_cases.read_user_options(config_filename=str(ROOT / "setup.cfg"))


def _contracts() -> list[Contract]:
    options = _user_options()
    use_cases._register_contract_types(options)
    return [
        registry.get_contract_class(each["type"])(each["name"], options.session_options, dict(each))
        for each in options.contracts_options
    ]


@pytest.fixture(scope="module")
def contracts() -> list[Contract]:
    """The contracts of setup.cfg, ready to be held against any graph."""
    return _contracts()


def _bare_graph() -> grimp.ImportGraph:
    """Every room with one module in it and no import at all, and every foreign module that a contract names."""
    graph = grimp.ImportGraph()
    graph.add_module("p2pcompute")
    graph.add_module("p2pcompute.__main__")
    for room in MAY_IMPORT:
        graph.add_module(f"p2pcompute.{room}")
        graph.add_module(f"p2pcompute.{room}.inside")
    for each in _user_options().contracts_options:
        for name in each.get("forbidden_modules", ()):
            if not name.startswith("p2pcompute"):
                graph.add_module(name, is_squashed=True)
    return graph


def _broken_by(contracts: list[Contract], importer: str, imported: str) -> list[str]:
    graph = _bare_graph()
    graph.add_import(importer=importer, imported=imported)
    return [contract.name for contract in contracts if not contract.check(graph, verbose=False).kept]


def test_the_rooms_of_the_table_are_the_folders_of_the_package() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_contracts_mirror_the_table(importer: str, contracts: list[Contract]) -> None:
    for imported in MAY_IMPORT:
        if imported == importer:
            continue
        broken = _broken_by(contracts, f"p2pcompute.{importer}.inside", f"p2pcompute.{imported}.inside")
        if imported in MAY_IMPORT[importer]:
            assert not broken, f"{importer} may import {imported}, but setup.cfg says: {broken}"
        else:
            assert broken, f"{importer} may not import {imported}, but no contract of setup.cfg says so"


@pytest.mark.parametrize("room", PURE)
@pytest.mark.parametrize(
    "module",
    ["socket", "asyncio", "time", "random", "os", "pathlib", "sqlite3", "threading", "subprocess", "ssl", "secrets"],
)
def test_contracts_keep_the_world_out_of_pure_rooms(room: str, module: str, contracts: list[Contract]) -> None:
    assert _broken_by(contracts, f"p2pcompute.{room}.inside", module)


def test_imports_of_the_sources_keep_to_the_table() -> None:
    """The same without import-linter: what the sources import, typing blocks and function bodies included."""
    graph = grimp.build_graph("p2pcompute", cache_dir=None)
    wrong = []
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            upper, lower = (f"{name}..".split(".")[1] for name in (importer, imported))
            # `python -m p2pcompute` is the command line.
            allowed = MAY_IMPORT.get(upper, frozenset({"app"}))
            if upper and lower and upper != lower and lower not in allowed:
                wrong.append(f"{importer} imports {imported}")
    assert not wrong


# --- import is light --------------------------------------------------------------------------------------------------


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-S", "-c", _with_paths(code)], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def _with_paths(code: str) -> str:
    # -S: no site, so that nothing that an editable installation preloads is counted as ours.
    return f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n{code}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not _loaded_after("import p2pcompute") & set(HEAVY.split())


def test_importing_the_nouns_loads_nothing_heavy() -> None:
    statement = "import p2pcompute.model.job, p2pcompute.model.peer, p2pcompute.model.limits, p2pcompute.model.seams"
    assert not _loaded_after(statement) & set(HEAVY.split())


def test_every_public_name_has_a_home() -> None:
    import p2pcompute

    for name in p2pcompute.__all__:
        assert getattr(p2pcompute, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Peeer'"):
        p2pcompute.__getattr__("Peeer")


def test_the_version_comes_from_one_place() -> None:
    import p2pcompute

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "p2pcompute.__version__"}
    assert metadata.version("p2pcompute") == p2pcompute.__version__
    literals = [
        path.relative_to(ROOT)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py" and f'"{p2pcompute.__version__}"' in path.read_text()
    ]
    assert not literals, "the version is written in p2pcompute/__init__.py alone"
    assert f"## [{p2pcompute.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# --- sources ----------------------------------------------------------------------------------------------------------


def test_every_module_imports_and_says_what_it_owns() -> None:
    bare = [module for module in _modules() if not (importlib.import_module(module).__doc__ or "").strip()]
    assert not bare, "these have no docstring: say what they own"


def _public_without_docstring(tree: ast.AST, inside: str = "") -> list[str]:
    bare = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            overload = any(getattr(each, "id", getattr(each, "attr", "")) in ("overload", "setter", "override")
                           for each in node.decorator_list)  # fmt: skip
            if ast.get_docstring(node) is None and not overload:
                bare.append(f"{inside}{node.name}")
            if isinstance(node, ast.ClassDef):
                bare += _public_without_docstring(node, f"{inside}{node.name}.")
    return bare


def test_everything_public_has_a_docstring() -> None:
    # A method that overrides a documented one of a base says what it does there.
    bare = [
        f"{where}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for where in [path.relative_to(PACKAGE)]
        for name in _public_without_docstring(ast.parse(path.read_text()))
        if not _inherits_docstring(where, name)
    ]
    assert not bare


def _inherits_docstring(where: Path, name: str) -> bool:
    if "." not in name:
        return False
    module = importlib.import_module(".".join(("p2pcompute", *where.with_suffix("").parts)))
    owner: object = module
    *classes, method = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    assert isinstance(owner, type)
    return any(getattr(getattr(base, method, None), "__doc__", None) for base in owner.__mro__[1:])


def test_tasks_are_started_by_groups_only() -> None:
    banned = re.compile(r"\b(asyncio\.(create_task|ensure_future|gather|wait_for)|loop\.create_task)\(")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line)
    ]
    assert not found, "use asyncio.TaskGroup, supervise() and asyncio.timeout"


def test_no_exception_vanishes() -> None:
    """`except Exception: pass`, or wider, hides bugs."""
    hidden = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ExceptHandler) or not all(isinstance(each, ast.Pass) for each in node.body):
                continue
            names = (
                {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)}
                if node.type
                else {"BaseException"}
            )
            if names & {"Exception", "BaseException"}:
                hidden.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not hidden


#: Lines of code after which a module wants a second look; blank lines, comments and docstrings do not count.
CODE_LINES_ALARM = 400
#: Modules over the alarm that have had their second look, each with the reason why it is one idea.
LONG_ON_PURPOSE = {
    "execution/values.py": "one table of types; the two ways through it stand side by side, or they drift apart",
    "execution/bundle.py": "following one function to everything that it needs is one walk with one state",
    "node/lender.py": "one shell around one machine and one pool; each method is one event or one effect",
    "node/origin.py": "one shell around one machine; each method is one event or one effect",
    "node/delegate.py": "one shell around one machine; each method is one event or one effect",
    "jobs/dispatch.py": "one handler an event over one state; what is decided stands in offering, filling, judging, balancing and leases",
    "membership/book.py": "one machine over one state; its parts with a state of their own live in files of their own",
}


def _code_lines(source: str) -> int:
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                documented |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return sum(
        1
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in documented
    )


def test_modules_keep_below_the_alarm() -> None:
    over = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := _code_lines(path.read_text())) > CODE_LINES_ALARM
    }
    unexplained = {name: lines for name, lines in over.items() if name not in LONG_ON_PURPOSE}
    assert not unexplained, f"split these, or say in LONG_ON_PURPOSE why not: {unexplained}"


def test_limits_say_why() -> None:
    """Every constant of limits.py stands under a comment of its own, or in a block that one comment explains."""
    lines = (PACKAGE / "model" / "limits.py").read_text().splitlines()
    bare = [
        after.split(" =")[0]
        for before, after in pairwise(lines)
        if re.match(r"[A-Z_]+ =", after) and not (before.startswith("#:") or re.match(r"[A-Z_]+ =|# ---", before))
    ]
    assert not bare


def test_the_error_tree_is_drawn_as_it_is() -> None:
    from p2pcompute.model import errors

    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__ or ""))
    real = {
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.P2PComputeError)
    }
    assert real == drawn, "errors.py draws its tree at the top"


def test_the_checks_run_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()
    assert (PACKAGE / "py.typed").exists()
