"""How an address stands as text in what peers tell each other: in records, and in messages by which peers meet.

Numeric only: nobody may have us ask a name server. Without a zone ("%eth0"): it names an interface of one machine, so one that was
told means nothing here, or some other interface. Link-local peers are found by beacons, whose source gives the zone.
"""

from __future__ import annotations

from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Address
from p2pcompute.wire.codec import Converted, Text


def told_address(text: str) -> Address:
    """The address that `text` writes. Raises ValueError for a host name or a zone."""
    try:
        address = Address.parse(text)
    except UsageError as error:
        raise ValueError(str(error)) from error
    if not address.is_portable:
        raise ValueError("a numeric address without a zone must stand here")
    return address


def _as_told(address: Address) -> str:
    return str(Address(address.host.partition("%")[0], address.port))


#: An address in a record or message.
ADDRESS = Converted(Text(64), told_address, _as_told)
