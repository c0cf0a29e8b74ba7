"""The document of a network's shape: everything a picture or a program needs, and sentences where there is something to say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from p2pcompute.model.ids import format_peer_id
from p2pcompute.model.peer import Coordinate, PeerStatus
from p2pcompute.node.topology_report import community_name, topology_document
from tests.support.pictures import document_of, shape_and_view
from tests.support.sites import shape_of


def somewhere(number: int) -> Coordinate:
    return Coordinate((0.01 * number, 0.0), 0.001, 0.1)


def test_the_document_says_what_the_shape_says() -> None:
    shape, view = shape_and_view(2, 4)
    document = topology_document(shape, view, "home")
    json.dumps(document, allow_nan=False)
    assert document["network"] == "home"
    assert document["own"] == format_peer_id(view.own.peer)
    assert document["components"] == 1
    assert document["lambda2"] == pytest.approx(shape.lambda2, rel=1e-5)
    rows = document["peers"]
    assert [row["peer"] for row in rows] == [format_peer_id(peer) for peer in shape.peers]
    assert [row["community"] for row in rows] == shape.labels.tolist()
    assert [row["key_node"] for row in rows] == [shape.is_key_node(peer) for peer in shape.peers]
    assert [each for row in rows for each in (row["x"], row["y"])] == pytest.approx(shape.drawing.ravel(), abs=1e-6)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0, abs=1e-5)
    assert max(row["score"] for row in rows) == 1.0
    assert {row["name"] for row in rows} == {f"peer{number}" for number in range(8)}
    (own,) = (row for row in rows if row["status"] == "self")
    assert own["peer"] == document["own"]
    assert not own["linked"]
    assert all(row["linked"] and row["status"] == "alive" for row in rows if row is not own)


def test_communities_name_their_members_leaders_and_what_they_can_do() -> None:
    shape, view = shape_and_view(2, 4)
    document = topology_document(shape, view, "home")
    by_id = {row["peer"]: row for row in document["peers"]}
    assert [community["name"] for community in document["communities"]] == ["A", "B"]
    for number, community in enumerate(document["communities"]):
        assert community["community"] == number
        assert community["members"] == [format_peer_id(peer) for peer in shape.members(number)]
        assert by_id[community["key_node"]]["key_node"]
        assert [by_id[peer]["stand_in"] for peer in community["stand_ins"]] == [1, 2, 3]
        # Four peers of eight cores and 16 GB that lend eight slots each.
        assert (community["slots"], community["cores"], community["memory_gb"], community["gpus"]) == (32, 32, 64.0, 0)
        assert community["capability"] > 0


def test_who_lends_nothing_adds_nothing() -> None:
    shape, view = shape_and_view(1, 3)
    entries = tuple(replace(entry, record=replace(entry.record, slots=0)) for entry in view.entries)
    (community,) = topology_document(shape, replace(view, entries=entries), "home")["communities"]
    assert (community["slots"], community["cores"]) == (8, 8)


def test_links_tell_what_both_ends_measured() -> None:
    shape, view = shape_and_view(2, 3)
    document = topology_document(shape, view, "home")
    graph = shape.adjacency.graph
    assert len(document["links"]) == graph.one.size
    records = {format_peer_id(record.peer): record for record in [view.own, *(e.record for e in view.entries)]}
    for row, weight in zip(document["links"], graph.weight.tolist(), strict=True):
        there = {format_peer_id(edge.peer): edge for edge in records[row["a"]].edges}[row["b"]]
        back = {format_peer_id(edge.peer): edge for edge in records[row["b"]].edges}[row["a"]]
        assert row["rtt_ms"] == pytest.approx(1000 * max(there.rtt_s, back.rtt_s), abs=1e-3)
        assert there.bandwidth_mbps is not None
        assert back.bandwidth_mbps is not None
        assert row["bandwidth_mbps"] == min(there.bandwidth_mbps, back.bandwidth_mbps)
        assert row["weight"] == pytest.approx(weight, rel=1e-5)
        assert not row["estimated"]


def test_an_estimate_is_marked_and_claims_no_milliseconds() -> None:
    _, view = shape_and_view(2, 4, apart=True)
    placed = replace(
        view,
        own=replace(view.own, coordinate=somewhere(0)),
        entries=tuple(
            replace(entry, record=replace(entry.record, coordinate=somewhere(number)))
            for number, entry in enumerate(view.entries, 1)
        ),
    )
    document = topology_document(shape_of(placed), placed, "home")
    (estimate,) = (row for row in document["links"] if row["estimated"])
    assert (estimate["rtt_ms"], estimate["bandwidth_mbps"]) == (None, None)
    assert estimate["weight"] > 0
    assert any(note.startswith("1 link is an estimate") for note in document["notes"])
    # Nor where the link was measured since: the shape is of the time before.
    _, later = shape_and_view(2, 4)
    document = topology_document(shape_of(placed), later, "home")
    assert [row["rtt_ms"] for row in document["links"] if row["estimated"]] == [None]


@pytest.mark.parametrize(
    ("network", "beginnings"),
    [
        ({"count": 1, "per_site": 1}, ["no other peer takes part"]),
        ({"count": 1, "per_site": 6}, ["one community: whoever submits a job dispatches it directly"]),
        ({"count": 2, "per_site": 4}, []),
        ({"count": 2, "per_site": 4, "apart": True}, ["2 parts without any known link between them (4 and 4 peers)"]),
    ],
)
def test_people_are_told_what_there_is_to_say(network: dict[str, int], beginnings: list[str]) -> None:
    notes = document_of(**network)["notes"]
    assert len(notes) == len(beginnings)
    for note, beginning in zip(notes, beginnings, strict=True):
        assert note.startswith(beginning)


def test_who_is_down_is_counted_and_not_drawn() -> None:
    _, view = shape_and_view(2, 4)
    gone = (replace(view.entries[0], status=PeerStatus.DEAD), *view.entries[1:])
    view = replace(view, entries=gone)
    document = topology_document(shape_of(view), view, "home")
    assert document["left_out"] == 1
    assert format_peer_id(gone[0].record.peer) not in [row["peer"] for row in document["peers"]]
    assert document["notes"][-1].startswith("1 known peer is left out")


def test_who_went_while_the_shape_was_computed_keeps_a_row() -> None:
    shape, view = shape_and_view(1, 4)
    document = topology_document(shape, replace(view, entries=view.entries[1:]), "home")
    (row,) = (row for row in document["peers"] if row["peer"] == format_peer_id(view.entries[0].record.peer))
    assert (row["status"], row["name"], row["linked"]) == ("left", row["short"], False)


def test_communities_have_letters() -> None:
    names = [community_name(number) for number in (0, 1, 25, 26, 27, 51, 52, 701, 702)]
    assert names == ["A", "B", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA"]
