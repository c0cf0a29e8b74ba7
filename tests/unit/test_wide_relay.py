"""The part of the wide links between test sites that decides: what goes where, and when it is there."""

from __future__ import annotations

import ipaddress

from tests.support.wide_relay import DelayLine, link_of

SUBNETS = [(int(ipaddress.IPv4Address(f"10.77.{site}.0")), 0xFFFFFF00) for site in (1, 2)]


def _packet_to(address: str) -> bytes:
    return bytes([0x45]) + bytes(15) + ipaddress.IPv4Address(address).packed + b"payload"


def test_packets_arrive_in_order_after_the_delay_and_once() -> None:
    line = DelayLine(0.5)
    assert line.wait_s(0.0) is None
    line.enter(1.0, 0, b"a")
    line.enter(1.25, 1, b"b")
    assert line.arrived(1.25) == []
    assert line.wait_s(1.25) == 0.25
    assert line.arrived(1.5) == [(0, b"a")]
    assert line.wait_s(9.0) == 0.0, "it is late, and the next look is now"
    line.enter(1.5, 0, b"c")
    assert line.arrived(9.0) == [(1, b"b"), (0, b"c")]
    assert line.arrived(9.0) == []


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    line = DelayLine(1.0, packets_max=2)
    for number in range(5):
        line.enter(float(number) / 10, 0, bytes([number]))
    assert line.dropped == 3
    assert line.arrived(2.0) == [(0, b"\x00"), (0, b"\x01")]


def test_packets_go_by_their_destination() -> None:
    assert link_of(_packet_to("10.77.1.9"), SUBNETS) == 0
    assert link_of(_packet_to("10.77.2.254"), SUBNETS) == 1
    assert link_of(_packet_to("10.77.3.1"), SUBNETS) is None
    assert link_of(_packet_to("224.0.0.1"), SUBNETS) is None
    assert link_of(b"\x60" + _packet_to("10.77.1.9")[1:], SUBNETS) is None, "IPv6"
    assert link_of(_packet_to("10.77.1.9")[:19], SUBNETS) is None
