"""The request cache: off by default, right keys, time to live, bounds, successes only."""

from __future__ import annotations

import pytest

from p2pcompute.jobs.request_cache import ENTRY_OVERHEAD_BYTES, CacheSettings, RequestCache, RequestKey, request_key
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import BlobId, ProgramId
from p2pcompute.model.job import Outcome, Payload
from p2pcompute.model.performance import FunctionKey

SQUARE = FunctionKey("square", ProgramId(b"p" * 32))


def key(number: int) -> RequestKey:
    return request_key(SQUARE, Payload(str(number).encode()))


def on(**settings: float) -> RequestCache:
    return RequestCache(CacheSettings(enabled=True, **settings))  # type: ignore[arg-type]


def put(cache: RequestCache, number: int, now: float, content: bytes = b"answer") -> bool:
    return cache.put(key(number), Outcome.RETURNED, content, now)


def test_it_is_off_unless_asked_for() -> None:
    cache = RequestCache()
    assert not put(cache, 1, 0.0)
    assert cache.get(key(1), 0.0) is None
    assert cache.figures(0.0).entries == 0


def test_an_answer_is_good_for_its_time_and_no_longer() -> None:
    cache = on()
    assert put(cache, 1, 10.0)
    assert cache.get(key(1), 10.0) == b"answer"
    assert cache.get(key(1), 10.0 + limits.CACHE_TTL_S - 0.001) == b"answer"
    assert cache.get(key(1), 10.0 + limits.CACHE_TTL_S) is None
    figures = cache.figures(10.0 + limits.CACHE_TTL_S)
    assert (figures.entries, figures.bytes, figures.hits, figures.misses) == (0, 0, 2, 1)


def test_a_key_covers_function_program_and_arguments() -> None:
    calls = [
        request_key(SQUARE, Payload(b"1")),
        request_key(SQUARE, Payload(b"2")),
        request_key(FunctionKey("square", ProgramId(b"q" * 32)), Payload(b"1")),
        request_key(FunctionKey("cube", ProgramId(b"p" * 32)), Payload(b"1")),
        request_key(FunctionKey("square1", ProgramId(b"p" * 32)), Payload(b"")),
        request_key(SQUARE, Payload(blob=BlobId(b"1" * 32))),
        request_key(SQUARE, Payload(b"1" * 32)),
        # The same bytes in a row, divided differently.
        request_key(FunctionKey("ab", ProgramId(b"c")), Payload(b"")),
        request_key(FunctionKey("a", ProgramId(b"bc")), Payload(b"")),
    ]
    assert len(set(calls)) == len(calls)
    assert request_key(SQUARE, Payload(b"1")) == calls[0]
    assert request_key(SQUARE, Payload(blob=BlobId(b"1" * 32), size_bytes=9)) == calls[5]


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.RETURNED])
def test_errors_are_not_kept(outcome: Outcome) -> None:
    cache = on()
    assert not cache.put(key(1), outcome, b"error", 0.0)
    assert cache.get(key(1), 0.0) is None


def test_who_was_kept_longest_gives_way() -> None:
    cache = on(entries_max=2)
    for number in range(3):
        assert put(cache, number, float(number))
    assert [cache.get(key(number), 3.0) for number in range(3)] == [None, b"answer", b"answer"]
    assert cache.figures(3.0).dropped == 1
    cache.check_invariants()


def test_bytes_are_bounded_together_and_each() -> None:
    room = ENTRY_OVERHEAD_BYTES + 100
    cache = on(bytes_max=2 * room)
    assert put(cache, 1, 0.0, b"a" * 100)
    assert put(cache, 2, 0.0, b"b" * 100)
    assert put(cache, 3, 0.0, b"c" * 101), "one byte more than there is: two give way"
    assert [cache.get(key(number), 0.0) is not None for number in (1, 2, 3)] == [False, False, True]
    assert not put(cache, 4, 0.0, b"d" * (2 * room)), "larger than the whole cache"
    assert cache.get(key(3), 0.0) is not None, "what is not kept drives nobody out"
    cache.check_invariants()
    assert not put(on(), 1, 0.0, bytes(limits.CACHE_ENTRY_BYTES_MAX))


def test_an_answer_kept_again_is_new() -> None:
    cache = on(entries_max=2)
    put(cache, 1, 0.0, b"old")
    put(cache, 2, 100.0)
    put(cache, 1, 200.0, b"new")
    assert cache.get(key(1), 400.0) == b"new"
    put(cache, 3, 250.0)
    assert cache.get(key(2), 250.0) is None
    assert cache.get(key(1), 250.0) == b"new"
    cache.check_invariants()


def test_answers_can_be_dropped() -> None:
    cache = on()
    for number in range(3):
        put(cache, number, 0.0)
    cache.forget(key(1))
    cache.forget(key(9))
    assert cache.figures(0.0).entries == 2
    cache.clear()
    assert cache.figures(0.0).bytes == 0
    cache.check_invariants()


@pytest.mark.parametrize(
    "wrong", [{"ttl_s": 0.0}, {"ttl_s": float("inf")}, {"ttl_s": float("nan")}, {"bytes_max": -1}, {"entries_max": -1}]
)
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        on(**wrong)


def test_who_asks_says_how_old_an_answer_may_be() -> None:
    cache, one = on(ttl_s=100.0), request_key(SQUARE, Payload(b"7"))
    assert cache.get(one, 0.0, 10.0) is None
    cache.put(one, Outcome.RETURNED, b"49", 0.0)
    assert cache.get(one, 9.9, 10.0) == b"49"
    assert cache.get(one, 10.0, 10.0) is None
    assert cache.get(one, 10.0, 20.0) == b"49", "what is too old for one is not for another"
    assert cache.get(one, 100.0, 1000.0) is None, "nothing is older than the cache keeps it"
    assert (cache.figures(100.0).hits, cache.figures(100.0).misses) == (2, 3)
