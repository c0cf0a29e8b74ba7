"""Sessions between peers that mean well, on networks that do not: loss, repetition, disorder, both at once, restarts, moves."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError, UsageError
from p2pcompute.model.peer import Address
from p2pcompute.net.session_events import SessionSettings
from p2pcompute.net.session_questions import TOKEN_BYTES
from p2pcompute.wire.datagram import Kind, datagram_tag, write_unknown
from p2pcompute.wire.session import ANSWER, OWN_CHANNEL, QUESTION
from tests.purity.world import world_switched_off
from tests.unit.net.datagram_help import CHANNEL, DELAY_S, Flying, Net, Station, joined, member, pair, session_of

HANDSHAKE = [Kind.HELLO, Kind.COOKIE, Kind.PROOF, Kind.ACCEPT]


def two(net: Net, **changes: SessionSettings) -> tuple[Station, Station]:
    low, high = pair()
    return net.station(low, 1, **changes), net.station(high, 2, **changes)


def test_a_handshake_takes_two_round_trips_and_carries_what_waited() -> None:
    net = Net()
    anna, bert = two(net)
    for payload in (b"one", b"two"):
        net.say(anna, bert, payload)
    net.run(1.0)
    assert net.kinds()[:4] == HANDSHAKE
    assert set(net.kinds()[4:]) == {Kind.SEALED}
    assert bert.payloads == [b"one", b"two"]
    assert [(up.peer, up.address) for up in anna.ups] == [(bert.peer, bert.address)]
    assert [(up.peer, up.address) for up in bert.ups] == [(anna.peer, anna.address)]
    assert bert.ups[0].admission.roles == anna.identity.membership.roles
    assert {each.source for each in bert.delivered} == {anna.address}
    for here, there in ((anna, bert), (bert, anna)):
        info = here.sessions.session(there.peer)
        assert info is not None
        assert info.rtt_s == pytest.approx(2 * DELAY_S)
        assert (info.bytes_in, info.bytes_out) != (0, 0)
    net.say(bert, anna, b"back")
    net.run(1.0)
    assert anna.payloads == [b"back"]
    assert not any(anna.sessions.counts.values())
    assert not any(bert.sessions.counts.values())


def test_the_machine_touches_nothing_of_the_world() -> None:
    low, high = pair()
    net = Net()
    with world_switched_off():
        anna, bert = net.station(low, 1), net.station(high, 2)
        joined(net, anna, bert)
        net.run(limits.SESSION_END_S)


def test_whoever_answers_sends_nothing_before_the_keys_are_proven() -> None:
    net = Net(lambda flying: () if flying.kind is Kind.SEALED else (DELAY_S,))
    anna, bert = two(net)
    net.say(anna, bert, b"first")
    net.run(0.25)
    assert net.kinds(bert) == [Kind.COOKIE, Kind.ACCEPT]
    assert bert.sessions.session(anna.peer) is None
    assert not bert.ups
    net.say(bert, anna, b"waits")
    net.run(0.1)
    assert net.kinds(bert) == [Kind.COOKIE, Kind.ACCEPT], "its own handshake waits for the one that is half open"


def test_greeting_an_address_finds_who_is_there() -> None:
    net = Net()
    anna, bert = two(net)
    net.greet(anna, bert.address)
    net.greet(anna, bert.address)
    net.run(1.0)
    assert net.kinds().count(Kind.HELLO) == 1
    assert [up.peer for up in anna.ups] == [bert.peer]
    assert [up.peer for up in bert.ups] == [anna.peer], "confirmed although nothing was to be said"


def test_greeting_nobody_is_told_once() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    net.greet(anna, Address("10.0.0.9", 9876))
    net.run(60.0)
    assert net.kinds() == [Kind.HELLO] * 5
    assert [(each.address.host, type(each.error)) for each in anna.refused] == [("10.0.0.9", LinkClosedError)]
    assert anna.sessions.deadline() is None


@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "0.0.0.0", "ff02::1", "host.example", ""])
def test_nobody_is_greeted_where_no_machine_is(host: str) -> None:
    net = Net()
    anna, bert = two(net)
    with pytest.raises(UsageError):
        anna.sessions.greet(Address(host, 9876), net.now)
    with pytest.raises(UsageError):
        anna.sessions.greet(Address("10.0.0.9", 0), net.now)
    assert not anna.sessions.send(bert.peer, (Address(host, 9876),), 1, b"x", net.now)
    assert anna.sessions.counts["no-address"] == 1


@pytest.mark.parametrize(("channel", "size"), [(0, 1), (256, 1), (-1, 1), (1, limits.DATAGRAM_PAYLOAD_BYTES_MAX + 1)])
def test_what_no_datagram_carries_is_refused(channel: int, size: int) -> None:
    net = Net()
    anna, bert = two(net)
    with pytest.raises(UsageError):
        anna.sessions.send(bert.peer, (bert.address,), channel, bytes(size), net.now)


def test_the_largest_payload_fits() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    net.say(anna, bert, bytes(limits.DATAGRAM_PAYLOAD_BYTES_MAX), 255)
    net.run(1.0)
    assert bert.delivered[-1].payload == bytes(limits.DATAGRAM_PAYLOAD_BYTES_MAX)
    assert len(net.log[-1].data) <= limits.DATAGRAM_BYTES_MAX


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", HANDSHAKE)
def test_each_datagram_of_a_handshake_may_be_lost(kind: Kind, times: int) -> None:
    left = [times]

    def fate(flying: Flying) -> Iterable[float]:
        if flying.kind is kind and left[0]:
            left[0] -= 1
            return ()
        return (DELAY_S,)

    net = Net(fate)
    anna, bert = two(net)
    net.say(anna, bert, b"payload")
    net.run(2.9)
    assert bert.payloads == [b"payload"]
    assert len(anna.ups) == len(bert.ups) == 1
    assert not left[0]


@pytest.mark.parametrize("lost", range(1, 5))
def test_the_first_sealed_datagrams_may_be_lost(lost: int) -> None:
    sealed = [0]

    def fate(flying: Flying) -> Iterable[float]:
        sealed[0] += flying.kind is Kind.SEALED
        return () if flying.kind is Kind.SEALED and sealed[0] <= lost else (DELAY_S,)

    net = Net(fate)
    anna, bert = two(net)
    net.greet(anna, bert.address)
    net.run(8.0)
    assert [up.peer for up in bert.ups] == [anna.peer]
    assert session_of(anna, bert).is_confirmed


def test_a_peer_behind_a_dead_network_is_given_up_and_its_payloads_with_it() -> None:
    net = Net(lambda flying: ())
    anna, bert = two(net)
    for number in range(limits.PAYLOADS_HELD_MAX + 2):
        net.say(anna, bert, bytes([number]))
    net.run(limits.PAYLOAD_HELD_S + 0.1)
    assert anna.sessions.counts["held"] == 2
    assert anna.sessions.counts["late"] == limits.PAYLOADS_HELD_MAX
    net.run(60.0)
    assert anna.sessions.counts["unanswered"] == 1
    assert anna.sessions.deadline() is None


def test_repetitions_are_spaced_out() -> None:
    sent: list[float] = []
    net = Net()

    def fate(flying: Flying) -> Iterable[float]:
        sent.append(net.now)
        return ()

    net.fate = fate
    anna, bert = two(net)
    net.say(anna, bert, b"x")
    net.run(60.0)
    pauses = [later - earlier for earlier, later in pairwise(sent)]
    assert pauses == pytest.approx([0.3, 0.6, 1.2, 2.4])


# --- repetition and disorder ------------------------------------------------------------------------------------------


def test_everything_twice_is_everything_once() -> None:
    net = Net(lambda flying: (DELAY_S, DELAY_S + 0.003))
    anna, bert = two(net)
    for number in range(5):
        net.say(anna, bert, bytes([number]))
        net.say(bert, anna, bytes([number]))
    net.run(3.0)
    assert sorted(anna.payloads) == sorted(bert.payloads) == [bytes([number]) for number in range(5)]
    assert session_of(anna, bert).order == session_of(bert, anna).order
    assert bert.sessions.counts["replay"]


def test_disorder_loses_nothing_within_the_window() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    count = limits.REPLAY_WINDOW
    net.fate = lambda flying: (1.0 - session_of(anna, bert).sealer.counter / 10_000,)
    for number in range(count):
        net.say(anna, bert, number.to_bytes(4))
    net.run(2.0)
    assert sorted(bert.payloads[1:]) == [number.to_bytes(4) for number in range(count)]
    assert bert.payloads[1:] != sorted(bert.payloads[1:])
    assert not bert.sessions.counts["replay"]


def test_later_addresses_are_tried_without_waiting_for_the_first_to_fail() -> None:
    net = Net()
    anna, bert = two(net)
    nowhere = [Address(f"10.9.9.{number}", 9876) for number in range(3)]
    effects = anna.sessions.send(bert.peer, (*nowhere, bert.address), 1, b"found", net.now)
    net.perform(anna, effects)
    net.run(1.0)
    assert bert.payloads == [b"found"]
    assert [flying.to for flying in net.log if flying.kind is Kind.HELLO][:4] == [*nowhere[:2], nowhere[0], nowhere[2]]
    net.run(60.0)
    assert net.kinds().count(Kind.PROOF) == 1
    assert not anna.sessions.counts["unanswered"]


def test_two_addresses_of_one_peer_make_one_session() -> None:
    net = Net(lambda flying: (0.26,))
    anna, bert = two(net)
    other = Address("10.0.1.2", 9876)
    net.stations[other] = bert
    net.perform(anna, anna.sessions.send(bert.peer, (bert.address, other), 1, b"x", net.now))
    net.run(5.0)
    assert bert.payloads == [b"x"]
    assert {flying.to for flying in net.log if flying.kind is Kind.HELLO} == {bert.address, other}
    assert len({flying.data for flying in net.log if flying.kind is Kind.PROOF}) == 1
    assert len(anna.ups) == 1


# --- both at once -----------------------------------------------------------------------------------------------------


def _both_at_once(choices: list[int], lead: int) -> tuple[list[int], Station, Station, Net]:
    """Both say something, the second after `lead` datagrams have arrived; `choices`: which of those in the air arrives next.

    Returns how many were in the air at each step, the stations and their network.
    """
    air: list[Flying] = []

    def fate(flying: Flying) -> Iterable[float]:
        air.append(flying)
        return ()

    net = Net(fate)
    anna, bert = two(net)

    def arrive(number: int) -> None:
        flying = air.pop(number)
        net.now += 0.001
        net.inject(flying.data, flying.source, net.stations[flying.to])

    net.say(anna, bert, b"from anna")
    for _ in range(lead):
        arrive(0)
    net.say(bert, anna, b"from bert")
    ways = []
    while air:
        number = choices[len(ways)] if len(ways) < len(choices) else 0
        ways.append(len(air))
        arrive(number)
    net.fate = lambda flying: (DELAY_S,)
    return ways, anna, bert, net


@pytest.mark.parametrize("lead", range(5))
def test_both_at_once_in_every_order_ends_with_one_session(lead: int) -> None:
    """Every order of arrival of the first eight datagrams, counted through like an odometer; what follows comes in order."""
    choices: list[int] = []
    runs = with_two_sessions = 0
    while True:
        ways, anna, bert, net = _both_at_once(choices, lead)
        runs += 1
        net.run(3.0)
        assert (bert.payloads, anna.payloads) == ([b"from anna"], [b"from bert"]), choices
        with_two_sessions += len(anna.ups) == 2
        assert session_of(anna, bert).order == session_of(bert, anna).order, choices
        net.say(anna, bert, b"more")
        net.say(bert, anna, b"more")
        used = [int.from_bytes(net.last(Kind.SEALED, each).data[1:5]) for each in (anna, bert)]
        assert used == [session_of(bert, anna).index, session_of(anna, bert).index]
        taken = (choices + [0] * len(ways))[: min(len(ways), 8)]
        while taken and taken[-1] + 1 >= ways[len(taken) - 1]:
            taken.pop()
        if not taken:
            break
        taken[-1] += 1
        choices = taken
    assert runs >= (500 if lead == 0 else 2)
    assert with_two_sessions or lead, "the interesting case was among them"


@pytest.mark.parametrize("lost", range(12))
def test_both_at_once_with_a_loss(lost: int) -> None:
    net = Net()
    net.fate = lambda flying: () if len(net.log) == lost + 1 and flying.kind is not Kind.SEALED else (DELAY_S,)
    anna, bert = two(net)
    net.say(anna, bert, b"from anna")
    net.say(bert, anna, b"from bert")
    net.run(2.9)
    assert (bert.payloads, anna.payloads) == ([b"from anna"], [b"from bert"])
    assert session_of(anna, bert).order == session_of(bert, anna).order


def test_of_two_begun_at_once_the_one_of_the_lower_id_stays() -> None:
    net = Net()
    anna, bert = two(net)
    assert anna.peer < bert.peer
    net.say(bert, anna, b"x")
    net.say(anna, bert, b"y")
    net.run(2.0)
    assert len(anna.ups) == len(bert.ups) == 2
    assert session_of(anna, bert).initiated
    assert not session_of(bert, anna).initiated


# --- restarts, moves, ageing ------------------------------------------------------------------------------------------


def test_a_hint_leads_to_a_fresh_session_after_a_restart() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    old = session_of(anna, bert)
    again = net.station(pair()[1], 2)
    net.say(anna, again, b"lost with the session")
    net.run(1.0)
    assert net.kinds().count(Kind.UNKNOWN) == 1
    assert session_of(anna, again) is not old
    assert session_of(anna, again).order > old.order
    assert [up.peer for up in anna.ups] == [bert.peer] * 2
    net.say(anna, again, b"heard")
    net.run(1.0)
    assert again.payloads == [b"heard"]


def test_whoever_restarts_and_begins_is_believed_at_once() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    for _ in range(3):
        anna = net.station(pair()[0], 1)
        net.say(anna, bert, b"here again")
        net.run(1.0)
        assert bert.payloads[-1] == b"here again"
        net.say(bert, anna, b"welcome")
        net.run(1.0)
        assert anna.payloads == [b"welcome"]
    assert session_of(bert, anna).order[0] == 4


def test_a_forged_hint_ends_nothing() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    old = session_of(anna, bert)
    restarted = net.station(pair()[1], 2)
    net.say(anna, restarted, b"x")
    net.run(DELAY_S * 1.5)
    forged = net.last(Kind.UNKNOWN)
    net.stations[bert.address] = bert  # it never was away: somebody else wrote the hint
    net.inject(forged.data, forged.source, anna)
    assert session_of(anna, bert) is old
    net.say(anna, bert, b"goes on")
    net.run(1.0)
    assert bert.payloads[-1] == b"goes on"
    handshakes = net.kinds().count(Kind.PROOF)
    for _ in range(50):
        net.inject(forged.data, forged.source, anna)
    net.run(1.0)
    assert net.kinds().count(Kind.PROOF) == handshakes, "and one is not begun for each"


def test_a_hint_for_what_was_never_sent_is_ignored() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    session = session_of(anna, bert)
    tag = datagram_tag(anna.identity.membership.network)
    before = len(net.log)
    for receiver, counter, source in (
        (session.remote, session.sealer.counter, bert.address),
        (session.remote ^ 1, 0, bert.address),
        (session.remote, 0, Address("10.0.0.3", 9876)),
    ):
        net.inject(write_unknown(tag, receiver, counter), source, anna)
    assert len(net.log) == before
    assert anna.sessions.counts["stale"] == 3


def moved(net: Net, who: Station, to: Address) -> None:
    """`who` is at `to` from now on, and nobody where it was."""
    del net.stations[who.address]
    who.address = to
    net.stations[to] = who


ELSEWHERE = Address("10.0.5.5", 4_000)


def test_a_session_follows_its_peer_to_another_address() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    before, late = anna.address, net.last(Kind.SEALED, anna).data
    moved(net, anna, ELSEWHERE)
    net.say(anna, bert, b"moved")
    net.run(1.0)
    info = bert.sessions.session(anna.peer)
    assert info is not None
    assert info.address == ELSEWHERE
    net.say(bert, anna, b"found")
    assert net.log[-1].to == ELSEWHERE
    net.run(1.0)
    assert anna.payloads == [b"found"]
    # Neither a replay nor a late datagram from the old place leads back.
    net.inject(late, before, bert)
    net.run(1.0)
    assert session_of(bert, anna).address == ELSEWHERE
    assert session_of(bert, anna).trial is None


def test_whoever_moves_misses_no_answer_and_is_followed_through_losses() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    moved(net, anna, ELSEWHERE)
    net.say(anna, bert, bytes(40))
    net.run(DELAY_S)
    net.say(bert, anna, b"an answer at once")
    net.run(DELAY_S)
    assert anna.payloads == [b"an answer at once"], "while it is asked whether it is there"
    there = Address("10.0.5.6", 4_000)
    moved(net, anna, there)
    lost = iter((True, True, True))
    net.fate = lambda flying: () if flying.to == there and next(lost, False) else (DELAY_S,)
    net.say(anna, bert, bytes(40))
    net.run(5.0)
    assert session_of(bert, anna).address == there, "three questions were lost"


def test_an_address_that_does_not_answer_gets_three_times_what_came_from_there() -> None:
    """A member writes another's address over its requests: its session stays where it is, and so do the answers."""
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    victim = Address("203.0.113.9", 53)
    came = 0
    for _ in range(10):
        request = session_of(anna, bert).sealer.seal(CHANNEL, bytes(400))
        came += len(request)
        net.inject(request, victim, bert)
        for _ in range(32):
            net.say(bert, anna, bytes(1_100))
        net.run(1.0)
    assert sum(len(flying.data) for flying in net.log if flying.to == victim) <= 3 * came
    assert session_of(bert, anna).address == anna.address
    assert {each.source for each in bert.delivered} == {anna.address}
    net.run(60.0)
    n = len(net.log)
    for _ in range(10):
        net.say(anna, bert, b"here I am")
        net.say(bert, anna, b"here too")
        net.run(1.0)
    assert not [flying for flying in net.log[n:] if flying.to == victim]
    assert len(anna.payloads) > 250, "the victim got next to nothing of them"


def test_a_captured_datagram_that_comes_first_from_elsewhere_turns_nothing_aside() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    thief = Address("203.0.113.9", 53)
    net.fate = lambda flying: () if flying.source == anna.address else (DELAY_S,)
    net.say(anna, bert, b"captured")
    captured = net.log[-1].data
    net.fate = lambda flying: (DELAY_S,)
    net.inject(captured, thief, bert)
    assert net.log[-1].to == thief, "it is asked, and cannot answer"
    net.say(anna, bert, b"from where she is")
    net.run(DELAY_S)
    n = len(net.log)
    net.say(bert, anna, b"hers")
    net.run(20.0)
    assert not [flying for flying in net.log[n:] if flying.to == thief]
    assert anna.payloads == [b"hers"]
    assert session_of(bert, anna).address == anna.address


def test_only_the_right_answer_from_there_moves_a_session() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    victim = Address("203.0.113.9", 53)
    seal = session_of(anna, bert).sealer.seal
    net.inject(seal(CHANNEL, b"x"), victim, bert)
    trial = session_of(bert, anna).trial
    assert trial is not None
    for answer, source in (
        (ANSWER, victim), (ANSWER + bytes(TOKEN_BYTES), victim), (QUESTION + trial.token, victim), (trial.token, victim),
        (ANSWER + trial.token, Address("203.0.113.10", 53)),
    ):  # fmt: skip
        net.inject(seal(OWN_CHANNEL, answer), source, bert)
        assert session_of(bert, anna).address == anna.address
    net.inject(seal(CHANNEL, b"x"), victim, bert)
    trial = session_of(bert, anna).trial
    assert trial is not None
    net.inject(seal(OWN_CHANNEL, ANSWER + trial.token), victim, bert)
    assert session_of(bert, anna).address == victim


def test_one_peer_has_one_rate_wherever_it_sends_from() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    net.check_every = 1_000
    seal = session_of(anna, bert).sealer.seal
    for number in range(2 * limits.DATAGRAMS_PER_SECOND_PER_PEER):
        net.inject(seal(CHANNEL, b"x"), Address(f"10.9.{number % 200}.{number % 199}", 9), bert)
    assert len(bert.delivered) <= limits.DATAGRAMS_PER_SECOND_PER_PEER + 1
    net.run(1.0)
    net.say(anna, bert, b"later")
    net.run(1.0)
    assert bert.payloads[-1] == b"later"


def test_a_late_datagram_from_elsewhere_is_taken_and_moves_nothing() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    net.fate = lambda flying: ()
    net.say(anna, bert, b"late")
    late = net.log[-1].data
    net.fate = lambda flying: (DELAY_S,)
    net.say(anna, bert, b"newer")
    net.run(1.0)
    net.inject(late, Address("10.0.0.66", 1), bert)
    assert bert.payloads[-1] == b"late"
    assert session_of(bert, anna).address == anna.address


def test_silence_ends_sessions() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    net.run(limits.SESSION_SILENCE_MAX_S - 10)
    assert anna.sessions.session(bert.peer)
    net.run(20.0)
    assert anna.sessions.session(bert.peer) is None
    assert bert.sessions.session(anna.peer) is None
    assert anna.sessions.deadline() is None
    assert bert.sessions.deadline() is None


def test_an_hour_of_use_brings_fresh_keys_without_a_loss() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    sent = 0
    for _ in range(130):
        net.run(60.0)
        sent += 1
        net.say(anna, bert, sent.to_bytes(2))
        net.say(bert, anna, sent.to_bytes(2))
    net.run(1.0)
    assert bert.payloads[1:] == anna.payloads == [number.to_bytes(2) for number in range(1, sent + 1)]
    assert len(anna.ups) == len(bert.ups) == 3
    assert session_of(anna, bert).order == session_of(bert, anna).order
    assert session_of(anna, bert).order[0] == 3


def test_many_datagrams_bring_fresh_keys() -> None:
    net = Net()
    settings = SessionSettings(rekey_datagrams=100)
    anna, bert = two(net, settings=settings)
    joined(net, anna, bert)
    for number in range(150):
        net.say(anna, bert, number.to_bytes(2))
    net.run(1.0)
    assert bert.payloads[1:] == [number.to_bytes(2) for number in range(150)]
    assert len(anna.ups) == 2


def test_a_session_without_fresh_keys_ends_all_the_same() -> None:
    net = Net(lambda flying: () if net.now > 1_100 and flying.kind is not Kind.SEALED else (DELAY_S,))
    anna, bert = two(net)
    joined(net, anna, bert)
    for _ in range(66):
        net.run(60.0)
        net.say(anna, bert, b"x")
        net.say(bert, anna, b"x")
    assert anna.sessions.session(bert.peer) is None


def test_traffic_that_goes_one_way_needs_no_second_handshake() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    for _ in range(100):
        net.say(anna, bert, b"x")
        net.run(1.0)
    assert net.kinds().count(Kind.HELLO) == 1
    assert net.kinds(bert).count(Kind.SEALED) < 30


@pytest.mark.parametrize("pause_s", [3.0, 12.0, 50.0, 500.0])
def test_who_gave_the_last_answer_may_ask_next_without_a_second_handshake(pause_s: float) -> None:
    """As probes go in a network of hundreds: a question and its answer, then nothing for minutes, then from the other side."""
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    exchanges = int(limits.SESSION_REKEY_S / (pause_s + 0.1)) - 1
    for number in range(exchanges):
        asker, other = (anna, bert) if number % 2 else (bert, anna)
        net.say(asker, other, b"there?")
        net.run(0.1)
        net.say(other, asker, b"here")
        net.run(pause_s)
    assert len(anna.payloads) == len(bert.payloads[1:]) == exchanges
    assert net.kinds().count(Kind.HELLO) == 1
    assert net.kinds().count(Kind.SEALED) <= 4 + 4 * exchanges, (
        "at most a question and an answer about the session beside"
    )


def test_a_peer_that_is_hardly_ever_spoken_to_is_looked_for_elsewhere_at_the_second_time() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    net.say(anna, bert, b"an answer, after which there is nothing to say")
    net.run(60.0)
    del net.stations[bert.address]
    moved = net.station(pair()[1], 7)
    for _ in range(2):
        assert not moved.payloads
        net.perform(anna, anna.sessions.send(bert.peer, (moved.address,), 1, b"where are you", net.now))
        net.run(60.0)
    assert moved.ups
    assert session_of(anna, moved).address == moved.address


def test_a_peer_that_is_silent_where_it_was_is_looked_for_elsewhere() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    del net.stations[bert.address]
    moved = net.station(pair()[1], 7)
    for _ in range(20):
        net.perform(anna, anna.sessions.send(bert.peer, (moved.address,), 1, b"where are you", net.now))
        net.run(1.0)
    assert moved.payloads
    assert session_of(anna, moved).address == moved.address


def test_dropping_a_peer_forgets_everything_about_it() -> None:
    net = Net()
    anna, bert = two(net)
    joined(net, anna, bert)
    anna.sessions.drop(bert.peer)
    assert anna.sessions.session(bert.peer) is None
    anna.sessions.check_invariants()
    net.say(bert, anna, b"x")
    net.run(2.0)
    assert not anna.payloads, "its keys are gone"
    net.say(bert, anna, b"again")
    net.run(1.0)
    assert anna.payloads == [b"again"], "after a handshake that is judged anew"


def test_dropping_a_peer_ends_handshakes_with_it() -> None:
    net = Net()
    anna, bert = two(net)
    net.say(anna, bert, b"x")
    anna.sessions.drop(bert.peer)
    anna.sessions.check_invariants()
    net.run(60.0)
    assert not bert.payloads
    assert not anna.ups
