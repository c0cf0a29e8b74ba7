"""Versions of what travels and of what is kept.

A peer speaks `PROTOCOL` and understands down to `PROTOCOL_OLDEST`; two peers use the lower of their newest ones. Records
and messages keep fields that they do not know and pass them on, so that a newer peer's words survive an older one.
"""

from __future__ import annotations

from p2pcompute.model.errors import AdmissionError, AdmissionReason

#: 2 brought gossip in datagrams, digests, relays, the recall of tasks; 1 knew records and questions about suspects over links.
PROTOCOL = 2
PROTOCOL_OLDEST = 1
RECORD = 1
PROGRAM = 1
VALUES = 1
TOKEN = 1
BEACON = 1
#: ALPN of the plain stream carrier; names how frames stand in the stream, not what they say.
ALPN_STREAM = "p2pc/1"
ALPN_HTTP = "http/1.1"


def negotiate(newest: int, oldest: int) -> int:
    """The version that a link uses with a peer that speaks `oldest` to `newest`. Raises AdmissionError."""
    chosen = min(PROTOCOL, newest)
    if chosen < oldest or chosen < PROTOCOL_OLDEST:
        raise AdmissionError(
            AdmissionReason.VERSION,
            f"speaks protocol versions {oldest} to {newest}, this peer {PROTOCOL_OLDEST} to {PROTOCOL}: "
            "upgrade the older one",
        )
    return chosen
