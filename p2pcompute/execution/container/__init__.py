"""Containers as workers: what a program in a container looks like, how an engine is driven, and the pool that does it."""
