"""Lookups in networks of many: a third of the peers dead, both families, one campus, identities by the hundred, loss."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, ConfigError, ProtocolError, UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach, Relay
from p2pcompute.net.dht import frames
from p2pcompute.net.dht.dht import Dht, DhtContact
from p2pcompute.net.dht.frames import Method
from p2pcompute.net.dht.surroundings import DhtSettings
from p2pcompute.wire.pointer import PRESENCE_NAME, Name, Presence, pointer_key, sign_pointer
from tests.unit.net.dht.virtual import WALL_START, Liar, Net, befriend, grown, key_of, scene, settle, told, until

NAME = Name(255, b"name")

FAMILIES: dict[str, Callable[[int], tuple[str, ...]]] = {
    "IPv4": lambda number: (f"8.{number}.0.1:9876",),
    "IPv6": lambda number: (f"[2600:{number:x}::1]:9876",),
    "both": lambda number: (f"8.{number}.0.1:9876", f"[2600:{number:x}::1]:9876"),
}


async def _publish_all(net: Net, books: list[Dht]) -> None:
    for number, dht in enumerate(books):
        assert await dht.put(NAME, b"value %d" % number, 3_600) >= min(20, len(books) - 1) * (net.loss == 0)


async def _get_all(net: Net, readers: list[Dht], books: list[Dht], seed: int) -> list[float]:
    """Every reader gets something of somebody; the seconds that each took. Fails where one finds nothing."""
    loop, rng = asyncio.get_running_loop(), random.Random(seed)
    took = []
    for _ in range(3):
        for reader in readers:
            number = rng.randrange(0, len(books))
            started = loop.time()
            found = await reader.get(net.member_of(books[number]).peer, NAME)
            took.append(loop.time() - started)
            assert found is not None, f"get of {number}"
            assert found.value == b"value %d" % number
    return sorted(took)


@pytest.mark.parametrize(("family", "seed"), [("IPv4", 1), ("IPv4", 2), ("IPv6", 1), ("both", 1)])
def test_every_get_succeeds_with_a_third_of_the_peers_dead(family: str, seed: int) -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES[family], 60)
        await _publish_all(net, books)
        dead = net.rng.sample(books, 20)
        for dht in dead:
            net.kill(dht)
        alive = [dht for dht in books if dht not in dead]
        first = await _get_all(net, alive, books, seed)
        assert first[len(first) * 95 // 100] < 2.5
        # The same gets again, of whoever is dead and of whoever lives.
        second = await _get_all(net, alive, books, seed)
        assert second[len(second) * 95 // 100] < 0.3
        for dht in alive:
            dht.check_invariants()
            assert not dht.offenders(), "dying is no offence"

    scene(body, seed=seed)


def test_every_put_and_get_succeeds_at_a_tenth_of_the_datagrams_lost() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 30)
        net.loss = 0.1
        for number, dht in enumerate(books):
            assert await dht.put(NAME, b"value %d" % number, 3_600) >= 15
        await _get_all(net, books, books, 1)

    scene(body, seed=3)


def test_the_same_seed_leads_to_the_same_datagrams() -> None:
    seen: list[list[bytes]] = []

    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["both"], 15)
        await _publish_all(net, books)
        net.kill(books[3])
        await _get_all(net, books[5:], books, 1)
        seen.append([data for member, _ in net.books for _, _, data in member.port.sent])

    scene(body, seed=5, loss=0.05)
    scene(body, seed=5, loss=0.05)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 500


def test_peers_of_one_family_each_meet_through_those_of_both() -> None:
    async def body(net: Net) -> None:
        def places(number: int) -> tuple[str, ...]:
            both = FAMILIES["both"](number)
            return both if number % 3 == 0 else both[:1] if number % 3 == 1 else both[1:]

        books = await grown(net, places, 30)
        await _publish_all(net, [books[1]])
        found = await books[2].get(net.member_of(books[1]).peer, NAME)
        assert found is not None, "published over IPv4 alone, read over IPv6 alone"

    scene(body)


def test_who_has_both_families_publishes_to_the_nearest_of_each() -> None:
    async def body(net: Net) -> None:
        def places(number: int) -> tuple[str, ...]:
            both = FAMILIES["both"](number)
            return both if number < 8 else both[:1] if number % 4 == 0 else both[1:]

        books = await grown(net, places, 40, settings=DhtSettings(k=3, alpha=3))
        for dht in books[:8]:
            await dht.put(NAME, b"value", 3_600)
        for owner in books[:8]:
            key = pointer_key(net.member_of(owner).peer, NAME)
            for wanted in (4, 6):
                able = [
                    (int.from_bytes(member.peer[:20]) ^ int.from_bytes(key), dht)
                    for member, dht in net.books
                    if dht is not owner and any((6 if ":" in each.host else 4) == wanted for each in member.addresses)
                ]
                nearest = [dht for _, dht in sorted(able, key=lambda row: row[0])[:3]]
                assert all(dht.server.storage.get(key) for dht in nearest)
                assert all(len(dht.server.storage) for dht in nearest)

    scene(body)


# --- one campus ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("invitation", [None, b"one for all"], ids=["invitation each", "one invitation"])
@pytest.mark.parametrize("network", ["10.7.7.", "127.0.0.", "100.64.1."])
def test_thirty_peers_in_one_private_network_work(network: str, invitation: bytes | None) -> None:
    async def body(net: Net) -> None:
        books = await grown(net, lambda number: (f"{network}{number + 1}:9876",), 30, invitation=invitation)
        assert min(len(dht.contacts()) for dht in books) >= 20
        await _publish_all(net, books)
        for dht in books[:10]:
            net.kill(dht)
        await _get_all(net, books[10:], books, 1)

    scene(body)


def test_thirty_peers_of_one_public_network_are_ten_contacts_and_still_find_each_other() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, lambda number: (f"8.8.8.{number + 1}:9876",), 30)
        assert max(len(dht.contacts()) for dht in books) <= limits.DHT_SAME_NETWORK_PER_TABLE_MAX
        for dht in books:
            assert await dht.put(NAME, b"value %d" % books.index(dht), 3_600)

    scene(body)


def test_a_private_address_is_told_within_its_site_only() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        for name, address in (("home", "192.168.1.2:9"), ("host", "127.0.0.1:9"), ("public", "8.1.0.1:9")):
            liar = Liar(net, name, address)
            dht.heard_of(liar.peer, (liar.address,))
        await settle(net)
        assert len(dht.contacts()) == 3

        def hosts(source: str) -> list[str]:
            asker = Liar(net, "asker " + source, source)
            reply = asker.ask(dht, Method.FIND_NODE, bytes(20))
            found = frames.read_reply(reply[frames.HEAD_BYTES :], Method.FIND_NODE).told
            return sorted(each.address.host for each in found)

        assert hosts("9.9.9.9:9") == ["8.1.0.1"]
        assert hosts("192.168.1.9:9") == ["192.168.1.2", "8.1.0.1"]
        assert hosts("127.0.0.1:99") == ["127.0.0.1", "192.168.1.2", "8.1.0.1"]

    scene(body)


# --- many identities ------------------------------------------------------------------------------------------------------


def test_many_identities_of_one_invitation_push_nobody_out_of_a_table() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "10.0.0.1:9876")
        sybils = [
            Liar(net, number, f"10.6.{number // 200}.{number % 200 + 1}:9", invitation=b"mallory")
            for number in range(400)
        ]
        for liar in sybils:
            dht.heard_of(liar.peer, (liar.address,))
            await settle(net)
        assert len(dht.contacts()) > 20, "what nobody else wants they may have"
        honest = [net.book(f"honest {number}", f"10.7.0.{number + 1}:9876") for number in range(40)]
        for each in honest:
            member = net.member_of(each)
            for _ in range(3):
                dht.heard_of(member.peer, member.addresses)
                await settle(net)
        known = {each.peer for each in dht.contacts()}
        kept = [each for each in honest if net.member_of(each).peer in known]
        assert len(kept) == len(honest)
        dht.check_invariants()

    scene(body)


@pytest.mark.parametrize("answers", ["nothing", "stale"])
def test_identities_around_a_key_do_not_hide_it(answers: str) -> None:
    """An eclipse: a hundred identities of one invitation, all nearer to the key than anybody honest, tell of nobody but themselves."""

    async def body(net: Net) -> None:
        books = await grown(net, lambda number: (f"10.7.0.{number + 1}:9876",), 40)
        owner = net.member_of(books[0])
        key = pointer_key(owner.peer, NAME)
        # Ids are hashes of keys; nearness is granted to the attacker here for nothing.
        sybils = [
            Liar(net, f"sybil {number}", f"10.6.0.{number + 1}:9", invitation=b"mallory") for number in range(100)
        ]
        for number, liar in enumerate(sybils):
            near = PeerId(key[:8] + bytes([number]) + liar.peer[9:])
            del net.by_peer[liar.peer]
            liar.member.peer = near
            net.by_peer[near] = liar.member
        old = sign_pointer(owner.key, NAME, b"old", version=1, issued_s=int(WALL_START) + 1_000, lifetime_s=3_600)
        for number, liar in enumerate(sybils):
            friends = told(
                *(
                    (sybils[(number + step) % 100].peer, str(sybils[(number + step) % 100].address))
                    for step in range(1, 20)
                )
            )
            wire = old.wire if answers == "stale" else None

            def lie(method: Method, mid: bytes, _: bytes, wire: bytes | None = wire, friends: bytes = friends) -> bytes:
                if method is Method.STORE:
                    return frames.store_reply_frame(mid, 6, kept=True)
                return frames.find_reply_frame(mid, 6, wire if method is Method.FIND_VALUE else None, friends)

            liar.lying(lie)
        for dht in books:
            for liar in sybils[::7]:
                dht.heard_of(liar.peer, (liar.address,))
        await settle(net)
        await books[0].put(NAME, b"value", 3_600)
        holders = sum(pointer is not None for pointer in (dht.server.storage.pointer(key) for dht in books))
        assert holders >= 15, "most of the k holders are honest"
        for reader in books[1:]:
            found = await reader.get(owner.peer, NAME)
            assert found is not None
            assert found.value == b"value"

    scene(body)


def test_a_liar_cannot_make_an_honest_peer_dead_by_telling_a_wrong_address() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        holder = net.book("holder", "8.0.2.1:9876")
        friend = Liar(net, "friend", "8.0.3.1:9")
        liars = [Liar(net, f"liar {number}", f"8.9.{number}.1:9") for number in range(4)]
        member = net.member_of(holder)
        pointer = sign_pointer(
            key_of("owner"), NAME, b"value", version=1, issued_s=int(WALL_START) + 1_000, lifetime_s=600
        )
        assert holder.server.storage.keep(pointer.wire, "x")
        friend.lying(
            lambda method, mid, _: frames.find_reply_frame(mid, 6, None, told((member.peer, str(member.addresses[0]))))
        )
        for liar in liars:
            liar.lying(lambda method, mid, _: frames.find_reply_frame(mid, 6, None, told((member.peer, "9.9.9.9:9"))))
        await befriend(dht, *liars)
        assert await dht.get(pointer.owner, NAME) is None, "only lies so far"
        assert len(dht.server.protocol.dead) == 1
        await befriend(dht, friend)
        found = await dht.get(pointer.owner, NAME)
        assert found is not None

    scene(body)


# --- the facade ---------------------------------------------------------------------------------------------------------


def test_presence_is_announced_found_renewed_and_ends() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 10)
        for dht in books:
            net.spawn("run", dht.run())
        member = net.member_of(books[0])
        said = Presence(
            7,
            (Address("10.0.0.5", 9876), Address("fe80::1", 9876), Address("8.0.0.1", 9876)),
            (Relay(net.member_of(books[1]).peer, Address("8.1.0.1", 9876)),),
            Reach.PRIVATE,
        )
        assert await books[0].announce(said) == 9
        found = await books[5].find_presence(member.peer)
        assert found is not None
        assert found.addresses == (Address("10.0.0.5", 9876), Address("8.0.0.1", 9876)), "link-local ones stay at home"
        assert (found.incarnation, found.relays, found.reach) == (7, said.relays, Reach.PRIVATE)
        assert await books[5].find_presence(net.member_of(books[6]).peer) is None
        await asyncio.sleep(3 * limits.RECORD_EXPIRY_S)
        assert await books[5].find_presence(member.peer) == found, "published again and again"
        net.kill(books[0])
        await asyncio.sleep(limits.RECORD_EXPIRY_S + 1)
        assert await books[5].find_presence(member.peer) is None

    scene(body)


def test_nonsense_that_an_owner_signed_is_its_error() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 3)
        await books[0].put(PRESENCE_NAME, b"\xc1 no presence", 600)
        with pytest.raises(ProtocolError):
            await books[1].find_presence(net.member_of(books[0]).peer)

    scene(body)


def test_holders_that_die_are_replaced_by_republishing() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 40)
        for dht in books:
            net.spawn("run", dht.run())
        owner = net.member_of(books[0]).peer
        await books[0].put(NAME, b"value", 300)
        key = pointer_key(owner, NAME)
        holders = [dht for dht in books[1:] if dht.server.storage.get(key)]
        assert len(holders) == 20
        for dht in holders:
            net.kill(dht)
        await asyncio.sleep(120)
        alive = [dht for dht in books if dht not in holders]
        assert sum(dht.server.storage.get(key) is not None for dht in alive[1:]) >= 15
        assert (await alive[-1].get(owner, NAME)) is not None

    scene(body)


def test_anchors_bring_a_peer_back() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 12)
        anchors = books[5].anchors()
        assert len(anchors) == limits.DHT_ANCHORS
        assert len({each.peer for each in anchors}) == limits.DHT_ANCHORS
        net.kill(books[5])
        again = net.book(5, *FAMILIES["IPv4"](5), anchors=anchors)
        assert again.anchors() == anchors, "kept until there are others"
        net.spawn("run", again.run())
        await until(lambda: len(again.contacts()) >= 10, "it is back among them")
        await again.put(NAME, b"back", 600)
        assert await books[0].get(net.member_of(again).peer, NAME)

    scene(body)


def test_anchors_that_are_dead_are_tried_again() -> None:
    async def body(net: Net) -> None:
        late = net.member("late", "8.1.0.1:9876")
        dht = net.book("anna", "8.0.0.1:9876", anchors=[DhtContact(late.peer, late.addresses[0])])
        net.spawn("run", dht.run())
        await asyncio.sleep(100)
        assert not dht.contacts()
        there = net.book("late", "8.1.0.1:9876")
        await until(lambda: len(dht.contacts()) == 1 and len(there.contacts()) == 1, "found after all", 200)

    scene(body)


def test_a_quiet_network_stays_quiet() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 30)
        for dht in books:
            net.spawn("run", dht.run())
        await asyncio.sleep(60)
        before = sum(len(member.port.sent) for member, _ in net.books)
        nbytes = sum(len(data) for member, _ in net.books for _, _, data in member.port.sent)
        await asyncio.sleep(3_600)
        sent = sum(len(member.port.sent) for member, _ in net.books) - before
        nbytes = sum(len(data) for member, _ in net.books for _, _, data in member.port.sent) - nbytes
        assert sent > 0
        # In bytes a second and peer, of the 3,000 that a quiet peer may use for everything.
        assert nbytes / 3_600 / len(books) < 300

    scene(body)


def test_the_dead_leave_the_tables_of_a_quiet_network() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 20)
        for dht in books:
            net.spawn("run", dht.run())
        gone = {net.member_of(dht).peer for dht in books[:6]}
        for dht in books[:6]:
            net.kill(dht)
        await until(
            lambda: not any(each.peer in gone for dht in books[6:] for each in dht.contacts()),
            "the dead are gone",
            7_200,
        )

    scene(body)


def test_a_random_lookup_finds_peers_for_healing() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 30)
        target = PeerId(net.rng.randbytes(32))
        found = await books[3].lookup(target)
        # Who looks is no contact of its own.
        others = [net.member_of(dht) for dht in books if dht is not books[3]]
        nearest = sorted(others, key=lambda each: int.from_bytes(each.peer[:20]) ^ int.from_bytes(target[:20]))
        assert [each.peer for each in found[:10]] == [each.peer for each in nearest[:10]]
        assert found[0].address == nearest[0].addresses[0]

    scene(body)


def test_paths_are_disjoint_nobody_is_asked_twice() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 40)
        await settle(net)
        sent = net.member_of(books[3]).port.sent
        for _ in range(10):
            sent.clear()
            await books[3].lookup(PeerId(net.rng.randbytes(32)))
            # Beside the lookup, contacts of full buckets are asked whether they are there.
            requests = [(peer, data[frames.HEAD_BYTES :]) for peer, _, data in sent if data[0] == frames.REQUEST]
            asked = [peer for peer, body in requests if frames.read_request(body).method is Method.FIND_NODE]
            assert len(asked) >= 20
            assert len(set(asked)) == len(asked)

    scene(body)


def test_misuse_is_told() -> None:
    async def body(net: Net) -> None:
        dht = net.book("anna", "8.0.0.1:9876")
        with pytest.raises(UsageError, match="32 bytes"):
            await dht.get(PeerId(b"short"), NAME)
        with pytest.raises(UsageError, match="20 bytes"):
            await dht.lookup(PeerId(b"short"))
        with pytest.raises(UsageError, match="fit under this name"):
            await dht.put(NAME, bytes(1_000), 60)
        with pytest.raises(UsageError, match="seconds"):
            await dht.put(NAME, b"", 0)
        assert not dht.server.published
        books = await grown(net, FAMILIES["IPv4"], 2)
        for number in range(limits.DHT_PUBLISHED_MAX):
            await books[0].put(Name(255, bytes([number])), b"", 60)
            await asyncio.sleep(0.1)
        with pytest.raises(BusyError, match="withdraw"):
            await books[0].put(Name(255, b"one more"), b"", 60)

    scene(body)
    for wrong in ({"k": 0}, {"k": 21}, {"alpha": 0}, {"paths": 0}, {"lookup_deadline_s": 0.0}, {"families": (5,)}):
        with pytest.raises(ConfigError):
            DhtSettings(**wrong)  # type: ignore[arg-type]


def test_stopping_ends_what_waits_and_sends_nothing() -> None:
    async def body(net: Net) -> None:
        books = await grown(net, FAMILIES["IPv4"], 5)
        run = net.spawn("run", books[0].run())
        for dht in books[1:]:
            net.kill(dht)
        waiting = net.spawn("lookup", _ignoring(books[0].lookup(PeerId(bytes(32)))))
        await asyncio.sleep(0.01)
        books[0].stop()
        books[0].stop()
        sent = len(net.member_of(books[0]).port.sent)
        await asyncio.wait([run, waiting], timeout=1)
        assert run.done()
        assert waiting.done()
        books[0].heard_of(net.member_of(books[1]).peer, net.member_of(books[1]).addresses)
        Liar(net, "liar", "8.100.0.1:9").ask(books[0], Method.PING)
        await settle(net)
        assert len(net.member_of(books[0]).port.sent) == sent

    scene(body)


async def _ignoring(work: object) -> None:
    await work  # type: ignore[misc]
