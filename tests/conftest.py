"""What every test begins with."""

import gc
import os
import signal
from collections.abc import Generator, Iterator

import hypothesis
import pytest

from minitensor import kernels


def pytest_configure(config: pytest.Config) -> None:
    """No test depends on the time it takes. The quick loop draws fewer cases, and does not wait
    until files have reached the disk."""
    few = {}
    if config.option.markexpr == "not slow":
        few = {"max_examples": 10}
        os.fsync = lambda handle: None
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=slow, **few)
    hypothesis.settings.load_profile("tests")
    # What a shell runs in its background ignores Ctrl-C, and so do its children: those that a test
    # interrupts would go on and on. A handler here is the default one there.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before tests are shuffled, or left out by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Of the cases of a test that is mostly slow, mark all but the first."""
    seen = set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if item.get_closest_marker("mostly_slow") and name in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(name)
    return (yield)


def pytest_collection_finish() -> None:
    """What is there now stays to the end: the collector need not look through it ever again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def kernels_of_this_test() -> Iterator[None]:
    """A kernel is looked up once and kept; a test that asks for the NumPy twins by environment must
    get them, and must not leave them to the next one."""
    kernels.forget()
    yield
    kernels.forget()
