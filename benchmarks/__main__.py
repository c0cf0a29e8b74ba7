"""`python -m benchmarks [NAME …]`: run all benchmarks, or the named ones, one after another.

What begins with the first option goes to the benchmark, for the one that has options: `python -m benchmarks overlay --part idle`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> None:
    """Run each module's `main`."""
    found = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    names = [name for name in found if not name.startswith("_")]
    given = sys.argv[1:]
    first = next((place for place, word in enumerate(given) if word.startswith("-")), len(given))
    wanted, options = given[:first], given[first:]
    if options and len(wanted) != 1:
        sys.exit("options go to one benchmark: name it before them")
    for name in wanted or names:
        if name not in names:
            sys.exit(f"no benchmark {name!r}: there are {', '.join(names)}")
        print(f"\n== {name}")
        module = importlib.import_module(f"benchmarks.{name}")
        if options:
            module.main(options)
        else:
            module.main()


if __name__ == "__main__":
    main()
