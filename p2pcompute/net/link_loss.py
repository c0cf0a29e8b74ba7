"""Why a connection ended, in words: from the goodbye that was said, from TLS, or from nothing.

Owns the goodbyes that mean no harm. Refuses to know: what becomes of the peer (`links.py` tells who wants to know).
"""

from __future__ import annotations

from collections.abc import Callable

from p2pcompute.model.errors import AdmissionError, AdmissionReason, BusyError, LinkClosedError, P2PComputeError
from p2pcompute.net.link import Link
from p2pcompute.net.link_life import LinkState
from p2pcompute.wire.messages import Goodbye

#: Goodbye of a connection that another one replaces.
DUPLICATE = "duplicate"
#: Goodbye of a link that makes room for others, and of a connection that only asked who is there.
IDLE = "idle"
PROBE = "probe"
#: Goodbyes that mean no harm: nobody has died, nothing has failed.
KIND_GOODBYES = ("leaving", DUPLICATE, IDLE, PROBE)


def loss_reason(
    link: Link, error: Exception | None, tls_error: Callable[[Exception, bool], P2PComputeError]
) -> P2PComputeError | None:
    """Why `link`, whose carrier is gone with `error`, has ended; None: as one of the sides wanted.

    `tls_error`: what a failed handshake means, told whether this side dialled.
    """
    if link.failure is not None:
        return link.failure
    farewell = link.farewell
    if farewell is not None:
        return None if farewell.reason in KIND_GOODBYES else _error_of(farewell, link)
    if link.state_before_loss is LinkState.LEAVING:
        return None
    if error is not None and not link.used:
        # A circuit knows itself what it means.
        return error if isinstance(error, P2PComputeError) else tls_error(error, link.dialled)
    if not link.used:
        return LinkClosedError(f"{link.named()} hung up before the link was up")
    return LinkClosedError(f"the connection to {link.named()} broke{f' ({error})' if error else ''}")


def _error_of(farewell: Goodbye, link: Link) -> P2PComputeError:
    """The other side's reason for hanging up."""
    if farewell.reason in set(AdmissionReason):
        return AdmissionError(AdmissionReason(farewell.reason), f"refused this peer: {farewell.text}", link.named())
    if farewell.reason == BusyError.__name__:
        return BusyError(f"{link.named()} is busy: {farewell.text}")
    return LinkClosedError(f"{link.named()} hung up ({farewell.reason}): {farewell.text}")
