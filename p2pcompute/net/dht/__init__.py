"""The wide-area address book: the package `kademlia`, unmodified, hardened by subclassing. `dht.Dht` is the way in."""
