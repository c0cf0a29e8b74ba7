"""How much gossip costs, as formulas: what a peer may expect to send, and how seldom it must sign to stay within a budget.

The tests compare `gossip_bytes_per_s` with what simulated peers really send.
"""

from __future__ import annotations

import math

from p2pcompute.membership.dissemination import transmissions_max

#: A record is signed again at most so often, seconds.
UPDATE_PERIOD_MIN_S = 30.0
#: What a sealed datagram costs beside its payload: IP 20, UDP 8, our header 13, tag 16.
DATAGRAM_OVERHEAD_BYTES = 57
#: Payloads of messages without rumours, bytes, as the codec writes them.
PROBE_BYTES = 18
ACK_BYTES = 47
WANT_BYTES = 24
RUMOURS_BYTES = 12
DIGEST_BYTES = 526
RECORDS_BYTES = 16
#: An announcement in a message, bytes.
ANNOUNCEMENT_BYTES = 27
#: Share of the most transmissions that are really made: hearing the same from others counts too.
TOLD_SHARE = 0.5
#: Announcements that share one message, on the average, while they are few.
TOGETHER_MIN = 1.0


def update_period_s(n: int, record_bytes: int, copies: float, budget_bytes_per_s: float) -> float:
    """How often each of `n` peers may sign a new record, seconds: max(30, n * record_bytes * copies / budget).

    `copies`: how often each record reaches each peer, with everything that is said about it, in units of the record
    (1.6 is near the truth, see the tests); `budget_bytes_per_s`: what a peer may send for updates.
    """
    return max(UPDATE_PERIOD_MIN_S, n * record_bytes * copies / budget_bytes_per_s)


def idle_bytes_per_s(probe_interval_s: float, anti_entropy_s: float) -> float:
    """Bytes a second that a peer sends while nothing changes: a probe and an ack an interval, a digest a round."""
    probing = (PROBE_BYTES + ACK_BYTES + 2 * DATAGRAM_OVERHEAD_BYTES) / probe_interval_s
    return probing + (DIGEST_BYTES + DATAGRAM_OVERHEAD_BYTES) / anti_entropy_s


def gossip_bytes_per_s(
    n: int,
    record_bytes: int,
    period_s: float,
    *,
    probe_interval_s: float = 1.0,
    anti_entropy_s: float = 30.0,
    retransmit_mult: int = 4,
    gossip_interval_s: float = 0.5,
    fanout: int = 3,
) -> float:
    """Bytes a second that each of `n` peers sends when each signs a record of `record_bytes` every `period_s`.

    Each update crosses to each peer once (asked for and sent), and is announced by each peer up to `transmissions_max`
    times: on probes and acks without a header of its own, otherwise in messages that up to `fanout` an interval go out.
    """
    updates_per_s = n / period_s
    told = transmissions_max(retransmit_mult, n) * TOLD_SHARE
    pulled = record_bytes + RECORDS_BYTES + WANT_BYTES + 2 * DATAGRAM_OVERHEAD_BYTES
    # A round is held whenever something is told; each of its messages has a header.
    rounds_per_s = min(updates_per_s * math.ceil(told / (fanout + 1)), 1.0 / gossip_interval_s)
    headers = rounds_per_s * fanout * (RUMOURS_BYTES + DATAGRAM_OVERHEAD_BYTES)
    updates = updates_per_s * (pulled + told * ANNOUNCEMENT_BYTES) + headers
    return idle_bytes_per_s(probe_interval_s, anti_entropy_s) + updates
