"""Every error that the product raises on purpose, in one tree.

    P2PComputeError
    ├── UsageError                 ours: the caller asked for something that cannot be
    │   ├── InvalidIdError
    │   ├── UnknownNameError       an option, aggregation, command …; carries the nearest valid name
    │   ├── ConfigError            a configuration value or file; names the place
    │   ├── CannotShipError        a function that cannot travel; says why and how to write it
    │   ├── NotSerializableError   a value that cannot travel
    │   └── NoSuchPeerError
    ├── PeerError                  a peer's doing; carries its id or address, never harms anything but its link
    │   ├── ProtocolError          bytes that no honest peer sends
    │   ├── FrameTooLargeError
    │   └── AdmissionError         refused, by us or by them; `reason` is one of `AdmissionReason`
    ├── ResourceError              something this machine or link has run out of or lost
    │   ├── LinkClosedError
    │   ├── BusyError              a limit of `limits.py` was reached
    │   ├── PortTakenError
    │   ├── CorruptFileError       a file of ours that cannot be read; never overwritten
    │   ├── BlobMissingError
    │   └── NotRunningError        no peer runs here, or it does not answer
    └── JobError                   reaches the submitter of a job
        ├── TaskFailedError        the function raised; carries the remote traceback
        ├── WasmTrapError          a WebAssembly module did what ends it: unreachable code, memory out of bounds, …
        │   └── OutOfFuelError     it used up the units of work that it was allowed
        ├── CommandFailedError     a command or a container ended with another status than 0; carries it and its last words
        ├── TaskTimeoutError
        ├── WorkerDiedError        the worker processes died; carries the history of attempts
        ├── MissingModuleError     which peer lacks which module
        ├── NoWorkersError         nobody may or can run this
        │   ├── NoAvailableNodesError  no peer meets what the job requires; says what the nearest lacks
        │   └── NoHealthyNodesError    those that do are suspected or overloaded
        ├── BudgetExceededError    before anything runs, or once the budget is used up
        ├── StrategyError          the submitter's own balancer, or a strategy without a fallback, failed
        ├── ResultRefusedError     a result that may not be loaded in the submitter's process
        └── JobCancelledError

A message says what happened, to what, and what to do next. Foreign exceptions are mapped where they arise
(`raise … from`).
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable


class P2PComputeError(Exception):
    """The root of the tree."""

    #: Exit status of the command line when this error ends a command (sysexits.h where one fits).
    exit_code = 1


class UsageError(P2PComputeError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class InvalidIdError(UsageError):
    """A text that should be an id is not one."""


class UnknownNameError(UsageError):
    """A name that is not among the valid ones.

    `kind`: what was named ("aggregation", "option"); `nearest`: the valid name that looks most like it, or None.
    """

    def __init__(self, kind: str, name: str, valid: Iterable[str]) -> None:
        known = sorted(valid)
        matches = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        self.kind = kind
        self.name = name
        self.nearest = matches[0] if matches else None
        hint = f"did you mean {self.nearest!r}? " if self.nearest else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}valid are {', '.join(known)}")


class ConfigError(UsageError):
    """A configuration value that cannot be used; the message names the place it came from."""

    exit_code = 78


class CannotShipError(UsageError):
    """A function that cannot be sent to another machine; the message says how to write it so that it can."""


class NotSerializableError(UsageError):
    """A value that cannot be sent to another machine; the message names the part that cannot."""


class NoSuchPeerError(UsageError):
    """No peer of that name, id or number is known."""


class PeerError(P2PComputeError):
    """A peer's doing. `origin`: its id, short id or address as text, as far as known."""

    exit_code = 76

    def __init__(self, message: str, origin: str = "") -> None:
        super().__init__(f"{origin}: {message}" if origin else message)
        self.reason_text = message
        self.origin = origin


class ProtocolError(PeerError):
    """Bytes that no honest peer sends."""


class FrameTooLargeError(ProtocolError):
    """A frame beyond `limits.FRAME_BYTES_MAX`."""


class AdmissionReason(enum.StrEnum):
    """Why a peer, or a token, was not let in."""

    NO_CERTIFICATE = "no-certificate"
    OTHER_NETWORK = "other-network"
    FOREIGN_AUTHORITY = "foreign-authority"
    STOLEN_LEAF = "stolen-leaf"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    REVOKED = "revoked"
    LEAF_SIGNS = "leaf-signs"
    INVITATION_SIGNS = "invitation-signs"
    WRONG_PEER = "wrong-peer"
    NOT_ALLOWED = "not-allowed"
    VERSION = "version"
    UNREADABLE = "unreadable"
    SELF = "self"


class AdmissionError(PeerError):
    """Somebody was not let in. `reason`: the case, for programs; the message: the case, for people."""

    exit_code = 77

    def __init__(self, reason: AdmissionReason, message: str, origin: str = "") -> None:
        super().__init__(message, origin)
        self.reason = reason


class ResourceError(P2PComputeError):
    """Something this machine or link has run out of or lost."""

    exit_code = 75


class LinkClosedError(ResourceError):
    """The link to a peer is gone."""


class BusyError(ResourceError):
    """A limit was reached; trying again later helps."""


class PortTakenError(ResourceError):
    """No free port in the range that was tried."""


class CorruptFileError(ResourceError):
    """A file of ours that cannot be read. It is never overwritten; the message says how to go on."""

    exit_code = 65


class BlobMissingError(ResourceError):
    """Nobody who was asked holds these bytes any more."""


class NotRunningError(ResourceError):
    """No peer runs here, or it does not answer."""

    exit_code = 69


class JobError(P2PComputeError):
    """Reaches the submitter of a job. `job`: the job's id as text, `task`: the task's number, where known."""

    exit_code = 70

    def __init__(self, message: str, job: str = "", task: int | None = None) -> None:
        super().__init__(message)
        self.job = job
        self.task = task


class TaskFailedError(JobError):
    """The function raised. `remote_traceback`: the traceback as text, from the peer named in `peer`."""

    def __init__(
        self, message: str, job: str = "", task: int | None = None, *, remote_traceback: str = "", peer: str = ""
    ) -> None:
        super().__init__(message, job, task)
        self.remote_traceback = remote_traceback
        self.peer = peer


class WasmTrapError(JobError):
    """A WebAssembly module did what ends it, such as reaching unreachable code or memory out of bounds; the message says which."""


class OutOfFuelError(WasmTrapError):
    """A WebAssembly module used up the units of work that it was allowed: the same on every machine."""


class CommandFailedError(JobError):
    """A command, or what ran in a container, ended with a status other than 0.

    `status`: that status; `stdout`, `stderr`: the last of what it wrote, as text.
    """

    def __init__(
        self,
        message: str,
        job: str = "",
        task: int | None = None,
        *,
        status: int = 1,
        stdout: str = "",
        stderr: str = "",
    ) -> None:
        super().__init__(message, job, task)
        self.status = status
        self.stdout = stdout
        self.stderr = stderr


class TaskTimeoutError(JobError, TimeoutError):
    """The task, or the job, took longer than its time-out; its process was killed."""


class WorkerDiedError(JobError):
    """Worker processes died running this task. `history`: one line an attempt, with peer and cause."""

    def __init__(self, message: str, job: str = "", task: int | None = None, *, history: tuple[str, ...] = ()) -> None:
        super().__init__(message, job, task)
        self.history = history


class MissingModuleError(JobError):
    """A peer lacks a module that the function imports. `peer`, `module`: which."""

    def __init__(
        self, message: str, job: str = "", task: int | None = None, *, peer: str = "", module: str = ""
    ) -> None:
        super().__init__(message, job, task)
        self.peer = peer
        self.module = module


class NoWorkersError(JobError):
    """Nobody may or can run this job."""


class NoAvailableNodesError(NoWorkersError):
    """No peer meets what the job requires; the message says what the nearest one lacks."""


class NoHealthyNodesError(NoWorkersError):
    """Peers that may run the job are there, but all of them are suspected to be down, or overloaded."""


class BudgetExceededError(JobError):
    """The job costs more than its budget: said before anything runs where that can be known, else once it is used up."""


class StrategyError(JobError):
    """The order of peers could not be decided: the submitter's own balancer raised, and there is no fallback."""


class ResultRefusedError(JobError):
    """A result that may not be loaded in the submitter's process, such as a pickle of an unknown class."""


class JobCancelledError(JobError):
    """The job was cancelled."""
