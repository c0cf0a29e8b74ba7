"""What whole peers send while nothing happens, beside the formula for it."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.membership.traffic import peer_bytes_per_s
from p2pcompute.node.overlay_peer import OverlaySettings
from p2pcompute.sim.lab import Lab, LabSettings, run
from p2pcompute.sim.peers import Machine, SimOverlay, address_of
from p2pcompute.sim.trace import Detail

#: IPv4 and UDP headers of a datagram, bytes.
HEADERS_BYTES = 28
#: A split is looked for until then, seconds.
SETTLED_S = 340.0
MEASURED_S = 60.0


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 20])
def test_what_idle_peers_send_is_what_the_formula_says(count: int) -> None:
    sent: list[float] = []

    async def scenario(lab: Lab) -> None:
        overlay = SimOverlay(lab, OverlaySettings(throughput_probe_bytes=0))
        for number in range(count):
            overlay.add(Machine((address_of(number),)))
        for number, peer in enumerate(overlay.peers):
            await peer.up([overlay.peers[0]] if number else [])

        def all_bytes() -> int:
            hosts = [peer.host for peer in overlay.peers]
            return sum(each.bytes_out + HEADERS_BYTES * each.datagrams_out + each.link_bytes_out for each in hosts)

        await lab.until(overlay.converged, "everybody knows everybody", 30.0, 0.25)
        await asyncio.sleep(SETTLED_S)
        before = all_bytes()
        await asyncio.sleep(MEASURED_S)
        sent.append((all_bytes() - before) / count / MEASURED_S)
        await overlay.stop()

    run(scenario, 1, LabSettings(detail=Detail.NOTES))
    never_s = 1e9
    assert sent[0] == pytest.approx(peer_bytes_per_s(count, 1_000, count - 1, SETTLED_S, never_s), rel=0.15)
