"""What a worker process may use of its machine: rlimits, priority, threads of numeric libraries, its environment.

Rule: limits are only ever lowered. Measured: RLIMIT_RSS does nothing on Linux and RLIMIT_NPROC nothing for root, so
memory is held by RLIMIT_AS and by the pool's watchdog. Refuses to know: sandboxes.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path

import p2pcompute

if sys.platform != "win32":
    import resource

#: Variables that a worker inherits. An allow-list: a peer's environment holds its owner's secrets.
INHERITED = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "DYLD_LIBRARY_PATH",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "PATH",
        "SYSTEMROOT",
        "TZ",
        "VIRTUAL_ENV",
    }
)
#: What numeric libraries read to size their thread pools.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


def worker_environment(inherited: Mapping[str, str], *, threads: int) -> dict[str, str]:
    """The environment of a worker: nothing of ours, nothing secret, threads held to `threads`; its launcher adds a home.

    `p2pcompute` is importable whichever way it was installed, also from the user's own site folder, which would
    otherwise vanish with the real HOME.
    """
    environment = {
        name: value for name, value in inherited.items() if name.upper() in INHERITED or name.startswith("LC_")
    }
    package_root = str(Path(p2pcompute.__file__).resolve().parent.parent)
    search = [package_root, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(search))
    user_base = site.getuserbase()
    if user_base:
        environment["PYTHONUSERBASE"] = user_base
    # Each malloc arena reserves 64 MiB of address space, which RLIMIT_AS counts although nothing is used.
    environment["MALLOC_ARENA_MAX"] = str(max(threads, 1))
    environment.update(dict.fromkeys(THREAD_VARIABLES, str(max(threads, 1))))
    return environment


def lower_limit(which: int, value: int) -> None:
    """Lower the soft and hard limit `which` (an RLIMIT_ constant) to `value`; a lower one stays as it is."""
    if sys.platform == "win32":
        return
    soft, hard = (value if each == resource.RLIM_INFINITY else min(value, each) for each in resource.getrlimit(which))
    resource.setrlimit(which, (soft, hard))


def apply_limits(*, memory_bytes: int | None, open_files_max: int, nice: int, reserves: bool = False) -> None:
    """Hold this process to its share. `memory_bytes`: address space, None for no limit; `nice`: added to the niceness.

    `reserves`: what runs here reserves far more addresses than it uses (WebAssembly): what it can write to is limited instead.
    """
    if sys.platform == "win32":
        return
    lower_limit(resource.RLIMIT_CORE, 0)
    lower_limit(resource.RLIMIT_NOFILE, open_files_max)
    if memory_bytes is not None:
        lower_limit(resource.RLIMIT_DATA if reserves else resource.RLIMIT_AS, memory_bytes)
    if nice > 0:
        os.nice(nice)
