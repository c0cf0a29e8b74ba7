"""Grants and demands: what may be written, and what includes what."""

from __future__ import annotations

import pytest

from p2pcompute.model.engine import Demands, grants_of, is_granted
from p2pcompute.model.errors import UsageError
from p2pcompute.model.job import JobOptions
from p2pcompute.model.peer import Isolation


def test_grants_are_sorted_and_each_there_once() -> None:
    wanted = ("folder:data", "network:[::1]:80", "network:example.org:443", "processes")
    assert grants_of("processes, network:example.org:443,folder:data,processes,network:[::1]:80") == wanted
    assert Demands(None, ("gpu", "folder:a:rw", "gpu")).grants == ("folder:a:rw", "gpu")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "net",
        "network:",
        "network:host",
        "network:host:0",
        "folder:",
        "folder:../x",
        "folder:a:w",
        "gpu:1",
        "folder:a b",
    ],
)
def test_what_is_no_grant_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(UsageError, match="is no grant: write network"):
        grants_of([text])


def test_more_grants_than_a_record_holds_are_refused() -> None:
    with pytest.raises(UsageError, match="33 grants"):
        grants_of([f"folder:f{number}" for number in range(33)])


@pytest.mark.parametrize(
    ("asked", "offered", "is_right"),
    [
        ("network", ("network",), True),
        ("network:a:1", ("network",), True),
        ("network:a:1", ("network:a:1",), True),
        ("network:a:1", ("network:a:2",), False),
        ("network", ("network:a:1",), False),
        ("folder:d", ("folder:d:rw",), True),
        ("folder:d:rw", ("folder:d",), False),
        ("folder:d", ("folder:dd",), False),
        ("gpu", (), False),
    ],
)
def test_what_includes_what(asked: str, offered: tuple[str, ...], is_right: bool) -> None:
    assert is_granted(asked, offered) is is_right


def test_what_a_job_asks_of_its_engine_becomes_a_requirement() -> None:
    options = JobOptions(engine="container", isolation=Isolation.SANDBOX, grants=("folder:d",))  # type: ignore[arg-type]
    assert [str(each) for each in options.requirements] == [
        "engine == container",
        "grant == folder:d",
        "isolation >= sandbox",
    ]
    assert options.demands == Demands(Isolation.SANDBOX, ("folder:d",))


def test_webassembly_holds_better_than_any_peer_states() -> None:
    options = JobOptions(engine="wasm", isolation=Isolation.WASM)  # type: ignore[arg-type]
    assert [str(each) for each in options.requirements] == ["engine == wasm"]
    assert options.demands.isolation is Isolation.WASM


def test_a_job_that_asks_nothing_requires_nothing() -> None:
    assert JobOptions(engine="python").requirements == ()  # type: ignore[arg-type]
