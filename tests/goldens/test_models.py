"""Each architecture against PyTorch (see make_models.py), and float32 against float64."""

import functools
import runpy
from pathlib import Path

import numpy as np
import pytest

import minitensor as mt
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT

HERE = Path(__file__).parent
MAKE = runpy.run_path(str(HERE / "make_models.py"))
GOLDEN = dict(np.load(HERE / "models.npz"))
IDS, TARGETS = MAKE["batch"]()
architecture = pytest.mark.parametrize("name", MAKE["CONFIGS"])


def model(name, dtype):
    gpt = GPT(Config(**{**MAKE["SIZE"], **MAKE["CONFIGS"][name], "dtype": dtype}))
    gpt.load_state_dict({n: MAKE["weights"](n, p.shape) for n, p in gpt.named_parameters()})
    return gpt


@functools.cache
def step(name, dtype):
    """Loss and gradients by name of the first step."""
    gpt = model(name, dtype)
    loss = gpt.loss(IDS, TARGETS) * (1 / TARGETS.size)
    names, parameters = zip(*gpt.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, mt.grad(loss, parameters), strict=True))


def off(got, want):
    """The largest difference, relative to the largest element."""
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.mostly_slow
@architecture
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-4)])
def test_loss_and_every_gradient_are_those_of_pytorch(name, dtype, tolerance):
    loss, grads = step(name, dtype)
    assert abs(loss / float(GOLDEN[f"{name}/loss"]) - 1) < tolerance
    want = {key.split("/grad/")[1]: g for key, g in GOLDEN.items() if f"{name}/grad/" in key}
    assert set(grads) == set(want)
    worst = {n: off(grads[n], want[n]) for n in want}
    assert max(worst.values()) < tolerance, worst


@architecture
def test_float32_agrees_with_float64_in_every_gradient(name):
    loss32, grads32 = step(name, "float32")
    loss64, grads64 = step(name, "float64")
    assert all(g.dtype == np.float32 for g in grads32.values())
    assert abs(loss32 / loss64 - 1) < 1e-6
    assert max(off(grads32[n], grads64[n]) for n in grads64) < 1e-4


@pytest.mark.slow
@architecture
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-8), ("float32", 1e-4)])
def test_twenty_steps_of_adamw_lose_what_pytorch_loses(name, dtype, tolerance):
    gpt = model(name, dtype)
    groups = [
        {"params": [p for p in gpt.parameters() if p.ndim > 1]},
        {"params": [p for p in gpt.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = mt.optim.AdamW(groups, **MAKE["ADAMW"])
    losses = []
    for _ in range(MAKE["STEPS"]):
        loss = gpt.loss(IDS, TARGETS) * (1 / TARGETS.size)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        mt.optim.clip_grad_norm_(gpt.parameters(), MAKE["CLIP"])
        optimiser.step()
    np.testing.assert_allclose(losses, GOLDEN[f"{name}/losses"], rtol=tolerance)
    assert losses[-1] < losses[0]
