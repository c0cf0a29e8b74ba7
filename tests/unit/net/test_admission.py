"""Who is let in over real sockets: every refusal, in both directions where there are two."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from p2pcompute.model.errors import AdmissionError, AdmissionReason, LinkClosedError, P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Role
from p2pcompute.net.tls import admission_error_from_tls, client_context, read_leaf, server_context
from p2pcompute.wire.authority import Authority, open_network
from p2pcompute.wire.certificates import Notes, build_certificate, read_certificate, serial_from
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.identity import PeerKey, SigningKey
from p2pcompute.wire.membership import Admitted, Trust
from tests.support.networks import DAY_S, NOW, Member, SeededEntropy, make_member, make_network
from tests.support.tls_thief import shake_hands

ALPN = "p2pc/1"
Outcome = Admitted | P2PComputeError


@dataclass(frozen=True)
class Shown:
    """What one side of a connection shows and believes; built by hand, it can be anything."""

    key: PeerKey
    leaf: bytes
    chain: tuple[bytes, ...]
    owners: tuple[bytes, ...]
    trust: Trust
    #: The chain in the first message, where it differs from what TLS showed.
    told: tuple[bytes, ...] | None = None
    expected: PeerId | None = None


def honest(member: Member, trust: Trust | None = None, expected: PeerId | None = None) -> Shown:
    held = member.membership
    return Shown(member.key, held.leaf, held.chain, held.owners, trust or member.trust(), expected=expected)


async def _side(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shown: Shown, context: ssl.SSLContext, dialled: bool
) -> Outcome:
    """TLS, then a stand-in for the first message: the invitations, each way."""
    try:
        async with asyncio.timeout(20):
            await writer.start_tls(context)
            leaf = read_leaf(writer.get_extra_info("ssl_object"))
            told = pack(list(shown.chain if shown.told is None else shown.told))
            writer.write(len(told).to_bytes(4) + told)
            await writer.drain()
            length = int.from_bytes(await reader.readexactly(4))
            heard = unpack(await reader.readexactly(length))
            return shown.trust.admit(leaf, heard, NOW, expected=shown.expected)
    except P2PComputeError as error:
        return error
    except (OSError, asyncio.IncompleteReadError) as error:
        return admission_error_from_tls(error, dialled)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _meet(listener: Shown, dial: Callable[[int], Awaitable[Outcome | None]]) -> tuple[Outcome, Outcome | None]:
    """What the listening side and `dial`, called with the port, make of each other."""
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    context = server_context(listener, listener.key, [ALPN])  # type: ignore[arg-type]

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outcome.set_result(await _side(reader, writer, listener, context, False))

    async with asyncio.timeout(60), await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        dialled = await dial(server.sockets[0].getsockname()[1])
        return await outcome, dialled


def meet(listener: Shown, dialler: Shown, context: ssl.SSLContext | None = None) -> tuple[Outcome, Outcome]:
    """What both sides make of each other. `context`: the dialler's, where it is not one of ours."""

    async def dial(port: int) -> Outcome:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        use = context or client_context(dialler, dialler.key, [ALPN])  # type: ignore[arg-type]
        return await _side(reader, writer, dialler, use, True)

    listened, dialled = asyncio.run(_meet(listener, dial))
    assert dialled is not None
    return listened, dialled


def refused(outcome: Outcome | None, reason: AdmissionReason) -> None:
    assert isinstance(outcome, AdmissionError), outcome
    assert outcome.reason is reason, outcome
    assert len(str(outcome)) > 40, "a refusal is a sentence"


# --- let in -----------------------------------------------------------------------------------------------------------


def test_members_of_one_network_admit_each_other_with_the_roles_of_their_invitations() -> None:
    network = make_network()
    anna = make_member(network, "anna", roles=frozenset({Role.COMPUTE}))
    bert = make_member(network, "bert", roles=frozenset({Role.SUBMIT, Role.OBSERVE}))
    by_anna, by_bert = meet(honest(anna, expected=None), honest(bert, expected=anna.key.peer_id))
    assert isinstance(by_anna, Admitted)
    assert isinstance(by_bert, Admitted)
    assert (by_anna.peer, by_anna.public_key) == (bert.key.peer_id, bert.key.public_key)
    assert by_anna.roles == {Role.SUBMIT, Role.OBSERVE}
    assert by_anna.invitation == bert.invitation.id
    assert by_anna.expires_wall == bert.invitation.expires_wall
    assert by_bert.roles == {Role.COMPUTE}


def test_an_admins_guest_is_admitted_with_no_more_than_the_admin_has() -> None:
    network = make_network()
    admin = make_member(network, "admin", roles=frozenset({Role.SUBMIT, Role.COMPUTE}), may_invite=True)
    guest = make_member(admin.invitation, "guest", roles=frozenset({Role.SUBMIT}))
    by_admin, by_guest = meet(honest(admin), honest(guest))
    assert isinstance(by_admin, Admitted)
    assert isinstance(by_guest, Admitted)
    assert by_admin.roles == {Role.SUBMIT}
    assert by_admin.invitation == guest.invitation.id
    assert by_guest.roles == {Role.SUBMIT, Role.COMPUTE, Role.ADMIN}


def test_an_admin_that_signs_by_hand_grants_nothing_that_it_lacks() -> None:
    network = make_network()
    admin = make_member(network, "admin", roles=frozenset({Role.SUBMIT}), may_invite=True)
    issuer = read_certificate(admin.invitation.chain[0])
    child = SigningKey(b"h" * 32)
    der = build_certificate(
        name="guest",
        public_key=child.public_key,
        signer=admin.invitation.key,
        issuer=issuer,
        window=issuer.window,
        serial=serial_from(b"guest"),
        path_length=0,
        notes=Notes(roles=frozenset(Role)),
    )
    key = PeerKey.generate(SeededEntropy("guest"))
    guest = replace(honest(admin), key=key, leaf=_leaf(key, der, child), chain=(der, *admin.invitation.chain))
    by_admin, _ = meet(honest(admin), guest)
    assert isinstance(by_admin, Admitted)
    assert by_admin.roles == {Role.SUBMIT}


def test_members_of_an_open_network_meet_but_no_role_counts() -> None:
    anna = make_member(open_network("playground"), "anna")
    bert = make_member(open_network("playground"), "bert")
    for outcome in meet(honest(anna), honest(bert)):
        assert isinstance(outcome, Admitted), outcome
        assert outcome.roles == frozenset()


def test_a_membership_lives_on_after_its_tokens_age_once_it_is_renewed() -> None:
    long_ago = NOW - 400 * DAY_S
    network = make_network(now=long_ago)
    old = make_member(network, "old", now=long_ago)
    other = make_member(network, "other")
    refused(meet(honest(other), honest(old))[0], AdmissionReason.EXPIRED)
    renewal = network.renew(old.invitation.chain[0], NOW, 365 * DAY_S, SeededEntropy("renewal"))
    renewed = replace(old, membership=old.membership.renewed(renewal))
    by_other, by_renewed = meet(honest(other), honest(renewed))
    assert isinstance(by_other, Admitted), by_other
    assert isinstance(by_renewed, Admitted), by_renewed
    assert (by_other.peer, by_other.invitation) == (old.key.peer_id, old.invitation.id)


def test_while_a_network_changes_hands_members_of_both_owners_meet() -> None:
    former = make_network()
    owner = former.successor(SeededEntropy("successor"), NOW)
    assert owner.network == former.network
    old = make_member(former, "old")
    old = replace(old, membership=old.membership.trusting(owner.certificate))
    new = make_member(owner, "new")
    new_trusting_both = replace(new.membership, owners=(owner.certificate, former.certificate))
    for outcome in meet(honest(old), honest(replace(new, membership=new_trusting_both))):
        assert isinstance(outcome, Admitted), outcome
    moved = old.membership.renewed(owner.renew(old.invitation.chain[0], NOW, 366 * DAY_S, SeededEntropy("renewal")))
    for outcome in meet(honest(replace(old, membership=moved)), honest(new)):
        assert isinstance(outcome, Admitted), outcome


# --- refused by TLS ---------------------------------------------------------------------------------------------------


def outsider(victims: Authority) -> Shown:
    """A member of another network, of the same name, that has learnt the certificate of the victims' owner."""
    member = make_member(make_network("elsewhere"), "outsider")
    return replace(honest(member), owners=(victims.certificate,), trust=_trust(victims))


def foreign_leaf(victims: Authority) -> Shown:
    """A leaf that names a true invitation as its issuer but was signed by another authority."""
    member = make_member(victims, "robbed")
    leaf = _leaf(PeerKey.generate(SeededEntropy("foreign")), member.membership.chain[0], SigningKey(b"f" * 32))
    return replace(honest(member), key=PeerKey.generate(SeededEntropy("foreign")), leaf=leaf)


def foreign_authority(victims: Authority) -> Shown:
    """The whole chain under an authority of the thief's own; a true invitation in the first message."""
    robbed = make_member(victims, "robbed")
    return replace(outsider(victims), told=robbed.membership.chain)


def patched_leaf(victims: Authority) -> Shown:
    """A stolen leaf in which the thief has put another key."""
    robbed = make_member(victims, "robbed")
    thief = PeerKey.generate(SeededEntropy("thief"))
    leaf = robbed.membership.leaf.replace(robbed.key.public_key, thief.public_key)
    assert leaf != robbed.membership.leaf
    return replace(honest(robbed), key=thief, leaf=leaf)


def expired(victims: Authority) -> Shown:
    return honest(make_member(victims, "late", now=NOW - 10 * DAY_S, valid_s=DAY_S))


def too_early(victims: Authority) -> Shown:
    return honest(make_member(victims, "early", now=NOW + 10 * DAY_S))


def leaf_signs(victims: Authority) -> Shown:
    """A peer that signs the certificate of another one."""
    member = make_member(victims, "signer")
    key = PeerKey.generate(SeededEntropy("child"))
    leaf = _leaf(key, member.membership.leaf, member.key)
    return replace(honest(member), key=key, leaf=leaf, chain=(member.membership.leaf, *member.membership.chain))


def invitation_signs(victims: Authority) -> Shown:
    """An invitation that makes a further one, with more roles."""
    member = make_member(victims, "inviter")
    inviter = read_certificate(member.invitation.chain[0])
    child = SigningKey(b"c" * 32)
    der = build_certificate(
        name="child",
        public_key=child.public_key,
        signer=member.invitation.key,
        issuer=inviter,
        window=inviter.window,
        serial=serial_from(b"child"),
        path_length=0,
        notes=inviter.notes,
    )
    key = PeerKey.generate(SeededEntropy("grandchild"))
    return replace(honest(member), key=key, leaf=_leaf(key, der, child), chain=(der, *member.invitation.chain))


def forged_guest(victims: Authority) -> Shown:
    """An invitation that names an admin's as its maker but was signed by another key."""
    admin = make_member(victims, "admin", may_invite=True)
    issuer = read_certificate(admin.invitation.chain[0])
    child = SigningKey(b"g" * 32)
    der = build_certificate(
        name="guest",
        public_key=child.public_key,
        signer=child,
        issuer=issuer,
        window=issuer.window,
        serial=serial_from(b"guest"),
        path_length=0,
        notes=issuer.notes,
    )
    key = PeerKey.generate(SeededEntropy("forged guest"))
    return replace(honest(admin), key=key, leaf=_leaf(key, der, child), chain=(der, *admin.invitation.chain))


def invitation_as_peer(victims: Authority) -> Shown:
    """Somebody who shows the invitation itself."""
    member = make_member(victims, "lazy")
    key = PeerKey(member.invitation.key.raw)
    return replace(honest(member), key=key, leaf=member.invitation.chain[0], chain=())


def _leaf(key: PeerKey, issuer_der: bytes, signer: SigningKey) -> bytes:
    issuer = read_certificate(issuer_der)
    return build_certificate(
        name="forged",
        public_key=key.public_key,
        signer=signer,
        issuer=issuer,
        window=issuer.window,
        serial=serial_from(b"forged"),
        path_length=None,
    )


def _trust(authority: Authority) -> Trust:
    return Trust(authority.network, (authority.certificate,), None, authority.is_open)


REFUSED = [
    (outsider, AdmissionReason.OTHER_NETWORK),
    (foreign_leaf, AdmissionReason.FOREIGN_AUTHORITY),
    (foreign_authority, AdmissionReason.OTHER_NETWORK),
    (patched_leaf, AdmissionReason.FOREIGN_AUTHORITY),
    (expired, AdmissionReason.EXPIRED),
    (too_early, AdmissionReason.NOT_YET_VALID),
    (leaf_signs, AdmissionReason.LEAF_SIGNS),
    (invitation_signs, AdmissionReason.INVITATION_SIGNS),
    (forged_guest, AdmissionReason.FOREIGN_AUTHORITY),
    (invitation_as_peer, AdmissionReason.NOT_ALLOWED),
]


@pytest.mark.parametrize(("make_intruder", "reason"), REFUSED)
@pytest.mark.parametrize("intruder_dials", [True, False])
def test_an_intruder_is_refused_whoever_dials(
    make_intruder: Callable[[Authority], Shown], reason: AdmissionReason, intruder_dials: bool
) -> None:
    network = make_network(now=NOW - 30 * DAY_S)
    intruder = make_intruder(network)
    victim = honest(make_member(network, "victim"))
    if intruder_dials:
        by_victim, by_intruder = meet(victim, intruder)
    else:
        by_intruder, by_victim = meet(intruder, victim)
    refused(by_victim, reason)
    # TLS itself has refused: the sentence is about a side, not yet about a peer.
    assert isinstance(by_victim, AdmissionError)
    assert by_victim.origin.endswith("connected" if intruder_dials else "dialled")
    assert not isinstance(by_intruder, Admitted)


@pytest.mark.parametrize(("make_intruder", "reason"), REFUSED)
def test_what_tls_refuses_is_refused_by_admit_too(
    make_intruder: Callable[[Authority], Shown], reason: AdmissionReason
) -> None:
    # Datagrams are checked by `admit` alone.
    network = make_network(now=NOW - 30 * DAY_S)
    intruder = make_intruder(network)
    with pytest.raises(AdmissionError) as caught:
        _trust(network).admit(intruder.leaf, intruder.told or intruder.chain, NOW, expected=None)
    if make_intruder is foreign_authority:
        reason = AdmissionReason.FOREIGN_AUTHORITY
    assert caught.value.reason is reason


def test_a_visitor_without_a_certificate_is_refused() -> None:
    network = make_network()
    visitor = honest(make_member(network, "visitor"))
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=network.certificate)
    by_victim, by_visitor = meet(honest(make_member(network, "victim")), visitor, bare)
    refused(by_victim, AdmissionReason.NO_CERTIFICATE)
    assert not isinstance(by_visitor, Admitted)


def test_a_visitor_without_tls_1_3_is_refused() -> None:
    network = make_network()
    visitor = make_member(network, "visitor")
    old = client_context(visitor.membership, visitor.key, [ALPN])
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    by_victim, _ = meet(honest(make_member(network, "victim")), honest(visitor), old)
    refused(by_victim, AdmissionReason.VERSION)


@pytest.mark.parametrize("steals", [True, False])
def test_a_stolen_leaf_is_worth_nothing_without_its_key(steals: bool) -> None:
    network = make_network()
    robbed = make_member(network, "robbed")
    key = PeerKey.generate(SeededEntropy("thief")) if steals else robbed.key

    def show(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            shake_hands(connection, [robbed.membership.leaf, *robbed.membership.chain], key)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

    async def dial(port: int) -> None:
        await asyncio.to_thread(show, port)

    by_victim, _ = asyncio.run(_meet(honest(make_member(network, "victim")), dial))
    if steals:
        refused(by_victim, AdmissionReason.STOLEN_LEAF)
    else:
        # The same words by the key's holder pass the handshake: it was the key that made the difference.
        assert isinstance(by_victim, LinkClosedError), by_victim


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", bytes(2000), b"\x16\x03\x01\xff\xff" + bytes(300), b""])
def test_noise_at_the_port_closes_that_connection_only(noise: bytes) -> None:
    async def dial(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(noise)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    by_victim, _ = asyncio.run(_meet(honest(make_member(make_network(), "victim")), dial))
    assert isinstance(by_victim, LinkClosedError), by_victim


# --- refused after TLS ------------------------------------------------------------------------------------------------


def test_somebody_else_than_the_one_who_was_dialled_is_refused() -> None:
    network = make_network()
    anna, bert = make_member(network, "anna"), make_member(network, "bert")
    dialler = honest(bert, expected=PeerId(bytes(32)))
    refused(meet(honest(anna), dialler)[1], AdmissionReason.WRONG_PEER)


def test_a_revoked_invitation_and_a_revoked_peer_are_refused() -> None:
    network = make_network()
    anna, bert = make_member(network, "anna"), make_member(network, "bert")
    admin = make_member(network, "admin", may_invite=True)
    guest = make_member(admin.invitation, "guest")
    by_invitation = network.revoke(None, invitations=[bert.invitation.id, admin.invitation.id], now_wall=NOW)
    by_peer = network.revoke(None, peers=[bert.key.peer_id], now_wall=NOW)
    for revocations, refused_member in [(by_invitation, bert), (by_peer, bert), (by_invitation, guest)]:
        listener = honest(anna, anna.trust(revocations))
        refused(meet(listener, honest(refused_member))[0], AdmissionReason.REVOKED)
    assert isinstance(meet(honest(anna, anna.trust(by_peer)), honest(guest))[0], Admitted)


def test_a_first_message_with_another_invitation_than_the_leafs_is_refused() -> None:
    network = make_network()
    modest = make_member(network, "modest", roles=frozenset({Role.OBSERVE}))
    mighty = make_member(network, "mighty", roles=frozenset({Role.SUBMIT, Role.COMPUTE}))
    greedy = replace(honest(modest), told=mighty.membership.chain)
    refused(meet(honest(mighty), greedy)[0], AdmissionReason.FOREIGN_AUTHORITY)
    silent = replace(honest(modest), told=())
    refused(meet(honest(mighty), silent)[0], AdmissionReason.NO_CERTIFICATE)


# --- contexts ---------------------------------------------------------------------------------------------------------


def test_contexts_ask_for_the_protocols_and_leave_no_file_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delattr("os.memfd_create", raising=False)
    member = make_member(make_network(), "anna")
    for context in (
        server_context(member.membership, member.key, [ALPN]),
        client_context(member.membership, member.key, [ALPN]),
    ):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert len(context.get_ca_certs()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_protocol_is_agreed_and_sessions_leave_no_tickets() -> None:
    network = make_network()
    anna, bert = make_member(network, "anna"), make_member(network, "bert")
    server = server_context(anna.membership, anna.key, [ALPN, "http/1.1"])
    client = client_context(bert.membership, bert.key, [ALPN])
    assert server.num_tickets == 0
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialler = client.wrap_bio(back, there)
    listener = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (dialler, listener):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        dialler.read()
    assert dialler.selected_alpn_protocol() == listener.selected_alpn_protocol() == ALPN
    assert not dialler.session.has_ticket
    assert read_leaf(dialler) == anna.membership.leaf
    assert read_leaf(None) == b""


def _handshake(listener: ssl.SSLObject, dialler: ssl.SSLObject) -> Exception:
    """What the dialler hears of a handshake in memory in which the listener refuses."""
    for _ in range(6):
        try:
            dialler.do_handshake()
            dialler.read()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            return error
        with contextlib.suppress(ssl.SSLError):
            listener.do_handshake()
    raise AssertionError("nobody refused")


@pytest.mark.parametrize(
    ("make_intruder", "reason"),
    [
        (outsider, AdmissionReason.OTHER_NETWORK),
        (expired, AdmissionReason.EXPIRED),
        (patched_leaf, AdmissionReason.STOLEN_LEAF),
        (invitation_as_peer, AdmissionReason.FOREIGN_AUTHORITY),
        (None, AdmissionReason.NO_CERTIFICATE),
    ],
)
def test_who_is_refused_is_told_why(
    make_intruder: Callable[[Authority], Shown] | None, reason: AdmissionReason
) -> None:
    network = make_network(now=NOW - 30 * DAY_S)
    victim = make_member(network, "victim")
    if make_intruder is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=network.certificate)
    else:
        intruder = make_intruder(network)
        context = client_context(intruder, intruder.key, [ALPN])  # type: ignore[arg-type]
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    listener = server_context(victim.membership, victim.key, [ALPN]).wrap_bio(there, back, server_side=True)
    error = _handshake(listener, context.wrap_bio(back, there))
    mapped = admission_error_from_tls(error, True)
    refused(mapped, reason)
    assert "it says" in str(mapped) or "it wants" in str(mapped) or "does not accept" in str(mapped)


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), ssl.SSLEOFError(8, "eof"), EOFError(), ssl.SSLError()])
@pytest.mark.parametrize("dialled", [True, False])
def test_a_connection_that_just_ends_is_no_refusal(error: Exception, dialled: bool) -> None:
    mapped = admission_error_from_tls(error, dialled)
    assert isinstance(mapped, LinkClosedError)
    assert ("dialled" in str(mapped)) == dialled
