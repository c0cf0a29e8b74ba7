"""Made-up networks: places on a globe, access lines, detours between places, queues that hold single packets up."""

from __future__ import annotations

import itertools
import math
import random

from p2pcompute.membership.coordinates import CoordinateSettings, CoordinateSpace, estimate_s
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Coordinate

#: Seconds once around half of the globe and back: 20,000 km of fibre, with what cables add.
HALF_AROUND_S = 0.26


def peer_of(number: int) -> PeerId:
    """The id of peer `number`: scattered like real ones."""
    return PeerId(random.Random(number).randbytes(32))


class SyntheticNetwork:
    """`sites` places of `peers_per_site` peers. `rtt_s(a, b)` is the truth, `sample_s(a, b)` one measurement of it."""

    def __init__(self, sites: int, peers_per_site: int, seed: int, *, detour: float = 0.15, noise: float = 0.1) -> None:
        self.rng = random.Random(seed)
        self.count = sites * peers_per_site
        self.site_of = [number // peers_per_site for number in range(self.count)]
        self._noise = noise
        self._places = [self._on_globe() for _ in range(sites)]
        #: Half a round trip over the access line: a switch, or a household's line.
        self._access_s = [self.rng.choice([1e-4, 1e-4, self.rng.lognormvariate(-5.5, 0.7)]) for _ in range(self.count)]
        self._detours = {
            pair: 1.0 + self.rng.expovariate(1 / detour) for pair in itertools.combinations(range(sites), 2)
        }
        self.peers = [peer_of(number) for number in range(self.count)]

    def _on_globe(self) -> tuple[float, float, float]:
        x, y, z = (self.rng.gauss(0, 1) for _ in range(3))
        length = math.sqrt(x * x + y * y + z * z)
        return (x / length, y / length, z / length)

    def rtt_s(self, one: int, other: int) -> float:
        """The round trip when nothing is queued."""
        return self._access_s[one] + self._access_s[other] + self.core_s(self.site_of[one], self.site_of[other])

    def access_s(self, number: int) -> float:
        """The part of each round trip that is this peer's own line."""
        return self._access_s[number]

    def place_s(self, site: int) -> tuple[float, ...]:
        """Where a site is: chords through the globe, scaled to round trips."""
        return tuple(each * HALF_AROUND_S / 2 for each in self._places[site])

    def core_s(self, one: int, other: int) -> float:
        """The round trip between two sites."""
        if one == other:
            return 2e-4
        cosine = sum(a * b for a, b in zip(self._places[one], self._places[other], strict=True))
        angle = math.acos(min(max(cosine, -1.0), 1.0)) / math.pi
        return HALF_AROUND_S * angle * self._detours[min(one, other), max(one, other)] + 2e-3

    def sample_s(self, one: int, other: int) -> float:
        """The truth and some queueing; one sample in twenty was held up badly."""
        rtt_s = self.rtt_s(one, other)
        held_s = self.rng.expovariate(1 / (self._noise * rtt_s))
        return rtt_s + held_s + (self.rng.uniform(0.0, 0.2) if self.rng.random() < 0.05 else 0.0)


class Places:
    """A coordinate space a peer, fed by probes of random others. `lies`: what some peers say instead of the truth."""

    def __init__(self, network: SyntheticNetwork, settings: CoordinateSettings | None = None) -> None:
        self.network = network
        self.spaces = [CoordinateSpace(random.Random(number), settings) for number in range(network.count)]
        self.lies: dict[int, Coordinate] = {}
        #: Seconds by which some peers hold their answers back.
        self.delays: dict[int, float] = {}
        self.now = 0.0

    def probe(self, one: int, other: int) -> None:
        """`one` probes `other`."""
        theirs = self.lies.get(other) or self.spaces[other].own
        rtt_s = self.network.sample_s(one, other) + self.delays.get(other, 0.0)
        self.spaces[one].update(self.network.peers[other], theirs, rtt_s, self.now)

    def run(self, samples_per_peer: int) -> None:
        """Each peer probes so many others, at random, one a second."""
        for _ in range(samples_per_peer):
            for one in range(self.network.count):
                other = self.network.rng.randrange(0, self.network.count - 1)
                self.probe(one, other + (other >= one))
            self.now += 1.0

    def errors(self, *, leave_out: tuple[int, ...] = ()) -> list[float]:
        """Relative error of the estimate of every pair of honest peers, ascending; no pair counts as shorter than 1 ms."""
        honest = [number for number in range(self.network.count) if number not in leave_out]
        found = []
        for one, other in itertools.combinations(honest, 2):
            true_s = self.network.rtt_s(one, other)
            guess_s = estimate_s(self.spaces[one].own, self.spaces[other].own)
            found.append(abs(guess_s - true_s) / max(true_s, 1e-3))
        return sorted(found)


def exact_coordinates(network: SyntheticNetwork) -> dict[PeerId, Coordinate]:
    """Coordinates as they are after a long time: each site is where it is on the globe, in seconds of round trip."""
    return {
        network.peers[number]: Coordinate(network.place_s(network.site_of[number]), network.access_s(number), 0.1)
        for number in range(network.count)
    }
