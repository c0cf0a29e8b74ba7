"""Doors for Python: what a program imports to lend, to submit and to read answers."""
