"""The composition root: configuration, the driver that pumps the pure machines, supervision, life cycle, `Peer`."""
