"""Ways to a peer: in which order to try them, and in words why a link goes the way it goes.

A way is only a proposal: who answers there is proved by TLS. Pure; refuses to know sockets, relays' insides and what was tried before.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.membership.locality import (
    ELSEWHERE,
    LINK_LOCAL,
    LOOPBACK,
    NAME,
    SAME_SUBNET,
    Network,
    locality,
)
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address, PeerRecord, Reach

#: Reaches of peers that anybody can dial.
DIALLABLE = (Reach.PUBLIC, Reach.MAPPED)


class Way(enum.StrEnum):
    """How a link gets from one peer to another."""

    #: Within this machine's own networks.
    LAN = "lan"
    #: Dialled at an address elsewhere.
    DIRECT = "direct"
    #: The other side dials, asked to through a peer that both are linked to.
    REVERSED = "reversed"
    #: Through a relay, which sees only ciphertext.
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Path:
    """One way to try. `address`: where to dial, the relay's where there is one; `relay`: who passes on; `reason`: why this way, a sentence."""

    way: Way
    address: Address
    relay: PeerId | None
    reason: str


def paths_to(
    record: PeerRecord, own_networks: Sequence[Network], own_reach: Reach, own: PeerId | None = None
) -> tuple[Path, ...]:
    """The ways to the peer of `record`, best first; empty where there is none.

    `own_networks`: as of this machine's interfaces; `own`: this peer's id, which is no relay for itself. Nearer addresses stand first; a
    global address of a peer that others could not reach is left out, unless it is of an own network.
    """
    ranked = sorted(
        (locality(address.host, own_networks), number, address) for number, address in enumerate(record.addresses)
    )
    paths = []
    for near, _, address in ranked:
        if near in (LOOPBACK, SAME_SUBNET, LINK_LOCAL):
            way = Way.LAN
        elif near in (ELSEWHERE, NAME) and record.reach is Reach.PRIVATE:
            continue
        else:
            way = Way.DIRECT
        paths.append(Path(way, address, None, _address_reason(near, address, record.reach)))
    relays = [relay for relay in record.relays if relay.peer not in (own, record.peer)]
    if own_reach in DIALLABLE and record.reach not in DIALLABLE:
        paths += [
            Path(Way.REVERSED, each.address, each.peer, path_reason(Way.REVERSED, own_reach, record.reach, each.peer))
            for each in relays
        ]
    paths += [
        Path(Way.RELAYED, each.address, each.peer, path_reason(Way.RELAYED, own_reach, record.reach, each.peer))
        for each in relays
    ]
    return tuple(paths)


def path_reason(
    way: Way,
    own_reach: Reach,
    their_reach: Reach,
    relay: PeerId | None = None,
    *,
    called: str = "",
    dialled: bool = False,
) -> str:
    """Why a link goes `way`, as `p2pcompute peers` says it.

    `relay`: the peer that passes on, or passed the request on; `called`: its name for people, by default the short id; `dialled`: this
    peer dialled the link.
    """
    through = f" through {called or short_peer_id(relay)}" if relay is not None else ""
    match way:
        case Way.LAN:
            return "direct: both are on one network"
        case Way.DIRECT if their_reach is Reach.MAPPED:
            return "direct: its router forwards a port to it"
        case Way.DIRECT if their_reach is Reach.PUBLIC:
            return "direct: it can be dialled from other networks"
        case Way.DIRECT if own_reach in DIALLABLE and not dialled:
            return "direct: it dialled this peer, which can be dialled from other networks"
        case Way.DIRECT:
            return "direct: it answered at its address, though nobody has found out yet how it can be reached"
        case Way.REVERSED if dialled:
            return f"direct, dialled by this peer: it was asked to{through}, since it cannot be dialled itself"
        case Way.REVERSED:
            return f"direct, dialled by it: it cannot be dialled, this peer can, and it was asked{through}"
        case Way.RELAYED if own_reach is Reach.PRIVATE and their_reach is Reach.PRIVATE:
            return f"relayed{through}: neither side can be dialled from other networks"
        case Way.RELAYED if their_reach is Reach.PRIVATE:
            return f"relayed{through}: it cannot be dialled from other networks"
        case Way.RELAYED:
            return f"relayed{through}: no direct way has worked"


def _address_reason(near: int, address: Address, their_reach: Reach) -> str:
    if near == LOOPBACK:
        return f"{address.host} is this machine"
    if near in (SAME_SUBNET, LINK_LOCAL):
        return f"{address.host} is on a network of this machine"
    if near in (ELSEWHERE, NAME):
        if their_reach is Reach.MAPPED:
            return f"its router forwards {address} to it"
        if their_reach is Reach.PUBLIC:
            return f"others have reached it at {address}, or at another address of it"
        return f"nobody has found out yet whether {address} can be reached"
    return f"{address.host} is a private address, which may be of this site"
