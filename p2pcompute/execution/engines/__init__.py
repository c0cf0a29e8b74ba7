"""Engines beside Python source: what their programs look like, and what runs them in a worker process."""
