"""What the solutions share: the example they belong to."""

import importlib.util
from pathlib import Path

import pytest

import minitensor as mt

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def example(request):
    """The example with this file's number, as a module; ops that it or a solution registers are
    forgotten afterwards."""
    number = request.path.stem.removeprefix("test_")
    (path,) = EXAMPLES.glob(f"{number}_*.py")
    before = dict(mt.registry)
    spec = importlib.util.spec_from_file_location(f"example_{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    mt.registry.clear()
    mt.registry.update(before)
