"""Who announces records that nobody has is believed for a while and then for a while not."""

from __future__ import annotations

from p2pcompute.membership.promises import Promises
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId

_LIAR, _HONEST = PeerId(b"l" * 32), PeerId(b"h" * 32)
_MAX = int(limits.BROKEN_PROMISES_MAX)


def test_one_peer_holds_no_more_than_its_share_of_the_places() -> None:
    promises = Promises()
    made = sum(promises.made(_LIAR, 0.0) for _ in range(2 * limits.WANTS_PER_SOURCE_MAX))
    assert made == promises.open_of(_LIAR) == limits.WANTS_PER_SOURCE_MAX < limits.WANTS_MAX
    assert promises.made(_HONEST, 0.0)


def test_broken_promises_are_reported_once_and_the_liar_is_not_believed_until_they_are_forgiven() -> None:
    promises = Promises()
    reports = 0
    for _ in range(_MAX + 50):
        if promises.made(_LIAR, 0.0):
            reports += promises.broken(_LIAR, 0.0)
    assert reports == 1
    assert not promises.made(_LIAR, 0.0)
    assert promises.made(_LIAR, 2.0)
    promises.ended(_LIAR)
    later = _MAX / limits.BROKEN_PROMISES_FORGIVEN_PER_SECOND + 3.0
    for _ in range(_MAX):
        assert promises.made(_LIAR, later)
        reports += promises.broken(_LIAR, later)
    assert reports == 2, "who begins again after all was forgiven is reported again"


def test_kept_promises_leave_nothing_behind() -> None:
    promises = Promises()
    for _ in range(10_000):
        assert promises.made(_HONEST, 0.0)
        promises.ended(_HONEST)
    assert len(promises) == 0
