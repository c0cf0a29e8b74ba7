"""The mechanisms of gossip one by one: formulas as tables, structures against simple models."""

from __future__ import annotations

import math
import random

import pytest

from p2pcompute.membership import awareness, digests, dissemination, pieces, probing, suspicion
from p2pcompute.membership.agenda import Agenda
from p2pcompute.membership.book import BookSettings
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.wire.gossip import PIECE_BYTES, Piece
from tests.support.membership import FakeKey

PEERS = [FakeKey(number).peer for number in range(200)]
A, B, C = PEERS[:3]

# --- agenda -----------------------------------------------------------------------------------------------------------


def test_an_agenda_does_what_a_list_that_is_searched_would_do() -> None:
    rng, agenda, model = random.Random(3), Agenda[int](), dict[int, float]()
    for step in range(5_000):
        now = step / 10
        key = rng.randrange(40)
        match rng.randrange(4):
            case 0 | 1:
                at = now + rng.choice([0.0, 1.0, 2.0, 5.0])
                agenda.set(key, at)
                model[key] = at
            case 2:
                agenda.set(key, None)
                model.pop(key, None)
            case _:
                if (popped := agenda.pop(now)) is None:
                    assert min(model.values(), default=now + 1) > now
                else:
                    assert model.pop(popped) <= now
        assert agenda.earliest() == min(model.values(), default=None)
        assert len(agenda) == len(model)
        assert agenda.at(key) == model.get(key)


def test_an_agenda_that_is_always_changed_does_not_grow() -> None:
    agenda = Agenda[str]()
    for step in range(100_000):
        agenda.set("one", float(step))
    assert len(agenda._heap) < 200


def test_postponing_moves_everything() -> None:
    agenda = Agenda[str]()
    agenda.set("one", 1.0)
    agenda.set("two", 2.0)
    agenda.set("two", 1.5)
    agenda.set("two", 2.0)
    agenda.postpone(10.0)
    assert agenda.pop(10.9) is None
    assert [agenda.pop(12.0), agenda.pop(12.0), agenda.pop(12.0)] == ["one", "two", None]


# --- awareness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expected", "heard", "points"), [(0, 0, 1), (3, 3, 0), (3, 1, 2), (3, 0, 3), (3, 5, 0)])
def test_points_for_a_failed_probe(expected: int, heard: int, points: int) -> None:
    assert awareness.failed_probe_points(expected, heard) == points


@pytest.mark.parametrize(("lag_s", "points"), [(0.0, 0), (0.1, 0), (0.11, 1), (0.9, 1), (1.0, 2), (9.0, 2)])
def test_points_for_a_late_event_loop(lag_s: float, points: int) -> None:
    assert awareness.lag_points(lag_s) == points


def test_the_score_stays_within_its_bounds() -> None:
    health = awareness.Awareness(8)
    health.add(-3)
    assert (health.score, health.factor) == (0, 1)
    health.add(100)
    assert (health.score, health.factor) == (8, 9)
    health.add(-1)
    assert health.score == 7


# --- suspicion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mult", "peers", "interval_s", "expected_s"),
    [(4, 1, 1.0, 4.0), (4, 10, 1.0, 4.0), (4, 100, 1.0, 8.0), (4, 1000, 1.0, 12.0), (6, 100, 5.0, 60.0)],
)
def test_the_least_time_of_a_suspect(mult: int, peers: int, interval_s: float, expected_s: float) -> None:
    assert suspicion.suspicion_min_s(mult, peers, interval_s) == pytest.approx(expected_s)


#: With k = 3, min = 2 and max = 30 seconds: what memberlist's own test of its formula expects.
@pytest.mark.parametrize(("confirmations", "expected_s"), [(0, 30.0), (1, 16.0), (2, 7.810), (3, 2.0), (4, 2.0)])
def test_the_time_of_a_suspect_falls_with_the_logarithm_of_its_accusers(confirmations: int, expected_s: float) -> None:
    assert suspicion.suspicion_s(confirmations, 3, 2.0, 30.0) == pytest.approx(expected_s, abs=1e-3)


def test_where_nobody_can_confirm_the_least_time_is_all() -> None:
    assert suspicion.suspicion_s(0, 0, 2.0, 30.0) == 2.0
    assert [suspicion.confirmations_wanted(2, peers) for peers in (1, 2, 3, 4, 100)] == [0, 0, 0, 2, 2]


def test_one_persons_peers_are_one_voice() -> None:
    case = suspicion.Case(0.0, 1)
    assert case.accuse(A, b"anna")
    assert not case.accuse(B, b"anna"), "another peer of the same invitation"
    assert not case.accuse(A, b"bert"), "the same peer under another invitation"
    assert case.confirmations == 0
    assert case.accuse(C, C)
    assert case.confirmations == 1


def test_who_accuses_too_often_is_not_heard() -> None:
    accusers = suspicion.Accusers()
    heard = sum(accusers.may_accuse(A, 0.0) for _ in range(10))
    assert heard == limits.ACCUSATIONS_PER_SECOND
    assert accusers.may_accuse(B, 0.0)
    assert accusers.may_accuse(A, 1.0)


def test_who_is_wrong_again_and_again_is_reported_once_and_ignored_for_a_time() -> None:
    accusers = suspicion.Accusers()
    reports = [accusers.was_wrong(A, float(second)) for second in range(40)]
    assert reports.count(True) == 1
    assert accusers.is_ignored(A, 40.0)
    assert not accusers.may_accuse(A, 40.0)
    assert not accusers.is_ignored(A, 40.0 + 2 * limits.FALSE_ACCUSATIONS_MAX * limits.FALSE_ACCUSATION_FORGIVEN_S)
    assert not accusers.is_ignored(B, 40.0)


def test_who_is_wrong_now_and_then_or_right_as_often_is_not_ignored() -> None:
    accusers = suspicion.Accusers()
    for step in range(100):
        assert not accusers.was_wrong(A, step * limits.FALSE_ACCUSATION_FORGIVEN_S)
        assert not accusers.was_wrong(B, float(step))
        accusers.was_right(B, float(step))


# --- probing ----------------------------------------------------------------------------------------------------------

LAN, WAN, AUTO = BookSettings.lan(), BookSettings.wan(), BookSettings()


@pytest.mark.parametrize(
    ("settings", "rtt_s", "factor", "expected"),
    [
        (LAN, None, 1, (0.5, 1.0)),
        (LAN, 0.4, 1, (0.5, 1.0)),
        (WAN, None, 1, (3.0, 5.0)),
        (AUTO, None, 1, (0.5, 1.0)),
        (AUTO, 0.001, 1, (0.5, 1.0)),
        (AUTO, 0.3, 1, (1.2, 2.4)),
        (AUTO, 60.0, 1, (3.0, 6.0)),
        (LAN, None, 9, (4.5, 9.0)),
    ],
)
def test_how_long_a_probe_is_waited_for(
    settings: BookSettings, rtt_s: float | None, factor: int, expected: tuple[float, float]
) -> None:
    assert probing.probe_times_s(settings, rtt_s, factor) == pytest.approx(expected)


def test_presets_have_the_values_of_memberlist() -> None:
    for settings, row in ((LAN, (1.0, 0.5, 3, 4, 6, 2, 4, 8)), (WAN, (5.0, 3.0, 3, 6, 6, 4, 4, 8))):
        assert row == (
            settings.probe_interval_s,
            settings.probe_timeout_s,
            settings.indirect_probes,
            settings.suspicion_mult,
            settings.suspicion_max_mult,
            settings.suspicion_confirmations,
            settings.retransmit_mult,
            settings.awareness_max,
        )
    assert (LAN.gossip_fanout, LAN.gossip_interval_s, LAN.anti_entropy_s) == (3, 0.5, 30.0)
    assert (WAN.gossip_fanout, WAN.gossip_interval_s, WAN.anti_entropy_s) == (4, 1.0, 60.0)
    assert BookSettings.test().probe_interval_s == 0.1


def test_everybody_has_one_turn_a_round_in_an_order_that_changes() -> None:
    ring = probing.Ring(random.Random(1))
    for peer in PEERS[:20]:
        ring.add(peer)
    rounds = [[ring.next() for _ in range(20)] for _ in range(5)]
    assert all(set(each) == set(PEERS[:20]) for each in rounds)
    assert len({tuple(each) for each in rounds}) == 5


def test_a_ring_keeps_everybodys_turn_whoever_comes_and_goes() -> None:
    rng = random.Random(2)
    ring, model, last = probing.Ring(rng), set[PeerId](), dict[PeerId, int]()
    for step in range(20_000):
        peer = rng.choice(PEERS[:50])
        match rng.randrange(12):
            case 0:
                ring.add(peer)
                model.add(peer)
                last.setdefault(peer, step)
            case 1 if len(model) > 10:
                ring.remove(peer)
                model.discard(peer)
                last.pop(peer, None)
            case _ if model:
                turn = ring.next()
                assert turn is not None
                last[turn] = step
        ring.check_invariants()
        assert {each for each in PEERS[:50] if each in ring} == model
        # Two rounds of at most fifty, and a dozen steps for each ten turns.
        assert all(step - since < 2 * 50 * 1.5 for since in last.values())
    assert all(peer in model and peer != A for peer in ring.some(5, lambda peer: peer != A))


def test_a_newcomer_has_its_turn_in_the_same_round() -> None:
    ring = probing.Ring(random.Random(4))
    for peer in PEERS[:10]:
        ring.add(peer)
    seen = [ring.next() for _ in range(5)]
    ring.add(PEERS[10])
    seen += [ring.next() for _ in range(6)]
    assert PEERS[10] in seen
    assert len(set(seen)) == 11


# --- dissemination ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mult", "peers", "expected"),
    [(4, 0, 1), (4, 1, 4), (4, 9, 4), (4, 10, 8), (4, 99, 8), (4, 100, 12), (4, 1000, 16), (1, 100, 3)],
)
def test_how_often_a_rumour_is_told(mult: int, peers: int, expected: int) -> None:
    assert dissemination.transmissions_max(mult, peers) == expected


def _told(queue: dissemination.RumourQueue, room: int = 1_000, peers: int = 9) -> tuple[bytes, ...]:
    taken = queue.take(room, peers)
    queue.check_invariants()
    return taken


def test_the_least_told_go_first_and_the_newest_of_them() -> None:
    queue = dissemination.RumourQueue()
    queue.put("one", b"1" * 25, 4)
    assert _told(queue, 30) == (b"1" * 25,)
    queue.put("two", b"2" * 25, 4)
    queue.put("three", b"3" * 25, 4)
    assert _told(queue) == (b"3" * 25, b"2" * 25, b"1" * 25)
    assert _told(queue, 30) != (b"1" * 25,)


def test_a_rumour_ends_after_its_transmissions_and_hearing_it_counts() -> None:
    queue = dissemination.RumourQueue()
    queue.put("one", b"1" * 25, 4)
    assert [len(_told(queue)) for _ in range(5)] == [1, 1, 1, 1, 0]
    queue.put("one", b"1" * 25, 4)
    queue.heard("one", b"1" * 25)
    queue.heard("one", b"other" * 5)
    assert [len(_told(queue)) for _ in range(4)] == [1, 1, 1, 0]


def test_the_newer_rumour_about_a_subject_replaces_the_older() -> None:
    queue = dissemination.RumourQueue()
    queue.put("one", b"1" * 25, 4)
    _told(queue)
    queue.put("one", b"1" * 25, 4)
    assert queue.told("one") == 1, "the same is not told anew"
    queue.put("one", b"2" * 25, 4)
    assert len(queue) == 1
    assert _told(queue) == (b"2" * 25,)
    queue.remove("one")
    assert _told(queue) == ()


def test_what_does_not_fit_waits_and_what_is_smaller_goes() -> None:
    queue = dissemination.RumourQueue()
    queue.put("small", b"s" * 25, 4)
    queue.put("large", b"l" * 137, 4)
    assert _told(queue, 100) == (b"s" * 25,)
    assert _told(queue, 139) == (b"l" * 137,)


def test_a_full_queue_drops_what_was_told_most() -> None:
    queue = dissemination.RumourQueue(rumours_max=3)
    for name in ("one", "two", "three"):
        queue.put(name, name.encode() * 9, 4)
    _told(queue, 50)
    queue.put("four", b"4" * 25, 4)
    assert len(queue) == 3
    assert queue.told("three") is None
    queue.check_invariants()


# --- digests ----------------------------------------------------------------------------------------------------------


def test_digests_are_equal_exactly_where_the_versions_are() -> None:
    rng = random.Random(5)
    one, other = digests.Digests(), digests.Digests()
    orders = {peer: (rng.randrange(5), rng.randrange(5)) for peer in PEERS}
    for peer in PEERS:
        one.put(peer, orders[peer])
    for peer in reversed(PEERS):
        other.put(peer, (9, 9))
        other.put(peer, orders[peer])
    assert one.hashes == other.hashes
    assert one.differing(other.hashes) == []
    other.put(A, (9, 9))
    other.put(B, None)
    assert one.differing(other.hashes) == sorted({digests.bucket_of(A), digests.bucket_of(B)})
    assert len(one.hashes) == 512
    for each in (one, other):
        each.check_invariants()


def test_rows_of_a_bucket_are_its_versions() -> None:
    known = digests.Digests()
    for number, peer in enumerate(PEERS):
        known.put(peer, (1, number))
    bucket = digests.bucket_of(A)
    rows = known.rows([bucket])
    assert len(rows) == known.size(bucket)
    assert (A[:12], 1, 0) in rows
    assert all(digests.bucket_of(prefix) == bucket for prefix, _, _ in rows)
    assert sum(known.size(each) for each in range(limits.DIGEST_BUCKETS)) == len(PEERS)


@pytest.mark.parametrize(
    ("sizes", "rows_max", "expected"),
    [([], 5, []), ([2, 3, 1], 5, [[0, 1], [2]]), ([9, 1], 5, [[0], [1]]), ([0, 0, 5], 5, [[0, 1, 2]])],
)
def test_buckets_are_told_in_groups(sizes: list[int], rows_max: int, expected: list[list[int]]) -> None:
    assert digests.batches(sizes, rows_max) == expected


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1, limits.RECORD_BYTES_MAX])
def test_pieces_make_up_the_whole_in_any_order_and_twice(size: int) -> None:
    rng = random.Random(size)
    wire = rng.randbytes(size)
    cut = pieces.cut(wire)
    assert len(cut) == math.ceil(size / PIECE_BYTES)
    order = [*cut, *cut]
    rng.shuffle(order)
    assembly = pieces.Assembly()
    wholes = [whole for piece in order if (whole := assembly.add(A, piece, 0.0)) is not None]
    assert wholes[0] == wire


def test_pieces_that_are_late_forged_or_of_another_make_nothing() -> None:
    first, second = pieces.cut(bytes(range(256)) * 8, 1_024)
    assembly = pieces.Assembly()
    assert assembly.add(A, first, 0.0) is None
    assert assembly.add(B, second, 0.0) is None, "another sent it"
    assert assembly.add(A, second, limits.PARTIAL_S) is None, "the first one was given up"
    assembly = pieces.Assembly()
    assembly.add(A, first, 0.0)
    assert assembly.add(A, Piece(second.whole, 1, 3, second.data), 0.0) is None
    assert assembly.add(A, Piece(second.whole, 1, 2, b"forged"), 0.0) is None
    assert len(assembly) == 0


def test_half_finished_wholes_are_bounded() -> None:
    assembly = pieces.Assembly()
    for number in range(1_000):
        assembly.add(A, Piece(number.to_bytes(8, "big"), 0, 2, b"x"), 0.0)
    assert len(assembly) == limits.PARTIALS_MAX
