"""How much gossip costs, as formulas: what a peer may expect to send, and how seldom it must sign to stay within a budget.

The tests compare them with what simulated peers really send.
"""

from __future__ import annotations

import math

from p2pcompute.membership.dissemination import transmissions_max
from p2pcompute.model import limits

#: `net.session_events.SessionSettings.ask_s`.
_ASK_S = 5.0
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
#: A handshake of datagrams, both sides together, with the headers: HELLO, COOKIE, PROOF, ACCEPT, and the proof of the keys both ways.
HANDSHAKE_BYTES = 1_630
#: A question whether a session still holds, and its answer.
SESSION_QUESTION_BYTES = 118
#: A link that is idle, a second: a heartbeat and its answer every 20 s, and what else is said over it.
LINK_BYTES_PER_S = 2.5
#: The address book, once the network is not looked for any more.
ADDRESS_BOOK_BYTES_PER_S = 30.0


def update_period_s(n: int, record_bytes: int, copies: float, budget_bytes_per_s: float) -> float:
    """How often each of `n` peers may sign a new record, seconds: max(30, n * record_bytes * copies / budget).

    `copies`: how often each record reaches each peer, with everything that is said about it, in units of the record
    (1.6 is near the truth, see the tests); `budget_bytes_per_s`: what a peer may send for updates.
    """
    return max(UPDATE_PERIOD_MIN_S, n * record_bytes * copies / budget_bytes_per_s)


def sessions_bytes_per_s(n: int, running_s: float, probe_interval_s: float = 1.0) -> float:
    """Bytes a second that each of `n` peers sends for sessions with whom it probes, `running_s` seconds after all have started.

    A round of probes takes n - 1 intervals. In the first one, whoever is probed has not probed the prober yet with the probability 1 - t / round,
    and that is a handshake. Later every second probe goes to one who was answered last, which is asked whether the session holds where
    the two have not spoken for `ask_s` (5 s); and each session gets fresh keys every `SESSION_REKEY_S`.
    """
    others = max(n - 1, 1)
    met = min(running_s / (others * probe_interval_s), 1.0)
    handshakes_per_s = (1.0 - met) / probe_interval_s
    fresh_per_s = others / 2 / limits.SESSION_REKEY_S if running_s > limits.SESSION_REKEY_S else 0.0
    questions_per_s = met / 2 / probe_interval_s * (1.0 - min(_ASK_S / (others * probe_interval_s), 1.0)) ** 2
    return (handshakes_per_s + fresh_per_s) * HANDSHAKE_BYTES + questions_per_s * SESSION_QUESTION_BYTES


def peer_bytes_per_s(n: int, record_bytes: int, links: float, running_s: float, signed_every_s: float) -> float:
    """Bytes a second that a whole idle peer sends: gossip, sessions, address book and `links` links, defaults throughout.

    `running_s`: since all have started, five minutes or more, while which a split is looked for; `signed_every_s`: how often each of the `n`
    signs a record, which is every `PacingSettings.renew_s` where nothing changes.
    """
    gossip = gossip_bytes_per_s(n, record_bytes, signed_every_s)
    return gossip + sessions_bytes_per_s(n, running_s) + ADDRESS_BOOK_BYTES_PER_S + links * LINK_BYTES_PER_S


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
