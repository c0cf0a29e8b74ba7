"""`python -m benchmarks [NAME …]`: run all benchmarks, or the named ones, one after another."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> None:
    """Run each module's `main`."""
    found = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    names = [name for name in found if not name.startswith("_")]
    for name in sys.argv[1:] or names:
        if name not in names:
            sys.exit(f"no benchmark {name!r}: there are {', '.join(names)}")
        print(f"\n== {name}")
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
