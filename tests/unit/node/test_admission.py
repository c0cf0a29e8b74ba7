"""News from the owner of a network: taken once, kept, passed on, and never believed from anybody else."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import DEFAULT_ROLES
from p2pcompute.node.admission import RENEWALS_KEPT, Admission
from p2pcompute.node.folders import Folders
from p2pcompute.node.local_network import LocalNetwork
from p2pcompute.node.networks import Networks
from p2pcompute.node.seams import SystemEntropy
from p2pcompute.wire.authority import open_network
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Membership
from p2pcompute.wire.messages import Message, Renewals, Revocations

DAY_S = 86_400.0
ENTROPY = SystemEntropy()


class FakeClock:
    """A wall clock that stands still unless moved."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class FakeLink:
    """A link that keeps what is sent over it."""

    def __init__(self, membership: Membership) -> None:
        self.peer = PeerId(b"\2" * 32)
        self.closed = False
        self.expires_wall = membership.expires_wall
        self.admission = SimpleNamespace(invitation=membership.invitation, expires_wall=membership.expires_wall)
        self.hello = SimpleNamespace(invitations=membership.chain)
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)


class Side:
    """One peer's admission, with a database that outlives it."""

    def __init__(self, network: LocalNetwork, clock: FakeClock, database: dict[str, bytes] | None = None) -> None:
        key = PeerKey.generate(ENTROPY)
        membership = Membership.mint(key, network.invitation, clock.wall(), ENTROPY)
        self.identity: Any = SimpleNamespace(membership=membership, trust=membership.trust(None))
        self.identity.renew = lambda renewed: setattr(self.identity, "membership", renewed)
        self.kept = {} if database is None else database
        self.links: list[Any] = []
        self.closed: list[Any] = []
        store: Any = SimpleNamespace(get=self.kept.get, put=self.kept.__setitem__)
        self.admission = Admission(
            self.identity,
            network,
            store,
            clock,
            structlog.get_logger(),
            lambda: self.links,
            lambda link, *_: self.closed.append(link),
            lambda _: None,
        )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def owned(tmp_path: Path, clock: FakeClock) -> LocalNetwork:
    return Networks(Folders.beneath(tmp_path / "anna"), clock, ENTROPY).create("home")


@pytest.fixture
def others(tmp_path: Path, clock: FakeClock) -> Networks:
    return Networks(Folders.beneath(tmp_path / "ben"), clock, ENTROPY)


def test_a_renewal_is_kept_for_the_next_start_and_passed_on_once(
    owned: LocalNetwork, others: Networks, clock: FakeClock
) -> None:
    side = Side(others.join(owned.invite(roles=DEFAULT_ROLES, valid_s=90 * DAY_S).token()).network, clock)
    source, other = FakeLink(side.identity.membership), FakeLink(side.identity.membership)
    side.links = [source, other]
    clock.now += 70 * DAY_S
    (renewed,) = owned.renewals_due()
    for _ in range(2):
        side.admission.heard(source, Renewals((renewed,)))  # type: ignore[arg-type]
    assert other.sent == [Renewals((renewed,))]
    assert source.sent == []
    assert side.identity.membership.expires_wall == clock.now + 90 * DAY_S
    # Links of the same invitation need not end with the certificates that they were made with.
    assert source.expires_wall == other.expires_wall == clock.now + 90 * DAY_S
    late = FakeLink(side.identity.membership)
    late.expires_wall = clock.now + DAY_S
    side.admission.greet(late)  # type: ignore[arg-type]
    assert late.expires_wall == clock.now + 90 * DAY_S
    clock.now += 50 * DAY_S
    again = Side(others.get("home"), clock, side.kept)
    assert again.identity.membership.expires_wall > clock.now


def test_renewals_promise_what_the_invitation_did_however_often(owned: LocalNetwork, clock: FakeClock) -> None:
    invitation = owned.invite(roles=DEFAULT_ROLES, valid_s=30.0)
    assert owned.renewals_due() == []
    assert owned.next_renewal_wall() == clock.now + 20.0
    for _ in range(5):
        clock.now += 25
        assert len(owned.renewals_due()) == 1
        (certificate,) = owned.issued()
        assert certificate.window.not_after_s == clock.now + 30
    assert owned.renewal_of(invitation.id, invitation.expires_wall) is not None
    assert owned.renewal_of(invitation.id, clock.now + 30) is None


def test_the_owners_own_peers_are_renewed_while_they_run(owned: LocalNetwork, clock: FakeClock, tmp_path: Path) -> None:
    side = Side(owned, clock)
    clock.now += 300 * DAY_S
    side.admission.renew(owned.renewals_due())
    assert side.identity.membership.expires_wall == clock.now + 365 * DAY_S
    assert owned.renewals_due() == [], "the renewed one is the one that counts"
    again = Networks(Folders.beneath(tmp_path / "anna"), clock, ENTROPY).get("home").invitation
    assert again.id == owned.invitation.id
    assert again.expires_wall == clock.now + 365 * DAY_S


def test_the_owner_greets_with_the_renewal_that_was_missed(owned: LocalNetwork, clock: FakeClock) -> None:
    invitations = [owned.invite(roles=DEFAULT_ROLES, valid_s=90 * DAY_S) for _ in range(RENEWALS_KEPT + 3)]
    side = Side(owned, clock)
    links = [FakeLink(Membership.mint(PeerKey.generate(ENTROPY), each, clock.wall(), ENTROPY)) for each in invitations]
    clock.now += 70 * DAY_S
    side.admission.renew(owned.renewals_due())
    for link, invitation in zip(links, invitations, strict=True):
        side.admission.greet(link)  # type: ignore[arg-type]
        (message,) = link.sent
        assert isinstance(message, Renewals)
        assert len(message.invitations) <= RENEWALS_KEPT
        assert owned.renewal_of(invitation.id, invitation.expires_wall) in message.invitations


def test_what_the_owner_revoked_while_no_peer_ran_counts_from_the_start(
    owned: LocalNetwork, others: Networks, clock: FakeClock
) -> None:
    joined = others.join(owned.invite(roles=DEFAULT_ROLES, label="ben").token()).network
    owned.revoke("ben")
    side = Side(owned, clock)
    assert side.identity.trust.revocations.invitations == {joined.invitation.id}
    link = FakeLink(Side(joined, clock).identity.membership)
    side.admission.greet(link)  # type: ignore[arg-type]
    assert [type(message) for message in link.sent] == [Revocations]


def test_an_admins_revocation_closes_the_links_of_those_whom_the_admin_invited(
    owned: LocalNetwork, others: Networks, clock: FakeClock, tmp_path: Path
) -> None:
    admin = others.join(owned.invite(roles=DEFAULT_ROLES, may_invite=True, label="admin").token()).network
    guests = Networks(Folders.beneath(tmp_path / "cleo"), clock, ENTROPY)
    guest = guests.join(admin.invite(roles=DEFAULT_ROLES).token()).network
    side = Side(owned, clock)
    link = FakeLink(Membership.mint(PeerKey.generate(ENTROPY), guest.invitation, clock.wall(), ENTROPY))
    side.links = [link]
    side.admission.revoke(owned.revoke("admin"))
    assert side.closed == [link]


def test_in_an_open_network_where_everybody_could_sign_no_news_count(others: Networks, clock: FakeClock) -> None:
    side = Side(others.open("garden"), clock)
    link = FakeLink(side.identity.membership)
    side.links = [link, FakeLink(side.identity.membership)]
    anybody = open_network("garden")
    renewed = anybody.renew(side.identity.membership.chain[0], clock.now, 900 * DAY_S, ENTROPY)
    before = side.identity.membership
    side.admission.heard(link, Renewals((renewed,)))  # type: ignore[arg-type]
    assert side.identity.membership is before
    assert side.links[1].sent == []
    assert side.kept == {}
