"""Interfaces as the beacon sees them."""

from __future__ import annotations

import asyncio
import os
import socket
from types import SimpleNamespace

import pytest

from p2pcompute.net import interfaces as net_interfaces
from p2pcompute.net.interfaces import Interface, InterfaceWatch, interfaces_of, read_interfaces


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


def test_where_nothing_tells_looks_are_repeated_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_interfaces, "LOOK_INTERVAL_UNTOLD_S", 0.01)

    async def main() -> None:
        looks: list[int] = []
        seen = asyncio.Event()

        def look() -> None:
            looks.append(1)
            if len(looks) == 3:
                seen.set()

        watch = InterfaceWatch(look, tells=False)
        watch.start()
        async with asyncio.timeout(10):
            await seen.wait()
        watch.stop()
        watch.stop()
        count = len(looks)
        # A timer of the same length, set after the end, rings without another look before it.
        await asyncio.sleep(0.02)
        assert len(looks) == count

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="not on this platform: no netlink")
def test_a_flock_of_changes_is_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch's own socket is replaced by one of a pair: what it says is no message that a kernel would send."""
    monkeypatch.setattr(net_interfaces, "GATHER_S", 0.01)
    system, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(net_interfaces, "_open_netlink", lambda: ours)

    async def main() -> None:
        looks: list[float] = []
        seen = asyncio.Event()

        def look() -> None:
            looks.append(asyncio.get_running_loop().time())
            seen.set()

        watch = InterfaceWatch(look)
        watch.start()
        assert watch.interval_s == net_interfaces.LOOK_INTERVAL_TOLD_S
        for flock in range(1, 3):
            for _ in range(200):
                try:
                    system.send(os.urandom(100), socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
            async with asyncio.timeout(10):
                await seen.wait()
            seen.clear()
            assert len(looks) == flock
        watch.stop()

    asyncio.run(main())
    system.close()


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="not on this platform: no netlink")
def test_linux_tells_of_changes() -> None:
    told = net_interfaces._open_netlink()
    assert told is not None
    with pytest.raises(BlockingIOError):
        told.recv(100)
    told.close()
