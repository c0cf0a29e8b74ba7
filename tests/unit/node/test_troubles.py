"""What went wrong with whom: few lines of log for many troubles, bounded memory, and an end to every grudge."""

from __future__ import annotations

from p2pcompute.model import limits
from p2pcompute.node.troubles import Line, Troubles


def test_ten_thousand_times_the_same_are_a_few_lines_that_say_how_often() -> None:
    troubles = Troubles()
    lines = [line for number in range(10_000) if (line := troubles.note("10.0.0.9", "junk", number * 0.01)) is not None]
    assert lines[0] == Line("10.0.0.9", "junk", 1)
    assert len(lines) == 2, "one at once, one after the pause"
    assert lines[1].times == 6_000
    row = troubles.lately(100.0)["10.0.0.9"]
    assert row.what == "junk (10,000 times)"
    assert row.count == 10_000


def test_who_invents_a_text_for_each_misdeed_has_a_few_lines_and_a_few_texts() -> None:
    troubles = Troubles()
    lines = [troubles.note("MALLORYX", f"text {number}", number * 0.001) for number in range(1_000)]
    assert len([line for line in lines if line is not None]) == 3
    assert troubles.note("10.0.0.1", "something else", 1.0) is not None, "others have their lines all the same"
    assert len(troubles.lately(1.0)["MALLORYX"].kinds) <= 6
    assert troubles.lately(1.0)["MALLORYX"].what.startswith("text 999; text 998")


def test_forged_addresses_fill_neither_the_log_nor_the_memory_and_push_no_member_out() -> None:
    troubles = Troubles()
    troubles.note("MALLORYX", "forged a record", 0.0, is_misdeed=True)
    lines = [
        troubles.note(f"10.{number // 250}.{number % 250}.1", "junk", 1.0 + number * 0.001) for number in range(10_000)
    ]
    assert len([line for line in lines if line is not None]) <= 11 * limits.TROUBLE_LINES_PER_SECOND
    assert len(troubles) == limits.TROUBLES_MAX
    assert "MALLORYX" in troubles.lately(11.0)


def test_what_does_not_come_again_is_forgotten() -> None:
    troubles = Troubles()
    troubles.note("10.0.0.9", "junk", 0.0)
    troubles.note("10.0.0.8", "junk", 10.0)
    assert list(troubles.lately(limits.TROUBLE_KEPT_S + 5.0)) == ["10.0.0.8"]
    assert not troubles.lately(limits.TROUBLE_KEPT_S + 10.0)


def test_a_new_link_clears_what_failed_and_no_misdeed() -> None:
    troubles = Troubles()
    troubles.note("ANNAANNA", "did not answer", 0.0)
    troubles.note("MALLORYX", "did not answer", 0.0)
    troubles.note("MALLORYX", "forged a record", 0.0, is_misdeed=True)
    for whom in ("ANNAANNA", "MALLORYX", "NOBODY"):
        troubles.forgive(whom)
    assert list(troubles.lately(1.0)) == ["MALLORYX"]
