"""What `engines.py` has Python engines run: in a module that imports nothing, for it travels as a whole."""


def same(value: int) -> int:
    """A no-op."""
    return value


def loop(turns: int) -> int:
    """Arithmetic in a loop, the same as that of the module."""
    return sum(i * i % 7 for i in range(turns))
