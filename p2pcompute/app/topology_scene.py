"""What a picture of the network shows, whether in a terminal or in a file: who is important, what each is called, which links matter.

Names come from strangers: here they lose what a terminal or a file would obey, and two peers of one name are told apart. Refuses to know: places, colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from p2pcompute.app.render import printable

#: Cells of the longest name that stands in a picture; `--json` has it whole.
NAME_CELLS_MAX = 18
#: Of a short id, what tells two peers of one name apart.
_ID_CHARACTERS = 4


@dataclass(frozen=True, slots=True)
class ScenePeer:
    """`name`: harmless, unique where ids are, at most `NAME_CELLS_MAX` cells; `stand_in`: rank from 1, None for others."""

    peer: str
    name: str
    community: int
    x: float
    y: float
    is_key_node: bool
    stand_in: int | None
    is_own: bool


@dataclass(frozen=True, slots=True)
class SceneLink:
    """`one`, `other`: places of its ends in `Scene.peers`."""

    one: int
    other: int
    weight: float
    rtt_ms: float | None
    bandwidth_mbps: float | None
    is_estimated: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """`peers`: the most important first: this peer, key nodes, stand-ins, then by score. `links`: the heaviest first.

    `between`: for each pair of communities its heaviest link, the heaviest first. `communities`: rows of the document, by number.
    """

    network: str
    peers: tuple[ScenePeer, ...]
    links: tuple[SceneLink, ...]
    between: tuple[SceneLink, ...]
    communities: tuple[Mapping[str, Any], ...]
    lambda2: float
    notes: tuple[str, ...]

    @property
    def names(self) -> dict[str, str]:
        """What each peer is called, by whole id."""
        return {peer.peer: peer.name for peer in self.peers}

    @property
    def summary(self) -> str:
        """One line: how many peers and communities, and the algebraic connectivity."""
        peers, communities = len(self.peers), len(self.communities)
        return (
            f"{shortened(self.network, 2 * NAME_CELLS_MAX)}: {peers} {'peer' if peers == 1 else 'peers'} in {communities} "
            f"{'community' if communities == 1 else 'communities'}, lambda2 {self.lambda2:.4g}"
        )

    def pair(self, link: SceneLink) -> tuple[int, int]:
        """The communities that `link` joins, the lower number first."""
        ends = (self.peers[link.one].community, self.peers[link.other].community)
        return (min(ends), max(ends))


def scene_of(document: Mapping[str, Any]) -> Scene:
    """The scene of a document of `node/topology_report.py`."""
    rows = sorted(document["peers"], key=lambda row: _importance(row, document["own"]))
    names = _names(rows)
    peers = tuple(
        ScenePeer(
            row["peer"],
            name,
            row["community"],
            row["x"],
            row["y"],
            row["key_node"],
            row["stand_in"],
            row["peer"] == document["own"],
        )
        for row, name in zip(rows, names, strict=True)
    )
    place = {peer.peer: number for number, peer in enumerate(peers)}
    links = tuple(
        sorted(
            (
                SceneLink(
                    place[row["a"]],
                    place[row["b"]],
                    row["weight"],
                    row["rtt_ms"],
                    row["bandwidth_mbps"],
                    row["estimated"],
                )
                for row in document["links"]
            ),
            key=lambda link: (-link.weight, peers[link.one].peer, peers[link.other].peer),
        )
    )
    network = printable(document["network"])
    scene = Scene(
        network, peers, links, (), tuple(document["communities"]), document["lambda2"], tuple(document["notes"])
    )
    heaviest: dict[tuple[int, int], SceneLink] = {}
    for link in links:
        pair = scene.pair(link)
        if pair[0] != pair[1]:
            heaviest.setdefault(pair, link)
    between = tuple(heaviest.values())
    return Scene(network, peers, links, between, scene.communities, scene.lambda2, scene.notes)


def with_letters_of(before: Mapping[str, Any] | None, document: dict[str, Any]) -> dict[str, Any]:
    """`document` with its communities numbered, lettered and so coloured as those of `before` with most of the same peers.

    Numbers follow from the lowest ids alone and may all move when one peer comes or goes, which would be a riot of colours in a picture that is drawn again.
    """
    if before is None:
        return document
    was = {row["peer"]: row["community"] for row in before["peers"]}
    count = len(document["communities"])
    overlaps = Counter((row["community"], was[row["peer"]]) for row in document["peers"] if row["peer"] in was)
    kept: dict[int, int] = {}
    for (new, old), _ in sorted(overlaps.items(), key=lambda item: (-item[1], item[0])):
        if new not in kept and old < count and old not in kept.values():
            kept[new] = old
    free = iter(sorted(set(range(count)) - set(kept.values())))
    numbers = {new: kept[new] if new in kept else next(free) for new in range(count)}
    names = {community["community"]: community["name"] for community in document["communities"]}
    communities = [
        {**community, "community": number, "name": names[number]}
        for community in document["communities"]
        for number in [numbers[community["community"]]]
    ]
    return {
        **document,
        "peers": [{**row, "community": numbers[row["community"]]} for row in document["peers"]],
        "communities": sorted(communities, key=lambda community: community["community"]),
    }


def shortened(name: str, cells: int, ending: str = "…") -> str:
    """`name` in at most `cells` cells of a terminal."""
    if cell_len(name) <= cells:
        return name
    kept = name
    while kept and cell_len(kept) + cell_len(ending) > cells:
        kept = kept[:-1]
    return kept.rstrip() + ending


def _importance(row: Mapping[str, Any], own: str) -> tuple[Any, ...]:
    rank = row["stand_in"]
    return (row["peer"] != own, not row["key_node"], rank is None, rank or 0, -row["score"], row["peer"])


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    for row in rows:
        name = printable(str(row["name"])).strip()
        # A name of combining characters alone would be written onto what stands before it.
        names.append(shortened(name if cell_len(name) else row["short"], NAME_CELLS_MAX))
    counts = Counter(names)
    told_apart = [
        f"{shortened(name, NAME_CELLS_MAX - _ID_CHARACTERS - 1)} {row['short'][:_ID_CHARACTERS]}"
        if counts[name] > 1
        else name
        for row, name in zip(rows, names, strict=True)
    ]
    # A stranger may call itself what somebody else is called now; nobody is called by two ids.
    counts = Counter(told_apart)
    return [row["short"] if counts[name] > 1 else name for row, name in zip(rows, told_apart, strict=True)]
