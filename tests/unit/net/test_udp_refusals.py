"""Everybody who must not get in by datagrams, and everything that must not be believed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from p2pcompute.model.errors import AdmissionError, AdmissionReason, BusyError, ProtocolError
from p2pcompute.model.peer import Address
from p2pcompute.wire.certificates import Window, build_certificate, read_certificate
from p2pcompute.wire.datagram import (
    Accept,
    Kind,
    Proof,
    datagram_tag,
    decode_handshake,
    pack_papers,
    write_cookie,
    write_proof,
)
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Membership
from p2pcompute.wire.session import PROOF_CONTEXT, Ephemeral, proof_claim
from tests.support.networks import DAY_S, Member, SeededEntropy, make_member, make_network
from tests.unit.net.datagram_help import (
    DELAY_S,
    NOW_WALL,
    Flying,
    Identity,
    Net,
    Station,
    home,
    joined,
    member,
    pair,
    session_of,
)


def reasons(station: Station) -> list[AdmissionReason]:
    return [each.error.reason for each in station.refused if isinstance(each.error, AdmissionError)]


def nobody_got_in(*stations: Station) -> None:
    for station in stations:
        assert not station.ups
        assert not station.delivered
        assert not station.sessions.table.peers


# --- strangers and thieves --------------------------------------------------------------------------------------------


def test_another_network_is_answered_with_silence() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    stranger = net.station(make_member(make_network("away", now=NOW_WALL), "eve", now=NOW_WALL), 2)
    net.greet(stranger, anna.address)
    net.run(20.0)
    assert not net.kinds(anna)
    assert anna.sessions.counts["foreign"] == 5
    nobody_got_in(anna, stranger)


class Masked:
    """What `shown` proves, sent as if it were of the network of `posing`."""

    def __init__(self, shown: Membership, posing: Membership) -> None:
        self.leaf, self.chain, self.network = shown.leaf, shown.chain, posing.network
        self.trust = posing.trust


def masked(who: Member, network: Member) -> Member:
    """`who`, that sends its datagrams under the tag and the id of another member's network."""
    return Member(who.key, Masked(who.membership, network.membership), who.invitation)  # type: ignore[arg-type]


def test_another_network_under_our_tag_is_not_let_in() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    eve = make_member(make_network("away", now=NOW_WALL), "eve", now=NOW_WALL)
    stranger = net.station(masked(eve, member("anna")), 2)
    net.greet(stranger, anna.address)
    net.run(20.0)
    assert set(reasons(anna)) == {AdmissionReason.OTHER_NETWORK}
    assert net.kinds(anna) == [Kind.COOKIE]
    nobody_got_in(anna, stranger)


def test_a_stranger_that_answers_is_not_believed() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    eve = make_member(make_network("away", now=NOW_WALL), "eve", now=NOW_WALL)
    stranger = net.station(masked(eve, member("anna")), 2)
    stranger.identity.trust = member("anna").trust()
    net.greet(anna, stranger.address)
    net.run(20.0)
    assert reasons(anna) == [AdmissionReason.OTHER_NETWORK]
    assert net.kinds(stranger) == [Kind.COOKIE, Kind.ACCEPT], "it is given up at once"
    nobody_got_in(anna)


@pytest.mark.parametrize("thief_begins", [True, False])
def test_a_stolen_leaf_is_worth_nothing_without_its_key(thief_begins: bool) -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    bert = member("bert")
    thief = net.station(Member(PeerKey.generate(SeededEntropy("thief")), bert.membership, bert.invitation), 2)
    if thief_begins:
        net.greet(thief, anna.address)
    else:
        net.perform(anna, anna.sessions.send(bert.key.peer_id, (thief.address,), 1, b"secret", net.now))
    net.run(20.0)
    assert set(reasons(anna)) == {AdmissionReason.STOLEN_LEAF}
    nobody_got_in(anna)


def test_a_leaf_of_ones_own_making_is_not_let_in() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    eve = member("eve")
    forger = PeerKey.generate(SeededEntropy("forger"))
    leaf = build_certificate(
        name="FORGED", public_key=eve.key.public_key, signer=forger, issuer=read_certificate(eve.membership.chain[0]),
        window=Window.starting(NOW_WALL, DAY_S), serial=7, path_length=None,
    )  # fmt: skip
    forged = Membership(eve.invitation, eve.key.public_key, leaf, eve.membership.owners)
    station = net.station(Member(eve.key, forged, eve.invitation), 2)
    net.greet(station, anna.address)
    net.run(20.0)
    assert set(reasons(anna)) == {AdmissionReason.FOREIGN_AUTHORITY}
    nobody_got_in(anna, station)


@pytest.mark.parametrize("begins", [True, False])
def test_an_expired_membership_is_refused(begins: bool) -> None:
    net = Net()
    anna = net.station(member("anna"), 1, wall=NOW_WALL + 2 * DAY_S)
    late = net.station(member("late", valid_s=DAY_S), 2)
    net.greet(late, anna.address) if begins else net.greet(anna, late.address)
    net.run(20.0)
    assert set(reasons(anna)) == {AdmissionReason.EXPIRED}
    nobody_got_in(anna, late)


@pytest.mark.parametrize("under_admin", [True, False])
@pytest.mark.parametrize("begins", [True, False])
def test_the_revoked_are_refused(begins: bool, under_admin: bool) -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    mallory = member("mallory", under_admin=under_admin)
    top = read_certificate(mallory.membership.chain[-1]).invitation
    anna.identity.trust = anna.identity.trust.with_revocations(
        home().revoke(None, invitations=[top], now_wall=NOW_WALL)
    )
    revoked = net.station(mallory, 2)
    net.greet(revoked, anna.address) if begins else net.greet(anna, revoked.address)
    net.run(20.0)
    assert set(reasons(anna)) == {AdmissionReason.REVOKED}
    nobody_got_in(anna, revoked)


def test_revocation_ends_sessions_at_once_and_the_others_go_on() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    others = [net.station(member(f"peer {number}"), 10 + number) for number in range(40)]
    for each in others:
        joined(net, each, anna)
    bad = others[0]
    anna.identity.trust = anna.identity.trust.with_revocations(
        home().revoke(None, peers=[bad.peer, others[1].peer], now_wall=NOW_WALL)
    )
    before = anna.identity.judged
    anna.sessions.recheck(anna.identity.admit, net.now)
    assert anna.identity.judged == before, "nothing blocks"
    for each in others[2:30]:
        anna.sessions.table.peers.move_to_end(each.peer)  # the revoked are not among the first few
    net.say(bad, anna, b"still here")
    net.inject(net.log[-1].data, bad.address, anna)
    assert b"still here" not in anna.payloads
    assert anna.sessions.session(bad.peer) is None
    net.say(anna, others[1], b"not for you")
    assert net.log[-1].source != anna.address or net.log[-1].kind is not Kind.SEALED
    assert anna.sessions.session(others[1].peer) is None
    assert anna.identity.judged == before + 2
    net.run(5.0)
    assert b"not for you" not in others[1].payloads
    assert anna.sessions.session(bad.peer) is None
    assert anna.sessions.session(others[1].peer) is None
    assert anna.identity.judged >= before + 40
    for each in others[2:]:
        assert anna.sessions.session(each.peer)
        net.say(each, anna, b"fine")
    net.run(1.0)
    assert anna.payloads.count(b"fine") == 38


def test_sessions_end_with_the_membership_of_their_peer() -> None:
    net = Net()
    anna, bert = (
        net.station(member(seed, valid_s=90 * DAY_S), number) for number, seed in enumerate(("anna", "bert"), 1)
    )
    carl = net.station(member("carl"), 3)
    joined(net, anna, bert)
    joined(net, anna, carl)
    info = anna.sessions.session(bert.peer)
    assert info is not None
    anna.identity.wall = info.admission.expires_wall
    net.say(bert, anna, b"still")
    net.run(10.0)
    assert anna.payloads[-1:] == [b"still"]
    anna.identity.wall = info.admission.expires_wall + 1
    net.run(10.0)
    assert anna.sessions.session(bert.peer) is None
    assert anna.sessions.session(carl.peer) is not None
    assert reasons(anna) == [AdmissionReason.EXPIRED]
    # What it says on what it believes to have is not heard, nor is it let in again.
    net.say(bert, anna, b"not any more")
    net.run(30.0)
    assert b"not any more" not in anna.payloads
    assert anna.sessions.session(bert.peer) is None
    anna.sessions.check_invariants()


def test_whoever_is_half_open_when_trust_changes_is_judged_again() -> None:
    net = Net(lambda flying: () if flying.kind is Kind.ACCEPT else (DELAY_S,))
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    net.say(bert, anna, b"x")
    net.run(0.2)
    assert anna.sessions.table.half_open
    anna.identity.trust = anna.identity.trust.with_revocations(
        home().revoke(None, peers=[bert.peer], now_wall=NOW_WALL)
    )
    anna.sessions.recheck(anna.identity.admit, net.now)
    net.fate = lambda flying: (DELAY_S,)
    net.run(20.0)
    assert AdmissionReason.REVOKED in reasons(anna)
    nobody_got_in(anna)


def test_somebody_else_at_the_address_is_not_taken_for_who_was_looked_for() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    carl = member("carl")
    net.perform(anna, anna.sessions.send(carl.key.peer_id, (bert.address,), 1, b"for carl", net.now))
    net.run(20.0)
    assert reasons(anna) == [AdmissionReason.WRONG_PEER]
    nobody_got_in(anna, bert)


def test_the_right_address_is_found_behind_the_wrong_one() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    carl = net.station(member("carl"), 3)
    net.perform(anna, anna.sessions.send(carl.peer, (bert.address, carl.address), 1, b"for carl", net.now))
    net.run(2.0)
    assert carl.payloads == [b"for carl"]
    assert not bert.payloads


def test_ones_own_address_is_noticed() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    net.greet(anna, anna.address)
    net.run(20.0)
    assert AdmissionReason.SELF in reasons(anna)
    nobody_got_in(anna)


def test_a_man_in_the_middle_is_a_router_and_nothing_more() -> None:
    """Mallory, a member, passes a handshake on as if anna were talking to him: the keys are between anna and bert."""
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    middle = Address("10.0.0.7", 9876)
    mallory = net.station(member("mallory"), 8)

    def fate(flying: Flying) -> Iterable[float]:
        if flying.to == middle:
            bert_or_anna = bert if flying.source == anna.address else anna
            net.inject(flying.data, middle, bert_or_anna)
            return ()
        return (DELAY_S,)

    net.fate = fate
    net.perform(anna, anna.sessions.send(mallory.peer, (middle,), 1, b"for mallory", net.now))
    net.run(5.0)
    assert reasons(anna) == [AdmissionReason.WRONG_PEER], "anna learns that it is bert, whom she did not look for"
    nobody_got_in(anna, bert)


# --- cookies ----------------------------------------------------------------------------------------------------------


def _proof(net: Net, who: Station, to: Station) -> Flying:
    """A PROOF of `who` on its way to `to`, which has not seen it."""
    net.fate = lambda flying: () if flying.kind is Kind.PROOF else (DELAY_S,)
    net.greet(who, to.address)
    net.run(0.1)
    net.fate = lambda flying: (DELAY_S,)
    return net.last(Kind.PROOF)


def test_the_cookie_of_another_address_is_none() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    proof = _proof(net, anna, bert)
    judged = bert.identity.judged
    for elsewhere in (Address("10.0.0.3", proof.source.port), Address(proof.source.host, 1)):
        net.inject(proof.data, elsewhere, bert)
        assert net.log[-1].kind is Kind.COOKIE
        assert net.log[-1].to == elsewhere
    assert bert.identity.judged == judged
    assert bert.sessions.counts["cookie"] == 2
    assert not bert.sessions.table.half_open


def test_a_cookie_serves_four_minutes_at_most_and_an_old_one_gets_a_new_one() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    proof = _proof(net, anna, bert)
    del net.stations[anna.address]
    net.run(119.0)
    net.inject(proof.data, proof.source, bert)
    assert net.log[-1].kind is Kind.ACCEPT
    net.run(130.0)
    net.inject(proof.data, proof.source, bert)
    assert net.log[-1].kind is Kind.COOKIE


def test_a_handshake_survives_that_its_cookie_gets_too_old() -> None:
    slow = [True]

    def fate(flying: Flying) -> Iterable[float]:
        return () if flying.kind is Kind.PROOF and slow[0] else (DELAY_S,)

    net = Net(fate)
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    net.greet(anna, bert.address)
    net.run(0.1)
    # Bert starts anew, with other secrets.
    bert = net.station(pair()[1], 2)
    slow[0] = False
    net.run(5.0)
    assert bert.sessions.counts["cookie"] == 1
    assert [up.peer for up in anna.ups] == [bert.peer]
    assert [up.peer for up in bert.ups] == [anna.peer]


def test_forged_cookies_cost_a_few_signatures() -> None:
    net = Net(lambda flying: ())
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    net.greet(anna, bert.address)
    hello = decode_handshake(net.last(Kind.HELLO).data)
    tag = datagram_tag(anna.identity.membership.network)
    for number in range(50):
        net.inject(write_cookie(tag, hello.sender, bytes([number]) * 16), bert.address, anna)  # type: ignore[union-attr]
    assert net.kinds().count(Kind.PROOF) == 4
    genuine = write_cookie(tag, hello.sender, bytes([3]) * 16)  # type: ignore[union-attr]
    net.inject(genuine, bert.address, anna)
    assert anna.sessions.counts["stale"] == 47


def test_a_repeated_cookie_is_answered_once() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    net.fate = lambda flying: () if flying.kind is Kind.PROOF else (DELAY_S,)
    net.greet(anna, bert.address)
    net.run(0.1)
    cookie = net.last(Kind.COOKIE)
    for _ in range(3):
        net.inject(cookie.data, cookie.source, anna)
    assert net.kinds().count(Kind.PROOF) == 1


# --- replays, reflections, damage -------------------------------------------------------------------------------------


def test_a_replayed_proof_opens_nothing() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    proof = net.last(Kind.PROOF)
    before = session_of(bert, anna)
    judged = bert.identity.judged
    net.inject(proof.data, proof.source, bert)
    assert bert.identity.judged == judged
    assert bert.sessions.counts["replay"] == 1
    assert session_of(bert, anna) is before
    # Long after, when its session is forgotten, it makes a half open session that nobody can use.
    bert.sessions.drop(anna.peer)
    net.stations.pop(anna.address)
    net.inject(proof.data, proof.source, bert)
    assert bert.sessions.session(anna.peer) is None
    net.run(20.0)
    assert not bert.sessions.table.by_index
    assert len(bert.ups) == 1


def test_a_replayed_datagram_is_dropped_wherever_it_comes_from() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    net.say(anna, bert, b"once")
    sealed = net.log[-1]
    net.run(1.0)
    for source in (anna.address, Address("10.0.0.3", 1)):
        net.inject(sealed.data, source, bert)
    assert bert.payloads.count(b"once") == 1
    assert bert.sessions.counts["replay"] == 2
    info = bert.sessions.session(anna.peer)
    assert info is not None
    assert info.replayed == 2


def test_a_reflected_datagram_is_nobodys() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    net.say(anna, bert, b"echo")
    net.inject(net.log[-1].data, bert.address, anna)
    assert b"echo" not in anna.payloads
    assert anna.sessions.counts["unknown"] + anna.sessions.counts["seal"] == 1


def test_each_direction_has_keys_of_its_own() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    net.say(anna, bert, b"echo")
    data = bytearray(net.log[-1].data)
    data[1:5] = session_of(anna, bert).index.to_bytes(4)
    net.inject(bytes(data), bert.address, anna)
    assert anna.sessions.counts["seal"] == 1
    assert not anna.payloads


def test_a_reflected_handshake_leads_nowhere() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    mirror = Address("10.0.0.9", 9876)

    def fate(flying: Flying) -> Iterable[float]:
        if flying.to == mirror:
            net.inject(flying.data, mirror, anna)
        return ()

    net.fate = fate
    net.greet(anna, mirror)
    net.run(20.0)
    nobody_got_in(anna)


def test_every_damaged_byte_of_a_sealed_datagram_is_noticed() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    net.fate = lambda flying: ()
    net.say(anna, bert, b"genuine")
    data = net.log[-1].data
    for at in range(len(data)):
        net.now += 0.01
        net.inject(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], anna.address, bert)
        net.inject(data[:at], anna.address, bert)
    net.inject(data + b"\0", anna.address, bert)
    assert b"genuine" not in bert.payloads
    net.inject(data, anna.address, bert)
    assert bert.payloads[-1] == b"genuine", "and none of that kept the genuine one from being taken"


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.COOKIE, Kind.PROOF, Kind.ACCEPT])
def test_a_damaged_handshake_makes_no_session_and_the_genuine_one_still_does(kind: Kind) -> None:
    """One byte of every sixteenth is damaged, then the datagram cut off; each time in a handshake of its own."""
    size = 700
    for at in range(0, size, 16):
        for cut in (False, True):
            net = Net()
            anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
            damaged = [False]

            def fate(
                flying: Flying, at: int = at, cut: bool = cut, damaged: list[bool] = damaged, net: Net = net
            ) -> Iterable[float]:
                if flying.kind is not kind or damaged[0] or at >= len(flying.data):
                    return (DELAY_S,)
                damaged[0] = True
                data = flying.data
                data = data[:at] if cut else data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]
                net.inject(data, flying.source, net.stations[flying.to])
                return (DELAY_S,)

            net.fate = fate
            net.say(anna, bert, b"x")
            net.run(2.9)
            assert bert.payloads == [b"x"], (kind, at, cut)
            if not damaged[0]:
                return
    assert kind in (Kind.PROOF, Kind.ACCEPT)


def test_a_signature_for_another_network_is_none() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    proof = _proof(net, anna, bert)
    said = decode_handshake(proof.data)
    assert isinstance(said, Proof)
    network = make_network("away", now=NOW_WALL)
    claim = proof_claim(make_member(network, "x", now=NOW_WALL).membership.network, said.signed)
    net.inject(said.signed + anna.identity.key.sign(PROOF_CONTEXT, claim), proof.source, bert)
    assert reasons(bert) == [AdmissionReason.STOLEN_LEAF]


def test_a_key_share_that_everybody_knows_is_refused() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    membership = anna.identity.membership
    papers, tag = pack_papers(membership.leaf, membership.chain), datagram_tag(membership.network)
    cookie = bert.sessions._cookies.bake(anna.address, bytes(32), net.now)
    signed = write_proof(tag, 1, bytes(32), cookie, 0, papers)
    net.inject(
        signed + anna.identity.key.sign(PROOF_CONTEXT, proof_claim(membership.network, signed)), anna.address, bert
    )
    assert len(bert.refused) == 1
    assert bert.sessions.counts["admission"] == 1
    assert not bert.sessions.table.half_open


def test_an_accept_that_answers_another_proof_is_refused() -> None:
    net = Net()
    anna, bert = (net.station(each, number) for number, each in enumerate(pair(), 1))
    joined(net, anna, bert)
    old = net.last(Kind.ACCEPT)
    anna = net.station(pair()[0], 1)
    net.fate = lambda flying: () if flying.kind is Kind.ACCEPT else (DELAY_S,)
    net.greet(anna, bert.address)
    net.run(0.1)
    new = decode_handshake(net.last(Kind.ACCEPT).data)
    assert isinstance(new, Accept)
    forged = old.data[:10] + new.receiver.to_bytes(4) + old.data[14:]
    net.inject(forged, bert.address, anna)
    assert reasons(anna) == [AdmissionReason.STOLEN_LEAF]
    nobody_got_in(anna)
    net.fate = lambda flying: (DELAY_S,)
    net.run(3.0)
    assert [up.peer for up in anna.ups] == [bert.peer], "the true answer is still waited for"


def test_other_versions_and_kinds_are_met_with_silence() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    eve = Address("10.0.0.3", 5)
    hello = bytearray(_hello())
    hello[1] = 2
    net.inject(bytes(hello), eve, anna)
    hello[1] = 1
    hello[-1] = 7
    net.inject(bytes(hello), eve, anna)
    for first in range(256):
        net.inject(bytes([first]) + bytes(60), eve, anna)
        net.inject(bytes([first]), eve, anna)
    net.inject(b"", eve, anna)
    net.inject(bytes(1_201), eve, anna)
    assert not [each for each in net.log if each.source == anna.address and each.kind is not Kind.UNKNOWN]
    counts = anna.sessions.counts
    assert (counts["version"], counts["malformed"], counts["foreign"]) == (1, 1, 255)
    assert counts["size"] == 258


def _hello() -> bytes:
    other = Net()
    station = other.station(member("bert"), 2)
    other.greet(station, Address("10.0.0.1", 9876))
    return other.log[0].data


def test_refusals_of_one_address_are_told_once_a_second() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    bert = member("bert")
    thief = net.station(Member(PeerKey.generate(SeededEntropy("thief")), bert.membership, bert.invitation), 2)
    seen = []
    for number in range(40):
        thief.sessions.drop(anna.peer)
        again = Identity(Member(PeerKey.generate(SeededEntropy(f"thief {number}")), bert.membership, bert.invitation))
        assert again.membership is bert.membership
        ephemeral = Ephemeral(SeededEntropy(f"{number}"))
        cookie = anna.sessions._cookies.bake(thief.address, ephemeral.public, net.now)
        membership = bert.membership
        signed = write_proof(
            datagram_tag(membership.network),
            number,
            ephemeral.public,
            cookie,
            0,
            pack_papers(membership.leaf, membership.chain),
        )
        claim = proof_claim(membership.network, signed)
        net.inject(signed + again.key.sign(PROOF_CONTEXT, claim), thief.address, anna)
        seen.append(len(anna.refused))
        net.now += 0.1
    assert anna.sessions.counts["admission"] == 40
    assert 3 <= len(anna.refused) <= 5


def test_too_many_datagrams_are_refused_by_address() -> None:
    net = Net()
    anna = net.station(member("anna"), 1)
    stranger, neighbour = Address("93.184.216.34", 5), Address("10.0.0.3", 5)
    for _ in range(2_100):
        net.inject(bytes(40), stranger, anna)
    assert anna.sessions.counts["rate"] == 100
    assert [type(each.error) for each in anna.refused] == [ProtocolError, BusyError], "what it sends, then how much"
    for _ in range(2_100):
        net.inject(bytes(40), neighbour, anna)
    assert anna.sessions.counts["rate"] == 100, "near ones may send more"
