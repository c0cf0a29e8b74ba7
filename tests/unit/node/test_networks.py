"""Networks of one user: made once, never overwritten, joined by token, kept in order by their owner."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    CorruptFileError,
    NoSuchPeerError,
    UnknownNameError,
    UsageError,
)
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import DEFAULT_ROLES, Address, Role
from p2pcompute.node.folders import Folders
from p2pcompute.node.networks import Networks
from p2pcompute.node.seams import SystemEntropy
from p2pcompute.wire.invitation import Invitation

DAY_S = 86_400.0
NOW = 1_800_000_000.0


class FakeClock:
    """A wall clock that stands still unless moved."""

    def __init__(self) -> None:
        self.now = NOW

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def networks(tmp_path: Path, clock: FakeClock) -> Networks:
    return Networks(Folders.beneath(tmp_path / "anna"), clock, SystemEntropy())


@pytest.fixture
def others(tmp_path: Path, clock: FakeClock) -> Networks:
    return Networks(Folders.beneath(tmp_path / "bert"), clock, SystemEntropy())


def test_the_first_start_makes_one_private_network_even_when_many_start_at_once(networks: Networks) -> None:
    found: list[NetworkId] = []
    threads = [threading.Thread(target=lambda: found.append(networks.get(None).invitation.network)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert len(set(found)) == 1
    (summary,) = networks.summaries()
    assert (summary.name, summary.kind, summary.current) == ("private", "owned", True)
    assert set(summary.roles) == {role.value for role in Role}


def test_files_are_private(networks: Networks, tmp_path: Path) -> None:
    networks.get(None)
    for path in (tmp_path / "anna" / "data" / "networks").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_create_and_choose(networks: Networks) -> None:
    home = networks.create("home")
    assert networks.get(None).name == "home"
    networks.create("club")
    assert networks.get(None).name == "club"
    networks.select("home")
    assert networks.get(None).invitation.network == home.invitation.network
    assert [summary.name for summary in networks.summaries()] == ["club", "home"]
    with pytest.raises(UsageError, match="already"):
        networks.create("home")
    assert networks.get("home").invitation.network == home.invitation.network
    with pytest.raises(UnknownNameError, match="did you mean 'home'"):
        networks.select("hoem")
    with pytest.raises(UnknownNameError):
        networks.get("hoem")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "current", "lock", "x" * 65, "two words"])
def test_names_that_cannot_be_folders(networks: Networks, name: str) -> None:
    with pytest.raises(UsageError):
        networks.create(name)
    assert networks.summaries() == []


def test_joining_makes_the_network_current(networks: Networks, others: Networks) -> None:
    owned = networks.create("home")
    invitation = owned.invite(roles=DEFAULT_ROLES, label="bert", addresses=(Address("10.0.0.1", 9876),))
    joined = others.join(f'  "{invitation.token()}"\n')
    assert (joined.network.name, joined.renamed, joined.known) == ("home", False, False)
    current = others.get(None)
    assert current.invitation.network == owned.invitation.network
    assert current.invitation.roles == DEFAULT_ROLES
    assert current.invitation.addresses == (Address("10.0.0.1", 9876),)
    assert current.authority is None
    with pytest.raises(UsageError, match="not yours"):
        current.owner()
    with pytest.raises(AdmissionError) as caught:
        current.invite(roles=DEFAULT_ROLES)
    assert caught.value.reason is AdmissionReason.NOT_ALLOWED


def test_an_admin_may_invite(networks: Networks, others: Networks) -> None:
    token = networks.create("home").invite(roles=frozenset(Role), may_invite=True).token()
    admin = others.join(token).network
    assert admin.invite(roles=DEFAULT_ROLES).network == networks.get("home").invitation.network


def test_another_network_of_the_same_name_stays_as_it_is(networks: Networks, others: Networks) -> None:
    mine = others.create("home")
    joined = others.join(networks.create("home").invite(roles=DEFAULT_ROLES).token())
    assert (joined.network.name, joined.renamed) == ("home-2", True)
    assert others.get("home").invitation.network == mine.invitation.network
    assert others.get(None).name == "home-2"


def test_a_second_token_for_the_same_network_takes_over_and_keeps_the_first(
    networks: Networks, others: Networks, tmp_path: Path
) -> None:
    owned = networks.create("home")
    others.join(owned.invite(roles=frozenset({Role.OBSERVE})).token())
    joined = others.join(owned.invite(roles=DEFAULT_ROLES).token())
    assert (joined.network.name, joined.known) == ("home", True)
    assert others.get("home").invitation.roles == DEFAULT_ROLES
    kept = list((tmp_path / "bert" / "data" / "networks" / "home").glob("invitation.token.before-*"))
    assert len(kept) == 1
    with pytest.raises(UsageError, match="you are its owner"):
        networks.join(owned.invite(roles=DEFAULT_ROLES).token())


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-5], lambda t: t[:50] + "AAAA" + t[54:], lambda t: "hello", lambda t: ""]
)
def test_a_token_that_cannot_be_read_changes_nothing(networks: Networks, others: Networks, damage: object) -> None:
    token = networks.create("home").invite(roles=DEFAULT_ROLES).token()
    with pytest.raises(AdmissionError) as caught:
        others.join(damage(token))  # type: ignore[operator]
    assert caught.value.reason is AdmissionReason.UNREADABLE
    assert others.summaries() == []


def test_an_expired_token_is_refused(networks: Networks, others: Networks, clock: FakeClock) -> None:
    token = networks.create("home").invite(roles=DEFAULT_ROLES, valid_s=DAY_S).token()
    clock.now += 2 * DAY_S
    with pytest.raises(AdmissionError) as caught:
        others.join(token)
    assert caught.value.reason is AdmissionReason.EXPIRED


def test_a_joined_network_that_has_ended_says_so_and_an_owned_one_goes_on(
    networks: Networks, others: Networks, clock: FakeClock
) -> None:
    others.join(networks.create("home").invite(roles=DEFAULT_ROLES, valid_s=DAY_S).token())
    clock.now += 3 * 365 * DAY_S
    assert networks.get("home").invitation.expires_wall > clock.now
    with pytest.raises(AdmissionError) as caught:
        others.get("home")
    assert caught.value.reason is AdmissionReason.EXPIRED
    (summary,) = others.summaries()
    assert "expired" in summary.problem


def test_corrupt_files_are_named_and_left(networks: Networks, tmp_path: Path) -> None:
    networks.create("home")
    folder = tmp_path / "anna" / "data" / "networks"
    for name in ("home/owner", "home/invitation.token"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xffdamaged")
        with pytest.raises(CorruptFileError, match=name.partition("/")[2]):
            networks.get("home")
        assert (folder / name).read_bytes() == b"\xffdamaged"
        (folder / name).write_bytes(before)
    (folder / "current").write_bytes(b"nowhere")
    with pytest.raises(CorruptFileError, match="names the network 'nowhere'"):
        networks.get(None)
    assert (folder / "current").read_bytes() == b"nowhere"
    (folder / "home" / "invitation.token").unlink()
    with pytest.raises(CorruptFileError, match="is missing"):
        networks.get("home")


def test_the_owner_renews_what_is_in_the_last_third_of_its_life(
    networks: Networks, others: Networks, clock: FakeClock
) -> None:
    owned = networks.create("home")
    near = owned.invite(roles=DEFAULT_ROLES, valid_s=90 * DAY_S)
    owned.invite(roles=DEFAULT_ROLES, valid_s=900 * DAY_S)
    revoked = owned.invite(roles=DEFAULT_ROLES, valid_s=90 * DAY_S, label="out")
    owned.revoke("out")
    assert owned.renewals_due() == []
    member = others.join(near.token()).network
    clock.now += 70 * DAY_S
    renewed = owned.renewals_due()
    assert len(renewed) == 1
    assert owned.renewals_due() == [], "what was renewed is not due again"
    assert member.keep_renewal(renewed[0])
    assert not member.keep_renewal(revoked.chain[0])
    again = others.get("home").invitation
    assert again.id == near.id
    assert again.expires_wall > clock.now + 60 * DAY_S
    clock.now += 1_000 * DAY_S
    assert owned.renewals_due() == [], "what has ended is not renewed"


def test_revocation_grows_and_never_takes_the_owner_along(networks: Networks) -> None:
    owned = networks.create("home")
    first = owned.invite(roles=DEFAULT_ROLES, label="bert")
    second = owned.invite(roles=DEFAULT_ROLES)
    one = owned.revoke("bert")
    two = owned.revoke(second.id.hex()[:8])
    three = owned.revoke("cleo", peers=(PeerId(b"\1" * 32),), invitations=(owned.invitation.id,))
    assert one.number < two.number < three.number
    assert three.invitations == {first.id, second.id}
    assert three.peers == {b"\1" * 32}
    assert owned.revocations() is not None
    with pytest.raises(NoSuchPeerError, match="nobody"):
        owned.revoke("nobody")


def test_export_and_import_of_an_owner(networks: Networks, others: Networks) -> None:
    owned = networks.create("home")
    data = networks.export_owner("home", "a long passphrase")
    with pytest.raises(UsageError, match="passphrase"):
        others.import_owner(data, "another passphrase")
    with pytest.raises(CorruptFileError):
        others.import_owner(b"no export", "a long passphrase")
    assert others.summaries() == []
    mine = others.create("home")
    imported = others.import_owner(data, "a long passphrase")
    assert imported.name == "home-2"
    assert imported.authority is not None
    assert imported.invitation.network == owned.invitation.network
    assert others.get("home").invitation.network == mine.invitation.network
    with pytest.raises(UsageError, match="here already"):
        others.import_owner(data, "a long passphrase")


def test_importing_the_owner_of_a_joined_network_makes_it_owned(networks: Networks, others: Networks) -> None:
    owned = networks.create("home")
    others.join(owned.invite(roles=DEFAULT_ROLES).token())
    imported = others.import_owner(networks.export_owner("home", "a long passphrase"), "a long passphrase")
    assert imported.name == "home"
    assert [summary.kind for summary in others.summaries()] == ["owned"]


def test_an_open_network_is_the_same_everywhere(networks: Networks, others: Networks, clock: FakeClock) -> None:
    here, there = networks.open("garden"), others.open("garden")
    assert here.is_open
    assert here.authority is None
    assert here.invitation.network == there.invitation.network
    assert here.invitation.roles == frozenset()
    with pytest.raises(UsageError, match="needs no invitation"):
        here.invite(roles=DEFAULT_ROLES)
    clock.now += 5 * 365 * DAY_S
    assert networks.open("garden").invitation.expires_wall > clock.now
    networks.create("home")
    with pytest.raises(UsageError, match="already"):
        networks.open("home")


def test_a_crash_while_a_network_is_made_leaves_no_half_of_one(
    networks: Networks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def crash(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(Exception, match="No space left"):
            networks.create("home")
    assert networks.summaries() == []
    assert networks.create("home").name == "home"


def test_an_invitation_that_is_valid_for_nothing_is_refused(networks: Networks) -> None:
    with pytest.raises(UsageError, match="more than 0"):
        networks.create("home").invite(roles=DEFAULT_ROLES, valid_s=0)


def test_the_own_invitation_reads_as_a_token(networks: Networks, tmp_path: Path) -> None:
    owned = networks.create("home")
    text = (tmp_path / "anna" / "data" / "networks" / "home" / "invitation.token").read_text()
    assert Invitation.from_token(text, NOW).id == owned.invitation.id


def test_an_owner_imported_on_a_fresh_machine_is_the_current_network(networks: Networks, others: Networks) -> None:
    owned = networks.create("home")
    imported = others.import_owner(networks.export_owner("home", "a long passphrase"), "a long passphrase")
    assert others.current_name() == imported.name == "home"
    assert others.default().invitation.network == owned.invitation.network
