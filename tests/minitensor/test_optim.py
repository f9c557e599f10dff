"""Optimisers beyond their formulas (see test_torch_ops.py), clipping and schedules."""

import math

import numpy as np
import pytest

import minitensor as mt
from minitensor import optim


def parameters(dtype=np.float64, shapes=((4, 3), (5,))):
    rng = np.random.default_rng(0)
    return [mt.nn.Parameter(rng.normal(size=shape), dtype=dtype) for shape in shapes]


def gradients(ps, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=p.shape).astype(p.dtype) for p in ps]


MAKERS = {
    "SGD": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda ps: optim.Adam(ps, lr=0.1, weight_decay=0.1),
    "AdamW": lambda ps: optim.AdamW([{"params": ps[:1]}, {"params": ps[1:], "weight_decay": 0.0}]),
    "Muon": lambda ps: optim.Muon(ps[:1]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_state_goes_on_bit_for_bit(name):
    ps, qs = parameters(), parameters()
    first, second = MAKERS[name](ps), MAKERS[name](qs)
    n = len(first.parameters)
    for step in range(3):
        first.step(gradients(ps, step)[:n])
    state = first.state_dict()
    first.param_groups[0]["lr"] = 0.5  # the saved state is a copy, and holds the old one
    first.param_groups[0]["lr"] = state["param_groups"][0]["lr"]
    for p, q in zip(ps, qs, strict=True):
        with mt.no_grad():
            q.copy_(p.data)
    second.load_state_dict(state)
    for step in range(3, 6):
        first.step(gradients(ps, step)[:n])
        second.step(gradients(qs, step)[:n])
    for p, q in zip(ps, qs, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_are_kept_and_scale_multiplies_gradients(name, dtype):
    ps, qs = parameters(dtype), parameters(dtype)
    a, b = MAKERS[name](ps), MAKERS[name](qs)
    grads = gradients(ps, 0)[: len(a.parameters)]
    a.step(grads, scale=0.5)
    b.step([g * dtype(0.5) for g in grads])
    for p, q in zip(ps, qs, strict=True):
        assert p.dtype == dtype
        np.testing.assert_allclose(p.data, q.data, rtol=1e-6)
    assert all(v.dtype == dtype for s in a.state for v in s.values() if isinstance(v, np.ndarray))


def test_threads_do_not_change_a_bit():
    shapes = ((300, 500), (7,), (1,))  # the first is more than two pieces
    ps, qs = parameters(np.float32, shapes), parameters(np.float32, shapes)
    a, b = optim.AdamW(ps), optim.AdamW(qs)
    grads = gradients(ps, 0)
    b.light = 0  # elements below which one thread does it all
    with mt.Workers(3) as workers:
        for _ in range(2):
            a.step(grads)
            b.step(grads, workers=workers)
    for p, q in zip(ps, qs, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_step_takes_grad_attributes_and_skips_those_without():
    ps = parameters()
    before = [p.data.copy() for p in ps]
    ps[0].grad = np.ones(ps[0].shape)
    opt = optim.AdamW(ps, lr=0.1)
    opt.step()
    assert not np.array_equal(ps[0].data, before[0])
    np.testing.assert_array_equal(ps[1].data, before[1])
    opt.zero_grad()
    assert ps[0].grad is None


def test_a_step_between_forward_and_backward_is_noticed():
    p, _ = parameters()
    loss = (p * p).sum()
    optim.SGD([p]).step([np.ones(p.shape)])
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_groups_have_options_of_their_own():
    a, b = parameters(shapes=((2,), (2,)))
    start = b.data.copy()
    opt = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.0, "note": "kept"}], lr=1.0)
    assert [g["lr"] for g in opt.param_groups] == [1.0, 0.0]
    opt.step([np.ones(2), np.ones(2)])
    np.testing.assert_array_equal(b.data, start)
    opt.param_groups[1]["lr"] = 1.0
    opt.step([np.ones(2), np.ones(2)])
    np.testing.assert_allclose(b.data, start - 1)


def test_a_transposed_parameter_is_stepped_too():
    p = mt.nn.Parameter(np.arange(6.0).reshape(2, 3).T)
    want = p.data - 0.5
    optim.SGD([p], lr=0.5).step([np.ones((3, 2))])
    np.testing.assert_array_equal(p.data, want)


def test_muon_makes_updates_orthogonal():
    g = np.random.default_rng(0).normal(size=(6, 4))
    s = np.linalg.svd(optim.orthogonal(g), compute_uv=False)
    assert s.min() > 0.6 and s.max() < 1.25
    np.testing.assert_allclose(optim.orthogonal(g.T), optim.orthogonal(g).T, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize(
    "shape", [(48, 12), (12, 30), (20, 16), (16, 16), (1, 5), (50, 34), (34, 90)]
)
@pytest.mark.parametrize(("dtype", "close"), [("float64", 1e-9), ("float32", 2e-4)])
def test_orthogonal_is_the_newton_schulz_iteration(dtype, close, shape, steps):
    decay = np.exp(-np.linspace(0, 12, shape[1]))  # singular values down to 1e-5 of the first
    u = np.random.default_rng(0).normal(size=shape) * decay
    before, x = u.copy(), u / np.linalg.norm(u)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x - 4.775 * gram @ x + 2.0315 * gram @ gram @ x
    result = optim.orthogonal(u.astype(dtype), steps)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, x, rtol=0, atol=close)
    np.testing.assert_array_equal(u, before)


def test_wrong_calls_are_explained():
    ps = parameters()
    opt = optim.AdamW(ps)
    for call, match in [
        (lambda: optim.AdamW([]), "got no parameters"),
        (lambda: optim.AdamW([ps[0], ps[0]]), r"parameter 1 \(shape \(4, 3\)\) is there twice"),
        (lambda: optim.AdamW(ps, lr=-1), "lr cannot be negative"),
        (lambda: optim.AdamW(ps, lr=math.nan), "lr cannot be .* got nan"),
        (lambda: optim.AdamW(ps, lr="1e-3"), "lr cannot be .* no number, got '1e-3'"),
        (lambda: optim.AdamW(ps, eps=-1e-8), "eps cannot be negative"),
        (lambda: optim.AdamW(ps, weight_decay=-1), "weight_decay cannot be negative"),
        (lambda: optim.SGD(ps, momentum=-0.9), "momentum cannot be negative"),
        (lambda: optim.AdamW(ps, betas=(-0.1, 0.9)), r"betas .* must be in \[0, 1\)"),
        (lambda: optim.AdamW(ps, betas=0.9), r"betas 0.9 must be in \[0, 1\), and two"),
        (lambda: optim.Muon(ps[:1], ns_steps=0), "ns_steps is 0; expected 1 to 100"),
        (lambda: optim.Muon(ps[:1], ns_steps=10**18), "ns_steps is 1.*0; expected 1 to 100"),
        (lambda: optim.orthogonal(np.ones((20, 20)), 10**18), "expected steps <= 100"),
        (
            lambda: optim.AdamW([{"params": ps, "weight_deacy": 0.0}]),
            "no option is called 'weight_deacy'; did you mean 'weight_decay'",
        ),
        (
            lambda: optim.SGD([{"params": ps, "learning_rate": 0.1}]),
            "no option is called 'learning_rate'; did you mean 'lr'",
        ),
        (lambda: optim.AdamW([{"params": ps, "eps": -1}]), "eps cannot be negative, .* got -1"),
        (lambda: opt.add_param_group({"params": ps[1]}), r"parameter 2 .* is there twice"),
        (lambda: opt.load_state_dict({}), "a saved state has 'state' and 'param_groups'"),
        (
            lambda: opt.load_state_dict({**opt.state_dict(), "state": {"0": {}}}),
            "the saved state has no parameter '0' to be for",
        ),
        (
            lambda: opt.load_state_dict({**opt.state_dict(), "state": {1: {"step": 3}}}),
            "the state of parameter 1 has step; expected step, exp_avg, exp_avg_sq",
        ),
        (lambda: optim.AdamW(ps, betas=(0.9, 1.0)), r"betas .* must be in \[0, 1\)"),
        (lambda: optim.SGD(ps, nesterov=True), "nesterov needs a momentum"),
        (lambda: optim.Muon(ps), r"shape \(5,\); only matrices"),
        (lambda: opt.step([None]), "2 parameters but 1 gradients"),
        (lambda: opt.step([np.ones(3), None]), r"has shape \(4, 3\), its gradient \(3,\)"),
        (
            lambda: opt.load_state_dict(optim.AdamW(ps[:1]).state_dict()),
            r"groups of \[2\] parameters, the saved state of \[1\]",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    for params, match in [
        ([ps[0] * 2], "parameter 0 is not a leaf"),
        (ps[0], r"expected a list of tensors, got one; give \[p\]"),
        ([{"params": ps}, ps[0]], "expected a dict with 'params', got Parameter"),
        ([{"parameters": ps}], "expected a dict with 'params', got dict"),
    ]:
        with pytest.raises(TypeError, match=match):
            optim.AdamW(params)
    assert len(opt.param_groups) == 1 and len(opt.parameters) == len(opt.state) == 2
    other = optim.AdamW(ps[::-1])
    other.step(gradients(ps[::-1], 0))
    with pytest.raises(ValueError, match="'exp_avg' of parameter 0 has shape"):
        opt.load_state_dict(other.state_dict())


def test_clipping():
    ps = parameters()
    for p, g in zip(ps, gradients(ps, 0), strict=True):
        p.grad = g
    norm = math.sqrt(sum((p.grad**2).sum() for p in ps))
    assert optim.clip_grad_norm_(ps, 1e9) == pytest.approx(norm, rel=1e-14)
    assert optim.grad_norm([p.grad for p in ps]) == pytest.approx(norm, rel=1e-14)
    optim.clip_grad_norm_(ps, 0.5)
    assert optim.grad_norm([p.grad for p in ps]) == pytest.approx(0.5, rel=1e-5)
    optim.clip_grad_value_(ps, 0.01)
    assert max(np.abs(p.grad).max() for p in ps) == 0.01
    ps[1].grad = None
    optim.clip_grad_norm_(ps, 0.1)
    assert optim.grad_norm([]) == 0


def test_clipping_changes_the_arrays_that_are_there():
    p = mt.nn.Parameter(np.array(3.0))
    (p * p).backward()
    (p * p).backward()
    held = p.grad
    optim.clip_grad_norm_(p, 6.0)
    assert held is p.grad and held == pytest.approx(6)
    optim.clip_grad_value_([p], 1.0)
    assert held is p.grad and held == 1


def test_a_group_may_come_later():
    a, b = parameters(shapes=((2,), (3,)))
    opt = optim.SGD([a], lr=1.0, momentum=0.5)
    opt.step([np.ones(2)])
    opt.add_param_group({"params": b, "lr": 0.1})
    start = b.data.copy()
    opt.step([None, np.ones(3)])
    np.testing.assert_allclose(b.data, start - 0.1)
    assert [len(g["params"]) for g in opt.state_dict()["param_groups"]] == [1, 1]


def test_gradients_are_set_to_none_or_to_zeros():
    ps = parameters()
    ps[0].grad = held = np.ones(ps[0].shape)
    opt = optim.SGD(ps)
    opt.zero_grad(set_to_none=False)
    assert not ps[0].grad.any() and ps[1].grad is None and held.all()
    opt.zero_grad()
    assert ps[0].grad is None


@pytest.mark.parametrize("schedule", [optim.cosine, optim.linear, optim.wsd])
def test_schedules_rise_fall_and_stay(schedule):
    def at(step):
        return schedule(step, lr=1.0, min_lr=0.1, warmup=10, total=110)

    assert [at(s) for s in (0, 5, 10)] == [0, 0.5, 1]
    assert [at(s) for s in (110, 111, 10**9)] == pytest.approx([0.1] * 3)
    rates = [at(s) for s in range(10, 120)]
    assert rates == sorted(rates, reverse=True)
    assert schedule(0, lr=1.0, total=0) in (0.0, 1.0), "no steps at all must not divide by zero"


def test_schedules_between():
    kind = {"lr": 1.0, "min_lr": 0.2, "warmup": 10, "total": 110}
    assert optim.cosine(60, **kind) == pytest.approx(0.6)
    assert optim.linear(60, **kind) == pytest.approx(0.6)
    assert optim.linear(35, **kind) == pytest.approx(0.8)
    assert optim.cosine(35, **kind) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert optim.wsd(87, **kind) == 1 and optim.wsd(99, **kind) == pytest.approx(0.6)
    assert optim.constant(5, **kind) == 0.5 and optim.constant(10**6, **kind) == 1
