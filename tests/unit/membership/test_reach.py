"""The reach machine: honest and lying witnesses, routers, relays, and nothing at all on a LAN."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.membership.machine import Tick
from p2pcompute.membership.reach import ReachMachine
from p2pcompute.membership.reach_events import (
    AddressSeen,
    AskDialBack,
    DialBackFailed,
    DialBackRefused,
    DialedBack,
    Effect,
    Event,
    InboundSeen,
    LinkDown,
    LinkUp,
    MappingChanged,
    MapPort,
    NetworksChanged,
    PeerForgotten,
    ReachChanged,
    ReachSettings,
    RecordKnown,
    RelayRefused,
    RelayReserved,
    ReleaseRelay,
    ReserveRelay,
    RoundTripMeasured,
    TryDirect,
)
from p2pcompute.membership.reach_networks import Witness, are_two, is_global, network_of
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach, Relay

PORT = 9876
HOME = Address("192.168.1.20", PORT)
OUTSIDE = Address("11.5.0.9", PORT)
RENTED = Address("12.7.0.3", PORT)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


@dataclass
class Witnessing:
    """A peer elsewhere and what it does when asked."""

    number: int
    host: str
    #: "honest", "yes" (says it reached everything), "no", "silent", "refuses", "blames" (says no, and that it sees another address).
    manner: str = "honest"
    invitation: bytes = b""

    @property
    def peer(self) -> PeerId:
        return peer(self.number)


@dataclass
class World:
    """A machine, its clock, and the others. `open_at`: where this peer can really be reached; `seen`: from where its links come."""

    own: tuple[Address, ...] = (HOME,)
    open_at: tuple[Address, ...] = ()
    seen: Address | None = OUTSIDE
    #: What the router forwards when it is asked; None: nothing.
    router: Address | None = None
    settings: ReachSettings = field(default_factory=ReachSettings)
    reserves: bool = True

    def __post_init__(self) -> None:
        self.machine = ReachMachine(random.Random(1), self.settings)
        self.now = 0.0
        self.asked_at: dict[PeerId, float] = {}
        self.others: dict[PeerId, Witnessing] = {}
        self.log: list[tuple[float, Effect]] = []
        self(NetworksChanged(self.own))

    def __call__(self, *events: Event) -> None:
        pending = list(events)
        while pending:
            for effect in self.machine.handle(pending.pop(0), self.now):
                self.log.append((self.now, effect))
                pending += self.answer(effect)
            self.machine.check_invariants()

    def answer(self, effect: Effect) -> list[Event]:
        match effect:
            case AskDialBack(to, addresses):
                other = self.others[to]
                if other.manner == "silent":
                    return []
                if not addresses and other.manner != "refuses":
                    told = Address("99.9.9.9", 1) if other.manner == "blames" else self.seen
                    return [*([AddressSeen(to, told)] if told is not None else []), DialBackRefused(to)]
                last, self.asked_at[to] = self.asked_at.get(to, float("-inf")), self.now
                if self.now - last <= limits.DIAL_BACK_INTERVAL_S:
                    return [DialBackRefused(to)]
                if other.manner == "refuses":
                    return [DialBackRefused(to)]
                seen = Address("99.9.9.9", 1) if other.manner == "blames" else self.seen
                events: list[Event] = [AddressSeen(to, seen)] if seen is not None else []
                reached = tuple(each for each in addresses if each in self.open_at)
                if other.manner == "yes":
                    reached = addresses
                if other.manner in ("no", "blames"):
                    reached = ()
                return [*events, DialedBack(to, reached) if reached else DialBackFailed(to)]
            case MapPort():
                if self.router is not None:
                    self.open_at = (*self.open_at, self.router)
                return [MappingChanged(self.router, "NAT-PMP" if self.router else "no router answers")]
            case ReserveRelay(to, _):
                if self.reserves:
                    return [RelayReserved(to, self.now + 3_600)]
                return [RelayRefused(to, "full")]
        return []

    def link(self, *others: Witnessing, reach: Reach = Reach.UNKNOWN, dialled: bool = True) -> None:
        for other in others:
            self.others[other.peer] = other
            self(LinkUp(other.peer, Address(other.host, PORT), dialled, reach, False, other.invitation))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.machine.deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            self(Tick())
            assert self.machine.deadline() != at, "a Tick leaves nothing that is due"
        self.now = end

    def said(self, kind: type) -> list[Effect]:
        return [effect for _, effect in self.log if isinstance(effect, kind)]

    @property
    def reach(self) -> Reach:
        return self.machine.current.reach


def elsewhere(*manners: str) -> list[Witnessing]:
    return [Witnessing(number, f"20.{number}.0.1", manner) for number, manner in enumerate(manners, 1)]


# --- witnesses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("11.5.0.9", True), ("192.168.1.20", False), ("10.0.0.1", False), ("100.64.0.1", False), ("127.0.0.1", False),
        ("169.254.1.1", False), ("fe80::1%eth0", False), ("fd00::1", False), ("2a00::1", True), ("::ffff:11.5.0.9", True),
        ("::ffff:192.168.1.1", False), ("0.0.0.0", False), ("example.org", False), ("", False), ("203.0.113.1", False),
    ],
)  # fmt: skip
def test_what_is_global(host: str, expected: bool) -> None:
    assert is_global(host) is expected


@pytest.mark.parametrize(
    ("host", "network"),
    [("11.5.200.9", "11.5.0.0/16"), ("2a00:1:2::3", "2a00:1::/32"), ("::ffff:11.5.0.9", "11.5.0.0/16")],
)
def test_blocks(host: str, network: str) -> None:
    assert network_of(host) == network


def test_who_counts_as_two() -> None:
    one = Witness(peer(1), "20.1.0.0/16", b"i")
    assert are_two([one, Witness(peer(2), "20.2.0.0/16", b"i")])
    assert are_two([one, Witness(peer(2), "20.1.0.0/16", b"j")])
    assert not are_two([one, Witness(peer(2), "20.1.0.0/16", b"i")])
    assert not are_two([one, Witness(peer(2), "20.1.0.0/16", b"")]), "an unknown invitation is not another one"
    assert not are_two([one, Witness(peer(1), "20.2.0.0/16", b"j")]), "one peer is one, wherever it is"


# --- being public -----------------------------------------------------------------------------------------------------


def test_two_from_other_networks_make_public() -> None:
    world = World(own=(RENTED,), open_at=(RENTED,), seen=RENTED)
    world.link(*elsewhere("honest", "honest"))
    world.run(5)
    assert world.said(AskDialBack) == [AskDialBack(peer(1), (RENTED,)), AskDialBack(peer(2), (RENTED,))]
    # The own record names the own address by itself.
    assert world.said(ReachChanged) == [ReachChanged(Reach.PUBLIC, (), ())]
    assert not world.said(MapPort)
    assert not world.said(ReserveRelay)


def test_a_forwarding_that_somebody_set_by_hand_is_found_and_told() -> None:
    world = World(open_at=(OUTSIDE,))
    world.link(*elsewhere("honest", "honest"))
    world.run(20)
    # First they are asked how they see this peer, then, at once, whether they reach it there.
    assert world.said(AskDialBack)[:2] == [AskDialBack(peer(1), ()), AskDialBack(peer(2), ())]
    dials = [at for at, effect in world.log if isinstance(effect, AskDialBack) and effect.addresses]
    assert dials == [1.0, 1.0]
    assert world.machine.current == ReachChanged(Reach.PUBLIC, (OUTSIDE,), ())


def test_two_behind_one_block_with_one_invitation_are_one() -> None:
    world = World(own=(RENTED,), open_at=(RENTED,), seen=RENTED)
    world.link(Witnessing(1, "20.1.0.1", invitation=b"i"), Witnessing(2, "20.1.9.9", invitation=b"i"))
    world.run(100)
    assert world.reach is Reach.UNKNOWN
    assert not world.said(AskDialBack), "nothing could come of asking"
    world.link(Witnessing(3, "20.1.7.7", invitation=b"j"))
    world.run(20)
    assert world.reach is Reach.PUBLIC


def test_peers_of_the_own_block_are_no_witnesses() -> None:
    world = World(own=(RENTED,), open_at=(RENTED,), seen=RENTED)
    world.link(Witnessing(1, "12.7.1.1"), Witnessing(2, "20.2.0.1"))
    world.run(100)
    assert not world.said(AskDialBack)


def test_dials_from_two_networks_are_evidence_without_asking() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world(InboundSeen(peer(1), Address("20.1.0.1", 50_000)))
    assert world.reach is Reach.UNKNOWN
    world(InboundSeen(peer(2), Address("20.2.0.1", 50_000)))
    assert world.machine.current == ReachChanged(Reach.PUBLIC, (), ())
    assert not world.said(AskDialBack)


def test_one_dial_and_one_dial_back_are_two() -> None:
    world = World(own=(RENTED,), open_at=(RENTED,), seen=RENTED)
    world.link(*elsewhere("honest", "honest"))
    world(InboundSeen(peer(1), Address("20.1.0.1", 50_000)))
    world.run(5)
    assert world.said(AskDialBack) == [AskDialBack(peer(2), (RENTED,))]
    assert world.reach is Reach.PUBLIC


def test_dials_from_private_addresses_and_old_ones_say_nothing() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world(InboundSeen(peer(1), Address("20.1.0.1", 50_000)), InboundSeen(peer(2), Address("10.0.0.7", 50_000)))
    world.run(world.settings.recheck_s + 1)
    world(InboundSeen(peer(3), Address("20.3.0.1", 50_000)))
    assert world.reach is Reach.UNKNOWN


def test_dials_from_the_own_block_say_nothing() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world(InboundSeen(peer(1), Address("20.1.0.1", 50_000)), InboundSeen(peer(2), Address("12.7.9.9", 50_000)))
    assert world.reach is Reach.UNKNOWN


def test_dials_to_another_address_than_the_present_one_say_nothing() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world(InboundSeen(peer(1), Address("20.1.0.1", 50_000)))
    world(NetworksChanged((Address("14.4.0.1", PORT),)), InboundSeen(peer(2), Address("20.2.0.1", 50_000)))
    world.run(100)
    assert world.reach is Reach.UNKNOWN


def test_both_families_are_asked_about() -> None:
    six = Address("2a00:55::9", PORT)
    world = World(own=(RENTED, six, HOME), open_at=(six,), seen=RENTED)
    world.link(*elsewhere("honest", "honest"))
    world.run(5)
    assert world.said(AskDialBack)[0] == AskDialBack(peer(1), (RENTED, six))
    assert world.reach is Reach.PUBLIC


# --- being private ----------------------------------------------------------------------------------------------------


def test_two_that_reach_nothing_make_private_then_the_router_is_asked() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world.link(*elsewhere("honest", "honest"))
    assert not world.said(MapPort), "only a private peer asks its router"
    world.run(5)
    assert world.reach is Reach.PRIVATE
    assert world.said(MapPort) == [MapPort()]


def test_what_the_router_forwards_is_dialled_back_before_it_is_told() -> None:
    forwarded = Address("11.5.0.9", 41_000)
    world = World(router=forwarded)
    world.link(*elsewhere("honest", "honest"), reach=Reach.PUBLIC)
    world.run(60)
    assert [each.reach for each in world.said(ReachChanged) if isinstance(each, ReachChanged)] == [
        Reach.PRIVATE,
        Reach.MAPPED,
    ]
    assert world.machine.current == ReachChanged(Reach.MAPPED, (forwarded,), ())
    assert not world.said(ReserveRelay), "no relay while the router still may help"


def test_a_router_that_promises_what_it_does_not_keep_leads_to_relays() -> None:
    world = World(router=Address("11.5.0.9", 41_000))
    world.link(*elsewhere("no", "no"), reach=Reach.PUBLIC)
    world.run(60)
    assert world.reach is Reach.PRIVATE
    assert len(world.machine.current.relays) == 2
    assert not world.machine.current.external


def test_a_forwarded_address_that_is_private_itself_is_none() -> None:
    world = World(router=Address("192.168.0.10", 41_000))
    world.link(*elsewhere("honest", "honest"))
    world.run(100)
    assert world.reach is Reach.PRIVATE
    assert all(not isinstance(each, AskDialBack) or world.router not in each.addresses for _, each in world.log)


def test_a_lost_forwarding_makes_private_at_once() -> None:
    world = World(router=Address("11.5.0.9", 41_000))
    world.link(*elsewhere("honest", "honest"), reach=Reach.PUBLIC)
    world.run(60)
    assert world.reach is Reach.MAPPED
    world(MappingChanged(None, "the router was switched off"))
    assert world.reach is Reach.PRIVATE
    assert len(world.machine.current.relays) == 2


def test_one_witness_and_no_global_address_of_its_own_make_private_until_there_are_more() -> None:
    world = World(open_at=(OUTSIDE,))
    world.link(*elsewhere("no"), reach=Reach.PUBLIC)
    world.run(60)
    assert world.machine.current == ReachChanged(Reach.PRIVATE, (), (Relay(peer(1), Address("20.1.0.1", PORT)),))
    world.link(Witnessing(2, "20.2.0.1"), Witnessing(3, "20.3.0.1"))
    world.run(60)
    assert world.machine.current == ReachChanged(Reach.PUBLIC, (OUTSIDE,), ())


def test_one_witness_decides_nothing_where_this_machine_has_a_global_address() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world.link(*elsewhere("no"))
    world.run(4_000)
    assert world.reach is Reach.UNKNOWN
    assert not world.said(AskDialBack)


def test_one_failure_beside_silence_decides_nothing_where_this_machine_has_a_global_address() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world.link(*elsewhere("no", "silent"))
    world.run(4_000)
    assert world.said(AskDialBack)
    assert world.reach is Reach.UNKNOWN


# --- liars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("liar", ["yes", "no", "silent", "refuses", "blames"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("is_open", [True, False])
def test_one_liar_among_three_changes_nothing(liar: str, place: int, is_open: bool) -> None:
    manners = ["honest", "honest", "honest"]
    manners[place] = liar
    world = World(own=(RENTED,), open_at=(RENTED,) if is_open else (), seen=RENTED)
    world.link(*elsewhere(*manners))
    world.run(120)
    assert world.reach is (Reach.PUBLIC if is_open else Reach.PRIVATE)


@pytest.mark.parametrize("liar", ["yes", "no", "silent", "refuses", "blames"])
@pytest.mark.parametrize("is_open", [True, False])
def test_one_liar_beside_one_honest_peer_never_makes_a_wrong_answer(liar: str, is_open: bool) -> None:
    world = World(own=(RENTED,), open_at=(RENTED,) if is_open else (), seen=RENTED)
    world.link(*elsewhere("honest", liar))
    world.run(4_000)
    right = Reach.PUBLIC if is_open else Reach.PRIVATE
    assert world.reach in (right, Reach.UNKNOWN)


def test_answers_that_nobody_asked_for_count_for_nothing() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world.link(*elsewhere("silent", "silent"))
    world(DialedBack(peer(1), (RENTED,)), DialedBack(peer(2), (RENTED,)))
    assert world.reach is Reach.UNKNOWN
    world.run(2)
    assert len(world.said(AskDialBack)) == 2
    victim = Address("13.1.1.1", 80)
    world(DialedBack(peer(1), (victim,)), DialedBack(peer(1), (RENTED,)), DialedBack(peer(2), (victim,)))
    # The first answer of each is its answer: it reached nothing that it was asked about.
    assert world.reach is Reach.PRIVATE
    assert not world.machine.current.external


def test_a_witness_is_never_asked_about_an_address_that_another_one_named() -> None:
    world = World(open_at=(OUTSIDE,))
    world.link(*elsewhere("blames", "honest", "honest"))
    world.run(120)
    asked = {(each.to, address) for _, each in world.log if isinstance(each, AskDialBack) for address in each.addresses}
    assert asked == {(peer(1), Address("99.9.9.9", PORT)), (peer(2), OUTSIDE), (peer(3), OUTSIDE)}
    assert world.reach is Reach.PUBLIC


def test_one_peer_under_many_links_is_one() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    for number in range(20):
        world(InboundSeen(peer(1), Address(f"20.{number}.0.1", 50_000)))
    assert world.reach is Reach.UNKNOWN


@settings(max_examples=60)
@given(st.data())
def test_any_order_of_events_keeps_the_rules(data: st.DataObject) -> None:
    """Whatever one liar does among honest peers, and whatever comes and goes: never wrongly public, and no more asked than allowed."""
    rng = random.Random(data.draw(st.integers(0, 1 << 32)))
    is_open = data.draw(st.booleans())
    world = World(own=(RENTED,), open_at=(RENTED,) if is_open else (), seen=RENTED)
    manners = ["honest"] * 5 + [rng.choice(["yes", "no", "silent", "refuses", "blames"])]
    rng.shuffle(manners)
    others = elsewhere(*manners)
    liar = next(each for each in others if each.manner != "honest")
    for _ in range(60):
        one = rng.choice(others)
        lies: list[Event] = [
            DialedBack(liar.peer, (RENTED,)), DialBackFailed(liar.peer), AddressSeen(liar.peer, Address("99.9.9.9", 9)),
            RelayReserved(liar.peer, rng.choice([0.0, 1e18, float("inf"), float("nan")])), RelayRefused(liar.peer),
            RecordKnown(liar.peer, rng.choice(list(Reach)), (), (Address(liar.host, PORT),)),
        ]  # fmt: skip
        world.run(rng.uniform(0, 200))
        if rng.random() < 0.5:
            world.link(one, reach=rng.choice(list(Reach)), dialled=rng.random() < 0.7)
        elif rng.random() < 0.4:
            world(LinkDown(one.peer))
        else:
            world(rng.choice(lies))
        wrong = (Reach.PRIVATE,) if is_open else (Reach.PUBLIC, Reach.MAPPED)
        assert world.reach not in wrong
    for other in others:
        at = [when for when, each in world.log if isinstance(each, AskDialBack) and each.to == other.peer]
        assert all(later - earlier > limits.DIAL_BACK_INTERVAL_S for earlier, later in itertools.pairwise(at))
    assert len(world.said(AskDialBack)) < 60 * 200 / 60


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_a_lan_costs_nothing() -> None:
    world = World(seen=HOME)
    for number in range(1, 31):
        other = Witnessing(number, f"192.168.1.{number + 100}")
        world.others[other.peer] = other
        world(LinkUp(other.peer, Address(other.host, PORT), number % 2 == 0, Reach.UNKNOWN, True))
        world(InboundSeen(other.peer, Address(other.host, 50_000)))
        world(RecordKnown(other.peer, Reach.UNKNOWN, (), (Address(other.host, PORT),)))
    world.run(24 * 3_600)
    assert world.log == []
    assert world.machine.deadline() is None


def test_neither_do_routed_private_networks_and_relayed_links() -> None:
    world = World()
    world(
        LinkUp(peer(1), Address("10.9.0.1", PORT), True),
        LinkUp(peer(2), None, False),
        LinkUp(peer(3), Address("20.3.0.1", PORT), True, same_lan=True),
    )
    world.run(24 * 3_600)
    assert world.log == []


def test_asked_again_every_half_hour_and_others_first() -> None:
    world = World(own=(RENTED,), open_at=(RENTED,), seen=RENTED)
    world.link(*elsewhere("honest", "honest", "honest", "honest"))
    world.run(3 * limits.REACH_RECHECK_INTERVAL_S)
    asked = [each.to for each in world.said(AskDialBack) if isinstance(each, AskDialBack)]
    assert asked == [peer(1), peer(2), peer(3), peer(4), peer(1), peer(2)]
    assert len(world.said(ReachChanged)) == 1


def test_a_check_that_decides_nothing_is_repeated_ever_more_seldom() -> None:
    world = World(own=(RENTED,), seen=RENTED)
    world.link(*elsewhere("silent", "silent"))
    world.run(24 * 3_600)
    assert len(world.said(AskDialBack)) < 2 * (6 + 48 + 2)
    assert world.reach is Reach.UNKNOWN


def test_another_network_begins_from_the_start() -> None:
    world = World(open_at=(OUTSIDE,))
    world.link(*elsewhere("honest", "honest"))
    world.run(60)
    assert world.reach is Reach.PUBLIC
    world.open_at, world.seen = (), Address("14.4.4.4", 1)
    world(NetworksChanged((Address("10.0.0.5", PORT),)))
    assert world.machine.current == ReachChanged(Reach.UNKNOWN, (), ())
    world.run(60)
    assert world.reach is Reach.PRIVATE
    asked = [each for at, each in world.log if isinstance(each, AskDialBack) and at > 60]
    assert asked[0].addresses == (), "what they saw before the change is worth nothing"


def test_the_same_addresses_again_are_no_change() -> None:
    world = World(own=(RENTED,), open_at=(RENTED,), seen=RENTED)
    world.link(*elsewhere("honest", "honest"))
    world.run(60)
    before = len(world.log)
    world(NetworksChanged((RENTED,)))
    world.run(60)
    assert len(world.log) == before


# --- relays -----------------------------------------------------------------------------------------------------------


def private_world(**changes: object) -> World:
    """A peer that two witnesses, who are no relays themselves, have found private, and whose router does nothing."""
    world = World(**changes)  # type: ignore[arg-type]
    world.link(*elsewhere("no", "no"))
    world.run(30)
    assert world.reach is Reach.PRIVATE
    return world


def relay(world: World, number: int, rtt_s: float | None = None, host: str = "", reach: Reach = Reach.PUBLIC) -> Relay:
    address = Address(host or f"30.{number}.0.1", PORT)
    world.link(Witnessing(number, address.host, "no"), reach=reach)
    if rtt_s is not None:
        world(RoundTripMeasured(peer(number), rtt_s))
    return Relay(peer(number), address)


def asked_relays(world: World) -> list[PeerId]:
    return [each.peer for each in world.said(ReserveRelay) if isinstance(each, ReserveRelay)]


def test_the_two_nearest_public_peers_of_different_networks_become_relays() -> None:
    world = World()
    far, near, neighbour, middle = (
        relay(world, 11, 0.2), relay(world, 12, 0.01), relay(world, 13, 0.02, "30.12.5.5"), relay(world, 14, 0.05),
    )  # fmt: skip
    world(RecordKnown(peer(15), Reach.PRIVATE, (), (Address("30.15.0.1", PORT),)))
    world.link(*elsewhere("no", "no"))
    world.run(60)
    assert world.machine.current == ReachChanged(Reach.PRIVATE, (), (near, middle))
    assert {far.peer, neighbour.peer, peer(15)}.isdisjoint(asked_relays(world))


def test_a_public_peer_known_only_by_its_record_will_do() -> None:
    world = private_world()
    world(RecordKnown(peer(20), Reach.PUBLIC, (), (HOME, Address("30.20.0.1", PORT))))
    assert world.machine.current.relays == (Relay(peer(20), Address("30.20.0.1", PORT)),)


def test_one_that_dialled_us_and_says_it_is_public_comes_last() -> None:
    world = World()
    world.link(Witnessing(11, "30.11.0.1", "no"), dialled=False)
    world(RecordKnown(peer(11), Reach.PUBLIC, (), (Address("30.11.0.1", PORT),)), RoundTripMeasured(peer(11), 0.001))
    one, two = relay(world, 12, 0.1), relay(world, 13, 0.2)
    world.link(*elsewhere("no", "no"))
    world.run(60)
    assert world.machine.current.relays == (one, two)


def test_a_reservation_is_renewed_before_it_ends_and_the_record_stays() -> None:
    world = private_world()
    one = relay(world, 11)
    before = len(world.said(ReachChanged))
    world.run(5 * 3_600)
    times = [at for at, each in world.log if isinstance(each, ReserveRelay)]
    assert times == [times[0] + number * 2_700 for number in range(7)]
    assert len(world.said(ReachChanged)) == before
    assert world.machine.current.relays == (one,)


def test_a_relay_that_does_not_answer_its_renewal_is_asked_again_until_the_end() -> None:
    world = private_world()
    one = relay(world, 11)
    world.answer = lambda effect: []  # type: ignore[method-assign]
    start = world.now
    world.run(3_590)
    assert world.machine.current.relays == (one,)
    assert len(asked_relays(world)) > 3
    world.run(30)
    assert world.machine.current.relays == ()
    assert world.now > start


def test_a_dead_relay_is_replaced_at_once() -> None:
    world = private_world()
    one, two, three = relay(world, 11, 0.01), relay(world, 12, 0.02), relay(world, 13, 0.03)
    assert world.machine.current.relays == (one, two)
    world(LinkDown(one.peer))
    assert world.machine.current.relays == (two, three)
    assert not world.said(ReleaseRelay)


def test_the_only_relay_is_asked_again_when_its_link_is_back() -> None:
    world = private_world()
    one = relay(world, 11)
    world(LinkDown(one.peer))
    assert world.machine.current.relays == ()
    relay(world, 11)
    assert world.machine.current.relays == (one,)


def test_one_that_refuses_is_left_alone_for_longer_and_longer() -> None:
    world = private_world(reserves=False)
    relay(world, 11)
    world.run(24 * 3_600)
    asked = asked_relays(world)
    assert 40 < len(asked) < 120
    world.reserves = True
    world.run(3_600)
    assert [each.peer for each in world.machine.current.relays] == [peer(11)]


def test_one_that_is_public_no_more_or_forgotten_is_given_up() -> None:
    world = private_world()
    one, two = relay(world, 11), relay(world, 12)
    world(RecordKnown(one.peer, Reach.PRIVATE, (), (one.address,)))
    assert world.machine.current.relays == (two,)
    world(PeerForgotten(two.peer))
    assert world.machine.current.relays == ()
    assert world.said(ReleaseRelay) == [ReleaseRelay(one.peer), ReleaseRelay(two.peer)]


def test_relays_are_given_back_when_the_peer_turns_out_to_be_public() -> None:
    world = private_world()
    relay(world, 11)
    for other in world.others.values():
        other.manner = "honest"
    world.open_at = (OUTSIDE,)
    world.run(limits.REACH_RECHECK_INTERVAL_S + 60)
    assert world.machine.current == ReachChanged(Reach.PUBLIC, (OUTSIDE,), ())
    assert world.said(ReleaseRelay) == [ReleaseRelay(peer(11))]


def test_relays_stay_while_private_is_found_again() -> None:
    world = private_world()
    relay(world, 11)
    world.run(10 * limits.REACH_RECHECK_INTERVAL_S)
    assert not world.said(ReleaseRelay)
    assert len(world.said(MapPort)) >= 10, "the router is asked again each time: people change routers"


@pytest.mark.parametrize("expires_in_s", [1.0, -5.0, float("nan")])
def test_a_lifetime_that_would_be_renewed_all_the_time_is_a_refusal(expires_in_s: float) -> None:
    world = private_world()
    world.answer = lambda effect: []  # type: ignore[method-assign]
    one = relay(world, 11)
    world(RelayReserved(one.peer, world.now + expires_in_s))
    assert world.machine.current.relays == ()
    world.run(10)
    assert len(asked_relays(world)) == 1


def test_a_lifetime_beyond_an_hour_is_renewed_within_the_hour() -> None:
    world = private_world()
    world.answer = lambda effect: []  # type: ignore[method-assign]
    one = relay(world, 11)
    world(RelayReserved(one.peer, world.now + 1e18))
    world.run(2_710)
    assert len(asked_relays(world)) == 2


def test_reservations_that_nobody_asked_for_are_none() -> None:
    world = private_world()
    world(RelayReserved(peer(77), world.now + 3_600))
    assert world.machine.current.relays == ()


def test_records_by_the_thousand_push_out_nobody() -> None:
    world = private_world(reserves=False)
    one = relay(world, 11)
    for number in range(3_000, 1_000, -1):
        world(RecordKnown(peer(number), Reach.PUBLIC, (), (Address(f"40.{number % 200}.0.1", PORT),)))
    two = relay(world, 12)
    world.reserves = True
    world.log.clear()
    world.run(4 * 3_600)
    asked = asked_relays(world)
    assert {one.peer, two.peer} <= set(world.machine._table._candidates)
    assert peer(2_900) in world.machine._table._candidates
    assert peer(1_100) not in asked


# --- peers behind relays ----------------------------------------------------------------------------------------------


def relayed_world() -> World:
    world = World()
    world(LinkUp(peer(7), None, False))
    return world


def promise(reach: Reach, *addresses: Address) -> RecordKnown:
    return RecordKnown(peer(7), reach, (), addresses)


def test_a_peer_behind_a_relay_is_tried_directly_once_its_record_promises_it() -> None:
    world = relayed_world()
    world(promise(Reach.UNKNOWN, HOME), promise(Reach.PRIVATE, HOME))
    assert not world.said(TryDirect)
    world(promise(Reach.MAPPED, HOME, OUTSIDE))
    assert world.said(TryDirect) == [TryDirect(peer(7))]
    # The same again is no news, and news that come in a stream are not tried each.
    world(promise(Reach.MAPPED, HOME, OUTSIDE), promise(Reach.PUBLIC, OUTSIDE), promise(Reach.PUBLIC, RENTED))
    assert len(world.said(TryDirect)) == 1
    world.run(30)
    world(promise(Reach.PUBLIC, OUTSIDE))
    assert len(world.said(TryDirect)) == 2
    # A new link, again through a relay, does not make it more often.
    world(LinkUp(peer(7), None, True), promise(Reach.PUBLIC, RENTED))
    assert len(world.said(TryDirect)) == 2


def test_who_is_linked_directly_or_not_at_all_is_not_tried() -> None:
    world = World()
    world(promise(Reach.PUBLIC, OUTSIDE))
    world(LinkUp(peer(7), Address("20.1.0.1", PORT), True), promise(Reach.MAPPED, OUTSIDE))
    assert not world.said(TryDirect)
