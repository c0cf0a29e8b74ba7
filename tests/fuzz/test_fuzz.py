"""Hostile bytes against every decoder: only the errors that it names may come out, within bounded time.

`FUZZ_EXAMPLES` says how many examples a decoder gets; the default keeps `make test` quick, `make fuzz` raises it.
"""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.bytes_strategies import hostile
from tests.fuzz.registry import DECODERS, NOT_DECODERS, discover

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
#: One call with at most a few hundred kilobytes: generous, for a machine that does other things too.
SECONDS_PER_CALL_MAX = 2.0

pytestmark = pytest.mark.fuzz


def _function_of(name: str) -> str:
    # One decoder may be fed in several ways, told apart in brackets.
    return name.partition(" (")[0]


def test_every_decoder_is_registered() -> None:
    known = {_function_of(name) for name in DECODERS} | set(NOT_DECODERS)
    unknown = sorted(set(discover()) - known)
    assert not unknown, f"tests/fuzz/registry.py knows nothing of {unknown}: feed them, or say why they are no decoders"


def test_the_registry_names_only_what_exists() -> None:
    found = set(discover())
    gone = sorted(({_function_of(name) for name in DECODERS} | set(NOT_DECODERS)) - found)
    assert not gone, f"these are gone or no longer look like decoders: {gone}"


def test_nothing_is_both() -> None:
    assert not {_function_of(name) for name in DECODERS} & set(NOT_DECODERS)
    assert all(reason.strip() for reason in NOT_DECODERS.values())


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_valid_samples_are_understood(name: str) -> None:
    """Damage to samples that never were valid would test nothing."""
    decoder = DECODERS[name]
    found = decoder.samples()
    assert found
    for data in found:
        decoder.call(data)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_only_named_errors_come_out(name: str) -> None:
    decoder = DECODERS[name]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        payload = data.draw(hostile(found), label="payload")
        before = time.thread_time()
        try:
            decoder.call(payload)
        except decoder.raises:
            pass
        seconds = time.thread_time() - before
        assert seconds < SECONDS_PER_CALL_MAX, f"{len(payload)} bytes took {seconds:.1f} s"

    found = decoder.samples()
    attack()
