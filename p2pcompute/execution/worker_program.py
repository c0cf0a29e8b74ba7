"""The one place where a worker meets `loader.py` and `values.py`: bytes in, bytes out, exceptions named.

A task's arguments decode to a pair (positional arguments, named ones): encode `[list(args), kwargs]`. A tuple does as well, but tuples
are extensions in our encoding, which costs ten times the time of a plain list and copies of large arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pcompute.execution import loader, values
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.execution.worker_handles import HandleValues
from p2pcompute.model import limits
from p2pcompute.model.job import Outcome


class WorkerProgram:
    """A loaded program, called by number of entry with encoded arguments.

    `fetch`: the bytes behind a handle, or BlobMissingError; `kept_bytes_max`: see `HandleValues`.
    """

    def __init__(
        self, data: bytes | bytearray, fetch: Callable[[values.Handle], bytes | bytearray], kept_bytes_max: int
    ) -> None:
        """Load it. Raises ProgramLoadError, whatever the program's own code does while it is imported."""
        try:
            self._program = loader.load_program(
                data, handles=lambda classes: HandleValues(fetch, classes, kept_bytes_max).value
            )
        except ProgramLoadError:
            raise
        except ModuleNotFoundError as error:
            raise ProgramLoadError("module", error.name or "", _sentence(error)) from error
        except BaseException as error:
            raise ProgramLoadError("bundle", "", _sentence(error)) from error
        self._entries: list[Callable[..., Any]] = list(self._program.entries.values())
        self._classes = self._program.classes

    def run(self, entry: int, arguments: bytes | bytearray | memoryview) -> tuple[Outcome, bytes]:
        """The outcome of one call and its payload, as `wire.messages.Results` defines it. Never raises for what user code does."""
        try:
            positional, named = values.decode(
                arguments, classes=self._classes, pickles=values.ALLOW, handles=self._program.handles
            )
            value = self._entries[entry](*positional, **named)
        except MemoryError:
            return Outcome.OUT_OF_MEMORY, b"the task ran out of memory (MemoryError)"
        except BaseException as error:
            return Outcome.RAISED, self._failure(error)
        try:
            payload = values.encode(value, classes=self._classes)
        except MemoryError:
            return Outcome.OUT_OF_MEMORY, b"memory ran out while the result was encoded (MemoryError)"
        except BaseException as error:
            return Outcome.UNSHIPPABLE, self._failure(error)
        if len(payload) > limits.VALUE_BYTES_MAX:
            text = f"the result has {len(payload)} bytes, one may have {limits.VALUE_BYTES_MAX}: return parts, or less"
            return Outcome.UNSHIPPABLE, self._failure(ValueError(text))
        return Outcome.RETURNED, payload

    def _failure(self, error: BaseException) -> bytes:
        trace = error.__traceback__
        if trace is not None and trace.tb_next is not None:
            error = error.with_traceback(trace.tb_next)  # without the frame of `run`, which is of no use to its reader
        try:
            return values.encode_failure(error, classes=self._classes)
        except Exception as broken:
            text = f"{type(error).__name__}, which cannot be described: {type(broken).__name__}"
            return values.encode_failure(RuntimeError(text))


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[: limits.TRACEBACK_CHARS_MAX]
