"""Pure: the network as a graph, its communities and its key nodes."""
