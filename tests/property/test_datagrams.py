"""Sessions on networks that lose, repeat and reorder as hypothesis likes."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.net.session_events import SessionSettings
from tests.unit.net.datagram_help import Flying, Net, Station, member, session_of

NAMES = ("anna", "bert", "carl")

#: What becomes of each datagram, in the order of their sending; those beyond the list arrive.
fates = st.lists(
    st.lists(st.sampled_from([0.001, 0.01, 0.05, 0.3, 1.0]), max_size=3).map(tuple), min_size=1, max_size=60
)
#: Who says something to whom, after which pause; and now and then somebody restarts.
actions = st.lists(
    st.tuples(
        st.sampled_from(range(3)),
        st.sampled_from(range(3)),
        st.sampled_from([0.0, 0.005, 0.02, 0.2, 2.0]),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=14,
)
#: Every second datagram brings fresh keys, so that handshakes and traffic meet all the time.
RESTLESS = SessionSettings(rekey_datagrams=2, refresh_pause_s=0.01)


@settings(max_examples=120, deadline=None)
@given(fates, actions, st.sampled_from([None, RESTLESS]))
def test_every_payload_arrives_at_most_once_at_whom_it_was_for(
    fates: list[tuple[float, ...]], actions: list[tuple[int, int, float, int]], chosen: SessionSettings | None
) -> None:
    left = iter(fates)

    def fate(flying: Flying) -> Iterable[float]:
        return next(left, (0.01,))

    net = Net(fate)
    stations = [net.station(member(name), number, settings=chosen) for number, name in enumerate(NAMES, 1)]
    everybody = list(stations)
    said: dict[bytes, tuple[Station, Station]] = {}
    for number, (source, to, pause_s, dice) in enumerate(actions):
        net.run(pause_s)
        if dice == 0:
            stations[to] = net.station(member(NAMES[to]), to + 1, settings=chosen)
            everybody.append(stations[to])
        if source != to:
            payload = number.to_bytes(2)
            said[payload] = (stations[source], stations[to])
            net.say(stations[source], stations[to], payload)
    net.run(30.0)
    heard: list[bytes] = []
    for station in everybody:
        for each in station.delivered:
            source_station, to_station = said[each.payload]
            assert each.peer == source_station.peer
            assert station.peer == to_station.peer
            heard.append(each.payload)
    assert len(heard) == len(set(heard)), "at most once"


@settings(max_examples=60, deadline=None)
@given(fates, st.booleans())
def test_when_the_network_calms_down_both_use_one_session(fates: list[tuple[float, ...]], both: bool) -> None:
    left = iter(fates)

    def fate(flying: Flying) -> Iterable[float]:
        return next(left, (0.01,))

    net = Net(fate)
    anna, bert = net.station(member("anna"), 1), net.station(member("bert"), 2)
    net.say(anna, bert, b"a")
    if both:
        net.say(bert, anna, b"b")
    net.run(15.0)
    for _ in fates:
        next(left, None)
    for _ in range(3):
        net.say(anna, bert, b"again")
        net.say(bert, anna, b"again")
        net.run(3.0)
    assert anna.payloads[-1] == bert.payloads[-1] == b"again"
    assert session_of(anna, bert).order == session_of(bert, anna).order
