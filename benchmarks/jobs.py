"""Jobs through a real peer beside `concurrent.futures.ProcessPoolExecutor`, in one run: only the ratios mean anything.

One peer with two workers in a process of its own is what a ProcessPoolExecutor with two workers is compared with; a second figure takes
the work across a link to another peer, which the pool cannot do. Everything is on: TLS, admission, typed values, code as source.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from p2pcompute.model.peer import Address
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer

WORKERS = 2
ROUND_TRIPS = 1_000
NOOPS = 20_000
REPEATS = 3


def noop(value: int) -> int:
    """What every task does: nothing."""
    return value


async def measure() -> dict[str, Any]:
    """All figures: seconds, microseconds, or tasks a second, as the names say."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        folders = Folders.beneath(Path(home))
        figures["start of a process to ready, s"] = _process_start(Path(home) / "process")
        started = time.perf_counter()
        async with Peer(PeerConfig.test(slots=WORKERS), folders=folders) as peer:
            figures["start of a peer to ready, s"] = time.perf_counter() - started
            await peer.submit(noop, 0)
            figures["start of a peer to first result, s"] = time.perf_counter() - started
            figures |= await _figures(peer, "local workers")
        async with contextlib.AsyncExitStack() as stack:
            lender = await stack.enter_async_context(Peer(PeerConfig.test(slots=WORKERS), folders=folders))
            config = PeerConfig.test(slots=0, bootstrap=(Address("127.0.0.1", lender.port),))
            origin = await stack.enter_async_context(Peer(config, folders=folders))
            await origin.submit(noop, 0)
            figures |= await _figures(origin, "across a TLS link, both ends in one process")
    figures |= _pool_figures()
    return figures


async def _figures(peer: Peer, where: str) -> dict[str, Any]:
    for value in range(200):
        await peer.submit(noop, value)
    trips = []
    for value in range(ROUND_TRIPS):
        started = time.perf_counter()
        await peer.submit(noop, value)
        trips.append((time.perf_counter() - started) * 1e6)
    trips.sort()
    mapped = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        count = 0
        async for _value in peer.map(noop, range(NOOPS)):
            count += 1
        assert count == NOOPS
        mapped.append(NOOPS / (time.perf_counter() - started))
    submitted = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for value in range(NOOPS // 4):
                group.create_task(peer.submit(noop, value))
        submitted.append(NOOPS / 4 / (time.perf_counter() - started))
    return {
        f"round trip p50, µs, {where}": trips[len(trips) // 2],
        f"round trip p99, µs, {where}": trips[int(len(trips) * 0.99)],
        f"no-ops a second, one submit each, {where}": statistics.median(submitted),
        f"no-ops a second, mapped, {where}": statistics.median(mapped),
    }


def _pool_figures() -> dict[str, Any]:
    started = time.perf_counter()
    with ProcessPoolExecutor(WORKERS) as pool:
        pool.submit(noop, 0).result()
        first = time.perf_counter() - started
        for value in range(200):
            pool.submit(noop, value).result()
        trips = []
        for value in range(ROUND_TRIPS):
            begun = time.perf_counter()
            pool.submit(noop, value).result()
            trips.append((time.perf_counter() - begun) * 1e6)
        trips.sort()
        submitted = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            for future in [pool.submit(noop, value) for value in range(NOOPS // 4)]:
                future.result()
            submitted.append(NOOPS / 4 / (time.perf_counter() - begun))
        mapped = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            assert len(list(pool.map(noop, range(NOOPS)))) == NOOPS
            mapped.append(NOOPS / (time.perf_counter() - begun))
    where = "ProcessPoolExecutor"
    return {
        f"start to first result, s, {where}": first,
        f"round trip p50, µs, {where}": trips[len(trips) // 2],
        f"round trip p99, µs, {where}": trips[int(len(trips) * 0.99)],
        f"no-ops a second, one submit each, {where}": statistics.median(submitted),
        f"no-ops a second, mapped, {where}": statistics.median(mapped),
    }


def _process_start(home: Path) -> float:
    """Seconds from starting `p2pcompute up` to the line that says that it serves."""
    environment = {**os.environ, "P2PCOMPUTE_HOME": str(home)}
    home.mkdir(mode=0o700)
    started = time.perf_counter()
    command = [sys.executable, "-m", "p2pcompute", "up", "--port", "0", "--no-lan", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        taken = time.perf_counter() - started
        process.terminate()
    return taken


def main() -> None:
    """Print every figure."""
    for name, value in asyncio.run(measure()).items():
        print(f"{value:>14,.2f}  {name}")


if __name__ == "__main__":
    main()
