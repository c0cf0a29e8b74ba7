"""Sockets: links between peers, the beacon of the local network, transfer of blobs."""
