"""The spectral part: what its choices are worth, on made-up networks, and what its solvers cost beside plain SciPy in
the same run.

    python -m benchmarks topology [--part rules|sites|solvers]... [--plot docs/topology.svg]

Parts: `rules` (200 networks: what a site's coordinator costs by the rule that chooses it), `sites` (sites found and
gateways right), `solvers` (times at 100, 1,000 and 10,000 peers). The networks are those of the tests. `--plot` needs
matplotlib: pip install 'p2pcompute[plots]'.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from p2pcompute.membership.agreement import AgreementSettings, agreed_edges, fill_in
from p2pcompute.topology.affinity import Adjacency, adjacency
from p2pcompute.topology.balance import balancing_flow, surplus
from p2pcompute.topology.election import Candidate
from p2pcompute.topology.fiedler import spectrum
from p2pcompute.topology.gateways import gateway_shares
from p2pcompute.topology.graph import Floats, Graph, graph_of_edges, laplacian, sparse_weights
from p2pcompute.topology.moves import decompose
from p2pcompute.topology.partition import communities
from p2pcompute.topology.shape import analyse
from tests.support.sites import Sites, is_right, published, sites, view_of

PARTS = ("rules", "sites", "solvers")
NETWORKS = 200
PER_SITE = 8
#: Mean queueing of a round trip, as a share of it, in what peers publish.
NOISE = 0.1
ALL_PAIRS, PUBLISHED, UNLIFTED = "all pairs", "published", "published, none lifted"
T = TypeVar("T")


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables of the parts that `arguments` name, and draw the plot where one is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks topology", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="which; may be repeated; by default all")
    parser.add_argument("--plot", metavar="FILE", help="draw the rules and one network into this SVG file")
    options = parser.parse_args(list(arguments))
    parts = options.part or PARTS
    if "rules" in parts or options.plot:
        costs = {slow: rule_costs(slow=slow) for slow in (False, True)}
        _print_rules(costs)
        if options.plot:
            draw(costs, options.plot)
    if "sites" in parts:
        _print_sites()
    if "solvers" in parts:
        _print_solvers()


# --- what a coordinator costs -----------------------------------------------------------------------------------------

#: Row that a rule chooses among `rows`, the peers of one site.
Rule = Callable[[np.ndarray], int]


#: No number of witnesses is enough to lift an edge.
NOTHING_LIFTED = AgreementSettings(witnesses=1_000_000, peers_per_witness=1)


def seen_by_all(world: Sites, *, noise: float = NOISE, settings: AgreementSettings | None = None) -> Adjacency:
    """The graph that everybody agrees on after each peer has published the edges it really selects."""
    view = view_of(published(world, noise=noise))
    agreed = agreed_edges(view, settings)
    return adjacency(world.peers, agreed, fill_in(view, agreed))


def way_out(world: Sites) -> Floats:
    """(n,) mean round trip to the peers of other sites, ms."""
    return np.array([world.rtt_ms[row, world.site != world.site[row]].mean() for row in range(len(world.peers))])


def rule_costs(*, slow: bool) -> dict[str, float]:
    """Mean round trip from the coordinators of sites to other sites, ms, by the rule that chose them; means over
    `NETWORKS`."""
    sums: dict[str, list[float]] = {}
    for seed in range(NETWORKS):
        rng = np.random.default_rng(1_000 + seed)
        world = sites(int(rng.integers(2, 6)), PER_SITE, seed, slow=slow)
        cost, weights = way_out(world), world.weights
        whole = spectrum(weights)
        capability = rng.uniform(0, 100, len(world.peers))
        labels = communities(weights)
        listed = seen_by_all(world)
        listed_labels = communities(listed.graph)
        scores = {
            "largest abs(v)": np.abs(whole.vector),
            "random": rng.random(len(world.peers)),
            "most capable": capability,
            "largest s, whole graph": whole.shares,
            "largest s between communities, published edges": gateway_shares(
                listed.graph, listed_labels, estimated=listed.estimated
            ),
            "largest s between communities, all pairs": gateway_shares(weights, labels),
            "best possible": -cost,
        }
        found = {rule: labels for rule in scores if rule.endswith("all pairs")}
        found |= {rule: listed_labels for rule in scores if rule.endswith("published edges")}
        for place in range(int(world.site.max()) + 1):
            here = np.flatnonzero(world.site == place)
            for rule, score in scores.items():
                rows = community_of(found[rule], here) if rule in found else here
                chosen = int(rows[np.argmax(score[rows])])
                sums.setdefault(rule, []).append(float(world.rtt_ms[chosen, world.site != place].mean()))
    return {rule: statistics.fmean(each) for rule, each in sums.items()}


def community_of(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of the community to which most of `rows` belong: it elects for their site."""
    return np.flatnonzero(labels == np.bincount(labels[rows]).argmax())


def _print_rules(costs: dict[bool, dict[str, float]]) -> None:
    print(
        f"{NETWORKS} networks of 2 to 5 sites with {PER_SITE} peers each: mean round trip from a site's coordinator to the other sites, ms\n"
    )
    print("| the coordinator is | | with one 200 ms laptop at a site |\n|---|---|---|")
    for rule, cost in costs[False].items():
        print(f"| {rule} | {cost:.1f} | {costs[True][rule]:.1f} |")


# --- sites and gateways -----------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """How often it was right."""

    networks: int = 0
    found: int = 0
    gateways: int = 0
    whole: int = 0
    two_step: int = 0
    lost_ms: float = 0.0
    gain_ms: float = 0.0


def _tally(edges: str, *, slow: bool, networks: int = 60) -> Tally:
    tally = Tally()
    rng = np.random.default_rng(5)
    for seed in range(networks):
        world = sites(int(rng.integers(2, 6)), int(rng.integers(6, 14)), 500 + seed, slow=slow)
        seen: Floats | Graph = world.weights
        estimated = None
        if edges != ALL_PAIRS:
            listed = seen_by_all(world, settings=NOTHING_LIFTED if edges == UNLIFTED else None)
            seen, estimated = listed.graph, listed.estimated
        labels = communities(seen)
        shares, whole = gateway_shares(seen, labels, estimated=estimated), spectrum(seen).shares
        cost = way_out(world)
        tally.networks += 1
        tally.found += is_right(labels, world.site, but=world.slow)
        for place in range(int(world.site.max()) + 1):
            rows = np.setdiff1d(np.flatnonzero(world.site == place), world.slow)
            best = world.best_of(place)
            community = community_of(labels, rows)
            chosen = int(community[np.argmax(shares[community])])
            everybody = np.flatnonzero(world.site == place)
            tally.gateways += 1
            tally.whole += int(everybody[np.argmax(whole[everybody])]) == best
            tally.two_step += chosen == best
            tally.lost_ms += float(world.rtt_ms[chosen, world.site != place].mean() - cost[best])
            tally.gain_ms += float(cost[rows].mean() - cost[best])
    return tally


def _print_sites() -> None:
    print(
        f"\n60 networks of 2 to 5 sites with 6 to 13 peers each; published edges have {NOISE:.0%} of queueing in them\n"
    )
    print(
        "| edges | slow laptop | sites found | best gateway by s of the whole graph | by the two steps | lost of the gain |"
    )
    print("|---|---|---|---|---|---|")
    for edges in (ALL_PAIRS, PUBLISHED, UNLIFTED):
        for slow in (False, True):
            tally = _tally(edges, slow=slow)
            print(
                f"| {edges} | {'one' if slow else 'none'} | {tally.found} of {tally.networks} "
                f"| {tally.whole} of {tally.gateways} | {tally.two_step} of {tally.gateways} | {tally.lost_ms / tally.gain_ms:.0%} |"
            )


# --- solvers ----------------------------------------------------------------------------------------------------------


def large_network(count: int, per_site: int, seed: int) -> Graph:
    """Sites on a globe; each peer has some edges at its site and some to others, 14 or so in all, as selection leaves
    them."""
    rng = np.random.default_rng(seed)
    size = count * per_site
    place = rng.normal(size=(count, 3))
    place /= np.linalg.norm(place, axis=1)[:, None]
    access = rng.lognormal(np.log(6), 0.9, size)
    near = np.arange(size).repeat(4)
    far = np.arange(size).repeat(3)
    one = np.concatenate((near, far))
    other = np.concatenate(
        (near // per_site * per_site + rng.integers(0, per_site, near.size), rng.integers(0, size, far.size))
    )
    keys = np.unique(np.minimum(one, other) * size + np.maximum(one, other))
    one, other = keys // size, keys % size
    one, other = one[one != other], other[one != other]
    here, there = one // per_site, other // per_site
    cosine = np.clip(np.einsum("ij,ij->i", place[here], place[there]), -1, 1)
    rtt_ms = np.where(
        here == there, rng.uniform(0.3, 2, one.size), np.arccos(cosine) / np.pi * 260 + access[one] + access[other] + 2
    )
    return graph_of_edges(size, one, other, 1 / (1 + rtt_ms))


def shaken(graph: Graph, seed: int) -> Graph:
    """The same after a hundredth of the edges has changed by up to three times."""
    rng = np.random.default_rng(seed)
    factor = np.where(rng.random(graph.weight.size) < 0.01, rng.uniform(0.3, 3, graph.weight.size), 1.0)
    return graph_of_edges(graph.size, graph.one, graph.other, graph.weight * factor)


def _timed(function: Callable[[], T], runs: int) -> tuple[T, str]:
    """The answer and the least CPU time, ms: what other programs do meanwhile counts little. Wants
    OMP_NUM_THREADS=1."""
    taken = []
    for _ in range(runs):
        begun = time.process_time()
        answer = function()
        taken.append(time.process_time() - begun)
    return answer, f"{1000 * min(taken):,.1f}"


def _dense(graph: Graph) -> float:
    return float(np.linalg.eigh(laplacian(graph))[0][1])


def _shift_invert(graph: Graph) -> float:
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import eigsh

    matrix = (diags_array(graph.degree) - sparse_weights(graph)).tocsc()
    return float(np.sort(eigsh(matrix, k=2, sigma=-1e-6, return_eigenvectors=False))[1])


def _mirrored(graph: Graph) -> float:
    """As exactly as it gets: without a null vector removed, and to the last bit."""
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import eigsh

    bound = 2.0 * float(graph.degree.max())
    matrix = (diags_array(bound - graph.degree) + sparse_weights(graph)).tocsr()
    return bound - float(
        np.sort(eigsh(matrix, k=2, which="LA", return_eigenvectors=False, v0=np.sin(np.arange(graph.size))))[0]
    )


def _shape_of(graph: Graph) -> None:
    from p2pcompute.membership.agreement import AgreedEdge
    from p2pcompute.model.ids import PeerId

    peers = [PeerId(number.to_bytes(32, "big")) for number in range(graph.size)]
    links = [
        AgreedEdge(peers[one], peers[other], (1 / weight - 1) / 1000, None)
        for one, other, weight in zip(graph.one.tolist(), graph.other.tolist(), graph.weight.tolist(), strict=True)
    ]
    crowd = [Candidate(peer, 50.0, 1.0) for peer in peers]
    analyse(crowd, links)


def _print_solvers() -> None:
    print("\nλ2 and its vector, ms of CPU, the least of several runs; a dash: takes minutes\n")
    print(
        "| peers, sites | edges | numpy eigh | eigsh, shift and invert | eigsh of c - L | ours, cold | ours, warm | λ2, off by at most |"
    )
    print("|---|---|---|---|---|---|---|---|")
    networks = [(100, 4), (500, 10), (1_000, 20), (10_000, 20), (10_000, 200)]
    spectrum(large_network(20, 40, 1))
    for size, count in networks:
        graph = large_network(count, size // count, size)
        after, before = shaken(graph, 1), spectrum(graph)
        dense_ms = inverted_ms = "-"
        if size <= 1_000:
            dense_ms = _timed(lambda graph=after: _dense(graph), 3)[1]
            inverted_ms = _timed(lambda graph=after: _shift_invert(graph), 3)[1]
        exact, mirrored_ms = _timed(lambda graph=after: _mirrored(graph), 3)
        cold, cold_ms = _timed(lambda graph=after: spectrum(graph), 9)
        warm, warm_ms = _timed(lambda graph=after, last=before: spectrum(graph, warm=last.vectors), 9)
        off = max(abs(each / exact - 1) for each in (cold.lambda2, warm.lambda2))
        print(
            f"| {size:,}, {count} | {graph.weight.size:,} | {dense_ms} | {inverted_ms} | {mirrored_ms} | {cold_ms} | {warm_ms} | {off:.0e} |"
        )
    print("\nEverything else, ms of CPU\n")
    print(
        "| peers, sites | communities (found) | gateway shares | flow | direct moves | whole snapshot |\n|---|---|---|---|---|---|"
    )
    for size, count in networks:
        graph = large_network(count, size // count, size)
        labels, cut_ms = _timed(lambda graph=graph: communities(graph), 3)
        _, shares_ms = _timed(lambda graph=graph, labels=labels: gateway_shares(graph, labels), 3)
        rng = np.random.default_rng(1)
        over = surplus(graph, rng.exponential(10, size), rng.uniform(1, 4, size))
        flow, flow_ms = _timed(lambda graph=graph, over=over: balancing_flow(graph, over), 3)
        _, moves_ms = _timed(lambda graph=graph, flow=flow, over=over: decompose(graph, flow, over), 3)
        _, whole_ms = _timed(lambda graph=graph: _shape_of(graph), 2)
        print(
            f"| {size:,}, {count} | {cut_ms} ({int(labels.max()) + 1}) | {shares_ms} | {flow_ms} | {moves_ms} | {whole_ms} |"
        )


# --- the picture ------------------------------------------------------------------------------------------------------


def draw(costs: dict[bool, dict[str, float]], path: str) -> None:
    """The costs of the rules, and one network of four sites with a slow laptop, as two panels."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("the plot needs matplotlib: pip install 'p2pcompute[plots]'") from error
    matplotlib.use("svg")
    # The same picture from the same figures, and text that stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "p2pcompute", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    from tests.support.sites import shape_of

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.25, 1), layout="constrained")
    rules = list(costs[False])[::-1]
    heights = np.arange(len(rules))
    for slow, shift, colour, name in (
        (False, 0.2, "#4477aa", "200 networks"),
        (True, -0.2, "#ee9955", "with one slow laptop each"),
    ):
        values = [costs[slow][rule] for rule in rules]
        bars = left.barh(heights + shift, values, 0.38, color=colour, label=name)
        left.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    left.margins(x=0.08)
    left.set_yticks(heights, [rule.replace(", ", ",\n") for rule in rules])
    left.set_xlabel("mean round trip from a site's coordinator to the other sites, ms")
    left.legend(loc="lower right", fontsize=7)
    world = sites(4, 20, 2, slow=True)
    shape = shape_of(view_of(published(world, noise=NOISE)))
    graph = shape.adjacency.graph
    for one, other in zip(graph.one.tolist(), graph.other.tolist(), strict=True):
        ends = shape.drawing[[one, other]]
        right.plot(ends[:, 0], ends[:, 1], color="#cccccc", linewidth=0.3, zorder=1)
    right.scatter(*shape.drawing.T, c=shape.labels, cmap="Set2", s=14, zorder=2)
    keys = [row for row, peer in enumerate(shape.peers) if shape.is_key_node(peer)]
    right.scatter(*shape.drawing[keys].T, s=70, facecolors="none", edgecolors="black", zorder=3, label="key nodes")
    right.scatter(*shape.drawing[list(world.slow)].T, s=60, marker="x", color="#cc3311", zorder=3, label="slow laptop")
    right.set_title("4 sites of 20 from published edges", fontsize=9)
    right.set_axis_off()
    right.legend(loc="best", fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
