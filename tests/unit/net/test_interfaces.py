"""Interfaces as the beacon sees them."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from p2pcompute.net.interfaces import Interface, interfaces_of, read_interfaces


def row(family: int, address: str, netmask: str | None) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=address, netmask=netmask)


@pytest.mark.parametrize(
    ("address", "netmask", "broadcasts"),
    [
        ("192.168.1.20", "255.255.255.0", ("192.168.1.255",)),
        ("10.1.2.3", "255.240.0.0", ("10.15.255.255",)),
        ("10.0.0.1", "255.255.255.254", ()),
        ("10.0.0.1", "255.255.255.255", ()),
        ("10.0.0.1", None, ()),
    ],
)
def test_directed_broadcasts_follow_from_the_netmask(address: str, netmask: str, broadcasts: tuple[str, ...]) -> None:
    (found,) = interfaces_of({"eth0": [row(socket.AF_INET, address, netmask)]}, {"eth0": 2})
    assert found.broadcasts == broadcasts
    assert found.ipv4 == address


def test_interfaces_are_ordered_complete_and_only_those_that_are_up() -> None:
    table = {
        "wlan0": [
            row(socket.AF_INET, "192.168.1.20", "255.255.255.0"),
            row(socket.AF_INET, "192.168.1.21", "255.255.255.0"),
            row(socket.AF_INET6, "fe80::1%wlan0", "ffff:ffff:ffff:ffff::"),
        ],
        "lo": [row(socket.AF_INET, "127.0.0.1", "255.0.0.0"), row(socket.AF_INET6, "::1", None)],
        "down0": [row(socket.AF_INET, "10.0.0.1", "255.0.0.0")],
        "bare0": [row(-1, "00:11:22:33:44:55", None)],
    }
    assert interfaces_of(table, {"wlan0": 3, "lo": 1, "bare0": 4}) == (
        Interface("lo", 1, "127.0.0.1", ("127.255.255.255",), ("127.0.0.1/8", "::1/128"), True, True),
        Interface(
            "wlan0",
            3,
            "192.168.1.20",
            ("192.168.1.255",),
            ("192.168.1.20/24", "192.168.1.21/24", "fe80::1/64"),
            True,
            False,
        ),
    )


def test_what_the_system_misspells_is_left_out() -> None:
    assert interfaces_of({"x": [row(socket.AF_INET, "nonsense", "255.0.0.0")]}, {"x": 1}) == ()


def test_this_machine_has_a_loopback() -> None:
    assert any(interface.is_loopback and interface.index for interface in read_interfaces())
