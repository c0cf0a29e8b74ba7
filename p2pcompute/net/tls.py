"""TLS as the product speaks it: 1.3, both sides with certificates, only the network's owner trusted.

The standard `ssl` module checks the chain and that the other side holds its leaf's key; who exactly that is and what
it may do, `wire/membership.py` says from the same certificates, before a byte is sent. Host names mean nothing here.
Refuses to know: connections. TLS reads this machine's clock itself, so a wrong clock shows as expired or not yet
valid.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator, Sequence

from p2pcompute.model.errors import AdmissionError, AdmissionReason, LinkClosedError, P2PComputeError
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Membership

_TOKEN = "join this peer's network with a token of its owner"
_OTHER = (AdmissionReason.OTHER_NETWORK, f"it belongs to another network, or to none: {_TOKEN}")
_FORGED = (AdmissionReason.FOREIGN_AUTHORITY, f"its certificate is not signed by the authority that it names: {_TOKEN}")
_BY_PEER = (AdmissionReason.LEAF_SIGNS, f"its certificate was signed by a peer, and peers may not sign: {_TOKEN}")
#: What OpenSSL says about a chain, by its numbers (X509_V_ERR_*), and what it means here.
_BY_CODE = {
    2: _OTHER,  # unable to get issuer certificate
    7: _FORGED,  # signature failure
    9: (
        AdmissionReason.NOT_YET_VALID,
        "its certificate is not valid yet: one of the two machines' clocks is wrong, set it",
    ),
    10: (AdmissionReason.EXPIRED, "its invitation has expired: ask the network's owner to renew it, or set the clock"),
    18: _OTHER,  # self-signed certificate
    19: _OTHER,  # self-signed certificate in chain
    20: _OTHER,  # unable to get local issuer certificate
    21: _OTHER,  # unable to verify the first certificate
    24: _BY_PEER,  # invalid authority, before OpenSSL 3
    25: (AdmissionReason.INVITATION_SIGNS, f"its invitation was made by one that may not invite: {_TOKEN}"),
    26: (AdmissionReason.NOT_ALLOWED, f"it shows a certificate that is not a peer's: {_TOKEN}"),
    29: _FORGED,  # subject and issuer differ
    30: _FORGED,  # key ids differ
    32: _BY_PEER,  # key usage does not include signing certificates
    79: _BY_PEER,  # invalid authority
}
#: What this side finds wrong during the handshake.
_BY_FAILURE = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (AdmissionReason.NO_CERTIFICATE, f"it showed no certificate: {_TOKEN}"),
    "BAD_SIGNATURE": (
        AdmissionReason.STOLEN_LEAF,
        "it showed a certificate without holding its key: somebody copied it, tell its owner",
    ),
    "UNSUPPORTED_PROTOCOL": (AdmissionReason.VERSION, "it does not speak TLS 1.3: upgrade its Python or OpenSSL"),
}
#: Alerts by which the other side says why it refused this one. They are coarser than what it knows itself.
_BY_ALERT = {
    "CERTIFICATE_REQUIRED": (AdmissionReason.NO_CERTIFICATE, "it wants a certificate, and this peer showed none"),
    "CERTIFICATE_EXPIRED": (
        AdmissionReason.EXPIRED,
        "it says that this peer's invitation is expired or not yet valid: ask the network's owner to renew it, and check both clocks",
    ),
    "UNKNOWN_CA": (
        AdmissionReason.OTHER_NETWORK,
        "it says that this peer's invitation is not of its network: join with a token of that network's owner",
    ),
    "DECRYPT_ERROR": (
        AdmissionReason.STOLEN_LEAF,
        "it says that this peer's certificate and key do not belong together, or that the certificate was changed: join again",
    ),
    "CERTIFICATE_REVOKED": (AdmissionReason.REVOKED, "it says that this peer's invitation is revoked: ask the owner"),
    "PROTOCOL_VERSION": (AdmissionReason.VERSION, "it speaks another version of TLS: upgrade the older side"),
    "NO_APPLICATION_PROTOCOL": (
        AdmissionReason.VERSION,
        "it speaks none of this peer's protocols: upgrade the older side",
    ),
    "CERTIFICATE": (
        AdmissionReason.FOREIGN_AUTHORITY,
        "it does not accept this peer's certificate: join again with a token",
    ),
    "ACCESS_DENIED": (AdmissionReason.NOT_ALLOWED, "it does not let this peer in: ask the network's owner"),
}


def server_context(membership: Membership, key: PeerKey, alpn: Sequence[str]) -> ssl.SSLContext:
    """What a peer's port demands and shows. `alpn`: protocols that it serves, the preferred one first."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, membership, key, alpn)
    # A resumed session would not be checked again: a revoked or expired peer must not come back by a ticket.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def client_context(membership: Membership, key: PeerKey, alpn: Sequence[str]) -> ssl.SSLContext:
    """What a peer shows when it dials, and whom it believes. `alpn`: protocols that it asks for."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, membership, key, alpn)


def read_leaf(ssl_object: ssl.SSLObject | ssl.SSLSocket | None) -> bytes:
    """The other side's leaf as DER; empty where it showed none, or the connection is not TLS."""
    return (ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None) or b""


def admission_error_from_tls(error: Exception, dialled: bool) -> P2PComputeError:
    """The error of our tree that a failed handshake, or the first read after it, means. `dialled`: this side had
    connected.

    In TLS 1.3 the dialling side has finished before the other one has looked at its certificate: a refusal of the
    dialling side arrives with its first read, as an alert.
    """
    whom = "the peer that was dialled" if dialled else "a peer that connected"
    if isinstance(error, ssl.SSLCertVerificationError):
        fallback = (AdmissionReason.FOREIGN_AUTHORITY, f"its certificate is refused ({error.verify_message}): {_TOKEN}")
        reason, text = _BY_CODE.get(error.verify_code, fallback)
        return AdmissionError(reason, text, whom)
    # Errors that OpenSSL did not raise itself have no such attribute at all.
    cause: str = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
    if cause:
        table = _BY_ALERT if "_ALERT_" in cause else _BY_FAILURE
        for name, (reason, text) in table.items():
            if name in cause:
                return AdmissionError(reason, text, whom)
        if not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
            return LinkClosedError(f"{whom} does not speak TLS as a peer does ({cause}): is its port a peer's?")
    # A server on asyncio drops the alert with the connection, so a refusal may look like this to the side that dialled.
    hint = ": perhaps it does not let this peer in, its log says why" if dialled else ""
    # Some of them say nothing at all, and write that as "()".
    what = str(error) if error.args else type(error).__name__
    return LinkClosedError(f"{whom} closed the connection before it was admitted ({what}){hint}")


def _context(purpose: int, membership: Membership, key: PeerKey, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # Later Pythons add this flag to their default contexts: with it an invitation could be trusted by itself.
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=b"".join(membership.owners))
    shown = "".join(ssl.DER_cert_to_PEM_cert(der) for der in (membership.leaf, *membership.chain))
    with _secret_file(key.to_pem() + shown.encode()) as path:
        context.load_cert_chain(path)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@contextlib.contextmanager
def _secret_file(content: bytes) -> Iterator[str]:
    """A path under which `ssl`, which reads only files, finds `content`: in memory where the system can, else of mode 0600."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        with open(os.memfd_create("p2pcompute-chain", os.MFD_CLOEXEC), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.TemporaryDirectory(prefix="p2pcompute-") as folder:
        path = os.path.join(folder, "chain.pem")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        yield path
