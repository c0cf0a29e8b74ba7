"""Keys, seals and the replay window."""

from __future__ import annotations

import random

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import NetworkId
from p2pcompute.wire import beacon, gossip, identity, record
from p2pcompute.wire.session import ACCEPT_CONTEXT, PROOF_CONTEXT, Ephemeral, Opener, Sealer, derive_keys, digest
from tests.support.networks import SeededEntropy

NETWORK = NetworkId(bytes(32))
KEY = bytes(range(32))


def _sealed(counters: list[int]) -> dict[int, bytes]:
    sealer = Sealer(KEY, 7)
    made = {}
    for counter in counters:
        sealer.counter = counter
        made[counter] = sealer.seal(1, counter.to_bytes(8))
    return made


def _sealed_at(counter: int) -> bytes:
    return _sealed([counter])[counter]


def test_both_sides_have_the_same_keys_and_each_direction_its_own() -> None:
    anna, bert = Ephemeral(SeededEntropy("anna")), Ephemeral(SeededEntropy("bert"))
    shared = anna.agree(bert.public)
    assert shared == bert.agree(anna.public)
    keys = derive_keys(NETWORK, shared, digest(b"proof"), digest(b"accept"))
    assert keys.from_initiator != keys.from_responder
    assert {len(keys.from_initiator), len(keys.from_responder)} == {32}


@pytest.mark.parametrize("different", ["network", "secret", "proof", "accept"])
def test_keys_depend_on_everything_that_was_said(different: str) -> None:
    usual = {"network": NETWORK, "secret": b"s" * 32, "proof": digest(b"proof"), "accept": digest(b"accept")}
    other = {**usual, different: digest(b"else")}
    one, two = (
        derive_keys(NetworkId(each["network"]), each["secret"], each["proof"], each["accept"])
        for each in (usual, other)
    )
    assert one.from_initiator != two.from_initiator
    assert one.from_responder != two.from_responder
    # Ids are no secret: they are made of what everybody can see.
    assert (one.id == two.id) == (different == "secret")


@pytest.mark.parametrize("share", [bytes(32), b"\1" + bytes(31)])
def test_a_share_that_makes_the_secret_known_is_refused(share: bytes) -> None:
    with pytest.raises(ProtocolError):
        Ephemeral(SeededEntropy("anna")).agree(share)


def test_what_is_sealed_opens_once_and_says_nothing_on_the_way() -> None:
    sealer, opener = Sealer(KEY, 0x01020304), Opener(KEY)
    data = sealer.seal(9, b"a secret payload")
    assert data[:13] == bytes([0xD0, 1, 2, 3, 4]) + bytes(8)
    assert b"secret" not in data
    assert opener.is_fresh(0)
    assert opener.open(data, 0) == b"\x09a secret payload"
    assert not opener.is_fresh(0)
    assert sealer.seal(9, b"a secret payload") != data, "the counter has moved on"


def test_nothing_opens_under_another_key_or_counter_and_the_window_stays() -> None:
    opener = Opener(bytes(32))
    data = Sealer(KEY, 7).seal(1, b"x")
    assert opener.open(data, 0) is None
    assert opener.newest == -1
    opener = Opener(KEY)
    moved = data[:5] + (1 << 60).to_bytes(8) + data[13:]
    assert opener.open(moved, 1 << 60) is None
    assert opener.newest == -1
    assert opener.open(data, 0) == b"\1x"


def test_the_window_takes_each_counter_once_in_any_order() -> None:
    """Against a set, which remembers everything, over jumps of every size."""
    dice = random.Random(5)
    opener, seen, newest = Opener(KEY), set[int](), -1
    for _ in range(6_000):
        jump = dice.choice([0, 1, 1, 1, 2, 7, 8, 9, 63, 64, 65, 500, 2_047, 2_048, 2_049, 2_111, 2_112, 2_113, 5_000])
        back = dice.choice([0, 0, 1, 5, 8, 64, 700, 2_040, 2_046, 2_047, 2_048, 2_049, 3_000])
        counter = max(0, newest + jump - back)
        fresh = counter not in seen and counter > newest - limits.REPLAY_WINDOW
        assert opener.is_fresh(counter) == fresh, (counter, newest)
        if fresh:
            assert opener.open(_sealed([counter])[counter], counter) is not None
            seen.add(counter)
            newest = max(newest, counter)
            assert opener.newest == newest


def test_the_window_is_as_wide_as_it_says() -> None:
    opener = Opener(KEY)
    newest = 100_000
    sealed = _sealed([newest, newest - limits.REPLAY_WINDOW + 1, newest - limits.REPLAY_WINDOW])
    assert opener.open(sealed[newest], newest)
    assert opener.is_fresh(newest - limits.REPLAY_WINDOW + 1)
    assert not opener.is_fresh(newest - limits.REPLAY_WINDOW)
    last = (1 << 64) - 1
    assert opener.open(_sealed_at(last), last), "a jump of any size takes no time"
    assert not opener.is_fresh(last)
    assert not opener.is_fresh(newest + 1)


def test_the_window_follows_every_single_step() -> None:
    opener, sealer = Opener(KEY), Sealer(KEY, 7)
    for counter in range(3 * limits.REPLAY_WINDOW):
        data = sealer.seal(1, b"")
        assert opener.is_fresh(counter)
        assert opener.open(data, counter) is not None
        assert not opener.is_fresh(counter)
        for back in (1, 7, 8, limits.REPLAY_WINDOW - 1):
            assert counter < back or not opener.is_fresh(counter - back)


def test_signatures_of_datagrams_are_good_for_nothing_else() -> None:
    others = [beacon.CONTEXT, record.CONTEXT, gossip.SUSPICION_CONTEXT, gossip.LOAD_CONTEXT, *identity.CONTEXTS]
    contexts = [PROOF_CONTEXT, ACCEPT_CONTEXT, *others]
    assert len(set(contexts)) == len(contexts)
    assert not any(one != two and two.startswith(one) for one in contexts for two in contexts)
