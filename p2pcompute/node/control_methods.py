"""What a running peer answers on its control socket, method by method.

Arguments come from this user's own programs, but are checked all the same: a client of another version is nobody's bug.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from p2pcompute.execution.engines.entries import entries_of
from p2pcompute.execution.values import Handle
from p2pcompute.jobs.submit import options_of
from p2pcompute.model import limits
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.ids import (
    BlobId,
    JobId,
    PeerId,
    ProgramId,
    format_job_id,
    format_peer_id,
    short_peer_id,
)
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec
from p2pcompute.model.peer import Role
from p2pcompute.net.control import ControlCall
from p2pcompute.node import status
from p2pcompute.node.explaining import explain_document, spent_document, used_document
from p2pcompute.node.job_stream import JobEnd, JobRequest, OutputRow, ResultRow
from p2pcompute.node.origin_job import OriginJob
from p2pcompute.node.peer import Peer
from p2pcompute.storage.blobs import blob_id_of

#: Single results in one notice.
RESULT_BYTES_PER_NOTICE = 256 * 1024
#: Progress is told at most so often.
PROGRESS_INTERVAL_S = 0.1

Document = dict[str, Any]


class ControlMethods:
    """The methods of one peer; `handle` is the handler of its control server. `stop`: called by the method of that name."""

    def __init__(self, peer: Peer, stop: Callable[[], None]) -> None:
        self._peer = peer
        self._stop = stop
        #: What each client has put and not dropped.
        self._held: dict[object, list[Handle]] = {}
        self._methods: Mapping[str, Callable[[ControlCall], Awaitable[object]]] = {
            "status": self._status,
            "peers": self._peers,
            "topology": self._topology,
            "watch": self._watch,
            "job.submit": self._submit,
            "jobs": self._jobs,
            "job.show": self._show,
            "job.explain": self._explain,
            "job.result": self._result,
            "job.cancel": self._cancel,
            "job.logs": self._logs,
            "job.drop": self._drop_task,
            "put": self._put,
            "drop": self._drop,
            "invite": self._invite,
            "revoke": self._revoke,
            "pause": self._pause,
            "resume": self._resume,
            "stop": self._stop_peer,
        }

    async def handle(self, call: ControlCall) -> object:
        """Do what `call` asks for. Raises P2PComputeError."""
        method = self._methods.get(call.method)
        if method is None:
            raise UnknownNameError("control method", call.method, self._methods)
        try:
            return await method(call)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the call {call.method!r} has arguments that this peer does not understand ({error!r}): "
                "is the program that made it of another version?"
            ) from error

    # --- the peer -------------------------------------------------------------------------------------------------------

    async def _status(self, _: ControlCall) -> Document:
        peer = self._peer
        row = status.peer_row(peer.own.now, None, None, None, name_of=peer.name_of)
        identity = peer.identity
        return {
            **row,
            "network": peer.network.name,
            "network_id": identity.membership.network.hex(),
            "network_open": peer.network.is_open,
            "owner": peer.network.authority is not None,
            "expires_wall": identity.membership.expires_wall,
            "port": peer.port,
            "beacon_port": peer.config.beacon_port if peer.config.lan else None,
            "instance": peer.instance.number,
            "folder": str(peer.instance.folder),
            "uptime_s": round(peer.uptime_s, 3),
            "bootstrap": [str(address) for address in peer.config.bootstrap],
            "links": len(peer.overlay.hub.links),
            "reaching": status.reach_document(peer.side, peer.name_of),
            "tasks_done": peer.lender.tasks_done,
            "done_for": [
                {"peer": peer.name_of(origin), **spent_document(spent)}
                for origin, spent in peer.lender.spent.of.items()
            ],
            **peer.yielding.document(),
            "troubles": {whom: trouble.what for whom, trouble in peer.overlay.troubles.items()},
        }

    def _row(self, peer_id: PeerId) -> Document | None:
        entry = self._peer.view.entry(peer_id)
        if entry is None:
            return None
        trouble = self._peer.overlay.troubles.get(short_peer_id(peer_id))
        link = self._peer.overlay.hub.links.get(peer_id)
        name_of = self._peer.name_of
        way = status.way_of(self._peer.side, link, peer_id, name_of)
        error = trouble.what if trouble is not None else None
        return status.peer_row(entry.record, entry, link, error, way, name_of, self._peer.records)

    async def _peers(self, _: ControlCall) -> Document:
        view = self._peer.view
        return {
            "own": {
                **status.peer_row(
                    self._peer.own.now, None, None, None, name_of=self._peer.name_of, records=self._peer.records
                ),
                "may_relay": self._peer.config.relay,
                **self._peer.yielding.document(),
            },
            "peers": [self._row(entry.record.peer) for entry in view.entries],
            "troubles": {whom: trouble.what for whom, trouble in self._peer.overlay.troubles.items()},
        }

    async def _topology(self, _: ControlCall) -> Document:
        return await self._peer.topology()

    async def _watch(self, call: ControlCall) -> None:
        events: asyncio.Queue[tuple[str, PeerId, str]] = asyncio.Queue(1024)

        def heard(kind: str, peer: PeerId, text: str) -> None:
            if kind != "view_changed" and not events.full():
                events.put_nowait((kind, peer, text))

        unwatch = self._peer.watch(heard)
        try:
            for entry in self._peer.view.alive:
                await call.notice({"event": "peer_known", "row": self._row(entry.record.peer), "text": ""})
            while True:
                kind, peer, text = await events.get()
                await call.notice({"event": kind, "row": self._row(peer), "text": text})
        finally:
            unwatch()

    async def _pause(self, call: ControlCall) -> Document:
        for_s = call.arguments.get("for_s")
        await self._peer.yielding.pause(None if for_s is None else float(for_s))
        return self._peer.yielding.document()

    async def _resume(self, _: ControlCall) -> Document:
        await self._peer.yielding.resume()
        return self._peer.yielding.document()

    async def _stop_peer(self, _: ControlCall) -> None:
        asyncio.get_running_loop().call_soon(self._stop)

    # --- the network ----------------------------------------------------------------------------------------------------

    async def _invite(self, call: ControlCall) -> Document:
        arguments = call.arguments
        roles = frozenset(Role(role) for role in arguments["roles"])
        invitation = self._peer.network.invite(
            roles=roles,
            valid_s=float(arguments["valid_s"]),
            label=str(arguments.get("label") or ""),
            may_invite=bool(arguments.get("may_invite")),
            addresses=self._peer.own.record.addresses,
        )
        return {
            "token": invitation.token(),
            "network": invitation.network_name,
            "roles": sorted(role.value for role in invitation.roles),
            "expires_wall": invitation.expires_wall,
            "invitation": invitation.id.hex(),
            "addresses": [str(address) for address in invitation.addresses],
        }

    async def _revoke(self, call: ControlCall) -> Document:
        """Revoke the invitation of a peer (its id, short id or name), or an invitation by its id."""
        wanted = str(call.arguments["whom"])
        found = [
            entry
            for entry in self._peer.view.entries
            if wanted in (entry.record.name, short_peer_id(entry.record.peer), format_peer_id(entry.record.peer))
        ]
        if len(found) > 1:
            raise UsageError(f"{len(found)} peers are called {wanted!r}: give the id that `p2pcompute peers` shows")
        peers = (found[0].record.peer,) if found else ()
        invitations = (found[0].invitation,) if found and found[0].invitation else ()
        revocations = self._peer.network.revoke(wanted, peers, invitations)
        self._peer.admission.revoke(revocations)
        return {
            "number": revocations.number,
            "peers": len(revocations.peers),
            "invitations": len(revocations.invitations),
        }

    # --- jobs -----------------------------------------------------------------------------------------------------------

    async def _submit(self, call: ControlCall) -> Document:
        request = _request_of(call.arguments)
        teller = _Teller(self._peer, call)
        stream = self._peer.origin.open(request, _inputs_of(call.feed()))
        await call.notice({"job": format_job_id(request.spec.job)})
        stream.listen(teller.progress, teller.output)
        try:
            async for rows in stream.batches():
                for part in _parts(rows):
                    await call.notice({"results": [teller.row(row) for row in part]})
                stream.taken(len(rows))
            end = await stream.ended()
        finally:
            # The client left, or cannot be told: nobody waits for the rest. Nothing is left to cancel after the end.
            stream.cancel()
        return self._end_document(end)

    def _end_document(self, end: JobEnd) -> Document:
        failure = end.failure
        return {
            "job": format_job_id(end.progress.job),
            "state": end.state.value,
            "result": None if end.result is None else bytes(end.result),
            "failure": None
            if failure is None
            else {
                "task": failure.task,
                "outcome": None if failure.outcome is None else int(failure.outcome),
                "payload": failure.payload,
                "peer": failure.peer,
                "text": failure.text,
                "history": list(failure.history),
                "kind": failure.kind,
                "module": failure.module,
            },
            "progress": status.progress_document(end.progress, self._names()),
            "skipped": list(end.skipped),
        }

    def _job(self, call: ControlCall) -> OriginJob:
        wanted = str(call.arguments["job"])
        jobs = self._peer.origin.jobs
        matching = [job for job in jobs if format_job_id(job).startswith(wanted.lower())]
        if len(matching) == 1:
            return jobs[matching[0]]
        if matching:
            raise UsageError(f"{len(matching)} jobs begin with {wanted!r}: give more characters of the id")
        raise UsageError(f"no job {wanted!r} is known at this peer: `p2pcompute jobs` lists those that are")

    async def _jobs(self, _: ControlCall) -> list[Document]:
        origin = self._peer.origin
        return [status.job_row(job, origin.progress(name), self._names()) for name, job in origin.jobs.items()]

    async def _show(self, call: ControlCall) -> Document:
        job = self._job(call)
        details = status.job_details(job, self._peer.origin.progress(job.spec.job), self._names())
        return {**details, "used": used_document(job, self._peer.name_of)}

    async def _explain(self, call: ControlCall) -> Document:
        task = call.arguments.get("task")
        return explain_document(self._job(call), None if task is None else int(task), self._peer.name_of)

    async def _result(self, call: ControlCall) -> Document:
        job = self._job(call)
        if job.end is None:
            if not call.arguments.get("wait"):
                raise UsageError(f"job {format_job_id(job.spec.job)} is still running: wait for it with --wait")
            await job.stream.ended()
        assert job.end is not None
        if job.spec.aggregation is Aggregation.NONE and not job.kept_all:
            raise UsageError("the single results of this job were too large to keep; they went to its submitter")
        rows = [[row.index, int(row.outcome), bytes(row.payload)] for _, row in sorted(job.kept.items())]
        return {**self._end_document(job.end), "rows": rows}

    async def _cancel(self, call: ControlCall) -> Document:
        job = self._job(call)
        self._peer.origin.cancel(job.spec.job)
        return {"job": format_job_id(job.spec.job), "state": self._peer.origin.progress(job.spec.job).state.value}

    async def _drop_task(self, call: ControlCall) -> None:
        """Stop one task of a job that goes on."""
        self._peer.origin.drop(JobId(bytes(call.arguments["job"])), int(call.arguments["task"]))

    async def _logs(self, call: ControlCall) -> list[Document]:
        job = self._job(call)
        return [_output_document(row, self._peer.name_of(row.peer)) for row in job.output]

    # --- handles --------------------------------------------------------------------------------------------------------

    async def _put(self, call: ControlCall) -> None:
        """Hold what the client feeds, piece by piece, until it drops it or is gone."""
        size, blob = int(call.arguments["size_bytes"]), BlobId(bytes(call.arguments["blob"]))
        if not 0 < size <= limits.VALUE_BYTES_MAX:
            raise UsageError(f"{size} bytes cannot be put: one value has up to {limits.VALUE_BYTES_MAX}")
        data = bytearray()
        async for piece in call.feed():
            data += piece
            if len(data) > size:
                break
        if len(data) != size or await asyncio.to_thread(blob_id_of, data) != blob:
            raise UsageError("what arrived is not what was announced: is the program that put it of another version?")
        handle = self._peer.handles.put(data, blob)
        held = self._held.get(call.client)
        if held is None:
            held = self._held[call.client] = []
            call.when_client_gone(lambda: self._client_gone(call.client))
        held.append(handle)

    async def _drop(self, call: ControlCall) -> None:
        handle = Handle(bytes(call.arguments["blob"]), int(call.arguments["size_bytes"]))
        held = self._held.get(call.client, [])
        # Only what this client put itself: another may need the same bytes.
        if handle in held:
            held.remove(handle)
            self._peer.handles.drop(handle)

    def _client_gone(self, client: object) -> None:
        for handle in self._held.pop(client, []):
            self._peer.handles.drop(handle)

    def _names(self) -> dict[PeerId, str]:
        names = {entry.record.peer: entry.record.name for entry in self._peer.view.entries}
        names[self._peer.peer_id] = self._peer.own.record.name
        return names


class _Teller:
    """Turns what happens to a job into notices for one client."""

    def __init__(self, peer: Peer, call: ControlCall) -> None:
        self._peer = peer
        self._call = call
        self._told_at = 0.0

    def progress(self, progress: Any) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told_at < PROGRESS_INTERVAL_S:
            return
        names = {peer: self._peer.name_of(peer) for peer, _ in progress.done_by_peer}
        if self._call.notice_now({"progress": status.progress_document(progress, names)}):
            self._told_at = now

    def output(self, rows: Sequence[OutputRow]) -> None:
        self._call.notice_now({"output": [self._output_row(row) for row in rows]})

    def _output_row(self, row: OutputRow) -> list[Any]:
        return [row.index, row.stream, row.text, bytes(row.peer), self._peer.name_of(row.peer)]

    def row(self, row: ResultRow) -> list[Any]:
        return [
            row.index,
            int(row.outcome),
            bytes(row.payload),
            bytes(row.peer),
            row.wall_us,
            self._peer.name_of(row.peer),
        ]


def _output_document(row: OutputRow, peer: str) -> Document:
    stream = "stdout" if row.stream == 1 else "stderr"
    return {"task": row.index, "stream": stream, "text": row.text, "peer": peer}


def _request_of(arguments: Mapping[str, Any]) -> JobRequest:
    program = bytes(arguments["program"])
    identifier = ProgramId(blob_id_of(program))
    entries = tuple(str(name) for name in arguments["entries"])
    if entries != entries_of(program):
        raise UsageError("the program does not have the entries that the call names")
    options: JobOptions = options_of(dict(arguments.get("options") or {}))
    weights = arguments.get("weights")
    expected = arguments.get("expected_tasks")
    spec = JobSpec(
        job=JobId(bytes(arguments["job"])),
        name=str(arguments["name"]),
        program=identifier,
        map_entry=entries[0],
        aggregation=Aggregation.parse(str(arguments["aggregation"])),
        reduce_entry=entries[1] if len(entries) > 1 else None,
        options=options,
        expected_tasks=None if expected is None else int(expected),
    )
    return JobRequest(
        spec,
        program,
        entries,
        None if weights is None else tuple(float(weight) for weight in weights),
        keep_results=True,
    )


async def _inputs_of(feed: AsyncIterator[Any]) -> AsyncIterator[Sequence[bytes]]:
    async for batch in feed:
        if not isinstance(batch, list) or not all(isinstance(item, bytes) for item in batch):
            raise UsageError("inputs of a job are lists of encoded arguments")
        yield batch


def _parts(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    parts: list[list[ResultRow]] = [[]]
    size = 0
    for row in rows:
        if parts[-1] and size + len(row.payload) > RESULT_BYTES_PER_NOTICE:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += len(row.payload)
    return parts
