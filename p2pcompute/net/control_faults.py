"""Errors across the control socket: the same class, text and plain attributes on both sides.

Owns the translation of an exception to `Fault` and back. Only classes of `model/errors.py` travel; anything else that
escapes a handler is a defect of this program, is logged where it happened, and reaches the client as P2PComputeError.

Refuses to know which call failed.
"""

from __future__ import annotations

import enum
from typing import Any

from p2pcompute.model import errors, limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, P2PComputeError, PeerError
from p2pcompute.wire.messages import Fault

_ATTRIBUTES_MAX = 32
_TREE = {
    name: member
    for name, member in vars(errors).items()
    if isinstance(member, type) and issubclass(member, P2PComputeError)
}


def fault_of(call: int, error: BaseException) -> Fault:
    """What the client is told about `error`. A group of one is that one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    known = next((cls for cls in type(error).__mro__ if _TREE.get(cls.__name__) is cls), None)
    if known is None or not isinstance(error, P2PComputeError):
        text = f"the peer failed with {type(error).__name__}: {error}. This is a defect of p2pcompute; the peer's log has more"
        return Fault(call, P2PComputeError.__name__, text[: limits.TRACEBACK_CHARS_MAX])
    attributes = {
        name: plain
        for name, value in list(vars(error).items())[:_ATTRIBUTES_MAX]
        if (plain := _plain(value)) is not _UNSHIPPED
    }
    return Fault(call, known.__name__, str(error)[: limits.TRACEBACK_CHARS_MAX], attributes)


def error_of(fault: Fault) -> P2PComputeError:
    """The exception that the client raises: of the class that the fault names, or of the root where that is unknown."""
    cls = _TREE.get(fault.error, P2PComputeError)
    # Past __init__, whose parameters differ from class to class and make the text that is already here.
    error = cls.__new__(cls, fault.text)
    error.args = (fault.text,)
    for name, value in fault.attributes.items():
        if name.isidentifier() and (not name.startswith("__") or name == "__notes__"):
            setattr(error, name, tuple(value) if isinstance(value, list) and name != "__notes__" else value)
    if isinstance(error, PeerError):
        _fill_in(error, {"reason_text": fault.text, "origin": ""})
    if isinstance(error, AdmissionError):
        try:
            error.reason = AdmissionReason(getattr(error, "reason", ""))
        except ValueError:
            error.reason = AdmissionReason.NOT_ALLOWED
    return error


_UNSHIPPED = object()


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, (list, tuple)):
        members = [_plain(member) for member in value[: limits.CONTROL_CALLS_MAX]]
        return _UNSHIPPED if any(member is _UNSHIPPED for member in members) else members
    return _UNSHIPPED


def _fill_in(error: object, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if not hasattr(error, name):
            setattr(error, name, value)
