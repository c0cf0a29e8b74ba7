"""The laboratory: the overlay on a virtual clock, in one process, with faults."""
