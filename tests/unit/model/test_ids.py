"""Ids as people write them, and the typing errors that the check characters notice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.model.errors import InvalidIdError, UnknownNameError, UsageError
from p2pcompute.model.ids import (
    JobId,
    PeerId,
    format_job_id,
    format_peer_id,
    parse_job_id,
    parse_peer_id,
    peer_id_of,
    short_peer_id,
)
from p2pcompute.model.job import Aggregation, JobOptions
from p2pcompute.model.peer import Address

IDS = st.binary(min_size=32, max_size=32).map(PeerId)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@given(IDS)
def test_a_peer_id_comes_back_however_it_is_typed(peer: PeerId) -> None:
    text = format_peer_id(peer)
    assert parse_peer_id(text) == peer
    assert parse_peer_id(text.lower().replace("-", " ")) == peer
    assert parse_peer_id(text.replace("O", "0").replace("I", "1").replace("B", "8")) == peer
    assert len(short_peer_id(peer)) == 8


@given(IDS, st.integers(0, 55), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_always_noticed(peer: PeerId, place: int, wrong: str) -> None:
    plain = format_peer_id(peer).replace("-", "")
    if plain[place] == wrong:
        return
    with pytest.raises(InvalidIdError, match="part"):
        parse_peer_id(plain[:place] + wrong + plain[place + 1 :])


@pytest.mark.parametrize("text", ["", "abc", "!" * 56, "A" * 57])
def test_what_is_no_peer_id_says_so(text: str) -> None:
    with pytest.raises(InvalidIdError):
        parse_peer_id(text)


@given(st.binary(min_size=12, max_size=12).map(JobId))
def test_job_ids_come_back(job: JobId) -> None:
    assert parse_job_id(format_job_id(job)) == job
    with pytest.raises(InvalidIdError):
        parse_job_id(format_job_id(job)[:-2])


def test_an_id_depends_on_the_key_alone() -> None:
    assert peer_id_of(b"k" * 32) == peer_id_of(b"k" * 32) != peer_id_of(b"l" * 32)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:9876", Address("10.0.0.1", 9876)),
        ("[fd00::2]:80", Address("fd00::2", 80)),
        ("example:1", Address("example", 1)),
        (" fd00::2 ", Address("fd00::2", 9876)),
        ("host", Address("host", 9876)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text, 9876) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", ":1", "host:", "host:0", "host:65536", "host:x", "[fd00::2", "a:b:c]"])
def test_what_is_no_address_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        Address.parse(text)


def test_unknown_aggregations_name_the_nearest() -> None:
    assert Aggregation.parse("SUM") is Aggregation.SUM
    with pytest.raises(UnknownNameError, match="did you mean 'average'"):
        Aggregation.parse("avrage")


@pytest.mark.parametrize(
    "wrong",
    [{"timeout_s": 0}, {"job_timeout_s": -1}, {"retries": -1}, {"retries": 101}, {"priority": 10}, {"memory_bytes": 1}],
)
def test_options_are_checked_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        JobOptions(**wrong)  # type: ignore[arg-type]
