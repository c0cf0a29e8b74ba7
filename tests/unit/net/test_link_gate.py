"""Handshakes an address may begin: a bucket each, larger on one's own site, one for a whole IPv6 network."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2pcompute.net.gate import Gate
from p2pcompute.net.ports import RESERVED_PORTS, candidate_ports


@pytest.mark.parametrize(
    ("host", "burst"),
    [("8.8.8.8", 5), ("2a00::1", 5), ("192.168.1.9", 50), ("127.0.0.1", 50), ("fe80::1%eth0", 50), ("a-name", 5)],
)
def test_a_burst_then_the_rate(host: str, burst: int) -> None:
    gate = Gate(5, 10)
    assert [gate.admits(host, 100.0) for _ in range(burst + 1)] == [True] * burst + [False]
    assert not gate.admits(host, 100.0 + 0.5 / burst)
    assert gate.admits(host, 101.5 / 1.0)
    # Rest never saves up more than a second's worth.
    assert [gate.admits(host, 1e6) for _ in range(burst + 1)] == [True] * burst + [False]


def test_addresses_are_counted_apart_and_an_ipv6_network_as_one() -> None:
    gate = Gate(1, 10)
    assert gate.admits("8.8.8.8", 0.0)
    assert gate.admits("8.8.4.4", 0.0)
    assert gate.admits("2a00:1:2:3::1", 0.0)
    assert not gate.admits("2a00:1:2:3::ffff", 0.0)
    assert gate.admits("2a00:1:2:4::1", 0.0)


def test_whoever_has_many_ipv6_networks_gets_a_little_more_than_who_has_one() -> None:
    gate = Gate(5, 10)
    assert sum(gate.admits(f"2a00:1:2:{network:x}::1", 0.0) for network in range(0x10, 0x20) for _ in range(5)) == 2 * 5
    assert sum(gate.admits(f"2a00:1:2:{network:x}::1", 0.0) for network in range(0x2000) for _ in range(2)) == 2 * 5
    assert gate.admits("2a00:1:3::1", 0.0)


def test_what_is_remembered_is_bounded() -> None:
    gate = Gate(1, 10)
    for number in range(5_000):
        gate.admits(f"8.{number >> 8 & 255}.{number & 255}.1", 0.0)
    assert len(gate._buckets) == 4_096


def test_ports_of_other_parts_are_passed_over() -> None:
    ports = candidate_ports(9876, 4)
    assert ports[0] == 9876
    assert not RESERVED_PORTS & set(ports)
    assert candidate_ports(0, 5) == [0]
    assert max(candidate_ports(65_530, 64)) == 65_535


def test_links_load_no_http_before_somebody_asks_for_it() -> None:
    loaded = "import sys, p2pcompute.net.links; print('aiohttp' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True).strip() == "False"
