"""Worker processes that need no `if __name__ == "__main__"` guard.

`multiprocessing` imports the caller's script again in every process that it spawns, so a script
without the guard starts itself without end. The workers here are plain interpreters that import
`bpe` and nothing else, and talk pickles over their standard input and output. That works the same
from a script, a notebook or a prompt, on Linux, macOS and Windows, and never forks.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO

from bpe.errors import TokenizerError, UsageError


def imap(
    make: Callable[..., Callable[[Any], Any]], setup: tuple, jobs: Iterable[Any], processes: int
) -> Iterator[Any]:
    """Yield `make(*setup)(job)` for each of `jobs`, in their order, computed by `processes`.

    `make` is a function of a module of `bpe`; it runs once in each worker. With one process
    everything happens in this one. At most two jobs a process are held at a time.
    """
    if not isinstance(processes, int) or processes < 1:
        raise UsageError(f"processes: expected a number from 1 up, got {processes!r}")
    if processes == 1:
        yield from map(make(*setup), jobs)
        return
    workers = [_Worker(make, setup) for _ in range(processes)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(job: Any) -> Any:
        worker = idle.get()
        try:
            return worker.ask(job)
        finally:
            idle.put(worker)

    pending: deque[Future[Any]] = deque()
    threads = ThreadPoolExecutor(processes)
    try:
        for job in jobs:
            pending.append(threads.submit(ask, job))
            if len(pending) >= 2 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        for worker in workers:
            worker.close()
        threads.shutdown()


class _Worker:
    """The caller's side of one worker process."""

    def __init__(self, make: Callable[..., Callable[[Any], Any]], setup: tuple) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        program = f"import sys; sys.path[:] = {paths!r}; import bpe.workers as w; w.serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._from: BinaryIO = self._process.stdout  # type: ignore[assignment]
        self._first: list[Any] = [(make, setup)]

    def ask(self, job: Any) -> Any:
        try:
            for message in (*self._first, job):
                pickle.dump(message, self._to, pickle.HIGHEST_PROTOCOL)
            self._first.clear()
            self._to.flush()
            answer, error = pickle.load(self._from)
        except (EOFError, OSError) as broken:
            raise TokenizerError("a worker process ended before its work was done") from broken
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """End the worker: at once if it is still at work, which happens after an error only."""
        self._process.terminate()
        self._process.wait()
        self._from.close()
        with suppress(OSError):  # what was not yet flushed has no reader any more
            self._to.close()


def serve() -> None:
    """The worker's side: answer each job on standard input with `(result, error)`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides; its death closes the pipe
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that prints can break the conversation
    try:
        make, setup = pickle.load(source)
        work = make(*setup)
        while True:
            job = pickle.load(source)
            answer: tuple[Any, Exception | None]
            try:
                answer = work(job), None
            except (ValueError, MemoryError) as error:
                answer = None, error
            pickle.dump(answer, target, pickle.HIGHEST_PROTOCOL)
            target.flush()
    except (EOFError, BrokenPipeError):
        return
