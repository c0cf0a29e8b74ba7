"""How long to wait before the next try: exponential windows with full jitter.

A try is drawn evenly from a window that doubles with every failure up to a cap, so that a thousand peers which lost the
same neighbour at the same moment do not come back at the same moment (Brooker, "Exponential backoff and jitter",
2015). The window's lower end is half the base and not zero: a draw near zero would be a second try of the same moment.
"""

from __future__ import annotations

from p2pcompute.model.seams import Rng


def backoff_window_s(failures: int, base_s: float, cap_s: float) -> float:
    """The upper end of the wait after `failures` failures in a row (from 1): base * 2**(failures - 1), at most the cap."""
    # The exponent is bounded before the power is taken: a peer that fails for a year must not overflow a float.
    return min(cap_s, base_s * 2.0 ** min(max(failures, 1) - 1, 60))


def backoff_s(failures: int, base_s: float, cap_s: float, rng: Rng) -> float:
    """Seconds to wait after `failures` failures in a row, drawn evenly between half the base and the window's end."""
    window_s = backoff_window_s(failures, base_s, cap_s)
    return rng.uniform(min(base_s / 2, window_s), window_s)
