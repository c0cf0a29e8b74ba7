"""Lists of well-known peers: text files with one address a line, and names turned into addresses.

A list is written by people: `host:port`, `[v6]:port` or `host` (then the usual port), several with commas between them,
`#` starts a comment. A line that cannot be read is an error with its number; a name that cannot be resolved now is not,
since joining tries again for ever.
"""

from __future__ import annotations

import asyncio
import socket

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Address

#: A resolver that says nothing for so long will not say anything useful.
RESOLVE_TIMEOUT_S = 5.0


def parse_bootstrap_list(text: str) -> tuple[Address, ...]:
    """The addresses in `text`, in order, each once, at most `limits.CANDIDATES_MAX`. Raises UsageError with the line."""
    found: dict[Address, None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        for word in line.partition("#")[0].replace(",", " ").split():
            try:
                found[Address.parse(word, limits.PEER_PORT)] = None
            except UsageError as error:
                raise UsageError(f"line {number}: {error}") from error
    if len(found) > limits.CANDIDATES_MAX:
        raise UsageError(f"{len(found)} addresses, at most {limits.CANDIDATES_MAX} can be used: remove some")
    return tuple(found)


async def resolve(address: Address, timeout_s: float = RESOLVE_TIMEOUT_S) -> tuple[Address, ...]:
    """`address` with its name turned into numbers, in the order of the system; empty where that fails now."""
    if address.is_numeric:
        return (address,)
    try:
        async with asyncio.timeout(timeout_s):
            rows = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return ()
    hosts = [str(row[4][0]) for row in rows if row[0] in (socket.AF_INET, socket.AF_INET6)]
    return tuple(Address(host, address.port) for host in dict.fromkeys(hosts))[: limits.ADDRESSES_MAX]
