"""What every test begins with."""

from collections.abc import Iterator

import pytest

from minitensor import kernels


@pytest.fixture(autouse=True)
def kernels_of_this_test() -> Iterator[None]:
    """A kernel is looked up once and kept; a test that asks for the NumPy twins by environment must
    get them, and must not leave them to the next one."""
    kernels.forget()
    yield
    kernels.forget()
