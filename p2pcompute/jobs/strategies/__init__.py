"""The strategies: one file each, the formula and nothing else."""
