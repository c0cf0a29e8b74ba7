"""What a raised exception looks like after its journey."""

from __future__ import annotations

import threading

import pytest

from p2pcompute.execution.values import ClassResolver, decode_failure, encode, encode_failure
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError

CLASSES = ClassResolver.for_modules([__name__])


class BadInputError(Exception):
    def __init__(self, line: int) -> None:
        super().__init__(f"line {line}")
        self.line = line


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_of_the_program_comes_back_with_its_traceback() -> None:
    failure = decode_failure(encode_failure(raised(BadInputError(3)), classes=CLASSES), classes=CLASSES)
    assert failure.type_name == f"{__name__}.BadInputError"
    assert failure.message == "line 3"
    assert "raise error" in failure.traceback
    assert isinstance(failure.exception, BadInputError)
    assert failure.exception.line == 3


def test_one_that_cannot_travel_is_told_in_words() -> None:
    error = raised(ValueError("a", threading.Lock()))
    failure = decode_failure(encode_failure(error, classes=CLASSES), classes=CLASSES)
    assert failure.exception is None
    assert failure.type_name == "ValueError"
    assert "ValueError: ('a'" in failure.traceback


def test_a_class_that_this_process_does_not_know_is_told_in_words() -> None:
    data = encode_failure(raised(BadInputError(3)), classes=CLASSES)
    assert decode_failure(data).exception is None
    assert decode_failure(data).message == "line 3"


def test_a_cause_stays_a_cause() -> None:
    try:
        try:
            raise KeyError("k")
        except KeyError as inner:
            raise BadInputError(1) from inner
    except BadInputError as caught:
        failure = decode_failure(encode_failure(caught, classes=CLASSES), classes=CLASSES)
    assert failure.exception is not None
    assert isinstance(failure.exception.__cause__, KeyError)
    assert "direct cause" in failure.traceback


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_peer_cannot_make_the_submitter_exit(error: BaseException) -> None:
    failure = decode_failure(encode_failure(error), classes=CLASSES)
    assert failure.exception is None
    assert failure.type_name == type(error).__name__


def test_texts_are_bounded_and_an_exception_without_text_is_no_second_failure() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "cannot be made" in decode_failure(encode_failure(MuteError())).message
    long = decode_failure(encode_failure(ValueError("x" * 10 * limits.TRACEBACK_CHARS_MAX)))
    assert len(long.traceback) <= limits.TRACEBACK_CHARS_MAX
    assert len(long.message) <= limits.TRACEBACK_CHARS_MAX


@pytest.mark.parametrize("content", [None, [], ["a", "b", "c"], ["a", 1, "c", None], {"a": 1}])
def test_other_values_are_no_failures(content: object) -> None:
    with pytest.raises(ProtocolError):
        decode_failure(encode(content))
