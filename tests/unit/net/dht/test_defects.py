"""The defects D1 to D23 of the package, against ours: each attack is made, and does no harm.

That the package alone still has them is in `test_stock_defects.py`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import pickle
import random
import time
from pathlib import Path

import pytest
from kademlia.node import Node

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, ResourceError, UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach
from p2pcompute.net.dht import frames
from p2pcompute.net.dht.addresses import scope_of
from p2pcompute.net.dht.contacts import Contact, make_contact
from p2pcompute.net.dht.dht import Dht
from p2pcompute.net.dht.frames import Method
from p2pcompute.net.dht.routing import FamilyTable
from p2pcompute.net.dht.surroundings import DhtSettings
from p2pcompute.wire import codec
from p2pcompute.wire.pointer import Name, Pointer, pointer_key, sign_pointer
from tests.unit.net.dht.virtual import (
    WALL_START,
    Liar,
    LoopClock,
    Net,
    befriend,
    grown,
    key_of,
    run,
    scene,
    settle,
    told,
    until,
)

NAME = Name(255, b"name")


def of(name: object, value: bytes = b"value", version: int = 1, *, label: bytes = b"name", **changes: int) -> Pointer:
    """A pointer signed by the peer of that name."""
    times = {"issued_s": int(WALL_START) + 1_000, "lifetime_s": 3_600} | changes
    return sign_pointer(key_of(name), Name(255, label), value, version=version, **times)


def public(number: int) -> tuple[str, ...]:
    """An address in a network of its own."""
    return (f"8.{number // 250}.{number % 250}.1:9876",)


def random_peer(rng: random.Random) -> PeerId:
    return PeerId(rng.randbytes(32))


async def is_alive(net: Net, dht: Dht) -> bool:
    """Whether it still finds what somebody publishes."""
    other = net.book("witness", "9.9.9.9:9876")
    member = net.member_of(dht)
    other.heard_of(member.peer, member.addresses)
    await settle(net)
    await other.put(NAME, b"alive", 60)
    found = await dht.get(net.member_of(other).peer, NAME)
    return found is not None and found.value == b"alive"


# --- D1, D11: addresses -------------------------------------------------------------------------------------------------

BAD_ADDRESSES = (
    Address("8.8.8.8", 70_000),
    Address("8.8.8.8", 0),
    Address("slow.example.invalid", 9),
    Address("0.0.0.0", 9),
    Address("255.255.255.255", 9),
    Address("239.1.1.1", 9),
    Address("::", 9),
    Address("ff02::1", 9),
    Address("240.0.0.1", 9),
    Address(None, 9),  # type: ignore[arg-type]
    Address("8.8.8.8", None),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=repr)
def test_d1_d11_nothing_is_sent_to_what_is_no_address(address: Address) -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        # As a hint, as the source of a request, and as where a reply claims to come from.
        dht.heard_of(liar.peer, (address,))
        if type(address.host) is str:
            dht.received(liar.peer, address, frames.request_frame(bytes(20), frames.Request(Method.PING, 6)))
            dht.received(liar.peer, address, frames.ping_reply_frame(bytes(20), 6))
        await settle(net)
        assert not net.member_of(dht).port.sent
        assert not dht.contacts()
        assert not dht.server.transport.is_closing()
        assert await is_alive(net, dht)

    assert scope_of(address) is None
    scene(body)


@pytest.mark.parametrize(
    "address", ["239.1.1.1:9", "[ff02::1]:9", "255.255.255.255:9", "127.0.0.1:9", "10.0.0.1:9", "[fe80::1]:9"]
)
def test_d1_bad_addresses_in_replies_are_passed_over(address: str) -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        victim = random_peer(net.rng)
        liar.lying(lambda method, mid, _: frames.find_reply_frame(mid, 6, None, told((victim, address))))
        await befriend(dht, liar)
        assert await dht.get(victim, NAME) is None
        assert all(peer == liar.peer for peer, _, _ in net.member_of(dht).port.sent)
        assert dict(dht.offenders())[liar.peer] == {"address": 1}
        assert await is_alive(net, dht)

    scene(body)


def test_d11_no_name_is_ever_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object, **options: object) -> object:
        raise AssertionError(f"a name was looked up: {arguments}")

    monkeypatch.setattr("socket.getaddrinfo", asked)

    async def body(net: Net) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", asked)
        dht = net.book("anna", "8.0.0.1:9876")
        dht.heard_of(random_peer(net.rng), (Address("slow.example.invalid", 9876),))
        await settle(net)
        assert not net.member_of(dht).port.sent

    scene(body)


# --- D2: twin ids ---------------------------------------------------------------------------------------------------------


def test_d2_ids_have_twenty_bytes_and_are_in_a_total_order() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        rng = random.Random(2)
        start = rng.randbytes(20)
        # Two peers whose first twenty bytes are equal: only one is a contact, and nothing raises.
        for tail in (b"a" * 12, b"b" * 12):
            contact = make_contact(PeerId(start + tail), Address("8.1.1.1", 9))
            assert contact is not None
            assert len(contact.id) == 20
            dht.server.protocol.welcome_if_new(contact)
        assert len(dht.contacts()) == 1
        assert make_contact(PeerId(b"\0" + start + b"a" * 12), Address("8.1.1.1", 9)) is None
        dht.heard_of(PeerId(b"short"), (Address("8.1.1.1", 9),))
        assert await dht.get(PeerId(start + b"b" * 12), NAME) is None
        liar = Liar(net, "liar", "8.0.1.1:9")
        await befriend(dht, liar)
        liar.lying(
            lambda method, mid, _: frames.find_reply_frame(
                mid, 6, None, told((PeerId(start + b"c" * 12), "8.2.1.1:9"), (PeerId(start + b"d" * 12), "8.2.2.1:9"))
            )
        )
        assert await dht.get(PeerId(start + b"b" * 12), NAME) is None
        assert await is_alive(net, dht)

    scene(body)


# --- D3, D4, D6: replies ----------------------------------------------------------------------------------------------

NONSENSE = (7, None, "x", [], [1], [6, None], [6, 5, b""], [6, None, [[b"x" * 20, "1.2.3.4", 9]]], {"value": [1]},
            {"x": 1}, [6, [1, 2], b""], [6, None, b"short"], [6, b"", b""], [300, None, b""])  # fmt: skip


@pytest.mark.parametrize("nonsense", NONSENSE, ids=repr)
def test_d3_d6_a_reply_of_wrong_shape_drops_the_liar_and_raises_nothing(nonsense: object) -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        liar.lying(lambda method, mid, _: b"\1" + mid + codec.pack(nonsense))
        await befriend(dht, liar)
        owner = random_peer(net.rng)
        assert await dht.get(owner, NAME) is None
        assert not dht.contacts(), "a liar is no contact"
        assert dict(dht.offenders())[liar.peer] == {"reply": 1}
        asked = len(liar.asked)
        assert await dht.get(owner, NAME) is None
        assert len(liar.asked) == asked, "a liar is left alone for a while"
        assert await is_alive(net, dht)

    scene(body)


def test_d4_invented_contacts_cost_three_tries_a_liar() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        honest = net.book("honest", "8.0.2.1:9876")
        liars = [Liar(net, f"liar {number}", f"8.9.{number}.1:9") for number in range(6)]
        rng = random.Random(4)

        def invent(method: Method, mid: bytes, key: bytes) -> bytes:
            # Nearer to the key than anybody real, each time others.
            peers = [PeerId(key[:10] + rng.randbytes(22)) for _ in range(20)]
            places = [f"9.{number}.{rng.randrange(0, 256)}.1:9" for number in range(20)]
            return frames.find_reply_frame(mid, 6, None, told(*zip(peers, places, strict=True)))

        for liar in liars:
            liar.lying(invent)
        await befriend(dht, *liars)
        dht.heard_of(net.member_of(honest).peer, net.member_of(honest).addresses)
        await settle(net)
        sent = net.member_of(dht).port.sent
        before, loop = len(sent), asyncio.get_running_loop()
        started = loop.time()
        await dht.lookup(random_peer(net.rng))
        real = {liar.peer for liar in liars} | {net.member_of(honest).peer}
        invented = {peer for peer, _, _ in sent[before:]} - real
        assert invented, "the attack reached the lookup"
        assert len(invented) <= limits.DHT_DEAD_TOLD_MAX * len(liars)
        assert loop.time() - started < limits.DHT_LOOKUP_DEADLINE_S

    scene(body)


def test_d4_more_than_twenty_contacts_are_a_lie() -> None:
    contacts = [(PeerId(bytes([number]) * 32), f"8.8.{number}.1:9") for number in range(21)]
    frame = frames.find_reply_frame(bytes(20), 6, None, told(*contacts))
    with pytest.raises(ProtocolError):
        frames.read_reply(frame[frames.HEAD_BYTES :], Method.FIND_NODE)
    frame = frames.find_reply_frame(bytes(20), 6, None, told(*contacts[:20]))
    assert len(frames.read_reply(frame[frames.HEAD_BYTES :], Method.FIND_NODE).told) == 20


def test_d4_two_of_one_network_in_a_reply() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        rng = random.Random(4)
        contacts = [(random_peer(rng), f"8.8.8.{number}:9") for number in range(1, 21)]
        liar.lying(lambda method, mid, _: frames.find_reply_frame(mid, 6, None, told(*contacts)))
        await befriend(dht, liar)
        await dht.lookup(random_peer(net.rng))
        asked = {peer for peer, _, _ in net.member_of(dht).port.sent} - {liar.peer}
        assert asked == {contacts[0][0], contacts[1][0]}
        assert dict(dht.offenders())[liar.peer] == {"network": 18}

    scene(body)


def test_d4_a_lookup_ends_at_its_deadline() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876", settings=DhtSettings(lookup_deadline_s=1.0))
        # Always another friend who is slow, and knows another one.
        liars = [Liar(net, f"slow {number}", f"8.1.{number}.1:9") for number in range(200)]
        net.latency_s = (0.1, 0.1)
        for number, liar in enumerate(liars):
            friend = liars[(number + 1) % len(liars)]
            contact = told((friend.peer, str(friend.address)))
            liar.lying(lambda method, mid, _, contact=contact: frames.find_reply_frame(mid, 6, None, contact))
        await befriend(dht, liars[0])
        started = asyncio.get_running_loop().time()
        found = await dht.lookup(random_peer(net.rng))
        assert 1.0 <= asyncio.get_running_loop().time() - started <= 1.001
        assert found, "what was found by then counts"

    scene(body)


# --- D5, D6, D7, D8, D18: what is kept ----------------------------------------------------------------------------------


def test_d5_nobody_overwrites_anothers_key() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        good, forged = of("owner", b"good"), of("liar", b"evil", 99)
        assert liar.ask(dht, Method.STORE, good.wire).endswith(codec.pack([6, True]))
        # The liar's own pointer is kept under its own key.
        assert liar.ask(dht, Method.STORE, forged.wire).endswith(codec.pack([6, True]))
        # The owner's key in front of the liar's bytes, and the owner's bytes with another value.
        for lie in (
            good.wire[:33] + forged.wire[33:],
            good.wire.replace(b"good", b"evil"),
            good.wire[:-1] + bytes([good.wire[-1] ^ 1]),
            of("owner", b"newer", 2).wire[:-64] + good.wire[-64:],
        ):
            assert liar.ask(dht, Method.STORE, lie).endswith(codec.pack([6, False]))
        assert dht.server.storage.get(good.key) == good.wire
        # The second is not even newer than what is here, so its signature is not looked at.
        assert dict(dht.offenders())[liar.peer] == {"store": 3}

    scene(body)


def test_d5_a_forged_value_is_refused_by_the_reader() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        good = of("owner", b"good")
        for lie in (of("liar", b"evil"), of("owner", b"other", label=b"elsewhere")):
            liar.lying(lambda method, mid, _, lie=lie: frames.find_reply_frame(mid, 6, lie.wire, b""))
            await befriend(dht, liar)
            assert await dht.get(good.owner, NAME) is None
            assert not dht.contacts()
            await asyncio.sleep(limits.DHT_DEAD_FIRST_S * 4)
        forged = good.wire.replace(b"good", b"evil")
        liar.lying(lambda method, mid, _: frames.find_reply_frame(mid, 6, forged, b""))
        await befriend(dht, liar)
        assert await dht.get(good.owner, NAME) is None
        assert dict(dht.offenders())[liar.peer] == {"value": 3}

    scene(body)


@pytest.mark.parametrize("value", [["un", "hashable"], {"a": 1}, 5, None, "text", b""], ids=repr)
def test_d6_only_bytes_are_kept(value: object) -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        liar.say(dht, b"\0" + bytes(20) + codec.pack(["store", [6, value, bytes(300)]]))
        assert not len(dht.server.storage)
        assert dict(dht.offenders())[liar.peer] == {"request": 1}
        with pytest.raises(TypeError):
            dht.server.storage[of("x").key] = value

    scene(body)


def test_d7_keys_have_twenty_bytes_and_republishing_goes_on() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, public, 5)
        liar = Liar(net, "liar", "8.0.200.1:9")
        for length in (0, 1, 19, 21, 40):
            for method in ("find_node", "find_value", "store"):
                liar.say(books[0], b"\0" + bytes(20) + codec.pack([method, [6, b"\xff" * length, bytes(300)]]))
        assert books[0].troubles["request"] == 11, "all but the four stores of some bytes, which are no pointers"
        assert books[0].troubles["store"] == 4
        for dht in books:
            net.spawn("run", dht.run())
        owner = net.member_of(books[0]).peer
        assert await books[0].put(NAME, b"again and again", 60)
        await asyncio.sleep(600)
        found = await books[3].get(owner, NAME)
        assert found is not None
        assert found.value == b"again and again"
        books[0].withdraw(NAME)
        await asyncio.sleep(61)
        assert await books[3].get(owner, NAME) is None, "what nobody publishes again ends"

    scene(body)


def test_d8_what_is_kept_is_bounded() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        storage = dht.server.storage
        liar = Liar(net, "liar", "8.0.1.1:9")
        flood = [of("liar", label=number.to_bytes(2, "big")).wire for number in range(200)]
        for wire in flood:
            liar.ask(dht, Method.STORE, wire)
        assert len(storage) == limits.DHT_STORES_PER_SECOND_PER_ADDRESS, "so many at once from one address"
        assert dht.troubles["store rate"] + dht.troubles.get("rate", 0) == 180
        for wire in flood:
            await asyncio.sleep(1)
            liar.ask(dht, Method.STORE, wire)
        assert len(storage) == limits.DHT_RECORDS_PER_OWNER_MAX
        assert dht.troubles["store limit"]
        with pytest.raises(UsageError):
            of("liar", bytes(limits.POINTER_BYTES_MAX))
        storage.check_invariants()

    scene(body)


@pytest.mark.parametrize(
    ("host", "invitation", "times"), [("8.0.1.{}", None, 6), ("10.0.1.{}", None, 6 * 5), ("10.0.1.{}", b"mallory", 5)]
)
def test_d8_many_identities_of_one_invitation_are_one_sender(host: str, invitation: bytes | None, times: int) -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "10.0.0.1:9876")
        liars = [Liar(net, number, host.format(number + 1) + ":9", invitation=invitation) for number in range(6)]
        for number, liar in enumerate(liars):
            for label in range(limits.DHT_STORES_PER_SECOND_PER_ADDRESS * 6):
                liar.ask(dht, Method.STORE, of(("owner", number, label)).wire)
        assert len(dht.server.storage) == times * limits.DHT_STORES_PER_SECOND_PER_ADDRESS

    scene(body)


def test_d8_one_peer_is_one_sender_from_however_many_addresses() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "10.0.0.1:9876")
        liar = Liar(net, "mallory", "8.0.1.1:9")
        for number in range(6 * limits.DHT_STORES_PER_SECOND_PER_ADDRESS):
            record = of(("owner", number % 3, number))
            request = frames.Request(Method.STORE, 6, record.wire)
            dht.received(
                liar.peer, Address(f"8.{number % 100}.0.1", 9), frames.request_frame(number.to_bytes(20), request)
            )
        assert len(dht.server.storage) == limits.DHT_STORES_PER_SECOND_PER_ADDRESS

    scene(body)


def test_d18_newest_wins_and_ends() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liars = [Liar(net, f"holder {number}", f"8.1.{number}.1:9") for number in range(5)]
        old, new = of("owner", b"old", 1), of("owner", b"new", 2)
        for number, liar in enumerate(liars):
            wire = new.wire if number == 4 else old.wire
            liar.lying(
                lambda method, mid, argument, wire=wire: (
                    frames.store_reply_frame(mid, 6, kept=True)
                    if method is Method.STORE
                    else frames.find_reply_frame(mid, 6, wire, b"")
                )
            )
        await befriend(dht, liars[0], liars[4])
        found = await dht.get(old.owner, NAME)
        assert found is not None
        assert found.value == b"new", "one newer one beats any number of older ones"
        # The holder of the old one is brought the new one.
        await until(lambda: any(request.argument == new.wire for _, request in liars[0].asked), "repair")
        storage = dht.server.storage
        assert storage.keep(new.wire, "x")
        assert not storage.keep(old.wire, "x")
        assert storage.get(new.key) == new.wire
        await asyncio.sleep(3_601)
        assert storage.get(new.key) is None
        storage.sweep(asyncio.get_running_loop().time())
        assert not len(storage)

    scene(body)


def test_d18_clocks_may_be_wrong_by_minutes() -> None:
    async def body(net: Net) -> None:
        books = [
            net.book(number, *public(number), clock=LoopClock(wrong)) for number, wrong in enumerate((0, -250, 300))
        ]
        for dht in books[1:]:
            dht.heard_of(net.member_of(books[0]).peer, net.member_of(books[0]).addresses)
            await settle(net)
            await dht.lookup(net.member_of(dht).peer)
        for dht in books:
            assert await dht.put(NAME, b"mine", 600) == 2
            for reader in books:
                found = await reader.get(net.member_of(dht).peer, NAME)
                assert found is not None, (books.index(dht), books.index(reader))
        # No clock makes a pointer live longer than its lifetime from when it came.
        await asyncio.sleep(601)
        for dht in books:
            assert await dht.get(net.member_of(books[0]).peer, NAME) is None

    scene(body)


def test_d18_an_owner_whose_clock_was_set_back_goes_on_above_its_last_version() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, public, 6)
        owner = net.member_of(books[5])
        await books[5].put(NAME, b"before", 600)
        net.kill(books[5])
        again = net.book(5, *public(5), clock=LoopClock(-400))
        again.heard_of(net.member_of(books[0]).peer, net.member_of(books[0]).addresses)
        await settle(net)
        assert await again.put(NAME, b"after", 600) >= 4
        found = await books[2].get(owner.peer, NAME)
        assert found is not None
        assert found.value == b"after"

    scene(body)


# --- D9, D15, D16, D20, D22, D23: who is a contact ----------------------------------------------------------------------


def test_d9_invented_ids_and_unanswered_hints_are_no_contacts() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        rng = random.Random(9)
        for _ in range(400):
            dht.received(
                random_peer(rng), Address("8.8.8.8", 9), frames.request_frame(bytes(20), frames.Request(Method.PING, 6))
            )
            dht.heard_of(random_peer(rng), (Address("8.8.8.8", 9),))
        asked = {peer for peer, _, data in net.member_of(dht).port.sent if data[0] == frames.REQUEST}
        assert len(asked) <= limits.DHT_HINTS_PER_NETWORK_MAX + limits.DHT_CHECKS_AT_ONCE
        await settle(net)
        assert not dht.contacts()

    scene(body)


def test_d9_one_network_is_ten_contacts_however_many_identities_answer() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liars = [Liar(net, number, f"8.8.8.{1 + number % 250}:{9 + number}") for number in range(400)]
        for liar in liars:
            liar.ask(dht, Method.PING)
            dht.heard_of(liar.peer, (liar.address,))
            await settle(net)
        dht.check_invariants()
        assert 1 <= len(dht.contacts()) <= limits.DHT_SAME_NETWORK_PER_TABLE_MAX

    scene(body)


def test_d9_an_answer_from_elsewhere_proves_no_address() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        victim = Address("9.9.9.9", 53)

        def elsewhere(method: Method, mid: bytes, _: bytes) -> None:
            dht.received(liar.peer, victim, frames.ping_reply_frame(mid, 6))

        liar.answer = elsewhere
        dht.heard_of(liar.peer, (liar.address,))
        await settle(net)
        assert not dht.contacts()
        to_victim = [data for _, addresses, data in net.member_of(dht).port.sent if victim in addresses]
        assert len(to_victim) <= limits.DHT_TRIES, "asked there, and left alone"

    scene(body)


def test_d9_nobody_answers_for_another() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        asked, liar = Liar(net, "asked", "8.0.1.1:9"), Liar(net, "liar", "8.0.2.1:9")
        good = of("owner")

        def overheard(method: Method, mid: bytes, _: bytes) -> None:
            liar.say(dht, frames.find_reply_frame(frames.MessageId(mid), 6, good.wire, b""))

        await befriend(dht, asked)
        asked.answer = overheard
        assert await dht.get(good.owner, NAME) is None
        assert dict(dht.offenders())[liar.peer] == {"reply of another": 2}

    scene(body)


class _Table:
    """A table of one family, and who was crowded."""

    def __init__(self, seed: int, count: int, ksize: int = 5) -> None:
        self.rng = random.Random(seed)
        self.crowded: list[Contact] = []
        self.table = FamilyTable(
            Node(self.rng.randbytes(20)), ksize, lambda: 0.0, lambda peer: bytes(peer), self.crowded.append
        )
        for number in range(count):
            contact = make_contact(random_peer(self.rng), Address(f"10.1.{number // 250}.{number % 250 + 1}", 9))
            assert contact is not None
            self.table.add_contact(contact)
        self.table.check_invariants()


def test_d9_one_network_has_ten_contacts_in_a_table_of_many_buckets() -> None:
    table = _Table(9, 400).table
    assert len(table.buckets) > 20
    rng = random.Random(10)
    taken = [
        contact
        for number in range(2_000)
        if (contact := make_contact(random_peer(rng), Address("8.8.8.8", 9 + number))) is not None
        and table.add_contact(contact)
    ]
    assert len(taken) == limits.DHT_SAME_NETWORK_PER_TABLE_MAX
    table.check_invariants()


def test_d9_an_invitation_gives_way_in_a_full_bucket_that_cannot_be_split() -> None:
    rng = random.Random(11)
    invitations: dict[PeerId, bytes] = {}
    crowded: list[Contact] = []
    table = FamilyTable(Node(bytes(20)), 5, lambda: 0.0, invitations.get, crowded.append)

    def add(number: int, invitation: bytes) -> Contact:
        # Five common bits: a depth at which Kademlia does not split.
        peer = PeerId(bytes([0b10000_000 | number % 2 << 2]) + rng.randbytes(31))
        invitations[peer] = invitation
        contact = make_contact(peer, Address("10.0.0.1", 9))
        assert contact is not None
        table.add_contact(contact)
        return contact

    table.split_bucket(0)
    far = table.buckets[1]
    sybils = [add(number, b"mallory") for number in range(30)]
    assert len(far) == 5
    assert crowded
    honest = [add(number, b"person %d" % number) for number in range(10)]
    inside = {contact.peer for contact in table.contacts()}
    assert sum(each.peer in inside for each in sybils) == limits.DHT_SAME_NETWORK_PER_BUCKET_MAX
    assert sum(each.peer in inside for each in honest) == 3
    more = [add(number, b"mallory") for number in range(30)]
    assert not {each.peer for each in more} & {contact.peer for contact in table.contacts()}
    table.check_invariants()


@pytest.mark.parametrize("seed", range(10))
def test_d15_neighbours_are_the_true_nearest(seed: int) -> None:
    made = _Table(seed, 100)
    known = list(made.table.contacts())
    for _ in range(20):
        target = Node(made.rng.randbytes(20))
        expected = sorted(known, key=target.distance_to)[:5]
        assert made.table.find_neighbors(target) == expected
        without = made.table.find_neighbors(target, exclude=expected[0])
        assert without == sorted(known, key=target.distance_to)[1:6]
    # A node whose id is the key itself is found too.
    assert made.table.find_neighbors(Node(known[0].id))[0] is known[0]


@pytest.mark.parametrize("seed", range(5))
def test_d16_every_id_falls_into_the_bucket_that_has_it_in_range(seed: int) -> None:
    table = _Table(seed, 200).table
    assert len(table.buckets) > 3
    for bucket in table.buckets:
        for bound in bucket.range:
            node = Node(bound.to_bytes(20, "big"))
            assert table.buckets[table.get_bucket_for(node)] is bucket


def test_d20_a_newer_answer_moves_a_contact() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "mover", "8.0.1.1:9")
        await befriend(dht, liar)
        moved = Address("8.0.2.1", 10)
        liar.address = moved
        liar.member.addresses = (moved,)
        liar.ask(dht, Method.PING)
        assert dht.contacts()[0].address != moved, "not before it has answered from there"
        await until(lambda: dht.contacts()[0].address == moved, "it is moved")
        assert len(dht.contacts()) == 1

    scene(body)


def test_d22_families_have_tables_of_their_own() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876", "[2600::1]:9876")
        four, six = Liar(net, "four", "8.0.1.1:9"), Liar(net, "six", "[2601::1]:9")
        await befriend(dht, four, six)
        tables = dht.server.protocol.router.by_family
        assert [each.peer for each in tables[4].contacts()] == [four.peer]
        assert [each.peer for each in tables[6].contacts()] == [six.peer]
        asker = Liar(net, "asker", "8.0.3.1:9")

        def told_to(flags: int) -> list[PeerId]:
            reply = asker.ask(dht, Method.FIND_NODE, bytes(20), flags)
            return [each.peer for each in frames.read_reply(reply[frames.HEAD_BYTES :], Method.FIND_NODE).told]

        assert told_to(2) == [four.peer]
        assert told_to(4) == [six.peer]
        assert sorted(told_to(6)) == sorted([four.peer, six.peer])

    scene(body)


def test_d22_an_ipv4_address_written_as_ipv6_is_the_same_contact() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        await befriend(dht, liar)
        dht.received(
            liar.peer,
            Address("::ffff:8.0.1.1", 9),
            frames.request_frame(bytes(20), frames.Request(Method.PING, 6)),
        )
        await settle(net)
        assert [str(each.address) for each in dht.contacts()] == ["8.0.1.1:9"]

    scene(body)


def test_d23_who_cannot_be_dialled_is_a_client_and_no_contact() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, public, 8)
        client = net.book("client", "9.1.1.1:40000", reach=Reach.PRIVATE)
        member = net.member_of(client)
        client.heard_of(net.member_of(books[0]).peer, net.member_of(books[0]).addresses)
        await settle(net)
        assert await client.put(NAME, b"from behind a router", 600) >= 7
        found = await books[4].get(member.peer, NAME)
        assert found is not None
        assert found.value == b"from behind a router"
        await books[5].put(NAME, b"for all", 600)
        assert await client.get(net.member_of(books[5]).peer, NAME)
        await settle(net)
        assert all(each.peer != member.peer for dht in books for each in dht.contacts())
        assert not len(client.server.storage), "a client keeps nothing for the internet"
        # Who turns out to be one leaves the tables.
        net.member_of(books[1])
        books[1].reach = Reach.PRIVATE
        await books[1].lookup(member.peer)
        await books[0].lookup(net.member_of(books[1]).peer)
        assert all(each.peer != net.member_of(books[1]).peer for each in books[0].contacts())

    scene(body)


def test_d23_within_its_site_a_peer_behind_the_router_takes_part() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, lambda number: (f"192.168.1.{number + 1}:9876",), 5, reach=Reach.PRIVATE)
        assert all(len(dht.contacts()) == 4 for dht in books)
        await books[0].put(NAME, b"at home", 600)
        assert await books[4].get(net.member_of(books[0]).peer, NAME)

    scene(body)


# --- D10, D12, D13, D14, D17, D19, D21 ------------------------------------------------------------------------------------


def test_d10_replies_are_at_most_three_times_as_large() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        for number in range(60):
            contact = make_contact(random_peer(net.rng), Address(f"8.1.{number}.1", 9))
            dht.server.protocol.welcome_if_new(contact)
        liar = Liar(net, "liar", "8.0.1.1:9")
        large = of("liar", bytes(800))
        assert liar.ask(dht, Method.STORE, large.wire).endswith(codec.pack([6, True]))
        sent = net.member_of(dht).port.sent
        for method, key in (
            (Method.FIND_NODE, bytes(20)),
            (Method.FIND_VALUE, large.key),
            (Method.FIND_VALUE, bytes(20)),
        ):
            for padding in (0, 10, 100, 300, 1_000):
                question = b"\0" + bytes(20) + codec.pack([method.value, [6, key, bytes(padding)]])
                sent.clear()
                liar.say(dht, question)
                (reply,) = [data for _, _, data in sent if data[0] == frames.REPLY]
                assert len(reply) <= limits.DHT_REPLY_FACTOR_MAX * len(question)
                assert len(reply) <= frames.PAYLOAD_BYTES_MAX
        full = liar.ask(dht, Method.FIND_NODE, bytes(20))
        assert (
            len(frames.read_reply(full[frames.HEAD_BYTES :], Method.FIND_NODE).told)
            == limits.DHT_CONTACTS_PER_REPLY_MAX
        )
        both = liar.ask(dht, Method.FIND_VALUE, large.key)
        assert frames.read_reply(both[frames.HEAD_BYTES :], Method.FIND_VALUE).pointer == large.wire

    scene(body)


def test_d10_our_own_requests_are_padded() -> None:
    for method, argument in ((Method.PING, b""), (Method.FIND_NODE, bytes(20)), (Method.STORE, bytes(1_000))):
        frame = frames.request_frame(bytes(20), frames.Request(method, 6, argument))
        assert len(frame) + 3 >= limits.DHT_REQUEST_BYTES
        assert len(frame) <= frames.PAYLOAD_BYTES_MAX
        assert frames.read_request(frame[frames.HEAD_BYTES :]) == frames.Request(method, 6, argument)
    assert frames.PAYLOAD_BYTES_MAX <= limits.DHT_REPLY_FACTOR_MAX * (limits.DHT_REQUEST_BYTES - 3)


def test_d12_a_cancelled_call_leaves_nothing() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "silent", "8.0.1.1:9")
        await befriend(dht, liar)
        heard: list[bytes] = []
        liar.answer = lambda method, mid, _: heard.append(mid)  # type: ignore[func-returns-value]
        protocol = dht.server.protocol
        for _ in range(10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await dht.get(random_peer(net.rng), NAME)
        assert not protocol._outstanding
        protocol.check_invariants()
        # What comes late, or lapses late, is nobody's trouble.
        for mid in heard:
            liar.say(dht, frames.ping_reply_frame(mid, 6))
            protocol._timeout(mid)
        assert dht.troubles["late reply"] == len(heard)
        assert not dht.offenders()

    scene(body)


def test_d13_a_put_that_nobody_takes_says_so_and_is_tried_again() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, public, 4)
        for dht in books[1:]:
            net.kill(dht)
        with pytest.raises(ResourceError, match="nobody keeps this pointer"):
            await books[0].put(NAME, b"value", 600)
        alone = net.book("alone", "9.0.0.1:9")
        with pytest.raises(ResourceError, match="of 0 peers"):
            await alone.put(NAME, b"value", 600)
        net.spawn("run", alone.run())
        late = net.book("late", "9.0.1.1:9")
        alone.heard_of(net.member_of(late).peer, net.member_of(late).addresses)
        await until(lambda: len(late.server.storage), "the put is tried again", 90)

    scene(body)


def test_d14_one_lost_datagram_evicts_nobody_and_three_failures_do() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "flaky", "8.0.1.1:9")
        await befriend(dht, liar)
        loop = asyncio.get_running_loop()
        lost = 0

        def loses_first(method: Method, mid: bytes, argument: bytes) -> bytes | None:
            nonlocal lost
            lost += 1
            return None if lost == 1 else liar.honest(method, mid, argument)

        liar.answer = loses_first
        (contact,) = dht.server.protocol.router.contacts()
        started = loop.time()
        assert await dht.server.protocol.call_ping(contact)
        assert loop.time() - started < 0.5, "a lapse of 0.3 s, and the second try"
        liar.answer = lambda method, mid, argument: None
        for failure in range(1, limits.DHT_FAILURES_MAX + 1):
            started = loop.time()
            assert not await dht.server.protocol.call_ping(contact)
            assert loop.time() - started < 1
            assert len(dht.contacts()) == (failure < limits.DHT_FAILURES_MAX)

    scene(body)


def test_d14_the_dead_are_left_alone_for_longer_and_longer() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "silent", "8.0.1.1:9")
        liar.answer = lambda method, mid, argument: None
        loop = asyncio.get_running_loop()
        began = loop.time()
        seen: list[float] = []
        while loop.time() < began + 200:
            count = len(liar.asked)
            dht.heard_of(liar.peer, (liar.address,))
            await settle(net)
            if len(liar.asked) > count:
                seen.append(loop.time())
            await asyncio.sleep(0.5)
        gaps = [after - before for before, after in itertools.pairwise(seen)]
        assert len(gaps) == 5
        assert all(limits.DHT_DEAD_FIRST_S * 2**number <= gap <= limits.DHT_DEAD_FIRST_S * 2**number + 6
                   for number, gap in enumerate(gaps)), gaps  # fmt: skip

    scene(body)


def test_d14_nobody_is_told_of_the_dead() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        alive, silent, asker = (
            Liar(net, name, f"8.0.{n}.1:9") for n, name in enumerate(("alive", "silent", "asker"), 1)
        )
        await befriend(dht, alive, silent)
        silent.answer = lambda method, mid, argument: None
        (contact,) = dht.server.protocol.router.known(silent.peer)
        assert not await dht.server.protocol.call_ping(contact)
        assert len(dht.contacts()) == 2, "one failed call evicts nobody"
        reply = asker.ask(dht, Method.FIND_NODE, bytes(20))
        found = frames.read_reply(reply[frames.HEAD_BYTES :], Method.FIND_NODE).told
        assert [each.peer for each in found] == [alive.peer]

    scene(body)


def test_d17_nothing_is_handed_over() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        for number in range(30):
            assert dht.server.storage.keep(of("owner", label=bytes([number])).wire, "x")
        liar = Liar(net, "newcomer", "8.0.1.1:9")
        await befriend(dht, liar)
        await settle(net)
        assert [request.method for _, request in liar.asked] == [Method.PING]
        net.spawn("run", dht.run())
        await asyncio.sleep(3_000)
        assert all(request.method is not Method.STORE for _, request in liar.asked), "holders never publish"

    scene(body)


def test_d19_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        file = tmp_path / "state"
        with pytest.raises(UsageError, match="pickle"):
            dht.server.save_state(file)
        with pytest.raises(UsageError, match="pickle"):
            dht.server.save_state_regularly(file)
        file.write_bytes(pickle.dumps({"ksize": 20}))
        with pytest.raises(UsageError, match="pickle"):
            await dht.server.load_state(file, 9)
        for shut in (dht.server.listen(9), dht.server.get("key"), dht.server.set("key", 1), dht.server.set_digest(b"", 1),
                     dht.server.bootstrap([]), dht.server.bootstrap_node(("", 1))):  # fmt: skip
            with pytest.raises(UsageError):
                await shut
        with pytest.raises(UsageError):
            dht.server.refresh_table()

    scene(body)


def test_d21_requests_start_no_task_and_hints_few() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, public, 12)
        liar = Liar(net, "liar", "8.0.200.1:9")
        before = len(asyncio.all_tasks())
        for number in range(100):
            liar.ask(books[0], (Method.PING, Method.FIND_NODE)[number % 2], (b"", bytes(20))[number % 2])
        assert len(asyncio.all_tasks()) <= before + limits.DHT_CHECKS_AT_ONCE
        gc.collect()
        await settle(net)

    scene(body)


def test_d21_hostile_datagrams_are_cheap_and_raise_nothing() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        liar = Liar(net, "liar", "8.0.1.1:9")
        rng = random.Random(21)
        hostile = [
            b"\0" + bytes(20) + b"\x91" * 1_100,
            b"\0" + bytes(20) + b"\xdd\xff\xff\xff\xff",
            b"",
            b"\0",
            b"\7" * 50,
        ]
        hostile += [
            b"\0" + bytes(20) + b"\xdf\xff\xff\xff\xff" + bytes(900),
            b"\1" + bytes(20) + b"\xc7\xff" + bytes(900),
        ]
        hostile += [rng.randbytes(rng.randrange(0, 1_400)) for _ in range(500)]
        started = time.process_time()
        for data in hostile:
            liar.say(dht, data)
            await asyncio.sleep(0.02)
        assert time.process_time() - started < 5.0
        assert sum(dht.troubles.values()) == len(hostile)
        assert await is_alive(net, dht)

    scene(body)


def test_a_misspelt_name_sends_nothing() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        with pytest.raises(AttributeError, match="no_such_method"):
            dht.server.protocol.no_such_method(("8.8.8.8", 9))
        assert not net.member_of(dht).port.sent

    scene(body)


def test_keys_are_bound_to_owners() -> None:
    one, other = key_of("one").peer_id, key_of("other").peer_id
    keys = {pointer_key(owner, Name(kind, label)) for owner in (one, other) for kind in (1, 2) for label in (b"", b"a")}
    assert len(keys) == 8
    assert all(len(key) == 20 for key in keys)


def test_virtual_time_is_free() -> None:
    async def main() -> float:
        started = time.process_time()
        await asyncio.sleep(3_600)
        return time.process_time() - started

    assert run(main()) < 1.0
