"""Which edges a peer keeps in its record, and which links it wants.

An edge counts only where both ends list it (`agreement.py`), so the two ends must choose alike without a word: wherever a
choice is free it falls on the lowest hash of the pair, which is the same number at both ends. A record holds

- the ring: the next higher and the next lower id of all that are known, around the end; by themselves they connect everybody;
- the nearest: by bands of round trips, within which a few microseconds decide nothing;
- the spread: places that are apart from each other and from here, each round-trip decade first. Within a place the lowest pair
  hash, so of all pairs between two places the lowest one is chosen at both ends: no two places stay unconnected. The strongest
  edges alone would leave them so (tried: 4 sites of 13 peers, no edge between sites).

What is listed stays listed until it is clearly beaten, and a listed figure stays until it is clearly wrong: a record is signed
and sent around the network for each change, so noise must not change it.

Refuses to know: how round trips are measured, who is alive, what the edges are used for.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from p2pcompute.membership.coordinates import estimate_s
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Coordinate, Edge


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What is chosen, and what counts as noise; the defaults are the product's."""

    #: Nearest edges.
    nearest: int = 6
    #: Edges spread over places.
    spread: int = 6
    #: Round trips below this are all alike, and peers nearer than this are at one place, seconds.
    near_s: float = 1e-3
    #: Each band of round trips is so many times as wide as the one below.
    band: float = 1.5
    #: Two peers are at one place where they are nearer to each other than this share of the way to the nearer of them.
    place_share: float = 0.5
    #: The same for one that is listed: it gives way only when it is clearly there.
    place_share_listed: float = 0.35
    #: Relative change up to which a listed round trip stays as it is; a challenger must be nearer by as much.
    rtt_noise: float = 0.25
    #: A change of so many seconds is noise in any case.
    rtt_noise_s: float = 5e-4
    #: Relative change up to which a listed throughput stays as it is.
    bandwidth_noise: float = 0.5
    #: Links wanted where not everybody can be linked.
    links_wanted: int = limits.LINKS_WANTED
    #: Known peers up to which everybody is linked.
    full_mesh_peers: int = limits.LINKS_MAX


def select_edges(
    own: PeerId,
    measured: Iterable[Edge],
    coordinates: Mapping[PeerId, Coordinate],
    ring: Iterable[PeerId],
    previous: Iterable[Edge] = (),
    settings: EdgeSettings | None = None,
) -> tuple[Edge, ...]:
    """The edges for the record of `own`, the most important first, so that a record that is too large drops the last ones.

    `measured`: to peers that are alive, the last of several to one peer counts; `coordinates`: what is known of theirs; `ring`:
    every peer that is alive, with or without `own`; `previous`: the edges of the last record.
    """
    chosen = settings or EdgeSettings()
    listed = {edge.peer: edge for edge in previous}
    usable = {edge.peer: edge for edge in measured if edge.peer != own and _is_usable(edge)}
    steady = {peer: _steady(usable[peer], listed.get(peer), chosen) for peer in sorted(usable)}
    around = [peer for peer in ring_neighbours(own, ring) if peer in steady]
    by_hash = sorted(steady, key=lambda peer: pair_hash(own, peer))
    # Stable: within a band the order stays that of the hashes.
    nearest = sorted(by_hash, key=lambda peer: _band(steady[peer], peer in listed, chosen))[: chosen.nearest]
    taken = frozenset((*around, *nearest))
    rest = [steady[peer] for peer in by_hash if peer not in taken]
    spread = _spread(rest, coordinates, listed, chosen)
    mixed = [peer for pair in zip_longest(nearest, spread) for peer in pair if peer is not None]
    return tuple(steady[peer] for peer in dict.fromkeys((*around, *mixed)))


def links_to_keep(
    own: PeerId,
    peers: Iterable[PeerId],
    measured: Iterable[Edge],
    coordinates: Mapping[PeerId, Coordinate],
    previous: Iterable[Edge] = (),
    settings: EdgeSettings | None = None,
) -> tuple[PeerId, ...]:
    """The peers that `own` wants links to, the most wanted first.

    `peers`: all that are alive. Up to `full_mesh_peers` of them it is everybody. Beyond, it is the ring, measured or not (what
    has no link is not measured), the selection of `select_edges`, and others of the lowest pair hashes, who want the same.
    """
    chosen = settings or EdgeSettings()
    others = sorted({peer for peer in peers if peer != own})
    by_hash = sorted(others, key=lambda peer: pair_hash(own, peer))
    if len(others) <= chosen.full_mesh_peers:
        return tuple(by_hash)
    alive = frozenset(others)
    selected = select_edges(
        own, [edge for edge in measured if edge.peer in alive], coordinates, others, previous, chosen
    )
    wanted = dict.fromkeys((*ring_neighbours(own, others), *(edge.peer for edge in selected), *by_hash))
    return tuple(wanted)[: chosen.links_wanted]


def ring_neighbours(own: PeerId, ring: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """The next higher id and the next lower one, around the end; one peer where both are the same, none where nobody is."""
    others = sorted({peer for peer in ring if peer != own})
    if not others:
        return ()
    place = bisect_left(others, own)
    return tuple(dict.fromkeys((others[place % len(others)], others[place - 1])))


def pair_hash(one: PeerId, other: PeerId) -> bytes:
    """Eight bytes that both ends compute alike, and that say nothing about either."""
    low, high = (one, other) if one < other else (other, one)
    return hashlib.blake2b(low + high, digest_size=8, person=b"p2pc-pair").digest()


def _is_usable(edge: Edge) -> bool:
    return math.isfinite(edge.rtt_s) and edge.rtt_s >= 0.0


def _steady(now: Edge, listed: Edge | None, settings: EdgeSettings) -> Edge:
    """`now`, with the figures of `listed` where they are still right."""
    if listed is None:
        return now
    noise_s = max(settings.rtt_noise * max(now.rtt_s, listed.rtt_s), settings.rtt_noise_s)
    rtt_s = listed.rtt_s if abs(now.rtt_s - listed.rtt_s) <= noise_s else now.rtt_s
    rate, old = now.bandwidth_mbps, listed.bandwidth_mbps
    if rate is None or (old is not None and abs(rate - old) <= settings.bandwidth_noise * max(rate, old)):
        rate = old
    return replace(now, rtt_s=rtt_s, bandwidth_mbps=rate)


def _band(edge: Edge, is_listed: bool, settings: EdgeSettings) -> int:
    """The number of the band of its round trip; who is not listed starts with a handicap."""
    rtt_s = edge.rtt_s if is_listed else edge.rtt_s * (1.0 + settings.rtt_noise)
    return 0 if rtt_s <= settings.near_s else 1 + int(math.log(rtt_s / settings.near_s, settings.band))


def _decade(edge: Edge) -> int:
    return math.floor(math.log10(max(edge.rtt_s, 1e-6)))


def _spread(
    rest: Sequence[Edge],
    coordinates: Mapping[PeerId, Coordinate],
    listed: Mapping[PeerId, Edge],
    settings: EdgeSettings,
) -> list[PeerId]:
    """Of `rest`, which is in the order of pair hashes: one a decade, one a place, then whoever comes first."""
    taken: list[Edge] = []
    decades: dict[int, None] = {}
    apart: list[Edge] = []
    for edge in rest:
        if edge.rtt_s > settings.near_s and not any(
            _one_place(edge, each, coordinates, listed, settings) for each in apart
        ):
            apart.append(edge)
            if _decade(edge) not in decades:
                decades[_decade(edge)] = None
                taken.append(edge)
    ordered = dict.fromkeys(edge.peer for edge in (*taken, *apart, *rest))
    return list(ordered)[: settings.spread]


def _one_place(
    edge: Edge,
    other: Edge,
    coordinates: Mapping[PeerId, Coordinate],
    listed: Mapping[PeerId, Edge],
    settings: EdgeSettings,
) -> bool:
    """Whether two peers are near each other, as far as own round trips (triangle inequality) and their coordinates say."""
    between_s = abs(edge.rtt_s - other.rtt_s)
    here, there = coordinates.get(edge.peer), coordinates.get(other.peer)
    if here is not None and there is not None:
        between_s = max(between_s, estimate_s(here, there))
    share = settings.place_share_listed if edge.peer in listed else settings.place_share
    return between_s < max(settings.near_s, share * min(edge.rtt_s, other.rtt_s))
