"""A local module that the submitted functions import."""


def triple(x: int) -> int:
    return 3 * x
