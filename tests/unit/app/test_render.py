"""How data looks: JSON of any value, tables without a terminal, and nothing that a terminal would obey."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from p2pcompute.app.render import (
    duration,
    gpu_text,
    moment,
    number,
    peer_columns,
    plain,
    print_json,
    print_table,
    printable,
    result_text,
)

ROW: dict[str, Any] = {
    "peer": "AAAAAAA-BBBBBBB",
    "short": "AAAAAAAA",
    "name": "kitchen",
    "status": "alive",
    "linked": True,
    "addresses": ["10.0.0.1:9876"],
    "cores": 8,
    "memory_gb": 15.5,
    "gpus": ["H200", "H200"],
    "score": 41.26,
    "slots": 8,
    "load": 0.5,
    "rtt_ms": 0.42,
    "bandwidth_mbps": None,
    "path": None,
    "python": "3.12",
    "platform": "Linux x86_64",
    "isolation": "process",
    "roles": ["compute", "submit"],
    "version": "0.1.0",
    "last_error": None,
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (3, 3),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (b"\x00\xff", {"base64": "AP8="}),
        ((1, [2.5]), [1, [2.5]]),
        ({1: "a", "b": {2}}, {"1": "a", "b": [2]}),
        ({3, 1, 2}, [1, 2, 3]),
        (Counter(a=2), {"a": 2}),
        (range(2), "range(0, 2)"),
    ],
)
def test_any_value_has_a_json_form(value: object, expected: object) -> None:
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_results_are_json_where_they_can_be() -> None:
    assert result_text({"wörter": 3}) == '{"wörter": 3}'
    assert result_text(float("nan")) == "nan"
    assert result_text(b"x") == "b'x'"
    assert result_text({(1, 2): 3}) == "{(1, 2): 3}"


def test_a_table_without_a_terminal_is_whole_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", peer_columns(wide=True), [ROW, {**ROW, "name": "[red]attic[/red]\x1b[2J"}], empty="none")
    out = capsys.readouterr().out
    for text in ("kitchen", "15.5 GB", "2 x H200", "0.42 ms", "alive, linked", "AAAAAAA-BBBBBBB", "compute, submit"):
        assert text in out
    assert "[red]attic[/red]" in out, "names of peers are never markup"
    assert "\x1b" not in out
    assert "…" not in out


@pytest.mark.parametrize(
    ("path", "via", "text"),
    [
        ("direct", None, "direct"), ("relayed", "attic", "relayed via attic"), ("reversed", "attic", "reversed via attic"),
        (None, None, "-"),
    ],
)  # fmt: skip
def test_the_path_says_through_whom(path: str | None, via: str | None, text: str) -> None:
    (text_of,) = (text_of for heading, text_of, _ in peer_columns() if heading == "path")
    assert text_of({**ROW, "path": path, "path_via": via}) == text


def test_a_wide_table_says_why_and_how_a_peer_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    relays = [{"name": "attic", "short": "BBBBBBBB", "address": "11.1.0.1:9876"}]
    row = {**ROW, "path": "relayed", "path_via": "attic", "path_why": "because", "reach": "private", "relays": relays}
    print_table("", peer_columns(wide=True), [row], empty="none")
    wide = capsys.readouterr().out
    assert "because" in wide
    assert "private, relays attic" in wide
    print_table("", peer_columns(), [row], empty="none")
    assert "because" not in capsys.readouterr().out
    (own,) = [text_of for heading, text_of, _ in peer_columns(wide=True) if heading == "reach"]
    assert own({**ROW, "reach": "public", "may_relay": False}) == "public, no relay of others"
    assert own({**ROW, "reach": "public", "may_relay": True}) == "public"
    # Peers of an earlier version say nothing of it.
    assert [text_of(ROW) for heading, text_of, _ in peer_columns(wide=True) if heading == "reach"] == ["-"]


def test_an_empty_table_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", peer_columns(), [], empty="no peers")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "no peers\n"


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"a": 1}])
    assert json.loads(capsys.readouterr().out) == [{"a": 1}]


def test_a_row_with_nothing_measured_yet() -> None:
    unknown = dict.fromkeys(ROW) | {
        "name": "x",
        "short": "y",
        "status": "self",
        "gpus": [],
        "roles": [],
        "addresses": [],
    }
    assert [text_of(unknown) for _, text_of, _ in peer_columns(wide=True)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.123, "0.12 s"),
        (42.4, "42 s"),
        (185, "3 min 05 s"),
        (7_800, "2 h 10 min"),
        (86_400 * 3, "3 days"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_small_forms() -> None:
    assert number(None) == "-"
    assert number(2.345, 2, " ms") == "2.35 ms" or number(2.345, 2, " ms") == "2.34 ms"
    assert moment(None) == "-"
    assert moment(0) == "1970-01-01"
    assert gpu_text([]) == "-"
    assert gpu_text(["A", "B", "A"]) == "2 x A, B"
    assert printable("a\x1b[31mb\n") == "a�[31mb�"
