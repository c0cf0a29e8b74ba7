"""What comes of each word of the reach machine: over real hubs in a memory network, with a machine that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest

from p2pcompute.membership import reach_events as reach
from p2pcompute.membership.machine import Tick
from p2pcompute.membership.reach import ReachMachine
from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError
from p2pcompute.model.ids import NetworkId, PeerId, short_peer_id
from p2pcompute.model.peer import Address, Isolation, PeerRecord, Reach, Relay
from p2pcompute.net.link import Link
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.node import status
from p2pcompute.node.reaching import Reaching
from p2pcompute.node.supervise import Supervisor
from tests.unit.net.link_help import Side, SystemClock, fake_identities, sides, until

NOWHERE = Address("127.0.0.1", 1)
OUTSIDE = Address("11.5.0.9", 9876)
OWN = Address("12.1.0.1", 9876)


def record(peer: PeerId, to: Reach) -> PeerRecord:
    return PeerRecord(
        peer, NetworkId(b"n" * 32), 1, 1, "x", (), None, 0, 0.0, frozenset(), Isolation.PROCESS, "3.11", "linux", "0", reach=to
    )  # fmt: skip


class Log:
    """Takes every line."""

    def info(self, event: str, **fields: Any) -> None:
        """Passed over."""

    debug = warning = error = info

    def exception(self, event: str, **fields: Any) -> None:
        """A task that dies is a bug."""
        raise AssertionError(f"{event}: {fields}")


class Script:
    """Says what the test has it say, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[reach.Event] = []
        self.next: list[reach.Effect] = []

    def handle(self, event: reach.Event, now: float) -> list[reach.Effect]:
        self.told.append(event)
        said, self.next = self.next, []
        return said

    def deadline(self) -> float | None:
        return None


@dataclass
class Bench:
    """One peer's reaching over its hub."""

    reaching: Reaching
    script: Script
    side: Side
    records: dict[PeerId, PeerRecord]
    #: Peers worth a direct try, and how often the own record had something new to say.
    direct: list[PeerId]
    changes: list[Reach]

    def say(self, *effects: reach.Effect) -> None:
        """Have the machine say this."""
        self.script.next = list(effects)
        self.reaching.pump.feed(Tick())

    async def told(self, *kinds: type) -> list[Any]:
        """What the machine is told of these kinds, once it is told anything of the last one."""
        await until(lambda: any(isinstance(event, kinds[-1]) for event in self.script.told), f"told {kinds[-1]}")
        return [event for event in self.script.told if isinstance(event, kinds)]


@contextlib.asynccontextmanager
async def bench(count: int = 2) -> AsyncIterator[tuple[Bench, list[Side]]]:
    """A bench for the first of `count` peers, and all of them."""
    supervisor = Supervisor(cast(Any, Log()))
    await supervisor.start()
    async with sides(fake_identities(count), network=MemoryNetwork()) as made:
        script, records, direct, changes = Script(), dict[PeerId, PeerRecord](), list[PeerId](), list[Reach]()
        reaching = Reaching(
            cast(ReachMachine, script),
            made[0].hub,
            SystemClock(),
            supervisor,
            cast(Any, Log()),
            records.get,
            lambda: changes.append(reaching.reach),
            direct.append,
        )
        yield Bench(reaching, script, made[0], records, direct, changes), made
        reaching.stop()
        await supervisor.stop()


def run(test: Callable[[Bench, list[Side]], Any], count: int = 2) -> None:
    async def main() -> None:
        async with bench(count) as (made, others):
            await test(made, others)

    asyncio.run(main())


def changed(to: Reach, *external: Address) -> reach.ReachChanged:
    return reach.ReachChanged(to, external, ())


# --- being a relay, having relays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "serves"), [(Reach.PUBLIC, True), (Reach.MAPPED, True), (Reach.PRIVATE, False), (Reach.UNKNOWN, False)]
)
def test_who_can_be_dialled_serves_as_a_relay(to: Reach, serves: bool) -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        server = made.side.hub.reaching.server
        assert not server.serving
        made.say(changed(Reach.PUBLIC if not serves else Reach.PRIVATE))
        made.say(changed(to, OUTSIDE))
        assert server.serving is serves
        assert made.changes[-1] is made.reaching.reach is to
        assert made.reaching.external == (OUTSIDE,)

    run(test)


def test_whose_owner_does_not_want_it_is_no_relay() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        server = made.side.hub.reaching.server
        made.reaching.may_relay = False
        made.say(changed(Reach.PUBLIC, OUTSIDE))
        assert made.reaching.reach is Reach.PUBLIC
        assert not server.serving
        await others[1].hub.dial(made.side.address, made.side.peer)
        with pytest.raises(BusyError, match="its owner does not want it: ask another one"):
            await others[1].hub.reaching.ends.reserve(made.side.peer)

    run(test)


def test_a_refused_reservation_is_told_with_its_reason_until_it_is_granted() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        relay = others[1]
        made.say(reach.ReserveRelay(relay.peer, relay.address))
        (refused,) = await made.told(reach.RelayRefused)
        assert "this peer is no relay" in refused.reason
        assert made.reaching.refusals == {relay.peer: refused.reason}
        # It was dialled for it, since no link was up.
        assert made.side.hub.link(relay.peer) is not None
        relay.hub.reaching.server.serve(True)
        made.say(reach.ReserveRelay(relay.peer, relay.address))
        (reserved,) = await made.told(reach.RelayReserved)
        assert reserved.expires_at > asyncio.get_running_loop().time() + limits.RELAY_RESERVATION_S - 60
        assert made.reaching.refusals == {}
        assert relay.hub.reaching.server.reserved == (made.side.peer,)
        made.say(reach.ReleaseRelay(relay.peer))
        await until(lambda: relay.hub.reaching.server.reserved == ())

    run(test)


def test_a_relay_that_nobody_answers_for_is_refused() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        made.say(reach.ReserveRelay(others[1].peer, NOWHERE))
        (refused,) = await made.told(reach.RelayRefused)
        assert str(NOWHERE) in refused.reason

    run(test)


def test_few_refusals_are_kept() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        for number in range(20):
            made.say(reach.ReserveRelay(PeerId(bytes([number]) * 32), NOWHERE))
        await until(lambda: sum(isinstance(event, reach.RelayRefused) for event in made.script.told) == 20)
        assert len(made.reaching.refusals) == 8

    run(test)


# --- dial-backs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("none", reach.DialBackRefused),
        ("right", reach.DialedBack),
        ("wrong", reach.DialBackFailed),
        ("not allowed", reach.DialBackRefused),
    ],
)
def test_how_this_peer_is_seen_is_told_before_what_came_of_a_dial_back(addresses: str, expected: type) -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        other = others[1]
        await made.side.hub.dial(other.address, other.peer)
        await until(lambda: other.hub.link(made.side.peer))
        seen = other.link_to(made.side).remote
        asked = {
            "none": (),
            "right": (made.side.address,),
            "wrong": (Address(seen.host, 1),),
            "not allowed": (Address("192.168.77.1", 9876),),
        }[addresses]
        made.say(reach.AskDialBack(other.peer, asked))
        told = await made.told(reach.AddressSeen, expected)
        assert [type(event) for event in told] == [reach.AddressSeen, expected]
        assert told[0].address == seen
        if expected is reach.DialedBack:
            assert told[1].reached == (made.side.address,)

    run(test)


def test_who_is_not_linked_is_not_asked() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        made.say(reach.AskDialBack(others[1].peer, ()))
        assert await made.told(reach.DialBackRefused) == [reach.DialBackRefused(others[1].peer)]

    run(test)


# --- the router -------------------------------------------------------------------------------------------------------


def test_without_a_mapper_nothing_is_forwarded_and_it_says_so() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        made.say(reach.MapPort())
        (told,) = await made.told(reach.MappingChanged)
        assert told.address is None
        assert "map_ports = false" in made.reaching.mapping
        assert made.reaching.external_by_router is None

    run(test)


def test_what_the_router_says_is_kept_for_people() -> None:
    class Mapper:
        external = OUTSIDE
        asked = 0

        def ask(self) -> None:
            self.asked += 1

    async def test(made: Bench, others: list[Side]) -> None:
        mapper = Mapper()
        made.reaching.use_mapper(cast(Any, mapper))
        assert made.reaching.mapping == "the router has not been asked"
        made.say(reach.MapPort())
        assert mapper.asked == 1
        made.reaching.mapping_changed(OUTSIDE, "NAT-PMP: the router forwards")
        assert made.reaching.mapping == "NAT-PMP: the router forwards"
        assert made.reaching.external_by_router == OUTSIDE
        assert await made.told(reach.MappingChanged) == [reach.MappingChanged(OUTSIDE, "NAT-PMP: the router forwards")]

    run(test)


# --- dialling through others ------------------------------------------------------------------------------------------


class FakeHub:
    """Dials as the test wants."""

    def __init__(self, reversal: str) -> None:
        self.reversal = reversal
        self.linked: set[PeerId] = set()
        self.said: list[tuple[Any, ...]] = []

    @property
    def reaching(self) -> Any:
        return self

    @property
    def server(self) -> Any:
        return self

    def serve(self, serving: bool) -> None:
        """Taken."""

    def link(self, peer: PeerId) -> object | None:
        return object() if peer in self.linked else None

    async def dial(self, address: Address, expected: PeerId) -> str:
        self.said.append(("dial", address, expected))
        return "linked"

    async def dial_reversed(self, via: PeerId, target: PeerId, addresses: Sequence[Address]) -> str:
        self.said.append(("reversed", via, target, tuple(addresses)))
        if self.reversal == "refused":
            raise LinkClosedError("it does not dial")
        if self.reversal == "silent":
            await asyncio.Event().wait()
        return "reversed"

    async def dial_via(self, relay: PeerId, target: PeerId) -> str:
        self.said.append(("via", relay, target))
        return "relayed"


TARGET, RELAY = PeerId(b"t" * 32), Relay(PeerId(b"r" * 32), Address("13.1.0.1", 9876))


def through(to: Reach, reversal: str, external: tuple[Address, ...] = ()) -> tuple[object, list[tuple[Any, ...]]]:
    async def main() -> tuple[object, list[tuple[Any, ...]]]:
        hub, script = FakeHub(reversal), Script()
        supervisor = Supervisor(cast(Any, Log()))
        await supervisor.start()
        reaching = Reaching(
            cast(ReachMachine, script), cast(Any, hub), SystemClock(), supervisor, cast(Any, Log()),
            lambda peer: None, lambda: None, lambda peer: None,
        )  # fmt: skip
        reaching.networks_changed((Address("192.168.1.5", 9876), OWN), ())
        script.next = [changed(to, *external)]
        reaching.pump.feed(Tick())
        found = await reaching.dial_through(TARGET, RELAY)
        await supervisor.stop()
        return found, hub.said

    return asyncio.run(main())


def test_who_can_be_dialled_is_dialled_by_those_who_cannot() -> None:
    found, said = through(Reach.PUBLIC, "works")
    assert found == "reversed"
    # Not at its private address, at which nobody elsewhere could.
    assert said == [("dial", RELAY.address, RELAY.peer), ("reversed", RELAY.peer, TARGET, (OWN,))]
    assert through(Reach.MAPPED, "works", (OUTSIDE,))[1][1] == ("reversed", RELAY.peer, TARGET, (OUTSIDE, OWN))


@pytest.mark.parametrize("reversal", ["refused", "silent"])
def test_what_does_not_dial_back_is_reached_through_the_relay(reversal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REVERSAL_PATIENCE_S", 0.02)
    found, said = through(Reach.PUBLIC, reversal)
    assert found == "relayed"
    assert said[-1] == ("via", RELAY.peer, TARGET)


def test_what_is_dialled_late_takes_the_relayed_links_place_and_is_called_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "REVERSAL_PATIENCE_S", 0.02)

    async def test(made: Bench, others: list[Side]) -> None:
        one, relay, target = others
        relay.hub.reaching.server.serve(True)
        await target.hub.dial(relay.address, relay.peer)
        await target.hub.reaching.ends.reserve(relay.peer)
        made.say(changed(Reach.PUBLIC, one.address))
        reversals = target.hub.reaching.reversals
        dials, wishes = reversals._wanted, list[tuple[Any, ...]]()
        monkeypatch.setattr(reversals, "_wanted", lambda *wish: wishes.append(wish))
        link = await made.reaching.dial_through(target.peer, Relay(relay.peer, relay.address))
        assert link.path == "relayed"
        dials(*wishes[0])
        await until(lambda: one.link_to(target).path == target.link_to(one).path == "reversed")

    run(test, 3)


@pytest.mark.parametrize("to", [Reach.PRIVATE, Reach.UNKNOWN])
def test_who_cannot_be_dialled_asks_nobody_to_do_it(to: Reach) -> None:
    found, said = through(to, "works")
    assert found == "relayed"
    assert [each[0] for each in said] == ["dial", "via"]


# --- for people -------------------------------------------------------------------------------------------------------


def test_every_link_says_why_and_through_whom_by_name() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        one, relay, target = others
        relay.hub.reaching.server.serve(True)
        await one.hub.dial(relay.address, relay.peer)
        await target.hub.dial(relay.address, relay.peer)
        await until(lambda: len(relay.hub.links) == 2)
        await target.hub.reaching.ends.reserve(relay.peer)
        link: Link = await one.hub.dial_via(relay.peer, target.peer)
        made.records[target.peer] = record(target.peer, Reach.PRIVATE)
        made.records[relay.peer] = record(relay.peer, Reach.PUBLIC)
        name_of: Callable[[PeerId], str] = lambda peer: "kitchen" if peer == relay.peer else "?"  # noqa: E731
        assert made.reaching.why(link, name_of) == ("relayed through kitchen: it cannot be dialled from other networks")
        assert short_peer_id(relay.peer) in made.reaching.why(link)
        made.say(changed(Reach.PRIVATE))
        assert made.reaching.why(link, name_of).endswith("neither side can be dialled from other networks")
        made.reaching.networks_changed((), (ipaddress.ip_network("10.0.0.0/8"),))
        assert made.reaching.why(one.link_to(relay), name_of).startswith("direct: ")

    run(test, 3)


def test_what_a_linked_peer_promises_goes_on_to_whoever_dials() -> None:
    async def test(made: Bench, others: list[Side]) -> None:
        made.say(reach.TryDirect(others[1].peer))
        assert made.direct == [others[1].peer]

    run(test)


@pytest.mark.parametrize(
    ("to", "relays", "words"),
    [
        ("public", [], "can dial it at 11.5.0.9:9876"),
        ("mapped", [], "which its router forwards (UPnP)"),
        ("private", ["kitchen", "attic"], "they reach it through kitchen and attic. Router: UPnP"),
        ("private", [], "it has no relay. Router: UPnP"),
        ("unknown", [], "not known from outside"),
    ],
)
def test_reach_in_words(to: str, relays: list[str], words: str) -> None:
    external = ["11.5.0.9:9876"] if to in ("public", "mapped") else []
    assert words in status.reach_text(to, external, relays, "UPnP")
