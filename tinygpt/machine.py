"""What this machine has, and how much of it this process took."""

from __future__ import annotations

import os
import sys


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def peak_memory() -> str:
    """The most memory that this process has held, where the platform tells."""
    try:
        import resource
    except ImportError:
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def megabytes(n: float) -> str:
    """Bytes in readable form."""
    return f"{n / 1e6:,.0f} MB"
