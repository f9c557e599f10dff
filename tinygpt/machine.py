"""What this machine has, and how much of it this process took."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tinygpt import UsageError

MOST_THREADS = 1024


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def threads(asked: int | None, option: str = "--threads") -> int:
    """How many threads (or processes) `asked` for: all processors if it is None.

    Raises UsageError for a number that makes no sense.
    """
    if asked is None:
        return cores()
    if not 1 <= asked <= MOST_THREADS:
        raise UsageError(f"{option}: expected 1 to {MOST_THREADS:,}, got {asked}")
    return asked


@contextlib.contextmanager
def beside(program: str) -> Iterator[bool]:
    """Run a Python program, with the modules of this one, in a process that ends with the context
    at the latest, and say whether it began. It is a courtesy: nobody hears of it if it fails.
    """
    paths = [path or os.getcwd() for path in sys.path]
    process = None
    with contextlib.suppress(OSError):
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {paths!r}; {program}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield process is not None
    finally:
        if process is not None:
            process.kill()
            process.wait()


def asleep() -> float:
    """Seconds that this machine has slept, from an arbitrary start: differences have a meaning."""
    if hasattr(time, "CLOCK_BOOTTIME"):  # goes on in sleep, which the monotonic clock does not
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.time() - time.perf_counter()


def peak_memory() -> str:
    """The most memory that this process has held, where the platform tells."""
    try:
        import resource
    except ImportError:
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def installed_memory() -> int:
    """Bytes of memory that this machine has; 0 where the platform does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def describe() -> str:
    """This machine and the programs that compute on it, in one line, without names of its own."""
    from importlib.metadata import version

    memory = f", {installed_memory() / 1e9:.0f} GB" if installed_memory() else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba"))
    return (
        f"{_processor()}, {cores()} cores{memory}, {platform.system()}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    """The name of the processor, where the platform tells; else its architecture."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine() or "an unknown processor"


def megabytes(n: float) -> str:
    """Bytes in readable form."""
    return f"{n / 1e6:,.0f} MB"
