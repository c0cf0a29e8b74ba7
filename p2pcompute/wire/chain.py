"""From an invitation up to the owner: whether a chain of certificates holds, and what it grants.

The rules are those that TLS enforces on the same certificates (OpenSSL, strict), written down again for three
reasons: datagrams and files are not checked by TLS, the reason of a refusal must reach people, and roles are ours.
Refuses to know: leaves and revocations (`membership.py`), the clock (`now_wall` is passed in).
"""

from __future__ import annotations

import datetime
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from p2pcompute.model.errors import AdmissionError, AdmissionReason, ProtocolError
from p2pcompute.model.ids import InvitationId, NetworkId, network_id_of
from p2pcompute.model.peer import Role
from p2pcompute.wire.certificates import (
    ADMIN_PATH_LENGTH,
    OWNER_PATH_LENGTH,
    Certificate,
    Window,
    build_certificate,
    check_name,
    read_certificate,
    serial_from,
)
from p2pcompute.wire.identity import SUCCESSION_CONTEXT, SigningKey, verify_signature

#: Invitations between a leaf and the owner: an admin's and the one that the admin made.
INVITATIONS_MAX = 2
#: Valid from 2020-01-01 to 2119-12-31: every peer must build the same bytes.
_OPEN_WINDOW = Window(1_577_836_800, 4_733_424_000)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Invitations that hold, the one that issues leaves first, up to the owner that they lead to.

    `roles`: what the whole chain grants; nobody grants what was not granted to it, and in an open network nothing
    counts. `window`: when all of its certificates are valid.
    """

    invitations: tuple[Certificate, ...] = field(repr=False)
    owner: Certificate = field(repr=False)
    network: NetworkId
    roles: frozenset[Role]
    window: Window

    @property
    def issuer(self) -> Certificate:
        """The invitation that issues leaves."""
        return self.invitations[0]

    @property
    def invitation(self) -> InvitationId:
        """What quotas, fairness and revocation count by."""
        return self.issuer.invitation


def trace(invitations: Sequence[Certificate], owners: Sequence[Certificate]) -> Lineage:
    """The lineage from the first of `invitations` up to one of `owners`. Raises AdmissionError; looks at no clock."""
    if not invitations:
        raise AdmissionError(
            AdmissionReason.NO_CERTIFICATE, "no invitation was shown: join the network with a token of its owner"
        )
    for below, certificate in enumerate(invitations):
        if certificate.path_length is None:
            raise AdmissionError(
                AdmissionReason.LEAF_SIGNS,
                f"the certificate of peer {certificate.name} was used to sign another; only invitations may sign, "
                "ask the network's owner for one",
            )
        if certificate.path_length < below:
            raise AdmissionError(
                AdmissionReason.INVITATION_SIGNS,
                f"invitation {certificate.name} was used to make a further invitation, which it does not allow; "
                "ask the network's owner for an own one",
            )
    for lower, upper in pairwise(invitations):
        if not lower.signed_by(upper):
            raise _foreign(lower)
    top = invitations[-1]
    owner = next((candidate for candidate in owners if top.signed_by(candidate)), None)
    if owner is None:
        if any(top.names_as_issuer(candidate) for candidate in owners):
            raise _foreign(top)
        raise AdmissionError(
            AdmissionReason.OTHER_NETWORK,
            "invited to another network than this peer's; join the same one with a token of its owner",
        )
    if (
        len(invitations) > INVITATIONS_MAX
    ):  # Cannot be while owners have path length 2; kept for owners of later versions.
        raise AdmissionError(AdmissionReason.INVITATION_SIGNS, f"{len(invitations)} invitations stand above one peer")
    roles = frozenset(Role)
    for certificate in invitations:
        roles &= certificate.notes.roles
    if (invitations[0].path_length or 0) < ADMIN_PATH_LENGTH:
        roles -= {Role.ADMIN}
    if is_open_owner(owner):
        roles = frozenset()
    window = owner.window
    for certificate in invitations:
        window = window.within(certificate.window)
    return Lineage(tuple(invitations), owner, network_of(owner), roles, window)


def _foreign(certificate: Certificate) -> AdmissionError:
    return AdmissionError(
        AdmissionReason.FOREIGN_AUTHORITY,
        f"{certificate.name} is not signed by the authority that it names; ask the network's owner for a new invitation",
    )


def check_window(window: Window, now_wall: float, what: str) -> None:
    """Raise AdmissionError where `now_wall` lies outside of `window`; `what` is the subject of its sentence."""
    if now_wall > window.not_after_s:
        raise AdmissionError(
            AdmissionReason.EXPIRED,
            f"{what} expired on {_date(window.not_after_s)}, and this machine's clock says {_date(now_wall)}: "
            "ask the network's owner to renew it, or set the clock",
        )
    if now_wall < window.not_before_s:
        raise AdmissionError(
            AdmissionReason.NOT_YET_VALID,
            f"{what} is valid from {_date(window.not_before_s)} on, and this machine's clock says {_date(now_wall)}: "
            "one of the two machines' clocks is wrong, set it",
        )


def _date(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "a day that no calendar has"


# --- owners -----------------------------------------------------------------------------------------------------------


def read_owner(der: bytes) -> Certificate:
    """The owner's certificate in `der`. Raises ProtocolError where it is none or its succession is not proven."""
    owner = read_certificate(der)
    if owner.path_length is None or owner.path_length < ADMIN_PATH_LENGTH or not owner.signed_by(owner):
        raise ProtocolError("not the certificate of a network's owner")
    keys = [key for key, _ in owner.notes.succession] + [owner.public_key]
    for (key, proof), successor in zip(owner.notes.succession, keys[1:], strict=True):
        if not verify_signature(key, SUCCESSION_CONTEXT, successor, proof):
            raise ProtocolError("the certificate of an owner that its predecessor did not appoint")
    return owner


def network_of(owner: Certificate) -> NetworkId:
    """The network of an owner that `read_owner` took: it keeps the id that its first owner's key gave it."""
    succession = owner.notes.succession
    return network_id_of(succession[0][0] if succession else owner.public_key)


def owner_keys(owner: Certificate) -> tuple[bytes, ...]:
    """The public keys of this owner and its predecessors, newest first."""
    return (owner.public_key, *(key for key, _ in reversed(owner.notes.succession)))


# --- open networks ----------------------------------------------------------------------------------------------------


def open_owner_key(name: str) -> SigningKey:
    """The owner key of the open network `name`, which anybody can derive: it admits everybody and proves nothing."""
    return SigningKey(hashlib.sha256(b"p2pc-open-network\0" + name.encode()).digest())


def open_owner_certificate(name: str) -> bytes:
    """The owner certificate of the open network `name`, the same bytes on every machine. Raises UsageError."""
    name = check_name("the name of an open network", unicodedata.normalize("NFC", name))
    key = open_owner_key(name)
    return build_certificate(
        name=name,
        public_key=key.public_key,
        signer=key,
        issuer=None,
        window=_OPEN_WINDOW,
        serial=serial_from(key.public_key),
        path_length=OWNER_PATH_LENGTH,
    )


def is_open_owner(owner: Certificate) -> bool:
    """Whether the key of `owner` is one that anybody can derive. Never told by the other side, always computed."""
    return owner.public_key == open_owner_key(owner.name).public_key
