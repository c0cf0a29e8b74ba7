"""Datagrams of every kind, and machines in every state to feed them to, for `registry.py`."""

from __future__ import annotations

from functools import cache

from p2pcompute.model.peer import Address
from p2pcompute.net.cookies import Cookies
from p2pcompute.wire.datagram import SEALED_BYTES_MIN, Kind, decode_handshake, pack_papers, write_unknown
from p2pcompute.wire.session import Ephemeral, Opener, Sealer
from tests.support.networks import SeededEntropy
from tests.unit.net.datagram_help import Net, Station, joined, member

_KEY = bytes(range(32))
_PUBLIC = Address("93.184.216.34", 7)


def _busy() -> tuple[Net, Station, Station]:
    """Anna has a session with bert, waits for a cookie at one address and for an answer to her proof at another."""
    net = Net()
    anna, bert = net.station(member("anna"), 1), net.station(member("bert"), 2)
    net.station(member("carl"), 3)
    joined(net, anna, bert)
    net.fate = lambda flying: () if flying.kind is Kind.ACCEPT else (0.01,)
    net.greet(anna, Address("10.0.0.3", 9876))
    net.run(0.1)
    net.fate = lambda flying: ()
    net.greet(anna, Address("10.0.0.4", 9876))
    net.say(anna, bert, b"to bert")
    net.say(bert, anna, b"to anna")
    return net, anna, bert


@cache
def datagrams() -> list[bytes]:
    """One of each kind, as anna could meet it; the machines of `feed_machine` are all alike."""
    net, anna, bert = _busy()
    kinds: dict[tuple[Kind, Address], bytes] = {(each.kind, each.source): each.data for each in net.log}
    session = anna.sessions.table.peers[bert.peer].best
    hint = write_unknown(anna.sessions._handshaker.tag, session.remote, session.sealer.counter - 1)
    return [*kinds.values(), hint]


def feed_machine(data: bytes) -> object:
    """From a known place, from an unknown one, and again; then time passes."""
    net, anna, bert = _busy()
    for source in (bert.address, Address("10.0.0.3", 9876), _PUBLIC):
        net.inject(data, source, anna)
    session = anna.sessions.table.peers[bert.peer].best
    # Past the look-up, which nothing random ever passes.
    net.inject(bytes([Kind.SEALED]) + session.index.to_bytes(4) + data, bert.address, anna)
    net.run(1.0)
    assert anna.payloads in ([], [b"to anna"]), "nobody says anything in bert's name"
    assert {up.peer for up in anna.ups} <= {bert.peer, member("carl").key.peer_id}
    return None


def handshakes() -> list[bytes]:
    """All kinds but the sealed ones."""
    found = [data for data in datagrams() if data[0] != Kind.SEALED]
    assert {type(decode_handshake(data)) for data in found}
    return found


def papers() -> list[bytes]:
    """Of a member of the owner's and of an admin's."""
    return [
        pack_papers(each.membership.leaf, each.membership.chain)
        for each in (member("anna"), member("guest", under_admin=True))
    ]


def sealed() -> list[bytes]:
    """Three sealed datagrams."""
    sealer = Sealer(_KEY, 7)
    return [sealer.seal(1, b"payload"), sealer.seal(2, b""), sealer.seal(0, b"?")]


def open_sealed(data: bytes) -> object:
    """Open it as each of the first three; sizes are checked before."""
    if len(data) < SEALED_BYTES_MIN:
        return None
    opener = Opener(_KEY)
    return [opener.open(data, counter) for counter in range(3) if opener.is_fresh(counter)]


def agree(data: bytes) -> object:
    """With a share of whatever length the layout cuts out."""
    return Ephemeral(SeededEntropy("fuzz")).agree(data)


def hold_cookie(data: bytes) -> object:
    """A cookie of a stranger's making."""
    return Cookies(SeededEntropy("fuzz")).holds(data[:16], _PUBLIC, data[16:48], 1.0)
