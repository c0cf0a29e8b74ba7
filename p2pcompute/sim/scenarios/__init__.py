"""The scenarios that can be run by name: what `python -m p2pcompute.sim` lists. The first line of a scenario's docstring says what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from p2pcompute.sim.lab import Scenario
from p2pcompute.sim.scenarios import attacks, nat, network, overlay

#: By name.
SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "address-book": overlay.address_book,
        "all-faults": overlay.all_faults,
        "all-restart": overlay.all_restart,
        "attack-false-edges": attacks.false_edges,
        "attack-invented-peers": attacks.invented_peers,
        "attack-liar": attacks.liar,
        "attack-replays": attacks.replays,
        "attack-spoofed-flood": attacks.spoofed_flood,
        "cold-start": overlay.cold_start,
        "crash": overlay.crash,
        "leave": overlay.leave,
        "move": overlay.move,
        "sleep-and-wake": overlay.sleep_and_wake,
        "split-and-merge": overlay.split_and_merge,
        "nat-every-pair": nat.nat_every_pair,
        "nat-opened": nat.nat_opened,
        "nat-relay-crash": nat.nat_relay_crash,
        "nat-relayed": nat.nat_relayed,
        "nat-reversed": nat.nat_reversed,
        "datagrams-under-faults": network.datagrams_under_faults,
        "echo-across-a-partition": network.echo_across_a_partition,
    }
)
