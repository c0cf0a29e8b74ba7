"""Valid bytes of every kind, the same at each run, for the decoders in `registry.py`."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import msgpack
import numpy

from p2pcompute.execution import program, values, worker_protocol
from p2pcompute.execution.cluster import calls
from p2pcompute.execution.engines import command_program
from p2pcompute.membership.beacons import Beacon
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.engine import Demands
from p2pcompute.model.ids import JobId, PeerId, ProgramId, peer_id_of
from p2pcompute.model.peer import Address, Edge, Isolation, Role
from p2pcompute.net import control_frames
from p2pcompute.wire import families, framing, gossip, messages, record
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.beacon import network_tag, sign_beacon, view_hash
from p2pcompute.wire.delegation import DELEGATION_CONTEXT, MANIFEST_CONTEXT, Delegation, Manifest, delegate
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.membership import Membership
from p2pcompute.wire.revocation import RevocationList
from tests.support import samples
from tests.support.membership import NETWORK, FakeKey, make_record
from tests.support.networks import DAY_S, SeededEntropy

#: Within every window below; certificates that no socket sees may live at any time.
NOW_WALL = 1_800_000_000.0


def of_messages(family: tuple[type[messages.Message], ...]) -> list[bytes]:
    """Encoded messages of one family."""
    coder = families.MessageCodec(family)
    return [coder.encode(each) for each in samples.messages(random.Random(1)) if type(each) in family]


def believing(public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
    """A verifier that accepts every signature, so that the damage gets past it."""
    return True


def records() -> list[bytes]:
    """Signed records, bare and full."""
    key = FakeKey("anna")
    capability = Capability(8, 3000.0, 0.5, 16.0, 8.0, (Gpu("card", 24.0, 0.1),), 100.0, 2.0, 0.0)
    full = make_record(
        key,
        capability=capability,
        addresses=(Address("10.0.0.1", 9876), Address("fe80::1", 9876)),
        edges=(Edge(PeerId(bytes(32)), 0.01, 100.0), Edge(PeerId(bytes(range(32))), 0.2)),
        functions=("prime",),
        labels=("rack=3",),
        unknown={"later": [1, {"x": b"y"}]},
    )
    bare = make_record(key, addresses=(), roles=frozenset({Role.OBSERVE}), leaving=True)
    assert record.open_record(full.wire, believing).record == full.record
    return [full.wire, bare.wire]


def rumours() -> list[bytes]:
    """One of each kind, and one of a kind of a later version."""
    key, peer = FakeKey("anna"), FakeKey("bert").peer
    update = gossip.LoadUpdate(key.peer, 1, 2, 0.5, 0.25, 8.0)
    return [
        gossip.announcement_wire(gossip.Announcement(peer[: gossip.PREFIX_BYTES], 1_700_000_000_000, 7)),
        gossip.sign_suspicion(peer, 1_700_000_000_000, key),
        gossip.sign_load(update, key),
        b"\xff later",
    ]


def beacons() -> list[bytes]:
    """Signed beacons, calls and answers, one with bytes of a later version."""
    key = FakeKey("anna")
    call = Beacon(network_tag(NETWORK), key.public_key, b"instance", 1_000, 9876, 40_000, view_hash([]), False)
    variants = [call, dataclasses.replace(call, is_answer=True), dataclasses.replace(call, extra=b"later")]
    return [sign_beacon(each, key) for each in variants]


@dataclass(frozen=True)
class SampleNetwork:
    """Everything that a decoder of certificates may be given."""

    authority: Authority
    admin: Invitation
    invitation: Invitation
    under_admin: Invitation
    key: PeerKey
    membership: Membership
    guest_key: PeerKey
    other: Membership
    renewed: bytes
    successor: Authority
    revocations: RevocationList

    def certificates(self) -> list[bytes]:
        """All kinds of them, as DER."""
        owners = [self.authority.certificate, self.successor.certificate]
        invitations = [*self.admin.chain, *self.invitation.chain, *self.under_admin.chain, self.renewed]
        return [*owners, *invitations, self.membership.leaf, self.other.leaf]


@cache
def network() -> SampleNetwork:
    """A whole network; made once for a process."""
    entropy = SeededEntropy("fuzz")
    authority = Authority.create("office", entropy, NOW_WALL)
    roles = frozenset({Role.ADMIN, Role.SUBMIT})
    admin = authority.invite(now_wall=NOW_WALL, entropy=entropy, roles=roles, may_invite=True, label="anna")
    addresses = (Address("10.0.0.1", 9876), Address("host.example", 9876))
    invitation = authority.invite(now_wall=NOW_WALL, entropy=entropy, addresses=addresses)
    under_admin = admin.invite(roles=frozenset({Role.SUBMIT}), now_wall=NOW_WALL, entropy=entropy)
    key, guest_key = PeerKey.generate(entropy), PeerKey.generate(entropy)
    return SampleNetwork(
        authority,
        admin,
        invitation,
        under_admin,
        key,
        Membership.mint(key, invitation, NOW_WALL, entropy),
        guest_key,
        Membership.mint(guest_key, under_admin, NOW_WALL, entropy),
        authority.renew(invitation.chain[0], NOW_WALL + DAY_S, 500 * DAY_S, entropy),
        authority.successor(entropy, NOW_WALL),
        authority.revoke(None, invitations=[admin.id], now_wall=NOW_WALL),
    )


def delegated() -> tuple[SampleNetwork, Manifest, Delegation]:
    """A share of a job of the network's second peer, whose papers are the longest, for its first."""
    made = network()
    manifest = Manifest(
        JobId(b"j" * 12), made.membership.network, ProgramId(b"p" * 32), 100, 5, 2.5, 1 << 30, NOW_WALL + 60
    )
    coordinator = peer_id_of(made.membership.public_key)
    return made, manifest, Delegation(JobId(b"s" * 12), coordinator, 3, 1_000, NOW_WALL + 60)


def delegations() -> list[bytes]:
    """Signed delegations under short and long papers."""
    made, manifest, share = delegated()
    guest = delegate(made.guest_key, made.other, manifest, share)
    plain = dataclasses.replace(manifest, timeout_s=None, memory_bytes=None)
    return [guest, delegate(made.key, made.membership, plain, dataclasses.replace(share, epoch=0))]


def delegation_documents() -> tuple[bytes, bytes]:
    """The manifest and the delegation of the first of them, without signatures."""
    parts = msgpack.unpackb(delegations()[0])
    return parts[2], parts[4]


def delegation_of(manifest: bytes | None, share: bytes | None) -> bytes:
    """These documents, None for the valid one, bound to each other and signed by the origin."""
    version, papers, whole, _, given, _ = msgpack.unpackb(delegations()[0])
    said = whole if manifest is None else manifest
    if share is None:
        share = msgpack.packb({**msgpack.unpackb(given), "manifest": hashlib.sha256(said).digest()})
    key, end = network().guest_key, bytes([version])
    signatures = key.sign(MANIFEST_CONTEXT + end, said), key.sign(DELEGATION_CONTEXT + end, share)
    return msgpack.packb([version, papers, said, signatures[0], share, signatures[1]])


def frames() -> list[bytes]:
    """Frames of a link, one and several at a time."""
    hello = families.LINK_CODEC.encode(messages.Ping(7))
    each = [
        framing.message_frame(hello),
        framing.frame_header(framing.FrameType.CHUNK, 5, 3) + b"abc",
        framing.credit_frame(5, 1_000),
        framing.end_frame(5),
        framing.reset_frame(6),
    ]
    return [*each, b"".join(each)]


def control_frames_() -> list[bytes]:
    """Frames of a control socket."""
    each = [
        control_frames.encode_message(messages.Call(1, "peers", {})),
        control_frames.encode_message(messages.Feed(1, [1, 2], end=True)),
        control_frames.encode_credit(control_frames.Credit(1, 4)),
    ]
    return [*each, b"".join(each)]


def bootstrap_lists() -> list[bytes]:
    """Lists of first contacts."""
    return [b"# ours\n10.0.0.1:9876\n[fe80::1]:9876, host.example\n", b"10.0.0.1"]


def of_pickles() -> list[bytes]:
    """Pickles of what an allow-list lets through."""
    import collections
    import datetime
    import pickle

    import numpy

    plain: list[object] = [
        {"a": [1, 2.5, (b"x", "y")]},
        {1, 2},
        collections.OrderedDict(a=1),
        collections.deque([1], 3),
        datetime.timedelta(1),
        numpy.arange(4, dtype=">i2"),
        numpy.zeros(2, [("a", "i4"), ("b", "M8[ns]")]),
        numpy.array([None, "x"], dtype=object),
        numpy.float32(2.5),
    ]
    return [pickle.dumps(value, protocol) for value in plain for protocol in (4, 5)]


def of_values() -> list[bytes]:
    """Values of every kind that travels."""
    plain: list[object] = [
        None,
        True,
        1 << 70,
        -5,
        2.5,
        float("nan"),
        "text",
        b"bytes",
        bytearray(b"x"),
        1 + 2j,
        [1, [2]],
        {"k": 1},
    ]
    typed: list[object] = [
        (1, 2),
        {1, 2},
        frozenset({"a"}),
        {(1, 2): "pair"},
        decimal.Decimal("1.5"),
        datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 2),
        datetime.timedelta(seconds=3),
        PurePosixPath("a/b"),
        range(3),
        slice(1, 2),
        numpy.arange(6).reshape(2, 3),
        numpy.float64(1.5),
        ValueError("wrong"),
        ((1, 2), {"named": [numpy.zeros(3)]}),
    ]
    return [values.encode(value) for value in plain + typed]


def failures() -> list[bytes]:
    """Exceptions as they come back."""
    return [values.encode_failure(ValueError("wrong")), values.encode_failure(KeyError((1, 2)))]


def programs() -> list[bytes]:
    """Programs with everything in them."""
    source = program.Module("helper", False, b"def double(x):\n    return 2 * x\n", "/home/anna/helper.py")
    body = program.Body(
        version=1,
        modules=(source, program.Module("package", True, b"", "package/__init__.py")),
        files=(("package/data.txt", b"data"),),
        entries=(("map", ["name", "helper", "double"]), ("reduce", ["empty"])),
        data=(("helper", "FACTOR", values.encode(2)),),
        requires=(program.Requirement("numpy", "numpy", "1.26"),),
        main="",
    )
    return [
        program.pack_program(body),
        program.pack_program(dataclasses.replace(body, entries=(), python_minor=(3, 11))),
    ]


def commands() -> list[bytes]:
    """Programs that run an executable."""
    demands = Demands(Isolation.SANDBOX, ("folder:data",))
    return [
        command_program.pack_command("convert"),
        command_program.pack_command(
            "./tool/run.sh",
            files={"tool/run.sh": b"#!/bin/sh\n", "data.txt": b"data"},
            environment={"LANG": "C"},
            out=["out.png", "results/"],
            check=False,
            demands=demands,
        ),
    ]


def cluster_calls() -> list[bytes]:
    """Calls of a cluster's workers."""
    rows = ((1, 0, 2, b"arguments", None), (2, 1, 0, b"", 1.5))
    call = calls.Call(
        bytes(16), bytes(32), bytes(32), rows, 1 << 30, (bytes(32),), ((bytes(32), b"data"),), (bytes(32),)
    )
    return [calls.pack_call(call), calls.pack_call(calls.Call(bytes(16), bytes(32), bytes(32)))]


def cluster_answers() -> list[bytes]:
    """What they answer."""
    failed = calls.Failed("module", "numpy", "not installed")
    whole = calls.Answer(
        ((1, 0, 0, 7, b"x"),),
        ((2, 1),),
        ((1, 0.5, "half"),),
        ((1, 2, b"e"),),
        (bytes(32),),
        ((bytes(32), 9),),
        "gone",
        failed,
    )
    return [calls.pack_answer(whole), calls.pack_answer(calls.Answer())]


def cluster_sites() -> list[bytes]:
    """What they say of themselves."""
    return [calls.pack_site(calls.Site("3.11.7", "0.1.0"))]


def worker_heads() -> list[bytes]:
    """Heads of frames between a worker and its peer."""
    return [msgpack.packb([number, 1, "x", b"y"]) for number in (1, 15, 24)]


def worker_ends() -> list[bytes]:
    """Rows of ENDS."""
    rows = [worker_protocol.pack_end(serial, 0, 12, b"payload") for serial in range(3)]
    return [b"", rows[0], b"".join(rows)]


def as_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """A decoder of text, fed with bytes: whatever they are, each is a character."""
    return lambda data: read(data.decode("utf-8", "replace"))


def natpmp_answers() -> list[bytes]:
    """A router's address, a forwarded port and a refusal."""
    texts = ("0080000000000e1005060708", "0082000000000e102694269500001c20", "0081000200000e10")
    return [bytes.fromhex(text) for text in texts]


def ssdp_answers() -> list[bytes]:
    """What a router says to a search."""
    return [b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLocation: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"]


def linux_routes() -> list[bytes]:
    """A table of routes as Linux shows it."""
    return [b"Iface\tDestination\tGateway\n" + b"eth0\t00000000\tFE01A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"]


def netstat_routes() -> list[bytes]:
    """Tables of routes as macOS and Windows print them."""
    return [b"default 192.168.1.1 UGScg en0\n", b" 0.0.0.0 0.0.0.0 192.168.1.1 192.168.1.20 25\n"]


#: A module with a sample of each kind of import and export.
WASM_MODULE = bytes.fromhex(
    "0061736d01000000010d0260027f7c017e60027f7f017f021c0303656e760166000003656e7601740170000103656e760167037f0003020101050401010102071002066d656d6f727902000361646400010a09010700200020016a0b"
)


def wasm_modules() -> list[bytes]:
    """Modules with and without anything in them."""
    return [WASM_MODULE, b"\0asm\1\0\0\0"]


def wasm_programs() -> list[bytes]:
    """Programs of modules."""
    bare = {"engine": "wasm", "version": 1, "module": WASM_MODULE, "entries": [["add", 0], ["shout", 1]]}
    more = {"fuel": 7, "memory_bytes": 1 << 20, "timeout_ms": 5, "demands": {"grants": ["gpu"]}}
    return [msgpack.packb(bare), msgpack.packb({**bare, **more})]
