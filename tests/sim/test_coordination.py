"""The laboratory of `benchmarks/coordination.py`: its links, its determinism, and that its figures can be wrong in no cheap way."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from benchmarks import _coordination_peers as peers_module
from benchmarks._coordination_cases import CASES, POLICIES, draw, percentile, sites_of
from benchmarks._coordination_links import BenchLink, Pipe, Seat, Site, connect, wire_bytes
from benchmarks._coordination_runs import WrongAnswerError, simulate
from p2pcompute.model.errors import LinkClosedError
from p2pcompute.model.ids import PeerId
from p2pcompute.sim.loop import SimLoop
from p2pcompute.wire.messages import BlobMissing, BlobWant, Message

MEGABYTE = 1_000_000
BLOB = b"b" * 32


def in_virtual_time(body: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> None:
    """Run `body`."""
    loop = SimLoop()
    try:
        loop.run_until_complete(body(loop))
    finally:
        loop.close()


class End:
    """A peer that serves one blob and notes when messages came."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.came: list[tuple[float, Message]] = []
        self.lost: list[str] = []
        self.blob: bytes | None = bytes(8 * MEGABYTE)

    def received(self, link: BenchLink, message: Message) -> None:
        self.came.append((self.loop.time(), message))
        if isinstance(message, BlobWant):
            if self.blob is None:
                link.send(BlobMissing(message.stream))
            else:
                link.serve_stream(message.stream, self.blob)

    def unlinked(self, link: BenchLink, reason: str) -> None:
        self.lost.append(reason)


class Net:
    """Two sites of 80 Mbit/s each way, 40 ms apart, with peers in them."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.sites = [Site(number, Pipe(loop, 80.0), Pipe(loop, 80.0), 80.0, 80.0) for number in range(2)]
        self._count = 0

    def seat(self, site: int) -> Seat:
        self._count += 1
        return Seat(PeerId(bytes([self._count]) * 32), self.sites[site], Pipe(self.loop, 1e3), Pipe(self.loop, 1e3))

    def linked(self, one: int, other: int) -> tuple[End, BenchLink, End, BenchLink]:
        first, second = End(self.loop), End(self.loop)
        rtt_s = 0.0003 if one == other else 0.04
        near, far = connect(self.loop, (first, self.seat(one)), (second, self.seat(other)), rtt_s)
        return first, near, second, far


def want(stream: int) -> Message:
    return BlobWant(BLOB, stream)


def test_a_pipe_is_shared_evenly_and_in_order_within_a_flow() -> None:
    async def body(loop: SimLoop) -> None:
        pipe, ends = Pipe(loop, 8.0), []  # a megabyte a second

        def end(name: str) -> None:
            ends.append((name, round(loop.time(), 6)))

        pipe.push("one", MEGABYTE, end, "one a")
        pipe.push("one", MEGABYTE, end, "one b")
        pipe.push("other", MEGABYTE, end, "other")
        await asyncio.sleep(2.5)
        pipe.push("late", MEGABYTE // 4, end, "late")
        await asyncio.sleep(10)
        # Both first megabytes at half speed; then the second one has a quarter of a megabyte left beside as much of a third flow.
        assert ends == [("one a", 2.0), ("other", 2.0), ("one b", 3.25), ("late", 3.0)] or ends == [
            ("one a", 2.0),
            ("other", 2.0),
            ("late", 3.0),
            ("one b", 3.25),
        ]

    in_virtual_time(body)


def test_a_blob_takes_its_bytes_over_the_bandwidth_and_is_counted_where_it_leaves_a_site() -> None:
    async def body(loop: SimLoop) -> None:
        net = Net(loop)
        _, near, _, _ = net.linked(0, 1)
        data = await near.request_stream(want, 8 * MEGABYTE)
        assert len(data) == 8 * MEGABYTE
        # 0.8 s for 8 MB at 80 Mbit/s, 4 % of headers, 40 ms there and back, one chunk more for the second of two pipes.
        assert 0.84 < loop.time() < 0.84 + 0.04 + 0.03
        counted = net.sites[1].bytes_out
        assert 8 * MEGABYTE * 1.03 < counted < 8 * MEGABYTE * 1.05
        assert net.sites[0].bytes_in == counted
        assert net.sites[0].bytes_out == net.sites[1].bytes_in < 300

    in_virtual_time(body)


def test_nothing_is_counted_inside_a_site() -> None:
    async def body(loop: SimLoop) -> None:
        net = Net(loop)
        _, near, _, _ = net.linked(0, 0)
        await near.request_stream(want, 8 * MEGABYTE)
        assert loop.time() < 0.08
        assert [site.bytes_out + site.bytes_in for site in net.sites] == [0, 0]

    in_virtual_time(body)


def test_a_message_does_not_wait_for_all_of_a_blob_and_on_another_link_hardly_at_all() -> None:
    async def body(loop: SimLoop) -> None:
        net = Net(loop)
        _, near, _, far = net.linked(0, 1)
        first, _, _, other = net.linked(0, 1)
        fetch = loop.create_task(near.request_stream(want, 8 * MEGABYTE))
        await asyncio.sleep(0.4)
        far.send(BlobMissing(9))
        other.send(want(1))
        sent_at = loop.time()
        await asyncio.sleep(0.03)
        assert [message for _, message in first.came] == [want(1)]
        assert first.came[0][0] - sent_at < 0.022
        await fetch
        assert loop.time() - sent_at > 0.4

    in_virtual_time(body)


def test_what_is_not_there_is_said_and_a_closed_link_says_so() -> None:
    async def body(loop: SimLoop) -> None:
        net = Net(loop)
        first, near, second, far = net.linked(0, 1)
        second.blob = None
        with pytest.raises(Exception, match="does not hold it"):
            await near.request_stream(want, 10)
        second.blob = bytes(10)
        fetch = loop.create_task(near.request_stream(want, 10))
        await asyncio.sleep(0)
        near.close("it is gone")
        with pytest.raises(LinkClosedError):
            await fetch
        with pytest.raises(LinkClosedError):
            near.send(want(1))
        assert first.lost == ["it is gone"]
        assert second.lost == []
        assert not far.closed

    in_virtual_time(body)


def test_headers_are_counted() -> None:
    assert wire_bytes(100) == 100 + 22 + 52
    assert 1.035 < wire_bytes(MEGABYTE) / MEGABYTE < 1.045


def test_a_seed_gives_the_same_figures_in_any_process() -> None:
    def figures(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name != "cpu_s"}

    for case, policy in (("shared", "two_choices"), ("death", "random")):
        here = figures(simulate(case, 8, 3, policy))
        script = (
            "import json; from benchmarks._coordination_runs import simulate; "
            f"print(json.dumps(simulate({case!r}, 8, 3, {policy!r})))"
        )
        said = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert figures(json.loads(said.stdout)) == here
        assert figures(simulate(case, 8, 4, policy)) != here


@pytest.mark.parametrize("case", CASES)
def test_no_run_beats_the_bound_and_none_is_far_from_it(case: str) -> None:
    for seed in range(3):
        row = simulate(case, 16, seed, "hlig")
        assert row["bound_s"] < row["makespan_s"] < 60 * row["bound_s"]
        assert row["begun"] >= row["tasks"]


def test_what_flat_dispatch_shares_passes_the_wide_links_once_for_each_peer_beyond() -> None:
    row = simulate("shared", 16, 0, "hlig")
    beyond = 16 - 16 // sites_of(16)
    shared_mb = CASES["shared"].shared_bytes * beyond / 1e6
    assert shared_mb < row["wide_mb"] < 1.05 * shared_mb + 0.07 * row["tasks"]


def test_policies_meet_the_same_instance_and_seeds_another() -> None:
    case = CASES["stragglers"]
    assert draw(case, 32, 5) == draw(case, 32, 5)
    assert draw(case, 32, 5) != draw(case, 32, 6)
    assert sum(peer.changes_at is not None for peer in draw(case, 32, 5).peers) == 2
    bounds = {row["bound_s"] for row in (simulate("small", 8, 2, policy) for policy in POLICIES)}
    assert len(bounds) == 1


def test_a_wrong_answer_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    padded = peers_module.padded
    monkeypatch.setattr(peers_module, "padded", lambda count, number, size: padded(count, number + 1, size))
    for case in ("compute", "shuffle"):
        with pytest.raises(WrongAnswerError):
            simulate(case, 8, 0, "hlig")


def test_percentiles_are_of_the_sample() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(list(range(1, 11)), 0.9) == 9
    assert percentile([7.0], 0.9) == 7.0
