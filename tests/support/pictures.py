"""Documents of made-up networks, as a peer would tell them on its control socket, for what draws them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from p2pcompute.model.peer import PeerView
from p2pcompute.node.topology_report import topology_document
from p2pcompute.topology.shape import NetworkShape
from tests.support.sites import published, shape_of, sites, view_of


def shape_and_view(
    count: int,
    per_site: int,
    *,
    slow: bool = False,
    apart: bool = False,
    name: Callable[[int], str] = lambda number: f"peer{number}",
) -> tuple[NetworkShape, PeerView]:
    """`count` sites of `per_site` peers; `slow`: and one slow peer; `apart`: no site knows another; `name`: of each peer by its place."""
    world = sites(count, per_site, 1, slow=slow)
    site_of = dict(zip(world.peers, world.site.tolist(), strict=True))
    records = []
    for number, record in enumerate(published(world)):
        edges = [
            replace(edge, bandwidth_mbps=100.0 + number)
            for edge in record.edges
            if not apart or site_of[edge.peer] == site_of[record.peer]
        ]
        records.append(replace(record, name=name(number), edges=tuple(edges)))
    view = view_of(records)
    view = replace(view, entries=tuple(replace(entry, is_met=True, linked=True) for entry in view.entries))
    return shape_of(view), view


def document_of(count: int, per_site: int, **settings: Any) -> dict[str, Any]:
    """The same as a document that has been JSON on the way; one of its own each time."""
    document: dict[str, Any] = json.loads(_json_of(count, per_site, **settings))
    return document


@cache
def _json_of(count: int, per_site: int, **settings: Any) -> str:
    """What two hundred peers come to takes a second to find out, and is the same each time."""
    return json.dumps(topology_document(*shape_and_view(count, per_site, **settings), "home"), allow_nan=False)


#: Networks that a picture must be able to show: sites, peers a site, and what is special.
NETWORKS: dict[str, dict[str, Any]] = {
    "one peer": {"count": 1, "per_site": 1},
    "two peers": {"count": 1, "per_site": 2},
    "three peers": {"count": 1, "per_site": 3},
    "one community": {"count": 1, "per_site": 12},
    "two sites": {"count": 2, "per_site": 3},
    "parts": {"count": 3, "per_site": 5, "apart": True},
    "a slow peer": {"count": 4, "per_site": 20, "slow": True},
    "two hundred": {"count": 10, "per_site": 20},
}

#: Names that somebody might give a peer in order to do more than be read.
HOSTILE = (
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;owned\x07",
    "[red]name[/red]",
    "new\nline\r\ttab",
    "\u202egnp.exe",
    "é" * 60,
    "\U0001d518\U0001d52b\U0001d526" * 20,
    "東京" * 30,
    "",
    "   ",
    "\u0301\u0301",
    "$\\frac{1}{0}$",
    "_underscore & <b>",
    "a" * 64,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "\x00\x9b31m",
)


def hostile_document(count: int = 2, per_site: int = 8) -> dict[str, Any]:
    """A network whose peers have these names."""
    return document_of(count, per_site, name=lambda number: HOSTILE[number % len(HOSTILE)])
