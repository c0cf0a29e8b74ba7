"""Floods: what strangers can make a peer remember, send and compute."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence

import pytest

from p2pcompute.model import limits
from p2pcompute.model.peer import Address
from p2pcompute.net.cookies import Cookies
from p2pcompute.net.datagram_rates import DatagramRates
from p2pcompute.net.session_events import Effect, SessionSettings, Transmit
from p2pcompute.wire.datagram import SEALED_BYTES_MIN, Kind, datagram_tag, write_hello, write_proof
from tests.support.networks import SeededEntropy, make_member
from tests.unit.net.datagram_help import DELAY_S, NOW_WALL, Flying, Net, Station, home, joined, member, pair, session_of


def _public(number: int) -> Address:
    return Address(f"{20 + number // 65_536 % 100}.{number // 256 % 256}.{number % 256}.1", 4_000)


def _sizes(station: Station) -> dict[str, int]:
    """How much is remembered: the length of every collection that the machine reaches."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()

    def visit(what: object, path: str) -> None:
        if id(what) in seen or isinstance(what, int | float | str | bytes | type | None.__class__):
            return
        seen.add(id(what))
        if isinstance(what, dict | list | tuple | set):
            sizes[path] = len(what)
            return
        names = [*getattr(what, "__dict__", {}), *getattr(type(what), "__slots__", ())]
        for name in names:
            if type(what).__module__.startswith("p2pcompute.net"):
                visit(getattr(what, name, None), f"{path}.{name}")

    visit(station.sessions, "sessions")
    return sizes


def test_a_flood_of_hellos_is_not_remembered() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    tag = datagram_tag(anna.identity.membership.network)
    before = _sizes(anna)
    answers = 0
    for number in range(10_000):
        hello = write_hello(tag, number, number.to_bytes(32))
        effects = anna.sessions.receive(hello, _public(number), net.now)
        assert sum(len(each.data) for each in effects if isinstance(each, Transmit)) <= len(hello)
        answers += len(effects)
        net.now += 0.001
    assert answers == 10_000
    assert anna.sessions.deadline() is None
    grown = {path for path, size in _sizes(anna).items() if size > before.get(path, 0)}
    assert grown == {"sessions._rates._by_host"}
    assert len(anna.sessions._rates) == limits.ADDRESSES_COUNTED_MAX
    assert anna.identity.judged == 0


def test_a_flood_of_strangers_does_not_keep_peers_apart() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    tag = datagram_tag(anna.identity.membership.network)
    for number in range(30_000):
        anna.sessions.receive(write_hello(tag, number, bytes(32)), _public(number), net.now)
        # A near flood that is sealed with nothing, and one under the index of a session, from wherever.
        anna.sessions.receive(bytes([Kind.SEALED]) + bytes(40), Address(f"10.7.{number % 250}.9", 5), net.now)
        index = session_of(anna, bert).index.to_bytes(4)
        anna.sessions.receive(bytes([Kind.SEALED]) + index + number.to_bytes(8) + bytes(40), _public(number), net.now)
    assert anna.sessions.counts["rate"] > 60_000
    net.say(bert, anna, b"through")
    net.run(1.0)
    assert anna.payloads == [b"through"]
    assert session_of(anna, bert).address == bert.address


def test_no_answer_is_larger_than_its_question_before_the_cookie_and_three_times_after() -> None:
    """Of every kind of handshake: one invitation or two, on either side, confirmed or not."""
    net = Net()
    plain, guest = member("plain"), member("guest", under_admin=True)
    other_guest = member("other guest", under_admin=True)
    for one, two in ((plain, guest), (guest, plain), (guest, other_guest)):
        anna, bert = net.station(one, 1), net.station(two, 2)
        net.log.clear()
        net.greet(anna, bert.address)
        net.run(2.0)
        assert bert.ups
        got = sent = 0
        for flying in net.log:
            if flying.source == anna.address:
                got += len(flying.data)
            else:
                sent += len(flying.data)
                bound = 1 if flying.kind is Kind.COOKIE else 3
                assert sent <= bound * got
            assert len(flying.data) <= limits.DATAGRAM_BYTES_MAX
    sealed = bytes([Kind.SEALED]) + bytes(SEALED_BYTES_MIN - 1)
    effects = net.inject(sealed, Address("10.0.0.9", 1), bert)
    assert [len(each.data) <= len(sealed) for each in effects if isinstance(each, Transmit)] == [True]


def test_hints_are_few() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    sealed = bytes([Kind.SEALED]) + bytes(60)
    for _ in range(1_000):
        net.inject(sealed, Address("93.184.216.34", 1), anna)
    assert net.kinds().count(Kind.UNKNOWN) == 2


def test_handshakes_of_one_address_are_checked_ten_times_a_second() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    far = Address("93.184.216.34", 1)
    bert = net.station(member("bert"), 2)
    del net.stations[bert.address]
    bert.address = far
    net.stations[far] = bert
    for _ in range(30):
        bert.sessions.drop(anna.peer)
        bert = net.station(member("bert"), 2)
        del net.stations[bert.address]
        bert.address = far
        net.stations[far] = bert
        net.greet(bert, anna.address)
        net.run(0.025)
    assert anna.identity.judged <= 10 + 30 * 0.025 * 10 + 1
    assert anna.sessions.counts["handshakes"] >= 10


def test_half_open_sessions_are_bounded() -> None:
    def fate(flying: Flying) -> Iterable[float]:
        return () if flying.kind is Kind.SEALED else (DELAY_S,)

    net = Net(fate)
    anna = net.station(member("anna"), 1)
    for number in range(limits.HALF_OPEN_MAX + 20):
        net.greet(net.station(member(f"peer {number}"), 2 + number), anna.address)
        net.run(0.04)
        anna.sessions.check_invariants()
    assert len(anna.sessions.table.half_open) == limits.HALF_OPEN_MAX
    net.stations = {anna.address: anna}
    net.run(20.0)
    assert not anna.sessions.table.by_index
    assert anna.sessions.deadline() is None


def test_own_handshakes_are_bounded() -> None:
    net = Net(lambda flying: ())
    anna = net.station(member("anna"), 1)
    for number in range(limits.HANDSHAKES_OWN_MAX + 10):
        net.greet(anna, _public(number))
    assert anna.sessions.counts["busy"] == 10
    net.run(60.0)
    assert anna.sessions.deadline() is None


def test_the_longest_unused_session_goes_first() -> None:
    net = Net()
    anna = net.station(member("anna"), 1, settings=SessionSettings(sessions_max=5))
    others = [net.station(member(f"peer {number}"), 2 + number) for number in range(8)]
    for each in others[:5]:
        joined(net, each, anna)
    net.say(anna, others[0], b"in use")
    net.run(1.0)
    for each in others[5:]:
        joined(net, each, anna)
    kept = [number for number, each in enumerate(others) if anna.sessions.session(each.peer)]
    assert kept == [0, 4, 5, 6, 7]
    assert anna.sessions.counts["evicted"] == 3
    # Who was forgotten comes back by itself.
    net.say(others[1], anna, b"lost")
    net.run(2.0)
    net.say(others[1], anna, b"back")
    net.run(1.0)
    assert anna.payloads[-1] == b"back"


def test_more_peers_than_sessions() -> None:
    net = Net()
    net.check_every = 100
    sessions_max = 192
    assert SessionSettings().sessions_max == limits.SESSIONS_MAX
    anna = net.station(member("anna"), 1, settings=SessionSettings(sessions_max=sessions_max))
    count = sessions_max + 64
    for number in range(count):
        net.say(net.station(make_member(home(), f"peer {number}", now=NOW_WALL), 2), anna, number.to_bytes(4))
        net.run(0.06)
        net.log.clear()
    assert anna.payloads == [number.to_bytes(4) for number in range(count)]
    # All of them were made within ten minutes, so none has ended by itself.
    assert len(anna.sessions.table.peers) == len(anna.sessions.table.by_index) == sessions_max
    assert anna.sessions.counts["evicted"] == 64


# --- the parts --------------------------------------------------------------------------------------------------------


def test_rates_count_an_ipv6_network_as_one_address_and_near_ones_apart() -> None:
    rates = DatagramRates()
    per_second = limits.DATAGRAMS_PER_SECOND_PER_ADDRESS
    passed = sum(rates.admits(f"2606:2800:220:1::{number % 100:x}", 0.0) for number in range(3 * per_second))
    assert passed == per_second
    assert rates.admits("2606:2800:220:2::1", 0.0)
    for host in ("fe80::1%eth0", "192.168.1.1", "::1", "fd00::1"):
        assert sum(rates.admits(host, 0.0) for _ in range(2 * per_second)) == 2 * per_second
    assert not rates.admits("2606:2800:220:1::77", 0.0)
    assert rates.admits("2606:2800:220:1::77", 0.5), "and the bucket fills again"


def test_far_floods_leave_near_peers_their_share() -> None:
    rates = DatagramRates()
    for number in range(200):
        rates.admits(f"93.184.{number}.1", 0.0)
        for _ in range(50):
            rates.admits_strange(f"93.184.{number}.1", 0.0)
            rates.admits_handshake(f"93.184.{number}.1", 0.0, is_known=False)
    rates.admits("93.184.216.35", 0.0)
    rates.admits("10.0.0.1", 0.0)
    assert not rates.admits_strange("93.184.216.35", 0.0)
    assert rates.admits_strange("10.0.0.1", 0.0)
    assert not rates.admits_handshake("93.184.216.35", 0.0, is_known=False)
    assert rates.admits_handshake("10.0.0.1", 0.0, is_known=False)
    assert rates.admits_handshake("93.184.216.35", 0.0, is_known=True), "where a peer is that has a session"


def test_one_ipv6_customer_gets_a_share_of_the_handshakes_however_many_networks_it_has() -> None:
    rates = DatagramRates()
    checked = sum(
        rates.admits_handshake(f"2606:4700:0:{network:x}::1", 0.0, is_known=False)
        for network in range(500)
        for _ in range(10)
    )
    assert checked == 4 * limits.HANDSHAKES_PER_SECOND_PER_ADDRESS
    assert rates.admits_handshake("2a00:1450:1:1::1", 0.0, is_known=False)


@pytest.mark.parametrize("host", ["240.1.2.3", "198.18.0.1", "192.0.2.1", "0.1.2.3", "2001:db8::1", "100.64.0.1"])
def test_ranges_that_nobody_has_are_not_near(host: str) -> None:
    rates = DatagramRates()
    per_second = limits.DATAGRAMS_PER_SECOND_PER_ADDRESS
    assert sum(rates.admits(host, 0.0) for _ in range(2 * per_second)) == per_second


def _besiege(net: Net, station: Station) -> None:
    """Before each datagram of a handshake so many HELLOs and PROOFs of strangers come to `station` that it takes no more."""
    receive, counts = station.sessions.receive, station.sessions.counts
    tag = datagram_tag(station.identity.membership.network)
    strangers = (
        Address(f"10.{8 + number // 62_500}.{number // 250 % 250}.{number % 250}", 5) for number in itertools.count()
    )

    def besieged(data: bytes, source: Address, now: float) -> Sequence[Effect]:
        if data[0] == Kind.SEALED:
            return receive(data, source, now)
        refused = counts["handshakes"]
        while counts["handshakes"] == refused:
            stranger = next(strangers)
            cookie = station.sessions._cookies.bake(stranger, bytes(32), now)
            receive(write_proof(tag, 1, bytes(32), cookie, 0, b"x" * 10) + bytes(64), stranger, now)
        refused = counts["rate"]
        while counts["rate"] == refused:
            receive(write_hello(tag, 1, bytes(32)), next(strangers), now)
        return receive(data, source, now)

    station.sessions.receive = besieged  # type: ignore[method-assign]


def test_strangers_keep_nobody_from_agreeing_on_fresh_keys() -> None:
    """Whoever has a session gets its next one, whatever strangers send."""
    net = Net()
    settings = SessionSettings(rekey_s=2.0, end_s=8.0)
    anna, bert = (net.station(each, number, settings=settings) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    first = session_of(anna, bert)
    net.run(2.0)
    _besiege(net, anna)
    _besiege(net, bert)
    net.say(anna, bert, b"on")
    net.run(DELAY_S * 6)
    assert session_of(anna, bert) is not first
    assert session_of(bert, anna).order == session_of(anna, bert).order


def test_cookies_are_bound_to_address_ephemeral_and_time() -> None:
    cookies = Cookies(SeededEntropy("cookies"))
    here, share = Address("10.0.0.1", 5), bytes(32)
    cookie = cookies.bake(here, share, 0.0)
    assert cookies.holds(cookie, here, share, 119.0)
    assert not cookies.holds(cookie, Address("10.0.0.1", 6), share, 119.0)
    assert not cookies.holds(cookie, Address("10.0.0.2", 5), share, 119.0)
    assert not cookies.holds(cookie, here, b"\1" * 32, 119.0)
    assert cookies.holds(cookie, here, share, 121.0)
    assert not cookies.holds(cookie, here, share, 242.0)
    late = cookies.bake(here, share, 300.0)
    assert not cookies.holds(late, here, share, 600.0), "nothing of long ago is good after a pause"


def test_a_session_takes_little_memory() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    session = session_of(anna, bert)
    held = [session, session.opener._ring, session.shown.leaf, *session.shown.chain, session.sealer, session.opener]
    assert sum(map(sys.getsizeof, held)) < 2_500
