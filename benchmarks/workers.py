"""Programs that stay alive and do one piece of work on request, so that two can take turns.

A worker writes one JSON line when it is ready and one for each line it reads. While one works the
others wait for a line and use no processor.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Worker:
    """A worker program, started; a context manager that ends it."""

    def __init__(self, python, program, *arguments):
        self.process = subprocess.Popen(
            [str(python), str(HERE / program), *map(str, arguments)],
            text=True,
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.ready = self._answer()

    def ask(self, count=1):
        """Do `count` pieces of work; the worker's answer."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args[:3])} ended with {self.process.wait()}")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()


def serve(work, **ready):
    """Inside a worker: call ``work()`` as often as each line asks, and answer with durations."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not be an answer

    def answer(**values):
        out.write(json.dumps(values) + "\n")
        out.flush()

    answer(**ready)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            begin = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - begin)
        answer(seconds=seconds, result=result, peak_mb=peak_mb())


def peak_mb():
    """The most memory this process has held, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def spread(values):
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def times(s):
    """A spread of ratios as text."""
    return f"{s['median']:.2f} times ({s['min']:.2f} to {s['max']:.2f})"
