"""The peer book, alone, among peers that gossip: each message and what it leads to."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from p2pcompute.membership import book
from p2pcompute.membership.book import Way
from p2pcompute.model import limits
from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Coordinate, Edge, PeerStatus, Reach
from p2pcompute.wire import gossip
from p2pcompute.wire.families import GOSSIP_CODEC
from p2pcompute.wire.messages import Message, Records
from p2pcompute.wire.record import SignedRecord
from tests.support.membership import WALL, CountingVerify, FakeKey, fake_verify, make_record

OWN, A, B, C, D = FakeKey("own"), FakeKey("a"), FakeKey("b"), FakeKey("c"), FakeKey("d")
CROWD = [FakeKey(number) for number in range(20)]
#: Above any round trip, below any time-out.
SOON_S = 0.01


class Desk:
    """A book that gossips, its clock, and a hand that answers for the others."""

    def __init__(self, *known: FakeKey, verify: CountingVerify | None = None, **changes: object) -> None:
        settings = book.BookSettings(**changes)  # type: ignore[arg-type]
        self.own = make_record(OWN, 10, protocol=2)
        self.book = book.PeerBook(self.own, verify or fake_verify, random.Random(5), settings, signer=OWN)
        self.now = 100.0
        self.everything: list[tuple[float, book.Effect]] = []
        #: Who answers probes.
        self.alive: set[PeerId] = set()
        #: Who was known at some time.
        self.keys: dict[PeerId, FakeKey] = {}
        self.know(*known)

    def __call__(self, event: book.Event) -> list[book.Effect]:
        effects = self.book.handle(event, self.now)
        self.book.check_invariants()
        self.everything += [(self.now, effect) for effect in effects]
        return effects

    def know(self, *keys: FakeKey) -> None:
        """Peers of which records are here, and that have said something."""
        for key in keys:
            self.keys[key.peer] = key
            self.hear(key, gossip_record(key))
            self.say(key, gossip.Rumours(()))

    def hear(self, source: FakeKey, *records: SignedRecord) -> list[book.Effect]:
        return self(book.RecordsHeard(source.peer, tuple(record.wire for record in records), WALL))

    def say(self, source: FakeKey, message: Message, way: Way = Way.DATAGRAM) -> list[book.Effect]:
        return self(book.GossipHeard(source.peer, message, WALL, way))

    def tell(self, source: FakeKey, *rumours: bytes) -> list[book.Effect]:
        return self.say(source, gossip.Rumours(rumours))

    def link(self, key: FakeKey, invitation: bytes = b"i" * 32, **changes: object) -> list[book.Effect]:
        return self(book.LinkOpened(key.peer, gossip_record(key, **changes).wire, 0.02, invitation))

    def status(self, key: FakeKey) -> PeerStatus | None:
        entry = self.book.view.entry(key.peer)
        return entry.status if entry is not None else None

    def run(self, seconds: float) -> list[book.Effect]:
        """Let time pass; who is `alive` answers each probe."""
        end, said = self.now + seconds, []
        while (at := self.book.deadline()) is not None and at <= end:
            self.now = max(at, self.now)
            effects = self(book.Tick())
            said += effects
            for to, message, way in gossip_of(effects):
                if isinstance(message, gossip.Probe) and to in self.alive:
                    said += self(book.GossipHeard(to, gossip.Ack(message.nonce), WALL, way))
                if isinstance(message, gossip.ProbeVia) and to in self.alive:
                    target = PeerId(message.target)
                    heard = target in self.alive
                    witness = gossip.sign_witness(OWN.peer, message.nonce, self.keys[target]) if heard else b""
                    said += self(book.GossipHeard(to, gossip.ViaAck(message.nonce, heard, (), witness), WALL, way))
        self.now = end
        return said

    def fail(self, key: FakeKey) -> list[book.Effect]:
        """Let a probe of `key` go unanswered, out of turn."""
        self.link(key)
        self.now += SOON_S
        effects = self(book.LinkLost(key.peer, False, "broken"))
        return effects + self.run(1.001)


def gossip_record(key: FakeKey, incarnation: int = 1, sequence: int = 0, **changes: object) -> SignedRecord:
    return make_record(key, incarnation, sequence, **({"protocol": 2} | changes))


def gossip_of(effects: Sequence[book.Effect]) -> list[tuple[PeerId, Message, Way]]:
    return [(effect.to, effect.message, effect.way) for effect in effects if isinstance(effect, book.SendGossip)]


def messages(effects: Sequence[book.Effect], cls: type, to: FakeKey | None = None) -> list[Message]:
    return [
        message
        for peer, message, _ in gossip_of(effects)
        if isinstance(message, cls) and (to is None or peer == to.peer)
    ]


def verdicts(effects: Sequence[book.Effect], to: FakeKey) -> list[tuple[int, bool]]:
    """What a third peer is told about its questions, by their numbers."""
    return [(message.nonce, message.heard) for message in messages(effects, gossip.ViaAck, to)]  # type: ignore[attr-defined]


def only(effects: Sequence[book.Effect], cls: type) -> list[book.Effect]:
    return [effect for effect in effects if isinstance(effect, cls)]


def accusation(accuser: FakeKey, suspect: FakeKey, incarnation: int = 1) -> bytes:
    return gossip.sign_suspicion(suspect.peer, incarnation, accuser)


def announcement(key: FakeKey, incarnation: int, sequence: int = 0) -> bytes:
    return gossip.announcement_wire(gossip.Announcement(key.peer[:12], incarnation, sequence))


# --- probes -----------------------------------------------------------------------------------------------------------


def test_a_probe_is_answered_at_once_by_the_way_it_came() -> None:
    desk = Desk(A)
    desk.link(A)
    for way in (Way.DATAGRAM, Way.LINK):
        ((to, message, back),) = gossip_of(desk.say(A, gossip.Probe(77), way))
        assert (to, back) == (A.peer, way)
        assert isinstance(message, gossip.Ack)
        assert message.nonce == 77
        assert message.coordinate == desk.book.coordinate


def test_everybody_is_probed_each_round_and_an_answer_measures_the_round_trip() -> None:
    desk = Desk(A, B, C)
    probed: list[PeerId] = []
    before = desk.book.coordinate
    for _ in range(6):
        effects = desk.run(1.0)
        for to, message, way in gossip_of(effects):
            if isinstance(message, gossip.Probe):
                assert way is Way.DATAGRAM
                probed.append(to)
                desk.now += 0.03
                place = Coordinate((0.1, 0.0, 0.0), 0.01, 0.5)
                desk(book.GossipHeard(to, gossip.Ack(message.nonce, 10_000, place), WALL, way))
    assert all(probed.count(key.peer) >= 1 for key in (A, B, C))
    entry = desk.book.view.entry(A.peer)
    assert entry is not None
    assert entry.rtt_s is not None
    assert entry.status is PeerStatus.ALIVE
    assert desk.book.coordinate != before


def test_who_does_not_answer_is_probed_through_three_others_then_suspect_then_dead() -> None:
    desk = Desk(A, B, C, D)
    desk.alive = {B.peer, C.peer, D.peer}
    desk.link(A)
    desk.now += SOON_S
    effects = desk(book.LinkLost(A.peer, False, "broken"))
    assert [to for to, message, _ in gossip_of(effects) if isinstance(message, gossip.Probe)] == [A.peer], "at once"
    assert desk.status(A) is PeerStatus.ALIVE, "a lost link is no death"
    effects = desk.run(0.501)
    asked = messages(effects, gossip.ProbeVia)
    assert len(asked) == 3
    assert {message.target for message in asked} == {A.peer}  # type: ignore[attr-defined]
    assert all(450 <= message.wait_ms <= 500 for message in asked)  # type: ignore[attr-defined]
    effects = desk.run(0.5)
    assert only(effects, book.PeerSuspected) == [book.PeerSuspected(A.peer, OWN.peer)]
    assert desk.status(A) is PeerStatus.SUSPECT
    effects = desk.run(30)
    (died,) = only(effects, book.PeerDied)
    assert died.peer == A.peer  # type: ignore[attr-defined]
    assert "did not speak up" in died.reason  # type: ignore[attr-defined]


def test_a_third_peers_word_is_enough_and_a_stranger_to_the_question_is_not_heard() -> None:
    desk = Desk(A, B, C, D)
    desk.link(A)
    desk.now += SOON_S
    desk(book.LinkLost(A.peer, False, "broken"))
    asked = [(to, message) for to, message, _ in gossip_of(desk.run(0.501)) if isinstance(message, gossip.ProbeVia)]
    nonce = asked[0][1].nonce  # type: ignore[attr-defined]
    witness = gossip.sign_witness(OWN.peer, nonce, A)
    desk(book.GossipHeard(asked[0][0], gossip.ViaAck(nonce, True, (), witness), WALL, Way.DATAGRAM))
    assert not only(desk.run(0.6), book.PeerSuspected)


@pytest.mark.parametrize(
    "witness",
    [
        b"",
        bytes(64),
        gossip.sign_witness(OWN.peer, 1, A),
        gossip.sign_witness(B.peer, 2, A),
        gossip.sign_witness(OWN.peer, 2, B),
    ],
)
def test_a_third_peers_word_without_that_of_the_peer_itself_proves_nothing_and_is_reported(witness: bytes) -> None:
    """Nothing, nonsense, an answer to another question or to another asker, another peer's."""
    desk = Desk(A, B, C, D)
    desk.link(A)
    desk.now += SOON_S
    desk(book.LinkLost(A.peer, False, "broken"))
    asked = [(to, message) for to, message, _ in gossip_of(desk.run(0.501)) if isinstance(message, gossip.ProbeVia)]
    effects = [
        effect
        for to, message in asked
        for effect in desk(
            book.GossipHeard(to, gossip.ViaAck(message.nonce, True, (), witness), WALL, Way.DATAGRAM)  # type: ignore[attr-defined]
        )
    ]
    assert {each.peer for each in only(effects, book.Misbehaved)} == {to for to, _ in asked}  # type: ignore[attr-defined]
    assert only(desk.run(0.6), book.PeerSuspected)
    assert only(desk.run(30), book.PeerDied)


def test_whom_nobody_asked_answers_for_nobody() -> None:
    desk = Desk(A, B, C, D, *CROWD)
    desk.alive = {key.peer for key in (B, C, D, *CROWD)}
    desk.link(A)
    desk.now += SOON_S
    (probe,) = messages(desk(book.LinkLost(A.peer, False, "broken")), gossip.Probe)
    nonce = probe.nonce  # type: ignore[attr-defined]
    desk.say(B, gossip.Ack(nonce))
    asked = {to for to, message, _ in gossip_of(desk.run(0.501)) if isinstance(message, gossip.ProbeVia)}
    stranger = next(key for key in CROWD if key.peer not in asked)
    desk.say(stranger, gossip.ViaAck(nonce, True))
    assert only(desk.run(0.6), book.PeerSuspected)


def test_those_that_a_peer_says_it_is_linked_to_are_asked_first() -> None:
    desk = Desk(*CROWD)
    edges = tuple(Edge(key.peer, 0.01) for key in CROWD[3:5])
    desk.say(CROWD[0], gossip.Ack(1))  # datagrams get through
    desk.link(A, edges=edges)
    desk.now += SOON_S
    desk(book.LinkLost(A.peer, False, "broken"))
    asked = {to for to, message, _ in gossip_of(desk.run(0.501)) if isinstance(message, gossip.ProbeVia)}
    assert {CROWD[3].peer, CROWD[4].peer} <= asked
    assert len(asked) == 3


def test_a_probe_for_another_is_made_and_told() -> None:
    desk = Desk(A, B)
    effects = desk.say(A, gossip.ProbeVia(5, B.peer, 500))
    (probe,) = messages(effects, gossip.Probe, B)
    assert (probe.asker, probe.asker_nonce) == (A.peer, 5)  # type: ignore[attr-defined]
    assert not messages(desk.say(B, gossip.Ack(probe.nonce)), gossip.ViaAck), (
        "who passes on a lie is taken for the liar"
    )  # type: ignore[attr-defined]
    witness = gossip.sign_witness(A.peer, 5, B)
    effects = desk.say(B, gossip.Ack(probe.nonce, witness=witness))  # type: ignore[attr-defined]
    (told,) = messages(effects, gossip.ViaAck, A)
    assert told == gossip.ViaAck(5, True, (), witness)
    desk.say(A, gossip.ProbeVia(6, B.peer, 500))
    assert not messages(desk.run(0.39), gossip.ViaAck)
    assert verdicts(desk.run(0.02), A) == [(6, False)], "before the asker's time is up"


def test_who_is_asked_for_another_signs_that_it_is_there() -> None:
    desk = Desk(A)
    (answer,) = messages(desk.say(A, gossip.Probe(9, asker=C.peer, asker_nonce=77)), gossip.Ack, A)
    assert gossip.is_witness(answer.witness, OWN.public_key, C.peer, 77, fake_verify)  # type: ignore[attr-defined]
    assert not gossip.is_witness(answer.witness, OWN.public_key, C.peer, 78, fake_verify)  # type: ignore[attr-defined]
    (answer,) = messages(desk.say(A, gossip.Probe(9)), gossip.Ack, A)
    assert answer.witness == b""  # type: ignore[attr-defined]


def test_an_unknown_target_is_denied_at_once_and_probes_for_others_are_bounded() -> None:
    desk = Desk(A, B)
    assert verdicts(desk.say(A, gossip.ProbeVia(5, C.peer, 500)), A) == [(5, False)]
    denied = [messages(desk.say(A, gossip.ProbeVia(n, B.peer, 500)), gossip.ViaAck) for n in range(300)]
    assert sum(map(bool, denied)) == 300 - limits.PROBES_FOR_OTHERS_MAX


def test_a_link_is_the_fallback_of_a_probe_whose_datagram_is_not_answered() -> None:
    desk = Desk(B, C)
    desk.link(A)
    probes: list[Way] = []
    for _ in range(200):
        effects = desk.run(0.1)
        probes += [way for to, message, way in gossip_of(effects) if isinstance(message, gossip.Probe) and to == A.peer]
        if probes:
            break
    assert probes == [Way.LINK, Way.DATAGRAM], "it never answered a datagram: both at once"
    for to, message, way in gossip_of(effects):
        if isinstance(message, gossip.Probe) and to == A.peer and way is Way.DATAGRAM:
            desk.say(A, gossip.Ack(message.nonce))
    later: list[tuple[float, Way]] = []
    while len(later) < 2:
        effects = desk.run(0.1)
        later += [
            (desk.now, way)
            for to, message, way in gossip_of(effects)
            if isinstance(message, gossip.Probe) and to == A.peer
        ]
    assert [way for _, way in later] == [Way.DATAGRAM, Way.LINK], "the link only when the time for the datagram is up"
    assert later[1][0] - later[0][0] >= 0.4


def test_who_was_heard_on_its_link_just_now_needs_no_probe_but_to_learn_whether_datagrams_arrive() -> None:
    desk = Desk()
    desk.link(A)

    def probes(seconds: float) -> int:
        said: list[book.Effect] = []
        for _ in range(int(seconds * 2)):
            desk(book.LinkMeasured(A.peer, 0.02, None))
            said += desk.run(0.5)
        return len([way for _, m, way in gossip_of(said) if isinstance(m, gossip.Probe) and way is Way.DATAGRAM])

    assert 2 <= probes(30) <= 4
    desk.alive = {A.peer}
    assert probes(11) == 1
    assert probes(40) == 0
    assert probes(40) == 1
    assert messages(desk.run(5), gossip.Probe)


def test_local_health_slows_probes_down() -> None:
    def probes(desk: Desk) -> int:
        return len(messages(desk.run(60.0), gossip.Probe))

    well, ill = Desk(A, B, C), Desk(A, B, C)
    well.alive = {A.peer, B.peer, C.peer}
    assert probes(well) > 50
    ill(book.LoopLagged(5.0))
    assert ill.book.health == 2
    for _ in range(10):
        ill(book.LoopLagged(5.0))
    assert ill.book.health == 8
    ill(book.LoopLagged(0.05))
    assert ill.book.health == 8
    crowded = Desk(*CROWD)
    for _ in range(10):
        crowded(book.LoopLagged(5.0))
    assert 0 < len([to for to, m, _ in gossip_of(crowded.run(30.0)) if isinstance(m, gossip.Probe)]) < 10
    assert 0 < len([m for m in messages(ill.run(20.0), gossip.Probe) if not m.rumours or len(m.rumours[0]) < 100]) < 10  # type: ignore[attr-defined]
    well(book.LoopLagged(5.0))
    well.run(20.0)
    assert well.book.health == 0, "answers heal"


def test_a_timer_that_comes_late_fails_no_probe() -> None:
    desk = Desk(A, B, C)
    desk.link(A)
    desk.now += SOON_S
    (probe,) = messages(desk(book.LinkLost(A.peer, False, "broken")), gossip.Probe)
    desk.now += 7.0
    assert not only(desk(book.Tick()), book.PeerSuspected), "the answer may wait in the queue"
    assert desk.book.health > 0
    desk.say(A, gossip.Ack(probe.nonce))  # type: ignore[attr-defined]
    assert not only(desk.run(0.5), book.PeerSuspected)
    assert desk.status(A) is PeerStatus.ALIVE


# --- suspicion --------------------------------------------------------------------------------------------------------


def test_an_own_failed_probe_is_told_signed_and_first_of_all_to_the_suspect() -> None:
    desk = Desk(A, B, C, *CROWD)
    effects = desk.fail(A)
    assert desk.status(A) is PeerStatus.SUSPECT
    effects += desk.run(4.0)
    wire = accusation(OWN, A)
    assert any(wire in message.rumours for message in messages(effects, gossip.Rumours))  # type: ignore[attr-defined]
    checks = [message for message in messages(effects, gossip.Probe, A) if message.rumours]  # type: ignore[attr-defined]
    assert checks
    assert checks[-1].rumours[0] == wire  # type: ignore[attr-defined]


@pytest.mark.parametrize("sign", ["probe", "ack", "link", "record"])
def test_any_sign_of_life_clears_a_suspect(sign: str) -> None:
    desk = Desk(A, B, C)
    desk.fail(A)
    assert desk.status(A) is PeerStatus.SUSPECT
    match sign:
        case "probe":
            desk.say(A, gossip.Probe(1))
        case "ack":
            desk.say(A, gossip.Ack(12345))
        case "link":
            desk.link(A)
        case _:
            assert desk.status(A) is PeerStatus.SUSPECT
            desk.hear(B, gossip_record(A, 2))
    assert desk.status(A) is PeerStatus.ALIVE
    desk.alive = {A.peer, B.peer, C.peer}
    assert not only(desk.run(60), book.PeerDied)


def test_a_later_record_of_the_same_life_clears_nobody() -> None:
    desk = Desk(A, B, C)
    desk.fail(A)
    desk.hear(B, gossip_record(A, 1, 5))
    assert desk.status(A) is PeerStatus.SUSPECT


def test_an_accusation_alone_changes_nothing_but_is_checked_and_passed_on() -> None:
    desk = Desk(A, B, C, *CROWD)
    desk.alive = {key.peer for key in (A, B, C, *CROWD)}
    effects = desk.tell(B, accusation(B, A)) + desk.run(5)
    assert not only(effects, book.PeerSuspected)
    assert desk.status(A) is PeerStatus.ALIVE
    (first, *_) = messages(effects, gossip.Probe, A)
    assert first.rumours[0] == accusation(B, A), "the accused is shown what it must refute"  # type: ignore[attr-defined]


def test_the_more_accuse_the_sooner_a_suspect_is_dead_but_never_without_an_own_failed_probe() -> None:
    def dies_after(*accusers: FakeKey) -> float:
        desk = Desk(A, *CROWD)
        desk.alive = {key.peer for key in CROWD}
        desk.fail(A)
        start = desk.now
        for key in accusers:
            desk.tell(key, accusation(key, A))
        while not only(desk.run(0.1), book.PeerDied):
            assert desk.now - start < 100
        return desk.now - start

    alone, one, two = dies_after(), dies_after(CROWD[0]), dies_after(CROWD[0], CROWD[1])
    assert two < one < alone
    # 22 peers: least 4 * log10(22) s, most six times that.
    assert two == pytest.approx(5.4, abs=0.2)
    assert alone == pytest.approx(32.2, abs=0.3)

    desk = Desk(A, *CROWD)
    desk.alive = {key.peer for key in (A, *CROWD)}
    for key in CROWD[:10]:
        desk.tell(key, accusation(key, A))
    assert not only(desk.run(60), book.PeerDied)


def test_many_peers_of_one_invitation_are_one_accuser() -> None:
    desk = Desk(A, *CROWD)
    desk.alive = {key.peer for key in CROWD}
    for key in CROWD[:8]:
        desk.link(key, b"m" * 32)
    desk.fail(A)
    start = desk.now
    for key in CROWD[:8]:
        desk.tell(key, accusation(key, A))
    while not only(desk.run(0.1), book.PeerDied):
        assert desk.now - start < 100
    # As with one accuser, and not as with eight.
    assert desk.now - start > 10


def test_who_accuses_many_at_once_is_heard_about_some_of_them() -> None:
    desk = Desk(A, *CROWD)
    accusations = {accusation(A, key) for key in CROWD}
    desk.tell(A, *sorted(accusations))
    told = {wire for _, m, _ in gossip_of(desk.run(3.0)) for wire in getattr(m, "rumours", ()) if wire in accusations}
    assert len(told) == limits.ACCUSATIONS_PER_SECOND


def test_who_was_accused_by_others_first_is_suspected_by_them() -> None:
    desk = Desk(A, *CROWD)
    desk.alive = {key.peer for key in CROWD}
    desk.tell(CROWD[3], accusation(CROWD[3], A))
    assert only(desk.run(4.0), book.PeerSuspected) == [book.PeerSuspected(A.peer, CROWD[3].peer)]


def test_nobody_dies_before_an_own_probe_has_failed_however_long_that_takes() -> None:
    desk = Desk(A, *CROWD)
    for _ in range(10):
        desk(book.LoopLagged(5.0))
    # Past what counts as being late; no answer heals, so each probe takes nine seconds.
    desk.run(15.0)
    start = desk.now
    for key in CROWD[:6]:
        desk.tell(key, accusation(key, A))
    said: list[book.Effect] = []
    probes: list[Message] = []
    while not (probes := messages(said, gossip.Probe, A)):
        said += desk.run(0.1)
    said += desk.run(max(start + 8.5 - desk.now, 0.0))
    assert A.peer not in {effect.peer for effect in only(said, book.PeerDied)}  # type: ignore[attr-defined]
    assert desk.status(A) is PeerStatus.ALIVE
    assert desk.now - start > 6.0, "its time was up"
    desk.say(A, gossip.Ack(probes[-1].nonce))  # type: ignore[attr-defined]
    assert A.peer not in {effect.peer for effect in only(desk.run(2.0), book.PeerDied)}  # type: ignore[attr-defined]


def test_who_refutes_again_and_again_and_answers_never_is_judged_by_others() -> None:
    desk = Desk(*CROWD)
    desk.alive = {key.peer for key in CROWD}
    desk.link(A)
    desk(book.LinkLost(A.peer, True, "idle"))
    incarnation, suspected = 1, 0
    for _ in range(30):
        effects = desk.run(10.0)
        if only(effects, book.PeerSuspected):
            suspected += 1
            incarnation += 1
            desk.hear(CROWD[0], gossip_record(A, incarnation))
    assert suspected == 3
    assert desk.status(A) is PeerStatus.ALIVE


def test_only_members_may_accuse_and_only_for_the_present_life() -> None:
    desk = Desk(A, B, C)
    stranger = FakeKey("stranger")
    useless = {accusation(stranger, A), accusation(B, A, 0), accusation(B, stranger)}
    for wire in sorted(useless):
        desk.tell(B, wire)
        desk.now += 1.0
    for _, message, _ in gossip_of(desk.run(2.0)):
        assert not useless & set(getattr(message, "rumours", ())), "nothing of it is passed on"
    forged = accusation(B, A)[:-1] + b"\0"
    assert [effect.peer for effect in only(desk.tell(C, forged), book.Misbehaved)] == [C.peer]  # type: ignore[attr-defined]


def test_the_accused_refutes_at_most_once_a_second_and_only_what_concerns_its_present_life() -> None:
    desk = Desk(A, B, C)
    assert not only(desk.tell(A, accusation(A, OWN, 9)), book.RaiseIncarnation)
    desk.now += 1.0
    assert not only(desk.tell(A, accusation(A, OWN, 10**15)), book.RaiseIncarnation), "a liar cannot drive it up"
    desk.now += 1.0
    assert only(desk.tell(A, accusation(A, OWN, 10)), book.RaiseIncarnation) == [book.RaiseIncarnation(11)]
    effects = desk(book.OwnChanged(make_record(OWN, 11, protocol=2)))
    pushed = {to for to, message, _ in gossip_of(effects) if isinstance(message, Records)}
    assert A.peer in pushed, "who accused it gets the record itself"
    assert not only(desk.tell(B, accusation(B, OWN, 11)), book.RaiseIncarnation)
    assert only(desk.run(1.0), book.RaiseIncarnation) == [book.RaiseIncarnation(12)]


def test_who_accuses_falsely_all_the_time_is_reported_once_and_ignored() -> None:
    desk = Desk(A, *CROWD)
    desk.alive = {key.peer for key in (A, *CROWD)}
    reports: list[book.Effect] = []
    for number in range(200):
        victim = CROWD[number % 20]
        effects = desk.hear(A, gossip_record(victim, 2 + number // 20))
        effects += desk.tell(A, accusation(A, victim, 2 + number // 20))
        effects += desk.run(3.0)
        reports += only(effects, book.Misbehaved)
        assert not only(effects, book.PeerSuspected)
    assert [report.peer for report in reports] == [A.peer]  # type: ignore[attr-defined]
    assert "accuses" in reports[0].reason  # type: ignore[attr-defined]
    present = desk.book.record(CROWD[0].peer)
    assert present is not None
    wire = accusation(A, CROWD[0], present.incarnation)
    said = desk.tell(A, wire) + desk.run(2.0)
    assert not any(wire in getattr(message, "rumours", ()) for _, message, _ in gossip_of(said))


def test_a_peer_that_is_heard_on_its_link_is_never_dead_whoever_accuses_it_and_a_silent_link_vouches_for_nobody() -> (
    None
):
    desk = Desk(A, B, C, *CROWD)
    desk.alive = {key.peer for key in CROWD}
    desk.link(A)
    for key in CROWD[:5]:
        desk.tell(key, accusation(key, A))
    said: list[book.Effect] = []
    for _ in range(40):
        said += desk.run(3.0)
        desk(book.LinkMeasured(A.peer, 0.02, None))
    assert not [effect for effect in only(said, book.PeerDied) if effect.peer == A.peer]  # type: ignore[attr-defined]
    assert desk.status(A) is PeerStatus.ALIVE
    died = [effect.peer for effect in only(desk.run(130.0), book.PeerDied)]  # type: ignore[attr-defined]
    assert died == [A.peer], "it was probed over the link as well"


def test_a_linked_peer_of_the_first_version_is_not_asked_about_whoever_accuses_it() -> None:
    desk, old = Desk(A, B, *CROWD), FakeKey("old")
    desk.alive = {key.peer for key in CROWD}
    desk(book.LinkOpened(old.peer, make_record(old).wire, 0.02, b""))
    for key in CROWD[:5]:
        effects = desk.tell(key, gossip.sign_suspicion(old.peer, 1, key))
        assert not only(effects, book.AskSuspect)
    assert not [e for e in only(desk.run(60.0), book.PeerDied) if e.peer == old.peer]  # type: ignore[attr-defined]
    assert desk.status(old) is PeerStatus.ALIVE


def test_who_never_answered_is_not_accused_by_one_who_hears_no_datagram() -> None:
    desk = Desk()
    desk.link(B)
    desk.hear(B, gossip_record(A))
    said = []
    for _ in range(50):
        desk(book.LinkMeasured(B.peer, 0.02, None))
        said += desk.run(0.9)
    assert messages(said, gossip.Probe, A)
    assert not only(said, book.PeerSuspected)


def test_who_says_that_it_cannot_be_reached_is_not_accused_by_who_never_reached_it() -> None:
    desk = Desk(B, C)
    desk.alive = {B.peer, C.peer}
    desk.hear(B, gossip_record(A, reach=Reach.PRIVATE), gossip_record(D, reach=Reach.PUBLIC))
    suspected = {effect.peer for effect in only(desk.run(30), book.PeerSuspected)}  # type: ignore[attr-defined]
    assert suspected == {D.peer}


# --- death and return -------------------------------------------------------------------------------------------------


def dead_desk() -> Desk:
    desk = Desk(A, B, C, *CROWD)
    desk.alive = {key.peer for key in (B, C, *CROWD)}
    desk.fail(A)
    for key in CROWD[:4]:
        desk.tell(key, accusation(key, A))
    desk.run(8)
    assert desk.status(A) is PeerStatus.DEAD
    return desk


def test_a_dead_peer_is_back_when_it_says_anything_itself_and_that_is_told() -> None:
    desk = dead_desk()
    effects = desk.say(A, gossip.Probe(1)) + desk.run(2.0)
    assert book.PeerAppeared(A.peer) in effects
    assert any(announcement(A, 1) in getattr(message, "rumours", ()) for _, message, _ in gossip_of(effects))


def test_a_higher_incarnation_brings_back_and_a_later_record_of_the_same_life_only_a_probe() -> None:
    desk = dead_desk()
    desk.hear(B, gossip_record(A, 1, 7))
    assert desk.status(A) is PeerStatus.DEAD
    assert messages(desk.run(1.0), gossip.Probe, A)
    assert book.PeerAppeared(A.peer) in desk.hear(B, gossip_record(A, 2))


def test_whoever_says_that_a_dead_peer_lives_makes_it_be_probed_now_and_then() -> None:
    desk = dead_desk()
    effects: list[book.Effect] = []
    for _ in range(50):
        desk.tell(B, announcement(A, 1))
        desk.say(B, gossip.Versions(((A.peer[:12], 1, 0),)))
        effects += desk.run(0.1)
    assert len(messages(effects, gossip.Probe, A)) == 1
    assert desk.status(A) is PeerStatus.DEAD
    desk.alive.add(A.peer)
    desk.run(10)
    desk.tell(B, announcement(A, 1))
    desk.run(1.0)
    assert desk.status(A) is PeerStatus.ALIVE


def test_a_peer_that_leaves_is_told_of_by_its_own_record_alone() -> None:
    desk = Desk(A, B, C)
    desk.alive = {B.peer, C.peer}
    effects = desk.hear(B, gossip_record(A, 1, 1, leaving=True))
    assert book.PeerLeft(A.peer) in effects
    assert not messages(desk.run(60), gossip.Probe, A)
    assert desk.hear(B, gossip_record(A, 1, 0)) == []
    assert desk.status(A) is PeerStatus.LEFT
    desk.say(A, gossip.Probe(1))
    assert desk.status(A) is PeerStatus.LEFT


def test_a_record_that_is_not_renewed_for_an_hour_is_dead_however_its_peer_answers() -> None:
    desk = Desk(A)
    desk.alive = {A.peer}
    said = desk.run(limits.RECORD_EXPIRY_S - 1)
    assert not only(said, book.PeerDied)
    assert only(desk.run(2), book.PeerDied) == [book.PeerDied(A.peer, "its record was not renewed")]


def test_what_slept_is_not_blamed_on_others() -> None:
    desk = Desk(A, B, C)
    desk.link(A)
    desk.link(B)
    desk.alive = {A.peer, B.peer, C.peer}
    desk.run(10)
    desk.fail(C)
    desk.now += 4_000.0
    effects = desk(book.Woke(4_000.0))
    assert messages(effects, gossip.Digest)
    assert not only(effects, book.PeerDied)
    assert desk.book.health >= 4
    assert not only(desk.run(2.0), book.PeerDied)
    assert {desk.status(key) for key in (A, B)} == {PeerStatus.ALIVE}
    assert desk.run(60) is not None
    assert desk.book.health == 0


# --- records ----------------------------------------------------------------------------------------------------------


def test_news_is_announced_and_each_record_asked_of_one_peer_at_a_time() -> None:
    desk = Desk(A, B, C)
    effects = desk.tell(A, announcement(D, 3))
    assert messages(effects, gossip.Want) == [gossip.Want((D.peer[:12],))]
    assert messages(effects, gossip.Want, A)
    assert not messages(desk.tell(B, announcement(D, 3)), gossip.Want), "one is asked already"
    assert not messages(desk.run(1.4), gossip.Want)
    assert messages(desk.run(0.2), gossip.Want, B), "then the next one"
    effects = desk.hear(B, gossip_record(D, 3))
    assert book.PeerAppeared(D.peer) in effects
    assert any(announcement(D, 3) in getattr(m, "rumours", ()) for _, m, _ in gossip_of(desk.run(1.0)))
    assert not messages(desk.tell(C, announcement(D, 3)) + desk.tell(C, announcement(D, 2, 9)), gossip.Want)


def test_a_record_that_nobody_sends_is_given_up() -> None:
    desk = Desk(A, B, C)
    desk.alive = {A.peer, B.peer, C.peer}
    desk.tell(A, announcement(D, 3))
    assert len(messages(desk.run(60), gossip.Want)) < 5
    assert messages(desk.tell(A, announcement(D, 3)), gossip.Want), "until it is announced again"


def test_records_too_far_ahead_are_neither_asked_for_nor_taken() -> None:
    desk = Desk(A, B)
    far = int(WALL * 1000) + 300_001
    assert not messages(desk.tell(A, announcement(D, far)), gossip.Want)
    assert not messages(desk.say(A, gossip.Versions(((D.peer[:12], far, 0),))), gossip.Want)
    desk.hear(A, gossip_record(D, far))
    assert desk.status(D) is None


def test_who_asks_for_records_gets_them_but_none_of_the_dead() -> None:
    desk = dead_desk()
    effects = desk.say(B, gossip.Want((OWN.peer[:12], B.peer[:12], A.peer[:12], D.peer, C.peer)))
    records = [wire for message in messages(effects, Records, B) for wire in message.records]  # type: ignore[attr-defined]
    assert records == [desk.own.wire, gossip_record(B).wire, gossip_record(C).wire]


def test_a_record_that_no_datagram_holds_travels_in_pieces_and_over_a_link_as_it_is() -> None:
    large = make_record(D, 3, protocol=2, functions=tuple("f" * 100 + str(n) for n in range(60)))
    assert len(large.wire) > 6_000
    giver, taker = Desk(A, B), Desk(A, B)
    giver.hear(A, large)
    sent = gossip_of(giver.say(B, gossip.Want((D.peer[:12],))))
    assert len(sent) > 5
    for _, message, way in sent:
        assert way is Way.DATAGRAM
        taker.say(A, message)
    assert taker.book.record(D.peer) == large.record
    giver.link(B)
    assert messages(giver.say(B, gossip.Want((D.peer[:12],)), Way.LINK), Records) == [Records((large.wire,))]


def test_who_asks_in_datagrams_gets_no_more_than_an_honest_peer_takes() -> None:
    """A small question must not make a peer send hundreds of times as much, as often as it is asked."""
    desk = Desk(A, B)
    many = [FakeKey(number) for number in range(100, 100 + limits.WANTS_PER_DATAGRAM_MAX)]
    for key in many:
        desk.hear(A, make_record(key, 3, protocol=2, functions=tuple("f" * 100 + str(n) for n in range(60))))
    want = gossip.Want(tuple(key.peer[:12] for key in many))

    def given(by: FakeKey, way: Way = Way.DATAGRAM) -> int:
        said = messages(desk.say(by, want, way), Message, by)
        return sum(len(GOSSIP_CODEC.encode(each)) for each in said if isinstance(each, Records | gossip.Piece))

    once = given(B)
    assert once > 100_000
    assert sum(given(B) for _ in range(50)) + once < 1.2 * limits.WANTED_BYTES_PER_SECOND_PER_PEER
    assert given(A) == once, "others have their own share"
    desk.now += 1.0
    assert given(B) == once
    desk.link(B)
    assert [given(B, Way.LINK) for _ in range(3)] == [given(B, Way.LINK)] * 3, "a link has windows of its own"


def test_a_new_link_begins_with_one_digest_and_pulls_only_what_differs() -> None:
    one, other = Desk(*CROWD), Desk(*CROWD)
    one.hear(CROWD[0], gossip_record(C), gossip_record(CROWD[1], 1, 1))
    other.hear(CROWD[0], gossip_record(D))
    # Both desks have the same key; to each the other is called A.
    (one_begins,) = [bool(messages(desk.link(A), gossip.Digest)) for desk in (one,)]
    assert one_begins == (OWN.peer < A.peer)
    other.link(A)
    digest = gossip.Digest(one.book._table.digests.hashes)
    versions = messages(other.say(A, digest, Way.LINK), gossip.Versions)
    assert versions
    replies: list[Message] = []
    for message in versions:
        replies += [message for _, message, _ in gossip_of(one.say(A, message, Way.LINK))]
    wanted = {prefix for message in replies if isinstance(message, gossip.Want) for prefix in message.peers}
    offered = {row[0] for message in replies if isinstance(message, gossip.Versions) for row in message.rows}
    assert wanted == {D.peer[:12]}
    assert {C.peer[:12], CROWD[1].peer[:12]} <= offered
    back: list[Message] = []
    for message in replies:
        back += [message for _, message, _ in gossip_of(other.say(A, message, Way.LINK))]
    asked = {prefix for message in back if isinstance(message, gossip.Want) for prefix in message.peers}
    assert {C.peer[:12], CROWD[1].peer[:12]} <= asked


def test_one_side_of_a_new_link_begins() -> None:
    for key in CROWD:
        desk = Desk()
        begins = bool(messages(desk.link(key), gossip.Digest, key))
        assert begins == (OWN.peer < key.peer)
    assert len({OWN.peer < key.peer for key in CROWD}) == 2


def test_what_is_due_to_a_link_that_is_gone_goes_in_a_datagram_or_not_at_all() -> None:
    desk = Desk(A, B)
    desk.link(A)
    desk.say(A, gossip.ProbeVia(5, B.peer, 500), Way.LINK)
    desk(book.LinkLost(A.peer, True, "idle"))
    ((_, way),) = [
        (m, way) for to, m, way in gossip_of(desk.run(0.45)) if to == A.peer and isinstance(m, gossip.ViaAck)
    ]
    assert way is Way.DATAGRAM
    assert not gossip_of(desk.say(A, gossip.Want((OWN.peer,)), Way.LINK))


def test_who_had_left_before_it_was_known_is_not_announced() -> None:
    desk = Desk(A, B, C)
    desk.hear(A, gossip_record(D, 1, 4, leaving=True))
    assert desk.status(D) is PeerStatus.LEFT
    said = desk.run(3.0)
    assert not any(announcement(D, 1, 4) in getattr(m, "rumours", ()) for _, m, _ in gossip_of(said))
    assert desk.book._table.digests.order(D.peer) is None, "nor found missing by others, or it would go round for ever"
    desk.hear(A, gossip_record(C, 1, 4, leaving=True))
    assert desk.book._table.digests.order(C.peer) == (1, 4)


def test_equal_peers_have_nothing_to_say_to_a_digest() -> None:
    one, other = Desk(*CROWD), Desk(*CROWD)
    assert gossip_of(other.say(A, gossip.Digest(one.book._table.digests.hashes))) == [
        (A.peer, gossip.Want((A.peer[:12],)), Way.DATAGRAM)
    ], "only who spoke is unknown"


def test_an_own_change_is_announced_at_once() -> None:
    desk = Desk(*CROWD)
    effects = desk(book.OwnChanged(make_record(OWN, 10, 1, protocol=2)))
    assert len([m for m in messages(effects, gossip.Rumours) if announcement(OWN, 10, 1) in m.rumours]) == 3  # type: ignore[attr-defined]


def test_load_updates_show_in_the_view_until_a_newer_record_and_are_passed_on() -> None:
    desk = Desk(B, C)
    capability = Capability(8, 3000.0, 0.9, 32.0, 20.0)
    desk.hear(B, gossip_record(A, 1, 2, capability=capability))

    def load(sequence: int, incarnation: int = 1) -> bytes:
        return gossip.sign_load(gossip.LoadUpdate(A.peer, incarnation, sequence, 0.75, 0.25, 4.0), A)

    for stale in (load(2), load(5, 2)):
        assert book.ViewChanged() not in desk.tell(B, stale)
    assert book.ViewChanged() in desk.tell(B, load(3))
    entry = desk.book.view.entry(A.peer)
    assert entry is not None
    assert entry.record.load == 0.75
    assert entry.record.capability is not None
    assert (entry.record.capability.idle, entry.record.capability.memory_available_gb) == (0.25, 4.0)
    assert any(load(3) in getattr(message, "rumours", ()) for _, message, _ in gossip_of(desk.run(1.0)))
    desk.hear(B, gossip_record(A, 1, 4, capability=capability, load=0.1))
    entry = desk.book.view.entry(A.peer)
    assert entry is not None
    assert entry.record.load == 0.1
    own = gossip.sign_load(gossip.LoadUpdate(OWN.peer, 10, 1, 0.5, 0.5, 1.0), OWN)
    effects = desk(book.OwnLoadChanged(own)) + desk.run(1.0)
    assert any(own in getattr(message, "rumours", ()) for _, message, _ in gossip_of(effects))


def test_a_rumour_that_was_heard_costs_no_second_signature_check() -> None:
    verify = CountingVerify()
    desk = Desk(A, B, C, verify=verify)
    desk.tell(B, accusation(C, A))
    before = verify.calls
    for _ in range(10):
        desk.tell(B, accusation(C, A))
    assert verify.calls == before


def test_of_a_revoked_peer_nothing_is_heard_or_asked_for() -> None:
    desk = Desk(A, B, C)
    desk(book.PeerBanned(A.peer))
    assert desk.say(A, gossip.Probe(1)) == []
    assert not messages(desk.tell(B, announcement(A, 50)), gossip.Want)
    assert not messages(desk.tell(B, accusation(A, C)) + desk.run(2), gossip.Probe, A)


def test_a_book_without_a_signer_accuses_nobody_in_public() -> None:
    mute = book.PeerBook(make_record(OWN, 10, protocol=2), fake_verify, random.Random(1))
    desk = Desk()
    desk.book = mute
    desk.know(A, B, C)
    desk.alive = {B.peer, C.peer}
    effects = desk.fail(A) + desk.run(60)
    assert only(effects, book.PeerSuspected)
    assert only(effects, book.PeerDied)
    assert not any(len(w) > 100 for _, m, _ in gossip_of(effects) for w in getattr(m, "rumours", ()))


def test_an_opened_record_may_be_remembered_by_somebody_else() -> None:
    signed = gossip_record(A)
    peer_book = book.PeerBook(
        make_record(OWN, 10, protocol=2),
        lambda *_: False,
        random.Random(1),
        remember_open=lambda wire: signed if wire == signed.wire else None,
    )
    peer_book.handle(book.RecordsHeard(B.peer, (signed.wire,), WALL), 0.0)
    assert peer_book.record(A.peer) is signed.record


# --- between the versions ---------------------------------------------------------------------------------------------


def test_a_link_to_the_first_version_is_pushed_what_gossip_brings() -> None:
    desk = Desk(A)
    old = FakeKey("old")
    effects = desk(book.LinkOpened(old.peer, make_record(old).wire, 0.02, b""))
    (pushed,) = only(effects, book.SendRecords)
    assert set(pushed.wires) == {desk.own.wire, gossip_record(A).wire}  # type: ignore[attr-defined]
    (pushed,) = only(desk.hear(A, gossip_record(D)), book.SendRecords)
    assert pushed == book.SendRecords((old.peer,), (gossip_record(D).wire,))
    assert not any(to == old.peer for to, _, _ in gossip_of([effect for _, effect in desk.everything]))


def test_a_question_about_a_peer_that_gossips_is_answered_after_a_probe_of_it() -> None:
    desk = Desk(A, B)
    old = FakeKey("old")
    desk(book.LinkOpened(old.peer, make_record(old).wire, 0.02, b""))
    desk.alive = {A.peer, B.peer}
    desk.run(10)
    for is_alive in (True, False):
        desk.run(5.0)
        desk.alive = {B.peer}
        effects = desk(book.SuspectAsked(old.peer, A.peer))
        (probe,) = messages(effects, gossip.Probe, A)
        desk.now += SOON_S
        if is_alive:
            desk.say(A, gossip.Ack(probe.nonce))  # type: ignore[attr-defined]
        (answer,) = only(desk.run(2.1), book.AnswerSuspect)
        assert (answer.heard_s is not None) == is_alive  # type: ignore[attr-defined]


def test_a_dead_peer_of_the_first_version_is_told_of_by_an_accusation_and_believed_after_asking_around() -> None:
    desk, old = Desk(A, B, C), FakeKey("old")
    desk(book.LinkOpened(old.peer, make_record(old).wire, 0.02, b""))
    desk(book.LinkLost(old.peer, False, "broken"))
    assert desk.status(old) is PeerStatus.DEAD, "there is no link to ask over"
    assert any(accusation(OWN, old) in getattr(m, "rumours", ()) for _, m, _ in gossip_of(desk.run(1.0)))

    hearer = Desk(A, B, C)
    hearer.alive = {A.peer, B.peer, C.peer}
    hearer.link(A)
    hearer.hear(A, make_record(old))
    assert only(hearer.tell(B, accusation(B, old)), book.AskSuspect) == [book.AskSuspect((A.peer,), old.peer)]
    hearer(book.SuspectAnswered(A.peer, old.peer, None))
    assert hearer.status(old) is PeerStatus.SUSPECT
    assert hearer.run(40) is not None
    assert hearer.status(old) is PeerStatus.ALIVE, "one voice is not enough"
    for key in (B, C):
        hearer.tell(key, gossip.sign_suspicion(old.peer, 1, key))
    hearer(book.SuspectAnswered(A.peer, old.peer, None))


def test_a_peer_that_is_upgraded_is_gossiped_with_and_one_that_goes_back_is_not() -> None:
    desk = Desk(A)
    changing = FakeKey("changing")
    desk(book.LinkOpened(changing.peer, make_record(changing, 1).wire, 0.02, b""))
    desk.hear(A, gossip_record(changing, 2))
    assert messages(desk.run(5), gossip.Probe, changing)
    desk.hear(A, make_record(changing, 3))
    assert not messages(desk.run(30), gossip.Probe, changing)


# --- strangers ----------------------------------------------------------------------------------------------------------


def invent(desk: Desk, count: int, **changes: object) -> list[FakeKey]:
    """Peers of which only A has told, as a liar can make any number of."""
    ghosts = [FakeKey(1_000 + number) for number in range(count)]
    for start in range(0, count, 50):
        desk.hear(A, *[gossip_record(key, **changes) for key in ghosts[start : start + 50]])
    return ghosts


def test_what_is_told_goes_to_those_that_were_met() -> None:
    desk = Desk(A, B, C, D, *CROWD)
    ghosts = {key.peer for key in invent(desk, 300, reach=Reach.PRIVATE)}
    desk.alive = {key.peer for key in (A, B, C, D, *CROWD)}
    said = gossip_of(desk.run(60))
    told = [to for to, message, _ in said if isinstance(message, gossip.Rumours | gossip.Digest | gossip.ProbeVia)]
    assert told
    assert not set(told) & ghosts
    probed = [to for to, message, _ in said if isinstance(message, gossip.Probe) and not message.asker]
    assert 50 <= sum(to not in ghosts for to in probed) <= 70, "who is known waits no longer for a turn"
    assert 8 <= sum(to in ghosts for to in probed) <= 14, "and strangers have theirs now and then"
    assert desk.book.health == 0


def test_a_stranger_that_says_something_is_one_no_more() -> None:
    desk = Desk(A, B)
    (ghost,) = invent(desk, 1)
    desk.alive = {A.peer, B.peer}
    desk.say(ghost, gossip.Rumours(()))
    desk.alive.add(ghost.peer)
    probed = [to for to, message, _ in gossip_of(desk.run(30)) if isinstance(message, gossip.Probe)]
    assert probed.count(ghost.peer) >= 5


def test_where_nobody_was_met_strangers_are_spoken_to() -> None:
    desk = Desk()
    desk.hear(A, gossip_record(A), gossip_record(B))
    said = gossip_of(desk.run(30))
    assert {to for to, message, _ in said if isinstance(message, gossip.Digest)} == {A.peer, B.peer}


def test_strangers_hardly_lengthen_the_time_of_a_suspect() -> None:
    def died_after(ghosts: int) -> float:
        desk = Desk(A, B, *CROWD)
        invent(desk, ghosts, reach=Reach.PRIVATE)
        desk.alive = {key.peer for key in (A, *CROWD)}
        desk.fail(B)
        begun = desk.now
        while desk.status(B) is PeerStatus.SUSPECT:
            desk.run(0.5)
        return desk.now - begun

    assert died_after(2_000) <= 2 * died_after(0)


def test_nobody_is_accused_whom_this_peer_never_met() -> None:
    desk = Desk(A, B, C, *CROWD)
    desk.alive = {key.peer for key in (A, B, C, *CROWD)}
    ghosts = invent(desk, 3, reach=Reach.PUBLIC)
    effects = desk.run(120)
    accused = [
        said.suspect
        for _, message, _ in gossip_of(effects)
        if isinstance(message, gossip.Rumours | gossip.Ack | gossip.Probe)
        for wire in message.rumours
        if isinstance(said := gossip.read_rumour(wire, fake_verify), gossip.Suspicion)
    ]
    assert accused == []
    assert {desk.status(key) for key in ghosts} == {PeerStatus.DEAD}, "given up all the same"


def test_where_there_is_no_room_strangers_go_first_and_whatever_was_asked_about_them() -> None:
    desk = Desk(A, B, C, peers_max=6)
    ghosts = invent(desk, 3)
    desk.alive = {A.peer, B.peer, C.peer}
    while not messages(desk.run(0.1), gossip.Probe, ghosts[0]):
        pass
    desk.link(D)
    assert desk.status(D) is PeerStatus.ALIVE
    assert [desk.status(key) for key in ghosts].count(None) == 1
    desk.run(30)
    assert [desk.status(key) for key in (A, B, C)] == [PeerStatus.ALIVE] * 3


def test_a_dead_peer_whose_place_is_needed_is_not_asked_about_any_more() -> None:
    desk = Desk(A, B, C, peers_max=3)
    desk.alive = {A.peer, B.peer}
    desk.fail(C)
    desk.run(60)
    assert desk.status(C) is PeerStatus.DEAD
    announced = gossip.announcement_wire(gossip.Announcement(C.peer[:12], 1, 0))
    desk.tell(A, announced)  # so that it is probed once more
    desk.link(D)
    assert desk.status(C) is None
    assert desk.status(D) is PeerStatus.ALIVE
    desk.run(30)


# --- promises of others, clocks, farewells --------------------------------------------------------------------------------


def test_who_outbids_an_announcement_must_keep_its_own_word() -> None:
    desk = Desk(A, B, want_patience_s=1.0)
    desk.alive = {A.peer, B.peer}
    blamed: list[book.Effect] = []
    for number in range(int(limits.BROKEN_PROMISES_MAX) + 20):
        ghost = FakeKey(5_000 + number)
        desk.tell(A, announcement(ghost, 1))
        desk.tell(B, announcement(ghost, 2))
        desk.hear(A, gossip_record(ghost))
    blamed += only(desk.run(20), book.Misbehaved)
    assert {each.peer for each in blamed} == {B.peer}  # type: ignore[attr-defined]
    honest = FakeKey("honest")
    assert messages(desk.tell(A, announcement(honest, 1)), gossip.Want, A)


def test_what_is_announced_of_a_revoked_peer_is_not_asked_for() -> None:
    desk = Desk(A, B)
    desk(book.PeerBanned(B.peer))
    assert not messages(desk.tell(A, announcement(B, 9)), gossip.Want)
    assert not messages(desk.say(A, gossip.Versions(((B.peer[:12], 9, 0),))), gossip.Want)


@pytest.mark.parametrize("goes_on", [True, False])
def test_nobody_is_dead_for_a_sleep_whatever_the_clock_did_meanwhile(goes_on: bool) -> None:
    """In some machines the monotonic clock goes on in their sleep; what comes first then is not the word that they slept."""
    desk = Desk(A, B, C)
    desk.alive = {A.peer, B.peer, C.peer}
    desk.run(20)
    before = len(desk.everything)
    if goes_on:
        desk.now += 8 * 3_600
        desk(book.Tick())
    desk(book.Woke(8 * 3_600.0))
    desk.run(30)
    news = [effect for _, effect in desk.everything[before:]]
    assert not only(news, book.PeerDied)
    assert not only(news, book.PeerSuspected)
    desk.alive.remove(C.peer)
    desk.run(120)
    assert desk.status(C) is PeerStatus.DEAD, "and whoever falls silent afterwards is missed as soon as ever"


def test_a_stall_that_both_clock_and_loop_notice_counts_once() -> None:
    def doubts(*told: book.Event) -> int:
        desk = Desk(A, B)
        while desk.book.deadline() is None:
            desk.run(0.1)
        deadline = desk.book.deadline()
        assert deadline is not None
        desk.now = deadline + 0.5
        for event in (book.Tick(), *told):
            desk(event)
        return desk.book.health

    assert doubts(book.LoopLagged(0.5)) == doubts() > 0


def test_a_suspect_that_comes_back_with_the_first_version_lives() -> None:
    desk = Desk(A, B, *CROWD)
    desk.alive = {key.peer for key in (A, *CROWD)}
    desk.fail(B)
    assert desk.status(B) is PeerStatus.SUSPECT
    desk.hear(A, make_record(B, 2, protocol=1))
    assert desk.status(B) is PeerStatus.ALIVE


def test_who_left_without_a_signed_farewell_may_come_back_by_speaking() -> None:
    desk = Desk(A, B)
    desk.alive = {A.peer}
    desk.link(B)
    desk(book.LinkLost(B.peer, True, "leaving"))
    desk.say(B, gossip.Rumours(()))
    assert desk.status(B) is PeerStatus.LEFT, "it was on its way before the goodbye"
    desk.run(20)
    desk.say(B, gossip.Rumours(()))
    assert desk.status(B) is PeerStatus.ALIVE


# --- how much is told -------------------------------------------------------------------------------------------------


def test_records_that_replace_older_ones_are_counted_for_whoever_would_add_to_them() -> None:
    desk = Desk(A, B)
    assert desk.book.renewed == 0, "who was unknown has renewed nothing"
    desk.hear(A, gossip_record(A, 1, 1), gossip_record(B, 1, 1))
    assert desk.book.renewed == 2
    desk.hear(B, gossip_record(A, 1, 1), gossip_record(A, 1, 0), gossip_record(C))
    assert desk.book.renewed == 2
    desk.tell(A, announcement(B, 1, 2))
    desk.hear(A, gossip_record(B, 1, 2))
    assert desk.book.renewed == 3


def test_what_was_missed_here_alone_is_not_counted() -> None:
    """A laptop that slept hears in one second what others have heard in an hour: nobody tells that now."""
    desk = Desk(A, *CROWD)
    desk.say(A, gossip.Versions(tuple((key.peer[:12], 1, 7) for key in CROWD)))
    desk.hear(A, *(gossip_record(key, 1, 7) for key in CROWD))
    assert desk.book.renewed == 0
    assert desk.book.record(CROWD[0].peer) == gossip_record(CROWD[0], 1, 7).record
