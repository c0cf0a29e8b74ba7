"""Every function that turns a stranger's bytes into something, and every one that only looks like it.

`test_fuzz.py` finds the candidates by itself (`discover`): public functions and methods of the rooms below whose first
parameter is bytes, or a text that their name says they read. One that is in neither table here fails the tests.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from p2pcompute.execution import loader, pickles, program, program_zip, values, worker_protocol
from p2pcompute.execution.cluster import calls
from p2pcompute.execution.container import program as container_program
from p2pcompute.execution.engines import command_program, document, entries, wasm_binary, wasm_program
from p2pcompute.model.errors import (
    AdmissionError,
    CorruptFileError,
    LinkClosedError,
    P2PComputeError,
    PeerError,
    ProtocolError,
    ResultRefusedError,
    UsageError,
)
from p2pcompute.model.ids import PeerId
from p2pcompute.net import portmap_gateway, portmap_natpmp, portmap_upnp
from p2pcompute.net.bootstrap_list import parse_bootstrap_list
from p2pcompute.net.control_frames import FrameParser, FrameProtocol
from p2pcompute.net.dht import frames as dht_frames
from p2pcompute.net.dht.contacts import read_contacts
from p2pcompute.net.link import Link, LinkState
from p2pcompute.wire import (
    beacon,
    certificates,
    chain,
    codec,
    datagram,
    delegation,
    families,
    framing,
    gossip,
    identity,
    messages,
    pointer,
    record,
)
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.revocation import RevocationList
from tests.fuzz import container_samples as cs
from tests.fuzz import datagram_samples as ds
from tests.fuzz import dht_samples as dhs
from tests.fuzz import relay_samples as rs
from tests.fuzz import wire_samples as ws

#: Rooms in which a stranger's bytes arrive. Pure rooms above `wire` get decoded messages only.
ROOMS = ("wire", "execution", "net")
_BYTES = {"bytes", "bytearray", "memoryview", "Buffer", "collections.abc.Buffer"}
#: What is called so writes bytes of our own.
_WRITING = ("write", "send", "sign", "pack", "encode")
_READING = ("decode", "parse", "open", "load", "read", "unpack", "from_", "feed", "verify")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How one decoder is fed. `samples`: valid bytes, to be damaged; `raises`: all that may come out of it."""

    call: Callable[[bytes], object]
    samples: Callable[[], list[bytes]]
    raises: tuple[type[P2PComputeError], ...] = (PeerError,)


# --- discovery --------------------------------------------------------------------------------------------------------


def _modules(rooms: tuple[str, ...]) -> Iterator[ModuleType]:
    for room in rooms:
        package = importlib.import_module(f"p2pcompute.{room}")
        yield package
        for each in pkgutil.walk_packages(package.__path__, f"p2pcompute.{room}."):
            if not each.name.endswith("__main__"):
                yield importlib.import_module(each.name)


def _first_parameter(function: Callable[..., Any], *, skip_first: bool) -> inspect.Parameter | None:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    parameters = parameters[1:] if skip_first else parameters
    return parameters[0] if parameters else None


def takes_bytes(name: str, parameter: inspect.Parameter | None) -> bool:
    """Whether a function called `name` whose first parameter this is looks like a decoder."""
    if parameter is None or (name.startswith(_WRITING) and not name.startswith("signed_")):
        return False
    parts = {part.strip() for part in str(parameter.annotation).strip("'\"").split("|")}
    return bool(parts & _BYTES) or ("str" in parts and name.startswith(_READING))


def _members(owner: type) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    for name, raw in sorted(vars(owner).items()):
        if name.startswith("_"):
            continue
        if isinstance(raw, classmethod):
            yield name, raw.__func__, True
        elif isinstance(raw, staticmethod):
            yield name, raw.__func__, False
        elif inspect.isfunction(raw):
            yield name, raw, True


def discover(rooms: tuple[str, ...] = ROOMS) -> list[str]:
    """The full names of everything that looks like a decoder."""
    found = []
    for module in _modules(rooms):
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value):
                if getattr(value, "_is_protocol", False):
                    continue
                found += [
                    f"{module.__name__}.{name}.{member}"
                    for member, function, skip_first in _members(value)
                    if takes_bytes(member, _first_parameter(function, skip_first=skip_first))
                ]
            elif inspect.isfunction(value) and takes_bytes(name, _first_parameter(value, skip_first=False)):
                found.append(f"{module.__name__}.{name}")
    return found


# --- how some are fed -------------------------------------------------------------------------------------------------


def _feed_pieces(feed: Callable[[bytes], object], data: bytes) -> None:
    # As a network might cut it: three pieces, then one byte at a time for a short rest.
    third = max(len(data) // 3, 1)
    pieces = [
        data[:third],
        data[third : 2 * third],
        *(data[at : at + 1] for at in range(2 * third, min(len(data), 2 * third + 64))),
    ]
    for piece in pieces:
        feed(piece)


def _frame_reader(data: bytes) -> object:
    reader = framing.FrameReader()
    _feed_pieces(reader.feed, data)
    if reader.failure is not None:
        raise reader.failure
    return reader


def _frame_protocol(data: bytes) -> object:
    async def main() -> None:
        protocol = FrameProtocol(lambda item: None, lambda: None)
        protocol.data_received(data)

    asyncio.run(main())
    return None


class _Hub:
    """A hub that admits whoever says Hello, so that what follows it is heard too."""

    def greeted(self, link: Link, hello: messages.Hello) -> None:
        link.state = LinkState.UP

    def proposed(self, link: Link) -> None:
        pass

    def agreed(self, link: Link) -> None:
        pass

    def received(self, link: Link, message: messages.Message) -> None:
        pass

    def lost(self, link: Link, error: Exception | None) -> None:
        pass


class _Clock:
    def monotonic(self) -> float:
        return 1.0

    def wall(self) -> float:
        return ws.NOW_WALL


def _link(data: bytes) -> object:
    async def main() -> None:
        for dialled in (False, True):
            Link(_Hub(), _Clock(), dialled=dialled).feed(data)

    asyncio.run(main())
    return None


def _link_frames() -> list[bytes]:
    told = ws.of_messages(families.LINK_MESSAGES)
    hello = framing.message_frame(told[0])
    bulk = b"".join(ws.frames())
    return [hello + framing.message_frame(each) for each in told] + [hello + bulk, bulk]


def _admit(leaf: bytes) -> object:
    trust = ws.network().membership.trust(None)
    return trust.admit(leaf, ws.network().membership.chain, ws.NOW_WALL, expected=None)


def _admit_under(issuer: bytes) -> object:
    network = ws.network()
    return network.membership.trust(None).admit(network.membership.leaf, [issuer], ws.NOW_WALL, expected=None)


def _read_delegation(data: bytes) -> object:
    return delegation.read_delegation(data, ws.network().membership.trust(None), ws.NOW_WALL)


def _renewed_der() -> list[bytes]:
    return [ws.network().renewed]


def _renew(invitation: bytes) -> object:
    return ws.network().authority.renew(invitation, ws.NOW_WALL, 500 * ws.DAY_S, ws.SeededEntropy("renew"))


def _renew_as_admin(invitation: bytes) -> object:
    return ws.network().admin.renew(invitation, ws.NOW_WALL, 100 * ws.DAY_S, ws.SeededEntropy("renew"))


def _members_chain() -> list[bytes]:
    return list(ws.network().membership.chain)


_ADMISSION = (AdmissionError, ProtocolError)

# --- the tables -------------------------------------------------------------------------------------------------------

DECODERS: dict[str, Decoder] = {
    "p2pcompute.wire.pointer.decode_pointer": Decoder(dhs.read_whole, dhs.pointers, (ProtocolError,)),
    "p2pcompute.wire.pointer.open_pointer": Decoder(
        lambda data: pointer.open_pointer(data, dhs.believing), dhs.pointers, (ProtocolError,)
    ),
    "p2pcompute.wire.pointer.read_address": Decoder(pointer.read_address, dhs.addresses, (ProtocolError,)),
    "p2pcompute.net.dht.contacts.read_contacts": Decoder(read_contacts, dhs.contacts, (ProtocolError,)),
    "p2pcompute.net.dht.frames.read_request": Decoder(dht_frames.read_request, dhs.request_bodies, (ProtocolError,)),
    "p2pcompute.net.dht.frames.read_reply": Decoder(dhs.read_any_reply, dhs.reply_bodies, (ProtocolError,)),
    "p2pcompute.net.dht.protocol.HardenedProtocol.datagram_received": Decoder(dhs.ask, dhs.requests, ()),
    "p2pcompute.net.dht.protocol.HardenedProtocol.datagram_received (replies)": Decoder(dhs.answer, dhs.replies, ()),
    "p2pcompute.net.dht.storage.SignedStorage.keep": Decoder(dhs.keep, dhs.pointers, (ProtocolError,)),
    "p2pcompute.wire.datagram.decode_handshake": Decoder(datagram.decode_handshake, ds.handshakes, (ProtocolError,)),
    "p2pcompute.wire.datagram.decode_papers": Decoder(datagram.decode_papers, ds.papers, (ProtocolError,)),
    "p2pcompute.wire.session.Ephemeral.agree": Decoder(ds.agree, lambda: [b"\x09" + bytes(31)], (ProtocolError,)),
    "p2pcompute.wire.session.Opener.open": Decoder(ds.open_sealed, ds.sealed, ()),
    "p2pcompute.net.cookies.Cookies.holds": Decoder(ds.hold_cookie, lambda: [bytes(range(48))], ()),
    "p2pcompute.net.sessions.Sessions.receive": Decoder(ds.feed_machine, ds.datagrams, ()),
    "p2pcompute.wire.codec.unpack": Decoder(
        codec.unpack, lambda: ws.of_messages(families.LINK_MESSAGES), (ProtocolError,)
    ),
    "p2pcompute.wire.families.MessageCodec.decode": Decoder(
        families.LINK_CODEC.decode, lambda: ws.of_messages(families.LINK_MESSAGES), (ProtocolError,)
    ),
    "p2pcompute.wire.families.MessageCodec.decode (control)": Decoder(
        families.CONTROL_CODEC.decode, lambda: ws.of_messages(families.CONTROL_MESSAGES), (ProtocolError,)
    ),
    "p2pcompute.wire.record.open_record": Decoder(
        lambda data: record.open_record(data, ws.believing), ws.records, (ProtocolError,)
    ),
    "p2pcompute.wire.gossip.read_rumour": Decoder(
        lambda data: gossip.read_rumour(data, ws.believing), ws.rumours, (ProtocolError,)
    ),
    "p2pcompute.wire.families.MessageCodec.decode (gossip)": Decoder(
        families.GOSSIP_CODEC.decode, lambda: ws.of_messages(families.GOSSIP_MESSAGES), (ProtocolError,)
    ),
    "p2pcompute.wire.beacon.decode_beacon": Decoder(beacon.decode_beacon, ws.beacons, (ProtocolError,)),
    "p2pcompute.wire.framing.parse_frames": Decoder(framing.parse_frames, ws.frames, (ProtocolError,)),
    "p2pcompute.wire.framing.FrameReader.feed": Decoder(_frame_reader, ws.frames, (ProtocolError,)),
    "p2pcompute.wire.certificates.read_certificate": Decoder(
        certificates.read_certificate, lambda: ws.network().certificates(), (ProtocolError,)
    ),
    "p2pcompute.wire.chain.read_owner": Decoder(
        chain.read_owner,
        lambda: [ws.network().authority.certificate, ws.network().successor.certificate],
        (ProtocolError,),
    ),
    "p2pcompute.wire.identity.SigningKey.from_pem": Decoder(
        identity.SigningKey.from_pem,
        lambda: [identity.SigningKey(bytes(range(32))).to_pem()],
        (CorruptFileError,),
    ),
    "p2pcompute.wire.gossip.is_witness": Decoder(
        lambda data: gossip.is_witness(data[:64], data[64:96], PeerId(bytes(32)), 7, identity.verify_signature),
        lambda: [bytes(range(96))],
        (),
    ),
    "p2pcompute.wire.identity.verify_signature": Decoder(
        lambda data: identity.verify_signature(data[:32], b"context", data[32:64], data[64:]),
        lambda: [bytes(range(128))],
        (),
    ),
    "p2pcompute.wire.authority.Authority.from_bytes": Decoder(
        Authority.from_bytes, lambda: [ws.network().authority.to_bytes()], (CorruptFileError,)
    ),
    "p2pcompute.wire.authority.Authority.import_": Decoder(
        lambda data: Authority.import_(data, "a long passphrase"),
        lambda: [ws.network().authority.export("a long passphrase", ws.SeededEntropy("export"))],
        (CorruptFileError, UsageError),
    ),
    "p2pcompute.wire.authority.Authority.renew": Decoder(_renew, _members_chain, _ADMISSION),
    "p2pcompute.wire.invitation.Issuer.renew": Decoder(
        _renew_as_admin, lambda: [ws.network().under_admin.chain[0]], _ADMISSION
    ),
    "p2pcompute.wire.invitation.Invitation.renew": Decoder(
        _renew_as_admin, lambda: [ws.network().under_admin.chain[0]], _ADMISSION
    ),
    "p2pcompute.wire.invitation.Invitation.renewed": Decoder(
        lambda data: ws.network().invitation.renewed(data), _renewed_der, _ADMISSION
    ),
    "p2pcompute.wire.invitation.Invitation.from_token": Decoder(
        ws.as_text(lambda text: Invitation.from_token(text, ws.NOW_WALL)),
        lambda: [ws.network().invitation.token().encode(), ws.network().under_admin.token().encode()],
        (AdmissionError,),
    ),
    "p2pcompute.wire.membership.Membership.renewed": Decoder(
        lambda data: ws.network().membership.renewed(data), _renewed_der, _ADMISSION
    ),
    "p2pcompute.wire.membership.Membership.trusting": Decoder(
        lambda data: ws.network().membership.trusting(data), lambda: [ws.network().successor.certificate], _ADMISSION
    ),
    "p2pcompute.wire.membership.Trust.admit": Decoder(_admit, lambda: [ws.network().membership.leaf], _ADMISSION),
    "p2pcompute.wire.membership.Trust.admit (the invitation)": Decoder(_admit_under, _members_chain, _ADMISSION),
    "p2pcompute.wire.membership.Trust.renewal": Decoder(
        lambda data: ws.network().membership.trust(None).renewal(data, ws.NOW_WALL), _renewed_der, _ADMISSION
    ),
    "p2pcompute.wire.delegation.read_delegation": Decoder(_read_delegation, ws.delegations, _ADMISSION),
    # Whatever the documents say, the origin itself has signed it: the damage gets past the signatures.
    "p2pcompute.wire.delegation.read_delegation (the manifest)": Decoder(
        lambda data: _read_delegation(ws.delegation_of(data, None)), lambda: [ws.delegation_documents()[0]], _ADMISSION
    ),
    "p2pcompute.wire.delegation.read_delegation (the share)": Decoder(
        lambda data: _read_delegation(ws.delegation_of(None, data)), lambda: [ws.delegation_documents()[1]], _ADMISSION
    ),
    "p2pcompute.wire.revocation.RevocationList.open": Decoder(
        lambda data: RevocationList.open(data, [ws.network().authority.certificate]),
        lambda: [ws.network().revocations.wire],
        (ProtocolError,),
    ),
    "p2pcompute.net.control_frames.FrameParser.feed": Decoder(
        lambda data: _feed_pieces(FrameParser().feed, data), ws.control_frames_, (ProtocolError,)
    ),
    "p2pcompute.net.control_frames.FrameProtocol.data_received": Decoder(_frame_protocol, ws.control_frames_, ()),
    "p2pcompute.net.relay_pipe.TlsPipe.feed": Decoder(
        rs.feed_accepting, rs.client_hellos, (AdmissionError, LinkClosedError)
    ),
    "p2pcompute.net.relay_pipe.TlsPipe.feed (dialled)": Decoder(
        rs.feed_dialling, rs.server_hellos, (AdmissionError, LinkClosedError)
    ),
    "p2pcompute.net.relay_pipe.ClearPipe.feed": Decoder(rs.feed_clear, rs.clear, ()),
    "p2pcompute.net.relay_carrier.RelayCarrier.received": Decoder(
        lambda data: rs.feed_carrier(_Hub(), _Clock(), data), rs.clear, (ProtocolError,)
    ),
    "p2pcompute.net.link.Link.feed": Decoder(_link, _link_frames, ()),
    "p2pcompute.net.portmap_natpmp.decode_answer": Decoder(
        portmap_natpmp.decode_answer, ws.natpmp_answers, (ProtocolError,)
    ),
    "p2pcompute.net.portmap_upnp.decode_search_answer": Decoder(
        lambda data: portmap_upnp.decode_search_answer(data, "192.168.1.1"), ws.ssdp_answers, (ProtocolError,)
    ),
    "p2pcompute.net.portmap_gateway.parse_linux_routes": Decoder(
        ws.as_text(portmap_gateway.parse_linux_routes), ws.linux_routes, ()
    ),
    "p2pcompute.net.portmap_gateway.parse_netstat_routes": Decoder(
        ws.as_text(portmap_gateway.parse_netstat_routes), ws.netstat_routes, ()
    ),
    "p2pcompute.net.bootstrap_list.parse_bootstrap_list": Decoder(
        ws.as_text(parse_bootstrap_list), ws.bootstrap_lists, (UsageError,)
    ),
    "p2pcompute.execution.values.decode": Decoder(values.decode, ws.of_values, (ProtocolError, ResultRefusedError)),
    "p2pcompute.execution.pickles.open_pickle": Decoder(
        lambda data: pickles.open_pickle(data, pickles.allow_list(["numpy"]), values.ClassResolver({})),
        ws.of_pickles,
        (ProtocolError, ResultRefusedError),
    ),
    "p2pcompute.execution.values.decode_failure": Decoder(
        values.decode_failure, ws.failures, (ProtocolError, ResultRefusedError)
    ),
    "p2pcompute.execution.engines.document.head_of": Decoder(document.head_of, ws.programs, (ProtocolError,)),
    "p2pcompute.execution.cluster.calls.open_call": Decoder(calls.open_call, ws.cluster_calls, (ProtocolError,)),
    "p2pcompute.execution.cluster.calls.open_answer": Decoder(calls.open_answer, ws.cluster_answers, (ProtocolError,)),
    "p2pcompute.execution.cluster.calls.open_site": Decoder(calls.open_site, ws.cluster_sites, (ProtocolError,)),
    "p2pcompute.execution.engines.command_program.open_command": Decoder(
        command_program.open_command, ws.commands, (ProtocolError,)
    ),
    "p2pcompute.execution.engines.command_program.missing_executable": Decoder(
        command_program.missing_executable, ws.commands, (ProtocolError,)
    ),
    "p2pcompute.execution.engines.entries.entries_of": Decoder(
        entries.entries_of,
        lambda: [*ws.programs(), *ws.wasm_programs(), *ws.commands(), *cs.container_programs()],
        (ProtocolError,),
    ),
    "p2pcompute.execution.engines.wasm_binary.interface_of": Decoder(
        wasm_binary.interface_of, ws.wasm_modules, (ProtocolError,)
    ),
    "p2pcompute.execution.engines.wasm_program.open_wasm_program": Decoder(
        wasm_program.open_wasm_program, ws.wasm_programs, (ProtocolError,)
    ),
    "p2pcompute.execution.container.program.open_container_program": Decoder(
        container_program.open_container_program, cs.container_programs, (ProtocolError,)
    ),
    "p2pcompute.execution.container.program.open_container_task": Decoder(
        container_program.open_container_task, cs.container_tasks, (ProtocolError, ResultRefusedError)
    ),
    "p2pcompute.execution.program_zip.open_program_zip": Decoder(
        program_zip.open_program_zip, cs.zip_programs, (UsageError,)
    ),
    "p2pcompute.execution.program_zip.unpack_program_zip": Decoder(
        program_zip.unpack_program_zip, cs.zip_programs, (UsageError,)
    ),
    "p2pcompute.execution.program.open_program": Decoder(program.open_program, ws.programs, (ProtocolError,)),
    "p2pcompute.execution.program.program_entries": Decoder(program.program_entries, ws.programs, (ProtocolError,)),
    "p2pcompute.execution.loader.missing_requirements": Decoder(
        loader.missing_requirements, ws.programs, (ProtocolError,)
    ),
    "p2pcompute.execution.worker_protocol.parse_head": Decoder(
        worker_protocol.parse_head, ws.worker_heads, (ProtocolError,)
    ),
    "p2pcompute.execution.worker_protocol.parse_header": Decoder(
        worker_protocol.parse_header, lambda: [worker_protocol.pack_frame([15, 1], 40)], (ProtocolError,)
    ),
    "p2pcompute.execution.worker_protocol.parse_ends": Decoder(
        worker_protocol.parse_ends, ws.worker_ends, (ProtocolError,)
    ),
}

_OWN_BYTES = "writes bytes of our own"
_OWN_KEY = "computes from a key whose length the caller has checked"
_OWN_WORD = "takes a name that this machine's user typed"

#: What looks like a decoder and is none, with the reason.
NOT_DECODERS: dict[str, str] = {
    "p2pcompute.execution.sandbox.seccomp.for_process": _OWN_BYTES,
    "p2pcompute.wire.session.digest": "hashes whatever it is given",
    "p2pcompute.net.handshakes.Candidate.prove": _OWN_BYTES,
    "p2pcompute.net.udp_port.UdpPort.hand_in": "passes a datagram on unread",
    "p2pcompute.net.udp_port.open_udp_port": "takes an address that this machine's user typed",
    "p2pcompute.execution.pool_worker.PoolWorker.take_want": "judges what a parsed frame says; a worker that lies is killed for it",
    "p2pcompute.wire.authority.open_network": _OWN_WORD,
    "p2pcompute.wire.chain.open_owner_certificate": _OWN_WORD,
    "p2pcompute.wire.chain.open_owner_key": _OWN_WORD,
    "p2pcompute.wire.certificates.Certificate.signed_with": "verifies with a key; the bytes are in the certificate, read before",
    "p2pcompute.wire.certificates.key_id": _OWN_KEY,
    "p2pcompute.wire.certificates.serial_from": "hashes bytes of our own",
    "p2pcompute.wire.invitation.invitation_name": _OWN_KEY,
    "p2pcompute.wire.framing.message_frame": _OWN_BYTES,
    "p2pcompute.wire.framing.credit_of": "takes the payload of a frame that the reader has measured",
    "p2pcompute.execution.cluster.clusters.opener_of": _OWN_WORD,
    "p2pcompute.execution.cluster.remote.run": "reads with open_call, and then runs it, which is what a worker of a cluster is for",
    "p2pcompute.execution.cluster.seats.Seat.begin": "takes a name of our own",
    "p2pcompute.execution.cluster.remote.stop": "looks up a name",
    "p2pcompute.execution.cluster.remote.describe": "takes nothing",
    "p2pcompute.execution.cluster.remote.Host.stop_call": "looks up a name",
    "p2pcompute.execution.bundle.program_of": "names bytes of our own by their digest",
    "p2pcompute.execution.worker_protocol.StatePage.mirror": "a worker's side: keeps a row of its own",
    "p2pcompute.execution.engines.wasm_binary.is_wasm": "looks at the first four bytes",
    "p2pcompute.execution.engines.wasm_program.binary_of": "takes a module that this machine's user gives",
    "p2pcompute.execution.engines.wasm_program.make_wasm_program": "takes a module that this machine's user gives",
    "p2pcompute.execution.engines.wasm_python_guest.Guest.load": "runs the program, where nothing can be harmed; it reads with open_program",
    "p2pcompute.execution.loader.load_program": "runs the program, in a worker, which is what a worker is for; it reads with open_program",
}
