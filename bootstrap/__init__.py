"""Well-known peers: the list that comes with the program, and a peer that only helps others to find each other.

`peers.txt` is the list; `python -m bootstrap` runs the peer.
"""
