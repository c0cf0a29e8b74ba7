"""What this peer signs when it gives a share of its own job to a coordinator."""

from __future__ import annotations

from p2pcompute.model.ids import JOB_ID_BYTES, JobId, PeerId
from p2pcompute.model.job import JobSpec
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.node.identity import NodeIdentity
from p2pcompute.wire.delegation import Delegation, Manifest, delegate

#: A delegation holds for so long: lenders look at it when a share is opened, and a longer job is delegated anew then.
DELEGATION_S = 7 * 86_400.0
#: Tasks that a share may have where nobody knows how many there are.
_TASKS_UNKNOWN = 1 << 40
#: How many times the job's tasks a share may have: repeated ones and reductions on top.
_TASKS_FACTOR = 8
_TASKS_LEAST = 1_024


class Delegating:
    """`identity`: whose key signs."""

    def __init__(self, identity: NodeIdentity, clock: Clock, entropy: Entropy) -> None:
        self._identity = identity
        self._clock = clock
        self._entropy = entropy

    def share_of(self, spec: JobSpec, program_bytes: int, coordinator: PeerId, epoch: int) -> tuple[JobId, bytes]:
        """A new share of a job for `coordinator`: its id, and the signed delegation. `epoch`: above those of the job before."""
        identity, options = self._identity, spec.options
        share = JobId(self._entropy.bytes(JOB_ID_BYTES))
        until_wall = self._clock.wall() + DELEGATION_S
        tasks = spec.expected_tasks
        tasks_max = _TASKS_UNKNOWN if tasks is None else max(tasks * _TASKS_FACTOR, _TASKS_LEAST)
        manifest = Manifest(
            spec.job,
            identity.membership.network,
            spec.program,
            program_bytes,
            options.priority,
            options.timeout_s,
            options.memory_bytes,
            until_wall,
        )
        delegation = Delegation(share, coordinator, epoch, tasks_max, until_wall)
        return share, delegate(identity.key, identity.membership, manifest, delegation)
