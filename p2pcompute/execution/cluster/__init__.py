"""A cluster behind a peer: another system of many machines runs the tasks, through any `concurrent.futures.Executor`."""
