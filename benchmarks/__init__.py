"""Figures of the product beside rivals, measured in one run; `python -m benchmarks` runs them all."""
