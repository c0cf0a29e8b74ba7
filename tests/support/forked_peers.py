"""`p2pcompute up` many times for the price of one start: each peer is forked from a process that has imported the program, into a namespace.

    python -c "from tests.support.forked_peers import main; main()" '[[PID, ["--name", "anna"]], ...]'

Each of the list runs with these arguments in the network namespace of process PID.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

_CLONE_NEWNET = 0x40000000


def main() -> None:
    """Fork them all and wait to be killed."""
    import p2pcompute.node.service
    from p2pcompute.app.main import main as p2pcompute

    setns = ctypes.CDLL(None, use_errno=True).setns
    for holder, arguments in json.loads(sys.argv[1]):
        if os.fork() == 0:
            with open(f"/proc/{holder}/ns/net") as namespace:
                if setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns to the network namespace of {holder}")
            sys.argv = ["p2pcompute", "up", *arguments]
            p2pcompute()
            sys.exit()
    signal.pause()
