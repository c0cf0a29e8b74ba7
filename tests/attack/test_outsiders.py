"""Strangers who have no invitation: noise, floods, floods in slow motion, and replays, at every port, while a job runs."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import time
from collections.abc import Iterator

import pytest

from p2pcompute.model import limits
from p2pcompute.wire.datagram import Kind, datagram_tag, write_hello, write_proof, write_unknown
from p2pcompute.wire.versions import ALPN_STREAM
from tests.attack.field import Field, field, keep_up
from tests.support.peers import until_now

#: Each attack has an address of its own, so that it can be seen who is named.
_FLOODER, _REPLAYER, _CALLER, _KNOCKER, _DAWDLER, _BEACONS, _SPEAKER = (f"127.0.0.{number}" for number in range(71, 78))
_ATTACK_S = 3.0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with field(tmp_path_factory.mktemp("field")) as found:
        yield found


@contextlib.contextmanager
def sender(host: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((host, 0))
        opened.setblocking(False)
        yield opened


def throw(opened: socket.socket, data: bytes, port: int) -> None:
    with contextlib.suppress(OSError):
        opened.sendto(data, ("127.0.0.1", port))


def network_id(honest: Field) -> bytes:
    return bytes.fromhex(honest.peers[0].ask("status")["network_id"])


def test_a_flood_of_junk_datagrams(honest: Field) -> None:
    """Noise of every size, handshakes of other networks, and well-formed ones of this network that lead nowhere."""
    dice = random.Random(1)
    tag = datagram_tag(network_id(honest))
    with sender(_FLOODER) as opened, honest.working() as job:

        def volley() -> None:
            for port in honest.ports:
                for _ in range(20):
                    throw(opened, dice.randbytes(dice.randrange(1, 1_400)), port)
                    throw(opened, bytes((Kind.SEALED,)) + dice.randbytes(60), port)
                    throw(opened, write_hello(dice.randbytes(8), 7, dice.randbytes(32)), port)
                    throw(opened, write_hello(tag, dice.getrandbits(32), dice.randbytes(32)), port)
                    throw(opened, write_unknown(tag, dice.getrandbits(32), 1), port)
                throw(opened, bytes(60_000), port)

        keep_up(volley, job, _ATTACK_S, rounds_min=51)
    for by in range(2):
        honest.blames(_FLOODER, "they are dropped", by=by)


def test_forged_proofs_cost_no_more_than_they_may(honest: Field) -> None:
    """Certificates are only looked at for who has shown the cookie; whoever does, with nonsense behind it, is named and held back."""
    dice = random.Random(2)
    tag = datagram_tag(network_id(honest))
    with sender(_CALLER) as opened, honest.working() as job:
        opened.setblocking(True)
        opened.settimeout(0.2)

        def volley() -> None:
            ephemeral = dice.randbytes(32)
            for port in honest.ports:
                throw(opened, write_hello(tag, 9, ephemeral), port)
                with contextlib.suppress(OSError):
                    cookie = opened.recv(2_000)[-16:]
                    proof = write_proof(tag, 9, ephemeral, cookie, 0, dice.randbytes(500))
                    for _ in range(8):
                        throw(opened, proof + dice.randbytes(64), port)

        keep_up(volley, job, _ATTACK_S)
    honest.blames(_CALLER, "datagrams refused")


def test_beacons_of_every_wrong_kind(honest: Field) -> None:
    dice = random.Random(3)
    with sender(_BEACONS) as opened, honest.working() as job:

        def volley() -> None:
            for _ in range(50):
                throw(opened, b"p2pb\x01\x00" + dice.randbytes(132), honest.beacon_port)
                throw(opened, dice.randbytes(dice.randrange(1, 3_000)), honest.beacon_port)
            # The shared port hands a unicast datagram to one of its sockets only.
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                opened.sendto(dice.randbytes(200), ("127.255.255.255", honest.beacon_port))

        keep_up(volley, job, _ATTACK_S)
    for by in range(2):
        honest.blames(_BEACONS, "beacon", by=by)


def connected(host: str, port: int) -> socket.socket | None:
    opened = socket.socket()
    try:
        opened.bind((host, 0))
        opened.settimeout(2)
        opened.connect(("127.0.0.1", port))
    except OSError:
        opened.close()
        return None
    return opened


def test_connections_without_end(honest: Field) -> None:
    """Connects that say nothing, garbage, half a TLS greeting, lengths without end: thousands of them."""
    dice = random.Random(4)
    openings = (
        b"",
        dice.randbytes(400),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(40),
        struct.pack(">I", 0xFFFFFFFF) + dice.randbytes(64),
        bytes(70_000),
    )
    with honest.working() as job:

        def volley() -> None:
            for port in honest.ports:
                for data in openings:
                    opened = connected(_KNOCKER, port)
                    if opened is not None:
                        with opened, contextlib.suppress(OSError):
                            opened.sendall(data)

        keep_up(volley, job, _ATTACK_S)
    for by in range(2):
        honest.blames(_KNOCKER, "", by=by)


def test_dawdlers_hold_no_place_for_long(honest: Field) -> None:
    """A byte of a TLS greeting now and then, from as many connections as one host may open: others still get in, the dawdlers out."""
    with honest.working(), contextlib.ExitStack() as stack:
        opened = [connected(_DAWDLER, honest.ports[0]) for _ in range(100)]
        dawdling = [stack.enter_context(each) for each in opened if each is not None]
        greeting = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
        started = time.monotonic()
        while time.monotonic() - started < 2 * _ATTACK_S:
            at = int((time.monotonic() - started) * 10)
            for each in dawdling:
                with contextlib.suppress(OSError):
                    each.send(greeting[at : at + 1])
            time.sleep(0.1)  # what is slow about it
        # However busily they dawdle, their time ends.
        for each in dawdling:
            each.settimeout(limits.HANDSHAKE_TIMEOUT_S)
            with contextlib.suppress(ConnectionError):
                assert each.recv(100) is not None
        assert time.monotonic() - started < 2 * limits.HANDSHAKE_TIMEOUT_S
    honest.blames(_DAWDLER, "")
    late = honest.home.up("dora", "--slots", "0")
    until_now(lambda: {"anna", "bert"} <= late.linked_names, "a newcomer gets in")
    late.kill()


def test_tls_without_a_certificate_is_told_why(honest: Field) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_STREAM])
    with honest.working() as job:

        def knock() -> None:
            opened = connected(_SPEAKER, honest.ports[0])
            if opened is None:
                return
            with opened, contextlib.suppress(OSError), context.wrap_socket(opened) as tls:
                tls.sendall(bytes(2_000))
                tls.recv(1_000)

        keep_up(knock, job, _ATTACK_S)
    honest.blames(_SPEAKER, "certificate")
