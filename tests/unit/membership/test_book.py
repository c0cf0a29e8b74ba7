"""The peer book, alone, among peers of the first protocol version: a book of that version, and one that gossips with others."""

from __future__ import annotations

import random

import pytest

from p2pcompute.membership import book
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, PeerStatus
from p2pcompute.wire.record import SignedRecord
from tests.support.membership import (
    OTHER_NETWORK,
    WALL,
    CountingVerify,
    FakeKey,
    fake_verify,
    make_record,
)

OWN, A, B, C = FakeKey("own"), FakeKey("a"), FakeKey("b"), FakeKey("c")
INVITATION = b"i" * 32


@pytest.fixture(params=[1, 2], ids=["protocol 1", "protocol 2"], autouse=True)
def own_protocol(request: pytest.FixtureRequest) -> None:
    """Towards peers of the first version both do the same."""
    Shelf.protocol = request.param


class Shelf:
    """A book and its clock."""

    #: What the own record says.
    protocol = 1

    def __init__(self, verify: CountingVerify | None = None, **changes: object) -> None:
        settings = book.BookSettings(**changes)  # type: ignore[arg-type]
        self.own = self.own_record(10)
        self.book = book.PeerBook(self.own, verify or fake_verify, random.Random(5), settings)
        self.now = 100.0

    def own_record(self, incarnation: int, sequence: int = 0) -> SignedRecord:
        return make_record(OWN, incarnation, sequence, protocol=self.protocol)

    def __call__(self, event: book.Event) -> list[book.Effect]:
        effects = self.book.handle(event, self.now)
        self.book.check_invariants()
        return effects

    def link(self, key: FakeKey, record: SignedRecord | None = None) -> list[book.Effect]:
        return self(book.LinkOpened(key.peer, (record or make_record(key)).wire, 0.02, INVITATION))

    def lose(self, key: FakeKey, clean: bool = False, reason: str = "") -> list[book.Effect]:
        return self(book.LinkLost(key.peer, clean, reason))

    def hear(self, source: FakeKey, *records: SignedRecord) -> list[book.Effect]:
        return self(book.RecordsHeard(source.peer, tuple(record.wire for record in records), WALL))

    def status(self, key: FakeKey) -> PeerStatus | None:
        entry = self.book.view.entry(key.peer)
        return entry.status if entry is not None else None

    def run(self, seconds: float) -> list[book.Effect]:
        end, said = self.now + seconds, []
        while (at := self.book.deadline()) is not None and at <= end:
            self.now = max(at, self.now)
            said += self(book.Tick())
            after = self.book.deadline()
            assert after is None or after > self.now, "a Tick leaves nothing that is due"
        self.now = end
        return said


def only(effects: list[book.Effect], cls: type) -> list[book.Effect]:
    return [effect for effect in effects if isinstance(effect, cls)]


def sent(effects: list[book.Effect]) -> dict[PeerId, list[bytes]]:
    """Records by whom they are sent to."""
    found: dict[PeerId, list[bytes]] = {}
    for effect in effects:
        if isinstance(effect, book.SendRecords):
            for peer in effect.to:
                found.setdefault(peer, []).extend(effect.wires)
    return found


def test_a_new_book_knows_itself_alone_and_waits_for_nothing() -> None:
    shelf = Shelf()
    assert shelf.book.view.own == shelf.own.record
    assert shelf.book.view.entries == ()
    assert shelf.book.deadline() is None
    assert shelf.book.view is shelf.book.view, "an unchanged view is the same object"


def test_a_link_makes_its_peer_alive_and_is_told_everything_but_its_own_record() -> None:
    shelf = Shelf()
    shelf.link(A)
    effects = shelf.link(B)
    assert book.PeerAppeared(B.peer) in effects
    assert book.Learned(B.peer, (Address("10.0.0.1", 9876),)) in effects
    assert effects.count(book.ViewChanged()) == 1
    assert sent(effects) == {B.peer: [shelf.own.wire, make_record(A).wire], A.peer: [make_record(B).wire]}
    entry = shelf.book.view.entry(B.peer)
    assert entry is not None
    assert (entry.status, entry.linked, entry.rtt_s, entry.invitation) == (PeerStatus.ALIVE, True, 0.02, INVITATION)


def test_views_are_ordered_and_their_version_grows() -> None:
    shelf = Shelf()
    versions = [shelf.book.view.version]
    for key in (C, A, B):
        shelf.link(key)
        versions.append(shelf.book.view.version)
    peers = [entry.record.peer for entry in shelf.book.view.entries]
    assert peers == sorted(peers)
    assert versions == sorted(set(versions))


def test_news_is_passed_on_to_all_but_its_source_and_only_once() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    record = make_record(C)
    effects = shelf.hear(A, record)
    assert sent(effects) == {B.peer: [record.wire]}
    assert book.PeerAppeared(C.peer) in effects
    assert shelf.hear(B, record) == []
    assert shelf.hear(A, record) == []


@pytest.mark.parametrize("order", [(5, 3), (5, 2), (4, 9)])
def test_older_and_equal_records_are_dropped(order: tuple[int, int]) -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B, make_record(B, 5, 3))
    assert shelf.hear(A, make_record(B, *order, name="other", leaving=True)) == []
    assert shelf.status(B) is PeerStatus.ALIVE


@pytest.mark.parametrize("order", [(5, 4), (6, 0)])
def test_newer_records_replace(order: tuple[int, int]) -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B, make_record(B, 5, 3))
    moved = (Address("10.7.7.7", 1),)
    effects = shelf.hear(A, make_record(B, *order, addresses=moved))
    assert book.Learned(B.peer, moved) in effects
    entry = shelf.book.view.entry(B.peer)
    assert entry is not None
    assert entry.record.addresses == moved
    assert entry.linked


def test_known_bytes_cost_no_signature_check() -> None:
    verify = CountingVerify()
    shelf = Shelf(verify)
    shelf.link(A)
    shelf.link(B)
    records = [make_record(FakeKey(number)) for number in range(20)]
    shelf.hear(A, *records)
    before = verify.calls
    shelf.hear(B, *records, shelf.own)
    assert verify.calls == before


def test_a_record_with_a_wrong_signature_is_the_sources_fault_and_spoils_nothing_else() -> None:
    shelf = Shelf()
    shelf.link(A)
    good = make_record(B)
    bad = SignedRecord(good.record, good.public_key, make_record(C).wire[:-1] + b"\0")
    effects = shelf.hear(A, bad, good)
    assert [effect.peer for effect in only(effects, book.Misbehaved)] == [A.peer]
    assert shelf.status(B) is PeerStatus.ALIVE
    assert shelf.status(C) is None


def test_noise_is_the_sources_fault() -> None:
    shelf = Shelf()
    shelf.link(A)
    effects = shelf(book.RecordsHeard(A.peer, (b"", b"\xc1", bytes(5000)), WALL))
    assert len(effects) == 1
    assert isinstance(effects[0], book.Misbehaved)


def test_records_of_another_network_are_refused() -> None:
    shelf = Shelf()
    shelf.link(A)
    effects = shelf.hear(A, make_record(B, network=OTHER_NETWORK))
    assert only(effects, book.Misbehaved)
    assert shelf.status(B) is None


def test_a_link_that_shows_the_record_of_another_is_told_so_and_known_by_hearsay_later() -> None:
    shelf = Shelf()
    effects = shelf.link(A, make_record(B))
    assert only(effects, book.Misbehaved) == [book.Misbehaved(A.peer, "its Hello carries the record of another peer")]
    assert shelf.status(B) is None
    shelf.link(C)
    assert book.PeerAppeared(A.peer) in shelf.hear(C, make_record(A))
    entry = shelf.book.view.entry(A.peer)
    assert entry is not None
    assert entry.linked


def test_an_incarnation_from_the_future_is_refused_unless_the_neighbours_live_there() -> None:
    shelf = Shelf()
    wall_ms = int(WALL * 1000)
    shelf.link(A, make_record(A, wall_ms))
    shelf.link(B, make_record(B, wall_ms))
    assert shelf.hear(A, make_record(C, wall_ms + 300_001)) == []
    assert only(shelf.hear(A, make_record(C, wall_ms + 299_999)), book.PeerAppeared)
    # A clock an hour slow in a network that has run for a day: its peers' clocks count, not when they began.
    slow = Shelf()
    for key in (A, B):
        slow(book.LinkOpened(key.peer, make_record(key, wall_ms - 80_000_000).wire, 0.02, b"i" * 32, WALL, 3_600.0))
    assert only(slow.hear(A, make_record(C, wall_ms + 3_700_000)), book.PeerAppeared)
    assert slow.hear(A, make_record(FakeKey("late"), wall_ms + 4_000_000)) == []


def test_a_greeting_from_the_future_is_no_record_either() -> None:
    shelf, wall_ms = Shelf(), int(WALL * 1000)
    shelf(book.LinkOpened(A.peer, make_record(A, wall_ms).wire, 0.02, b"i" * 32, WALL, 0.0))
    shelf(book.LinkOpened(B.peer, make_record(B, wall_ms).wire, 0.02, b"i" * 32, WALL, 0.0))
    effects = shelf(book.LinkOpened(C.peer, make_record(C, wall_ms * 2).wire, 0.02, b"i" * 32, WALL, 0.0))
    (blamed,) = only(effects, book.Misbehaved)
    assert blamed.peer == C.peer  # type: ignore[attr-defined]
    assert shelf.status(C) is None
    assert only(shelf.hear(C, make_record(C, wall_ms)), book.PeerAppeared)


def test_a_life_that_was_taken_goes_on_when_clocks_are_put_back() -> None:
    shelf, wall_ms = Shelf(), int(WALL * 1000)
    ahead = make_record(C, wall_ms + 3_600_000)
    shelf(book.LinkOpened(A.peer, make_record(A, wall_ms).wire, 0.02, b"i" * 32, WALL, 0.0))
    shelf(book.LinkOpened(C.peer, ahead.wire, 0.02, b"i" * 32, WALL + 3_600, 0.0))
    shelf(book.LinkLost(C.peer, True, "idle"))
    effects = shelf.hear(A, make_record(C, wall_ms + 3_600_000, 1, leaving=True))
    assert only(effects, book.PeerLeft)
    assert not only(effects, book.Misbehaved)


def test_a_lost_link_is_asked_about_and_dead_when_all_deny_it() -> None:
    shelf = Shelf()
    for key in (A, B, C):
        shelf.link(key)
    effects = shelf.lose(C)
    assert book.AskSuspect(tuple(sorted([A.peer, B.peer])), C.peer) in effects
    assert shelf.status(C) is PeerStatus.SUSPECT
    assert not only(shelf(book.SuspectAnswered(A.peer, C.peer, None)), book.PeerDied)
    assert shelf(book.SuspectAnswered(A.peer, C.peer, None)) == [], "one witness counts once"
    assert only(shelf(book.SuspectAnswered(B.peer, C.peer, None)), book.PeerDied)
    assert shelf.status(C) is PeerStatus.DEAD


def test_a_suspect_for_whom_nobody_speaks_in_time_is_dead() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(C)
    shelf.lose(C)
    assert not only(shelf.run(4.9), book.PeerDied)
    assert only(shelf.run(0.2), book.PeerDied)


def test_a_suspect_whom_somebody_hears_lives_and_is_asked_about_again() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(C)
    shelf.lose(C)
    shelf(book.SuspectAnswered(A.peer, C.peer, 1.0))
    assert shelf.status(C) is PeerStatus.ALIVE
    assert book.AskSuspect((A.peer,), C.peer) in shelf.run(15.0)
    assert shelf.status(C) is PeerStatus.ALIVE, "a second question changes nothing until it is answered"
    assert only(shelf(book.SuspectAnswered(A.peer, C.peer, None)), book.PeerDied)


def test_what_was_heard_too_long_ago_or_by_strangers_is_no_witness() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    shelf.link(C)
    shelf.lose(C)
    shelf(book.SuspectAnswered(FakeKey("x").peer, C.peer, 0.0))
    shelf(book.SuspectAnswered(A.peer, C.peer, limits.LINK_SILENCE_MAX_S + 1))
    assert shelf.status(C) is PeerStatus.SUSPECT
    assert only(shelf.lose(B, clean=True), book.PeerDied), "the last witness is gone"


def test_the_only_peer_is_dead_at_once_and_back_with_its_link() -> None:
    shelf = Shelf()
    shelf.link(A)
    assert only(shelf.lose(A), book.PeerDied)
    assert shelf.status(A) is PeerStatus.DEAD
    effects = shelf.link(A)
    assert book.PeerAppeared(A.peer) in effects
    assert shelf.status(A) is PeerStatus.ALIVE


def test_a_suspect_that_links_again_is_alive_without_a_word() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    shelf.lose(A)
    effects = shelf.link(A)
    assert not only(effects, book.PeerAppeared)
    assert not only(shelf.run(20), book.PeerDied)
    assert shelf.status(A) is PeerStatus.ALIVE


def test_a_goodbye_for_another_reason_than_leaving_suspects_nobody() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    assert not only(shelf.lose(A, clean=True, reason="idle"), book.AskSuspect)
    assert shelf.status(A) is PeerStatus.ALIVE
    assert only(shelf.lose(B, clean=True, reason="leaving"), book.PeerLeft)


def test_a_peer_that_leaves_is_left_and_nobody_asks_about_it() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    effects = shelf.hear(A, make_record(A, 1, 1, leaving=True))
    assert book.PeerLeft(A.peer) in effects
    assert B.peer in sent(effects)
    assert not only(shelf.lose(A), book.AskSuspect)
    assert shelf.status(A) is PeerStatus.LEFT
    assert shelf.hear(B, make_record(A, 1, 0)) == [], "an older record brings nobody back"
    assert book.PeerAppeared(A.peer) in shelf.hear(B, make_record(A, 2, 0))


def test_who_left_before_we_knew_it_never_appears() -> None:
    shelf = Shelf()
    shelf.link(A)
    assert not only(shelf.hear(A, make_record(B, leaving=True)), book.PeerAppeared)
    assert shelf.status(B) is PeerStatus.LEFT


def test_of_the_dead_nobody_is_told() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.lose(A)
    assert sent(shelf.link(B)) == {B.peer: [shelf.own.wire]}


def test_questions_about_linked_peers_are_answered_after_a_while_and_others_at_once() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    assert shelf(book.SuspectAsked(A.peer, C.peer)) == [book.AnswerSuspect(A.peer, C.peer, None)]
    assert shelf(book.SuspectAsked(A.peer, OWN.peer)) == [book.AnswerSuspect(A.peer, OWN.peer, 0.0)]
    assert shelf(book.SuspectAsked(A.peer, B.peer)) == []
    ((answer),) = shelf.run(2.0)
    assert answer == book.AnswerSuspect(A.peer, B.peer, 2.0)


def test_a_link_that_breaks_while_its_peer_is_asked_about_is_a_denial() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    shelf(book.SuspectAsked(A.peer, B.peer))
    assert book.AnswerSuspect(A.peer, B.peer, None) in shelf.lose(B)
    assert shelf(book.SuspectAsked(C.peer, A.peer)) == [], "who has no link here gets no answer"


def test_hearsay_lives_as_long_as_it_is_renewed() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.hear(A, make_record(B))
    shelf.run(390)
    shelf.hear(A, make_record(B, 1, 1))
    assert not only(shelf.run(390), book.PeerDied)
    assert only(shelf.run(11), book.PeerDied)


def test_the_dead_are_forgotten_after_an_hour() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.lose(A)
    shelf.run(limits.RECORD_EXPIRY_S - 1)
    assert shelf.status(A) is PeerStatus.DEAD
    assert shelf.run(1) == [book.ViewChanged()]
    assert shelf.book.view.entries == ()
    assert shelf.book.deadline() is None


def test_a_revoked_peer_is_gone_and_stays_so() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.link(B)
    assert only(shelf(book.PeerBanned(A.peer)), book.PeerDied)
    assert shelf.status(A) is None
    assert shelf.hear(B, make_record(A, 9)) == []
    assert shelf.link(A, make_record(A, 10)) == []
    assert shelf.lose(A) == []


def test_own_changes_go_to_every_link_even_where_news_does_not() -> None:
    shelf = Shelf(spread_links=2)
    keys = [FakeKey(number) for number in range(10)]
    for key in keys:
        shelf.link(key)
    record = shelf.own_record(10, 1)
    assert set(sent(shelf(book.OwnChanged(record)))) == {key.peer for key in keys}
    assert shelf.book.view.own == record.record
    assert len(sent(shelf.hear(keys[0], make_record(C)))) == 2
    assert shelf(book.OwnChanged(record)) == []


def test_what_a_link_may_have_missed_is_repaired() -> None:
    shelf = Shelf(spread_links=1)
    for key in (A, B):
        shelf.link(key)
    keys = [FakeKey(number) for number in range(8)]
    for key in keys:
        shelf.hear(A, make_record(key))
    told = sent(shelf.run(300))
    assert set(told) <= {A.peer, B.peer}
    again = sent(shelf.run(300))
    assert again == {}, "nobody is told twice"


def test_an_own_record_from_a_former_life_is_outranked_once_in_a_while() -> None:
    shelf = Shelf()
    shelf.link(A)
    assert shelf.hear(A, make_record(OWN, 20)) == [book.RaiseIncarnation(21)]
    shelf(book.OwnChanged(shelf.own_record(21)))
    assert shelf.hear(A, make_record(OWN, 30)) == [], "a second machine with this key must not flood the network"
    assert book.RaiseIncarnation(31) in shelf.run(5)
    assert shelf.hear(A, make_record(OWN, 3)) == []


def test_large_exchanges_are_cut_into_messages() -> None:
    shelf = Shelf()
    shelf.link(A)
    for start in range(0, 200, 50):
        shelf.hear(A, *[make_record(FakeKey(number)) for number in range(start, start + 50)])
    messages = only(shelf.link(B), book.SendRecords)
    lengths = [len(message.wires) for message in messages if B.peer in message.to]  # type: ignore[attr-defined]
    assert max(lengths) <= limits.RECORDS_PER_MESSAGE_MAX
    assert sum(lengths) == 202


def test_a_full_book_forgets_the_longest_dead_and_then_refuses() -> None:
    shelf = Shelf(peers_max=3)
    for key in (A, B, C):
        shelf.link(key)
    newcomer = make_record(FakeKey("new"))
    assert shelf.hear(A, newcomer) == []
    shelf.lose(C)
    shelf.run(6)
    assert only(shelf.hear(A, newcomer), book.PeerAppeared)
    assert shelf.status(C) is None


def test_measurements_reach_the_view_when_they_change_by_more_than_noise() -> None:
    shelf = Shelf()
    shelf.link(A)
    assert shelf(book.LinkMeasured(A.peer, 0.021, 100.0)) == [book.ViewChanged()]
    assert shelf(book.LinkMeasured(A.peer, 0.0205, 95.0)) == []
    assert shelf(book.LinkMeasured(A.peer, None, None)) == []
    assert shelf(book.LinkMeasured(B.peer, 1.0, 1.0)) == []
    assert shelf(book.LinkMeasured(A.peer, 0.04, None)) == [book.ViewChanged()]
    entry = shelf.book.view.entry(A.peer)
    assert entry is not None
    assert (entry.rtt_s, entry.bandwidth_mbps) == (0.04, 100.0)


def test_a_replaced_link_is_told_everything_again() -> None:
    shelf = Shelf()
    shelf.link(A)
    shelf.hear(A, make_record(B))
    assert set(sent(shelf.link(A))[A.peer]) == {shelf.own.wire, make_record(B).wire}
