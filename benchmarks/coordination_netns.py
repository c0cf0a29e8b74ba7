"""Jobs over sites of real peers: makespan and bytes over wide links as the kernel counts them, with shares for key nodes and without.

    python -m benchmarks coordination_netns                       three sites of four peers, 30 ms and 20 Mbit/s apart
    python -m benchmarks coordination_netns --sites 4 --each 3 --mbit-per-s 100 --repetitions 5

Every peer is a process in a network namespace of its own, each site has a switch and a gateway, and the wide links between them have a delay
and a rate (`tests/netns/wide.py`): root on Linux with `ip`, `tc`, `nsenter` and /dev/net/tun. Nobody is told who is where: jobs begin when the
submitting peer sees the sites as communities. Tasks sleep, so the processors are not what a job waits for, unless the machine does much else.
Bytes are counted until the wide links are quiet again; the next job begins then. Every answer is checked; a wrong one ends the benchmark.
Kinds of job:

- shared: each task needs the same few megabytes, and gives a vector that is added to the others.
- vectors: the same without the data.
- compute: small arguments, small results.
- killed: vectors, and a key node is killed when its site has done some of its share.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

CASES = ("shared", "vectors", "compute", "killed")


def why_not() -> str:
    """Why there can be no sites here, or nothing."""
    if find_spec("pytest") is None:
        return "what makes them is a part of the tests: `make test` installs what these need"
    from tests.netns.rig import why_no_rig

    return why_no_rig() or ("" if Path("/dev/net/tun").exists() else "/dev/net/tun is missing")


def main(arguments: Sequence[str] = ()) -> None:
    """Measure what `arguments` ask for, where the machine has what that needs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks coordination_netns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", action="append", choices=CASES, help="which; may be repeated; by default all")
    parser.add_argument("--sites", type=int, default=3, help="by default %(default)s")
    parser.add_argument("--each", type=int, default=4, help="peers at each site, by default %(default)s")
    parser.add_argument("--delay-ms", type=float, default=15.0, help="one way, by default %(default)s")
    parser.add_argument("--mbit-per-s", type=float, default=20.0, help="of a site, each way; by default %(default)s")
    parser.add_argument("--repetitions", type=int, default=3, help="by default %(default)s")
    chosen = parser.parse_args(arguments)
    reason = why_not()
    if reason:
        print(f"not measured, for no sites can be made here: {reason}")
        return
    from benchmarks._coordination_sites import measure_sites

    measure_sites(
        [case for case in CASES if case in (chosen.case or CASES)],
        sites=chosen.sites,
        each=chosen.each,
        delay_ms=chosen.delay_ms,
        mbit_per_s=chosen.mbit_per_s,
        repetitions=chosen.repetitions,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
