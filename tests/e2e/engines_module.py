"""What the tests of engines submit from the command line: a module as users write it."""

import sys

from p2pcompute import Peer


def where(number: int) -> list:
    """The interpreter that runs this, and something computed."""
    print(f"number {number}")
    return [sys.platform, sys.version_info[1], number * number]


def square(number: int) -> int:
    """What is computed."""
    return number * number


def platform() -> str:
    """Where it is computed."""
    return sys.platform


def platform_of(_: int) -> str:
    """As `platform`, of one input."""
    return platform()


async def main() -> None:
    """What a script does with its functions when it is run."""
    async with Peer() as peer:
        print(await peer.submit(where, 7))
