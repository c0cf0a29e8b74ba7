"""The log of a peer: quiet unless somebody asks.

A program that configured structlog gets its own settings; a program that merely uses the library sees warnings on stderr and nothing on stdout.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger


def get_log(name: str) -> FilteringBoundLogger:
    """The logger called `name`."""
    if structlog.is_configured():
        configured: FilteringBoundLogger = structlog.get_logger(name)
        return configured
    quiet: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    return quiet.bind(part=name)
