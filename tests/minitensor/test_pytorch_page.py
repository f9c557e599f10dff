"""docs/pytorch.md says what is true: its left column was computed by PyTorch (make_ops.py)."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

import minitensor as mt

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8")
GOLDENS = dict(np.load(ROOT / "tests" / "goldens" / "pytorch.npz"))
SECTIONS = dict(re.findall(r"\n## (.*?)\n(.*?)(?=\n## |\Z)", PAGE, flags=re.DOTALL))


def rows(section):
    """The cells of its table, without the head."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")][2:]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.replace("\\|", "|").strip() for cell in line] for line in cells]


def code(cell):
    assert cell.startswith("`") and cell.endswith("`")
    return cell[1:-1]


PAIRS = [
    (code(there), code(here))
    for section in ("The same call", "Other words")
    for there, here, *_ in rows(section)
]


def arrays(result):
    if isinstance(result, (list, tuple)):
        return [a for part in result for a in arrays(part)]
    return [np.asarray(result)]


@pytest.mark.parametrize(("there", "here"), PAIRS, ids=[there for there, _ in PAIRS])
def test_the_call_beside_it_gives_what_pytorch_gives(there, here):
    variables = {k[4:]: mt.Tensor(v) for k, v in GOLDENS.items() if k.startswith("var/")}
    got = arrays(eval(here, {"mt": mt, "np": np, **variables}))
    want = [GOLDENS[f"{there}/{i}"] for i in range(int(GOLDENS[f"{there}/count"]))]
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype.kind == b.dtype.kind or "eye" in here
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)


def test_the_same_call_is_the_same_text():
    for there, here in rows("The same call"):
        assert re.sub(r"\b(torch|F)\.", "mt.", there) == here


def resolve(name):
    thing = mt
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


def test_every_name_on_the_page_exists():
    names = set(re.findall(r"\bmt(?:\.\w+)+", PAGE))
    assert len(names) > 50
    for name in names:
        resolve(name)


def test_what_is_not_here_is_not():
    names = [n for cell, _ in rows("Not here") for n in re.findall(r"`(\w+)`", cell)]
    assert len(names) > 10
    for name in names:
        assert not hasattr(mt, name) and not hasattr(mt.Tensor, name), name


def test_the_convolution_is_pytorchs_and_has_the_right_gradient():
    scope = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], scope)
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(1, 2, 5, 4)), rng.normal(size=(2, 2, 3, 2))
    assert mt.gradcheck(lambda x, w: scope["conv2d"](x, w, 2, 1), [x, w])
    np.testing.assert_allclose(scope["conv2d"](x, w, 2, 1).data, GOLDENS["conv2d"], rtol=1e-12)
