"""What doctor says of how a running peer is reached."""

from __future__ import annotations

from typing import Any

from p2pcompute.node.doctor import Finding, Level, _reach_findings

REACHING: dict[str, Any] = {
    "reach": "public",
    "external": [],
    "mapping": "the router has not been asked",
    "forwarded": None,
    "relays": [],
    "refusals": {},
    "links_relayed": 0,
    "datagrams": {"links": 3, "sessions": 2, "lost": {}},
    "serves": {"serving": True, "reserved": 0, "circuits": 0, "bytes": 0},
}


def findings(**changes: Any) -> list[Finding]:
    return list(_reach_findings("peer 1", {"port": 9876, "reaching": {**REACHING, **changes}}))


def test_who_can_be_dialled_is_well() -> None:
    (found,) = findings()
    assert (found.subject, found.level) == ("peer 1", Level.OK)
    assert found.text.startswith("reach public: peers of other networks can dial it")


def test_a_relay_says_for_how_many_and_how_much() -> None:
    (found,) = findings(serves={"serving": True, "reserved": 4, "circuits": 1, "bytes": 2_500_000})
    assert found.text.endswith("it is the relay of 4, and has passed on 2.5 MB")


def test_private_with_a_relay_is_well_and_names_it() -> None:
    (found,) = findings(reach="private", relays=[{"name": "attic"}], mapping="UPnP: refused")
    assert found.level is Level.OK
    assert "through attic. Router: UPnP: refused" in found.text


def test_private_without_a_relay_says_why_and_what_to_do() -> None:
    (found,) = findings(reach="private", refusals={"attic": "it keeps 32 already"})
    assert found.level is Level.WARN
    assert "has no relay" in found.text
    assert "attic: it keeps 32 already" in found.text
    assert "forward TCP and UDP port 9876" in found.advice


def test_datagrams_that_reach_nobody_are_a_warning() -> None:
    assert len(findings(datagrams={"links": 0, "sessions": 0, "lost": {}})) == 1, "without links nothing is known"
    reach, datagrams = findings(datagrams={"links": 2, "sessions": 0, "lost": {}})
    assert (reach.level, datagrams.level) == (Level.OK, Level.WARN)
    assert "no UDP datagrams get through, to none of 2 linked peers" in datagrams.text
    assert "UDP port 9876" in datagrams.advice


def test_a_peer_of_an_earlier_version_says_nothing() -> None:
    assert list(_reach_findings("peer 1", {"port": 9876})) == []


def test_who_refuses_to_be_a_relay_is_told_so() -> None:
    serves = {"allowed": False, "serving": False, "reserved": 0, "circuits": 0, "bytes": 0}
    (found,) = findings(serves=serves)
    assert found.level == Level.OK
    assert "it is no relay of others (relay = false)" in found.text
    assert "no relay" not in findings()[0].text
