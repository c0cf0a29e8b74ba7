"""Scripts as people write them: each is run as a submitter, its function in a worker process, in each Python version that is here."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import other_pythons

ROOT = Path(__file__).parents[3]
PYTHONS = [sys.executable, *map(str, other_pythons())]

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Write `main.py` and other files, run it, give back what it printed; `there(function, *args)` sends."""

    def run_script(main: str, python: str = sys.executable, arguments: tuple[str, ...] = (), **files: str) -> str:
        for name, text in files.items():
            path = tmp_path / name.replace("__init", "/__init").replace("___", "/")
            path = path.with_suffix("") if "." in path.stem else path
            path = path if path.suffix else path.with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        script = tmp_path / "main.py"
        script.write_text(textwrap.dedent(main))
        environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(
            [python, *(arguments or (str(script),))], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    return run_script


HELPER = """
MODE = 'slow'
def mode():
    return MODE
def shout(text):
    return text.upper()
class Base:
    registry = {}
    tag = None
    def name(self):
        return f'base {self.tag}'
"""
GUARD = """
if __name__ == "__main__":
    from tests.unit.execution.travel import there
"""


def test_a_script_with_helper_closure_and_dataclass_in_every_version(run: Run) -> None:
    main = f"""
    import dataclasses, enum
    from helper import scaled

    class Kind(enum.Enum):
        SMALL = 1
        LARGE = 2

    @dataclasses.dataclass(frozen=True)
    class Answer:
        value: int
        kind: Kind

    class TooLargeError(Exception):
        def __init__(self, value, *, limit):
            super().__init__(f"{{value}} > {{limit}}")
            self.limit = limit

    def make(offset):
        def compute(x):
            value = scaled(x) + offset
            if value > 1000:
                raise TooLargeError(value, limit=1000)
            return Answer(value, Kind.LARGE if value > 10 else Kind.SMALL)
        return compute

    if __name__ == "__main__":
        from tests.unit.execution.travel import there
        pythons = {PYTHONS!r}
        answer = there(make(5), 2, pythons=pythons)
        assert type(answer) is Answer and answer == Answer(25, Kind.LARGE), answer
        assert answer.kind is Kind.LARGE
        try:
            there(make(5), 2000, pythons=pythons)
        except TooLargeError as error:
            assert error.limit == 1000
            print("done", len(pythons))
    """
    helper = "FACTOR = 10\ndef scaled(x):\n    return x * FACTOR\n"
    assert run(main, helper=helper) == f"done {len(PYTHONS)}"


@pytest.mark.parametrize("python", PYTHONS[1:])
def test_every_version_submits_as_well(run: Run, python: str) -> None:
    main = f"""
    import functools
    def power(x, *, n=2):
        return x ** n

    if __name__ == "__main__":
        from tests.unit.execution.travel import there
        table = {{1: lambda v: power(v) + 1}}
        print(there(functools.partial(power, n=3), 2, pythons={PYTHONS!r}), there(table[1], 3, pythons={PYTHONS!r}))
    """
    assert run(main, python) == "8 10"


@pytest.mark.parametrize(
    ("case", "expected"),
    {
        "settings made under the guard": (
            "LIMIT = 1\ndef f():\n    return LIMIT\n{guard}    LIMIT = 5\n    print(there(f))",
            "5",
        ),
        "a global that exists under the guard only": (
            "def f():\n    return LATE\n{guard}    LATE = {{1, 2}}\n    print(there(f))",
            "{1, 2}",
        ),
        "a global of a helper set later": (
            "import helper\ndef f():\n    return helper.MODE\n{guard}    helper.MODE = 'fast'\n    print(there(f))",
            "fast",
        ),
        "two lambdas on one line": (
            "{guard}    a, b = (lambda x: x + 1), (lambda x: x + 2)\n    print(there(a, 1), there(b, 1))",
            "2 3",
        ),
        "equal lambdas with other constants": (
            "{guard}    fs = [lambda: 'a', lambda: 'b', lambda: 1.0, lambda: 1]\n    print([there(f) for f in fs])",
            "['a', 'b', 1.0, 1]",
        ),
        "a lambda over several lines with defaults": (
            "{guard}    k = 3\n    f = (lambda x, y=k: [\n        x,\n        y])\n    print(there(f, 1))",
            "[1, 3]",
        ),
        "a recursive closure": (
            "def make():\n    def fact(n):\n        return 1 if n < 2 else n * fact(n - 1)\n    return fact\n"
            "{guard}    print(there(make(), 5))",
            "120",
        ),
        "a closure over functions": (
            "def twice(g):\n    def run(x):\n        return g(g(x))\n    return run\n"
            "{guard}    print(there(twice(lambda v: v * 3), 2), there(twice(twice(lambda v: v + 1)), 0))",
            "18 4",
        ),
        "a nonlocal counter": (
            "def make():\n    n = 5\n    def step():\n        nonlocal n\n        n += 1\n        return n\n    return step\n"
            "{guard}    print(there(make()))",
            "6",
        ),
        "a nested function with a docstring over lines": (
            'def make():\n    def f():\n        """One.\n\n        Two.\n        """\n        return f.__doc__ is not None\n    return f\n'
            "{guard}    print(there(make()))",
            "True",
        ),
        "a decorated function": (
            "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a):\n        return ('w', g(*a))\n    return w\n"
            "@deco\ndef f(x):\n    return x\n{guard}    print(there(f, 1))",
            "('w', 1)",
        ),
        "a decorated function whose inside uses a late global": (
            "import functools\n@functools.lru_cache\ndef f(x):\n    return x + LATE\n{guard}    LATE = 4\n    print(there(f, 1))",
            "5",
        ),
        "a partial": (
            "import functools\ndef f(a, b, *, c):\n    return [a, b, c]\n{guard}    print(there(functools.partial(f, 1, c=3), 2))",
            "[1, 2, 3]",
        ),
        "a partial of a partial with keywords": (
            "import functools\ndef f(a, b=0):\n    return a - b\n"
            "{guard}    print(there(functools.partial(functools.partial(f, 9), b=2)))",
            "7",
        ),
        "methods of all kinds": (
            "class C:\n    def __init__(self, n):\n        self.n = n\n    def m(self, x):\n        return self.n + x\n"
            "    @classmethod\n    def c(cls):\n        return cls.__name__\n    @staticmethod\n    def s():\n        return 's'\n"
            "    def __call__(self):\n        return -self.n\n"
            "{guard}    print(there(C(2).m, 3), there(C.c), there(C.s), there(C(4)), there(C.m, C(1), 1))",
            "5 C s -4 2",
        ),
        "functions of Python itself": (
            "import math, operator\n{guard}    print(there(math.sqrt, 9), there(str.upper, 'a'), there(len, [1]), there('-'.join, 'ab'),"
            " there(operator.itemgetter(1), 'xy'))",
            "3.0 A 1 a-b y",
        ),
        "an asynchronous function": (
            "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x * 2\n{guard}    print(there(f, 4))",
            "8",
        ),
        "classes as functions": (
            "class P:\n    def __init__(self, x):\n        self.x = x\n{guard}    p = there(P, 3)\n    print(type(p) is P, p.x)",
            "True 3",
        ),
        "a sentinel keeps its identity": (
            "class Mark:\n    pass\nMISSING = Mark()\ndef f(x=MISSING):\n    return x is MISSING\n{guard}    print(there(f))",
            "True",
        ),
        "things that cannot travel are made again": (
            "import threading, logging, re\nLOCK = threading.Lock()\nLOG = logging.getLogger('x')\nWORD = re.compile('a+')\n"
            "def f(t):\n    with LOCK:\n        LOG.debug('x')\n        return WORD.findall(t)\n{guard}    print(there(f, 'baa'))",
            "['aa']",
        ),
        "a table of functions": (
            "def one():\n    return 1\nTABLE = {{'one': one, 'two': lambda: 2}}\ndef f(k):\n    return TABLE[k]()\n"
            "{guard}    print(there(f, 'one'), there(f, 'two'))",
            "1 2",
        ),
        "an import inside of the function": (
            "def f():\n    import helper\n    from helper import MODE\n    return helper.MODE, MODE\n{guard}    print(there(f))",
            "('slow', 'slow')",
        ),
        "an optional import that fails": (
            "try:\n    import surely_not_there\nexcept ImportError:\n    surely_not_there = None\n"
            "def f():\n    return surely_not_there\n{guard}    print(there(f))",
            "None",
        ),
        "values of the script's classes inside containers": (
            "import collections\nP = collections.namedtuple('P', 'a b')\nclass D(dict):\n    pass\n"
            "def f(p, d):\n    d['n'] = p.a\n    return [d, P(p.b, 0)]\n"
            "{guard}    d, p = there(f, P(1, 2), D(x=1))\n    print(type(d) is D, d, p)",
            "True {'x': 1, 'n': 1} P(a=2, b=0)",
        ),
        "a subclass with super": (
            "class A:\n    def v(self):\n        return 1\nclass B(A):\n    def v(self):\n        return super().v() + 1\n"
            "def f():\n    return B().v()\n{guard}    print(there(f))",
            "2",
        ),
        "globals set through a function": (
            "STATE = None\ndef setup(v):\n    global STATE\n    STATE = v\ndef f():\n    return STATE\n"
            "{guard}    setup([1, 2])\n    print(there(f))",
            "[1, 2]",
        ),
        "a class attribute changed later": (
            "class S:\n    debug = False\ndef f():\n    return S.debug\n{guard}    S.debug = True\n    print(there(f))",
            "True",
        ),
        "a function defined under the guard": (
            "{guard}    def f(x):\n        return x + 1\n    print(there(f, 1))",
            "2",
        ),
        "a module imported under the guard": (
            "def f(x):\n    return math.floor(x)\n{guard}    import math\n    print(there(f, 1.5))",
            "1",
        ),
        "a helper function defined under the guard": (
            "def f(x):\n    return g(x)\n{guard}    def g(x):\n        return x * 7\n    print(there(f, 1))",
            "7",
        ),
        "postponed annotations and a generic class": (
            "from __future__ import annotations\nfrom typing import Generic, TypeVar\nfrom dataclasses import dataclass, field\n"
            "T = TypeVar('T')\n@dataclass(slots=True)\nclass Box(Generic[T]):\n    items: list[T] = field(default_factory=list)\n"
            "def make(n: Missing = 2) -> Box[Missing]:\n    def inner(x: Missing) -> Missing:\n        return Box([x] * n)\n    return inner\n"
            "{guard}    print(there(make(), 'a'), there(make(), Box([1])))",
            "Box(items=['a', 'a']) Box(items=[Box(items=[1]), Box(items=[1])])",
        ),
        "everything imported with a star": (
            "from helper import *\ndef f():\n    return [MODE, shout('a')]\n{guard}    print(there(f))",
            "['slow', 'A']",
        ),
        "a setting of a helper that its own function reads": (
            "import helper\ndef f():\n    return helper.mode()\n{guard}    helper.MODE = 'fast'\n    print(there(f))",
            "fast",
        ),
        "a setting copied by name": (
            "from helper import MODE, mode\ndef f():\n    return [MODE, mode()]\n{guard}    MODE = 'own'\n    print(there(f))",
            "['own', 'slow']",
        ),
        "a class of a helper, extended and changed": (
            "import helper\nclass Mine(helper.Base):\n    def name(self):\n        return 'mine ' + super().name()\n"
            "ONE = Mine()\ndef f(other):\n    return [ONE.name(), other.name(), helper.Base.registry]\n"
            "{guard}    ONE.tag = 'x'\n    helper.Base.registry['k'] = 1\n    print(there(f, Mine()))",
            "['mine base x', 'mine base None', {'k': 1}]",
        ),
        "dispatch by type": (
            "import functools\n@functools.singledispatch\ndef f(x):\n    return 'any'\n@f.register\ndef _(x: int):\n    return 'int'\n"
            "{guard}    print(there(f, 1), there(f, 'a'))",
            "int any",
        ),
        "an enumeration with methods as a function": (
            "import enum\nclass E(enum.Enum):\n    A = 1\n    def up(self, by):\n        return (self, self.value + by)\n"
            "{guard}    member, value = there(E.A.up, 2)\n    print(member is E.A, value)",
            "True 3",
        ),
        "a property, a cached property and a default factory": (
            "import functools\nclass C:\n    def __init__(self):\n        self.n = 2\n    @property\n    def p(self):\n        return K * self.n\n"
            "    @functools.cached_property\n    def q(self):\n        return self.p + 1\n"
            "def f(c):\n    return [c.p, c.q]\n{guard}    K = 10\n    print(there(f, C()))",
            "[20, 21]",
        ),
        "an exception of Python with its parts": (
            "import json\ndef f(t):\n    return json.loads(t)\n{guard}    import json as j\n    try:\n        there(f, '[1,')\n"
            "    except j.JSONDecodeError as e:\n        print(e.args[0])",
            "Expecting value: line 1 column 4 (char 3)",
        ),
        "a lambda inside of a comprehension with its own value": (
            "{guard}    fs = [lambda x, k=k: x + k for k in (1, 2)] + [(lambda k: lambda x: x * k)(k) for k in (3, 4)]\n"
            "    print([there(f, 10) for f in fs])",
            "[11, 12, 30, 40]",
        ),
        "a function that was put into the module from outside": (
            "import helper\ndef f():\n    return helper.shout('a')\n"
            "{guard}    helper.shout = lambda t: t * 3\n    print(there(f))",
            "aaa",
        ),
        "local classes inside of the function": (
            "def f(x):\n    class Inner:\n        def v(self):\n            return x\n    return Inner().v()\n{guard}    print(there(f, 5))",
            "5",
        ),
        "partials with functions among their arguments": (
            "import functools\ndef neg(v):\n    return -v\ndef g(x):\n    return x + LATE\ndef f(h, xs, *, key=None):\n    return sorted(map(h, xs), key=key)\n"
            "{guard}    LATE = 1\n    print(there(functools.partial(f, g, key=neg), [1, 2]))",
            "[3, 2]",
        ),
        "functions as arguments": (
            "def g(x):\n    return x + 1\ndef f(h, x):\n    return [h(x), len is h]\n{guard}    print(there(f, g, 1), there(f, len, 'a'))",
            "[2, False] [1, True]",
        ),
        "numbers in arrays": (
            "import numpy as np\nTABLE = np.arange(4)\ndef f(x):\n    return (x + TABLE).sum()\n{guard}    print(there(f, np.ones(4)))",
            "10.0",
        ),
        "a ufunc": ("import numpy as np\n{guard}    print(there(np.square, np.arange(3)).tolist())", "[0, 1, 4]"),
    }.items(),
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_a_script(run: Run, case: str, expected: tuple[str, str]) -> None:
    body, printed = expected
    assert run(body.format(guard=GUARD), helper=HELPER) == printed


def test_a_module_of_a_package_started_with_m(run: Run) -> None:
    files = {
        "pkg___main": (
            "from . import tools\nfrom .tools import base\nimport importlib.resources\n"
            "class Own:\n    pass\n"
            "def f(x):\n    text = importlib.resources.files('pkg').joinpath('data/words.txt').read_text()\n"
            "    return [tools.double(x), base.BASE, text.split(), Own()]\n"
            f"{GUARD}    *rest, own = there(f, 4)\n    print(rest, type(own) is Own)\n"
        ),
        "pkg__init__": "",
        "pkg___tools__init__": "from .base import BASE\ndef double(x):\n    return 2 * x + BASE\n",
        "pkg___tools___base": "BASE = 1\n",
        "pkg___data___words.txt": "a b",
    }
    main = "import runpy\n"
    assert run(main, arguments=("-m", "pkg.main"), **files) == "[9, 1, ['a', 'b']] True"


def test_functions_typed_at_a_prompt_travel_between_equal_versions(run: Run) -> None:
    code = (
        "from tests.unit.execution.travel import there\nimport math\nk = 3\ndef f(x):\n    return math.floor(x) + k\n"
        "print(there(f, 1.5))"
    )
    assert run("", arguments=("-c", code)) == "4"


def test_a_script_that_was_edited_while_it_ran_is_refused(run: Run) -> None:
    main = """
    import pathlib
    def f(x):
        return x + 1
    g = lambda x: x + 1
    if __name__ == "__main__":
        from tests.unit.execution.travel import there
        from p2pcompute.model.errors import CannotShipError
        path = pathlib.Path(__file__)
        path.write_text(path.read_text().replace("x + 1", "x + 2", 2))
        for function in (f, g):
            try:
                there(function, 1)
            except CannotShipError as error:
                print("edited" in str(error))
    """
    assert run(main) == "True\nTrue"


def test_a_script_without_a_guard_is_refused_from_any_thread(run: Run) -> None:
    main = """
    import concurrent.futures
    from p2pcompute.execution.bundle import make_program
    from p2pcompute.model.errors import CannotShipError
    def f():
        return 1
    with concurrent.futures.ThreadPoolExecutor() as pool:
        error = pool.submit(make_program, {"f": f}).exception()
    print(type(error) is CannotShipError, "__main__" in str(error))
    """
    assert run(main) == "True True"
