"""The picture in the terminal: it fits, shows everybody, tells all without colour, and obeys no stranger's name."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from p2pcompute.app.topology_scene import NAME_CELLS_MAX, Scene, scene_of, shortened, with_letters_of
from p2pcompute.app.topology_terminal import (
    COLOURS,
    SHAPES,
    Screen,
    drawn,
    lends,
    mark_of,
    shape_of,
    spots_of,
)
from tests.support.pictures import NETWORKS, document_of, hostile_document

SIZES = [(80, 24), (160, 50), (40, 12), (100, 30), (20, 5), (1, 1)]


def scene(name: str) -> Scene:
    return scene_of(document_of(**NETWORKS[name]))


def lines(of: Scene, screen: Screen) -> list[str]:
    return [line.plain for line in drawn(of, screen)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("network", NETWORKS)
def test_it_fits_the_terminal(network: str, size: tuple[int, int]) -> None:
    width, height = size
    text = lines(scene(network), Screen(width, height))
    assert all(cell_len(line) <= max(width, 20) for line in text)
    if width >= 40 and height >= 12:
        assert len(text) < height, "a line is left for the prompt"


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=["80x24", "160x50"])
@pytest.mark.parametrize("network", NETWORKS)
def test_everybody_is_there_and_key_nodes_are_marked(network: str, size: tuple[int, int]) -> None:
    of, screen = scene(network), Screen(*size)
    text = lines(of, screen)
    assert None not in spots_of(of, screen, size[0], size[1] // 2)
    # Between the summary and the line that explains the marks.
    picture = "\n".join(text[1 : next(number for number, line in enumerate(text) if "this peer" in line)])
    shapes = [shape_of(peer.community, screen) for peer in of.peers]
    assert {shape: picture.count(shape) for shape in SHAPES} == {shape: shapes.count(shape) for shape in SHAPES}
    for peer in of.peers:
        if peer.is_key_node or peer.is_own:
            shape = shape_of(peer.community, screen)
            around = "{}" if peer.is_key_node and peer.is_own else "[]" if peer.is_key_node else "()"
            assert mark_of(peer, screen) == f"{around[0]}{shape}{around[1]}"
            assert (
                f"{mark_of(peer, screen)} {peer.name}" in picture or f"{peer.name} {mark_of(peer, screen)}" in picture
            )


def test_small_networks_have_all_names_and_large_ones_only_the_important() -> None:
    for network, all_named in (("two sites", True), ("one community", True), ("two hundred", False)):
        of = scene(network)
        text = "\n".join(lines(of, Screen(80, 24)))
        named = sum(any(word == peer.name for word in text.split()) for peer in of.peers)
        assert (named == len(of.peers)) is all_named
        assert named >= min(len(of.peers), 11), "this peer and the key nodes"


def test_the_legend_tells_communities_apart_without_colour() -> None:
    of = scene("a slow peer")
    text = lines(of, Screen(80, 24))
    for number, community in enumerate(of.communities):
        (row,) = (line for line in text if line.startswith(f"{SHAPES[number]} {community['name']} "))
        assert of.names[community["key_node"]] in row
        assert str(len(community["members"])) in row.split()
    assert len(COLOURS) % len(SHAPES) != 0
    assert len({(number % len(COLOURS), number % len(SHAPES)) for number in range(56)}) == 56


def test_the_widest_and_the_narrowest_links_are_told() -> None:
    of = scene("two hundred")
    text = lines(of, Screen(160, 50))
    start = next(number for number, line in enumerate(text) if "widest links between communities" in line)
    rows = text[start + 1 : start + 7]
    weights = [float(row.split(" ms")[1].split()[1]) for row in rows]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(of.between[0].weight, rel=1e-2)
    assert weights[-1] == pytest.approx(of.between[-1].weight, rel=1e-2)
    assert "narrowest: " in rows[3]
    one, other = of.peers[of.between[0].one], of.peers[of.between[0].other]
    assert one.name in rows[0]
    assert other.name in rows[0]


def test_a_network_without_communities_has_no_such_table() -> None:
    text = "\n".join(lines(scene("one community"), Screen(80, 24)))
    assert "between communities" not in text
    assert "dispatches it directly" in text


def test_in_a_pipe_nothing_is_cut() -> None:
    of = scene_of(document_of(4, 20, name=lambda number: f"quite-a-long-nm-{number}"))
    text = "\n".join(lines(of, Screen(80, None)))
    assert "…" not in text
    for community in of.communities:
        assert lends(community) in text
        assert ", ".join(of.names[peer] for peer in community["stand_ins"]) in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_what_the_output_cannot_hold_is_written_otherwise(encoding: str) -> None:
    of = scene_of(document_of(2, 3, name=lambda number: f"жук-東京-{number}"))
    screen = Screen(80, 24, encoding)
    text = lines(of, screen)
    "\n".join(text).encode(encoding)
    assert all(cell_len(line) <= 80 for line in text)
    assert screen.is_plain is (encoding != "utf-8")


@pytest.mark.parametrize("height", [24, None])
def test_names_of_strangers_are_harmless(height: int | None) -> None:
    document = hostile_document()
    document["network"] = "\x1b[31mnet\nwork"
    of = scene_of(document)
    text = drawn(of, Screen(80, height))
    for line in text:
        assert all(character.isprintable() for character in line.plain)
        if height is not None:
            assert cell_len(line.plain) <= 80
    assert any("[red]name[/red]" in line.plain for line in text), "names are no markup"


def test_names_are_short_and_differ() -> None:
    of = scene_of(document_of(2, 10, name=lambda number: "kitchen" if number < 10 else "x" * 64))
    names = [peer.name for peer in of.peers]
    assert len(set(names)) == len(names)
    assert all(0 < cell_len(name) <= NAME_CELLS_MAX for name in names)
    assert sum(name.startswith("kitchen ") for name in names) == 10


def test_nobody_can_take_the_name_that_another_was_given() -> None:
    document = document_of(1, 3, name=lambda number: "kitchen")
    document["peers"][2]["name"] = f"kitchen {document['peers'][0]['short'][:4]}"
    assert len({peer.name for peer in scene_of(document).peers}) == 3


def test_communities_keep_their_letters_while_one_watches() -> None:
    before = document_of(3, 4)
    after = document_of(3, 4)
    # The lowest id of all has gone, so that the letters of those that are there now would all move by one.
    swap = {0: 1, 1: 2, 2: 0}
    for row in after["peers"]:
        row["community"] = swap[row["community"]]
    after["communities"] = [
        {**after["communities"][old], "community": new, "name": "ABC"[new]}
        for old, new in sorted(swap.items(), key=lambda pair: pair[1])
    ]
    assert scene_of(after).communities != scene_of(before).communities
    kept = with_letters_of(before, after)
    assert kept["peers"] == before["peers"]
    assert kept["communities"] == before["communities"]
    assert with_letters_of(None, after) == after


def test_what_appears_or_vanishes_takes_no_letter_from_others() -> None:
    small, large = document_of(2, 4), document_of(4, 4)
    for row, old in zip(large["peers"], small["peers"], strict=False):
        row["peer"], old["peer"] = f"same {row['peer']}", f"same {row['peer']}"
    for one, other in ((small, large), (large, small)):
        kept = with_letters_of(one, other)
        numbers = sorted({row["community"] for row in kept["peers"]})
        assert numbers == list(range(len(other["communities"])))
        assert [community["community"] for community in kept["communities"]] == numbers
        assert [community["name"] for community in kept["communities"]] == list("ABCD"[: len(numbers)])


def test_a_name_is_cut_by_cells() -> None:
    assert shortened("kitchen", 7) == "kitchen"
    assert shortened("kitchen", 6) == "kitch…"
    assert shortened("東京東京", 6) == "東京…"
    assert shortened("two words", 5) == "two…"


def test_this_peer_comes_first_then_key_nodes_then_stand_ins() -> None:
    of = scene("a slow peer")
    kinds = [
        0 if peer.is_own else 1 if peer.is_key_node else 1 + peer.stand_in if peer.stand_in else 9 for peer in of.peers
    ]
    assert kinds == sorted(kinds)
    assert kinds[0] == 0
    assert kinds.count(1) >= 3
