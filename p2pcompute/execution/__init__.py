"""Running one task: programs as source bundles, typed values, worker processes, probes of the hardware."""
