"""Programs as people write them who come from micrograd and PyTorch, line by line."""

import numpy as np
import pytest

import minitensor as mt
from minitensor import nn
from minitensor.hints import MODULE, TENSOR


def test_the_example_of_micrograd():
    a = mt.tensor(-4.0, requires_grad=True)
    b = mt.tensor(2.0, requires_grad=True)
    c = a + b
    d = a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + (b + a).relu()
    d += 3 * d + (b - a).relu()
    e = c - d
    f = e**2
    g = f / 2.0
    g += 10.0 / f
    assert f"{g.item():.4f}" == f"{g:.4f}" == "24.7041"
    g.backward()
    assert f"{a.grad:.4f} {b.grad:.4f}" == "138.8338 645.5773"  # as its README prints


def moons(n, rng):
    t, y = rng.uniform(0, np.pi, n), np.where(np.arange(n) % 2, 1, -1)
    x = np.stack([np.cos(t) * y + (y < 0), np.sin(t) * y + (y < 0) * 0.5], axis=1)
    return x + rng.normal(scale=0.1, size=(n, 2)), y


def trained(how):
    """Predictions and labels after 300 steps of a small network, each written in one's own way."""
    rng = np.random.default_rng(1337)
    x, y = moons(100, rng)
    inputs, labels = mt.tensor(x, dtype=np.float32), mt.tensor(y)
    model = nn.Sequential(nn.Linear(2, 16, rng=rng), nn.ReLU(), nn.Linear(16, 16, rng=rng))
    model.extend([nn.ReLU(), nn.Linear(16, 1, rng=rng)])
    optimizer = mt.optim.SGD(model.parameters(), lr=1.0)
    for k in range(300):
        scores = model(inputs).squeeze()
        data_loss = (1 + -labels * scores).relu().mean()
        reg_loss = 1e-4 * sum((p * p).sum() for p in model.parameters())
        total = data_loss + reg_loss
        model.zero_grad()
        total.backward()
        learning_rate = 1.0 - 0.9 * k / 300
        if how == "data":
            for p in model.parameters():
                p.data -= learning_rate * p.grad
        elif how == "no_grad":
            with mt.no_grad():
                for p in model.parameters():
                    p -= learning_rate * p.grad
        else:
            optimizer.param_groups[0]["lr"] = learning_rate
            optimizer.step()
    return scores, labels


@pytest.mark.slow
def test_two_moons_with_a_hinge_loss():
    scores, labels = trained("data")
    assert scores.dtype == np.float32 and ((scores > 0) == (labels > 0)).data.all()
    for how in ("no_grad", "optimizer"):
        np.testing.assert_array_equal(trained(how)[0].data, scores.data)


def test_a_loss_is_added_up_over_steps_as_in_a_recurrent_net():
    rng = np.random.default_rng(0)
    cell, head = nn.Linear(5, 4, rng=rng), nn.Linear(4, 3, rng=rng)
    x, y = rng.normal(size=(6, 2, 1)).astype(np.float32), rng.integers(0, 3, (6, 2))
    criterion = nn.CrossEntropyLoss()

    def run(accumulate):
        h, loss, losses = mt.tensor(np.zeros((2, 4), np.float32)), 0, []
        for t in range(6):
            h = mt.tanh(cell(mt.concat([mt.tensor(x[t]), h], axis=1)))
            if accumulate:
                loss += criterion(head(h), y[t])
            else:
                losses.append(criterion(head(h), y[t]))
        parameters = cell.parameters() + head.parameters()
        return mt.grad(loss if accumulate else sum(losses), parameters)

    for a, b in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(a, b)


def im2col(x, k):
    """(B, C, H, W) -> (B, H', W', C k k): the patch under every position of a k by k kernel."""
    B, C, H, W = x.shape
    rows = np.arange(H - k + 1)[:, None, None, None] + np.arange(k)[:, None]  # (H', 1, k, 1)
    cols = np.arange(W - k + 1)[:, None, None] + np.arange(k)  # (W', 1, k)
    patches = x[:, :, rows, cols]  # (B, C, H', W', k, k)
    patches = mt.einsum("bchwij->bhwcij", patches)
    return patches.reshape(B, H - k + 1, W - k + 1, C * k * k)


def test_a_convolution_by_im2col():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 3, 6, 5)), rng.normal(size=(4, 3, 3, 3))

    def convolution(x, weight):
        out = mt.linear(im2col(x, 3), weight.reshape(4, -1))
        return mt.einsum("bhwo->bohw", out)

    got = convolution(mt.tensor(x), mt.tensor(weight)).data
    for at in ((0, 0, 0, 0), (1, 3, 3, 2), (0, 2, 1, 1)):
        b, o, i, j = at
        want = (x[b, :, i : i + 3, j : j + 3] * weight[o]).sum()
        assert got[at] == pytest.approx(want)
    assert mt.gradcheck(convolution, [x[:1, :, :4, :4], weight])


def test_names_of_pytorch_lead_on():
    x = mt.tensor([[1.0, 2.0]])
    for owner, name, words in (
        (x, "numel", "write x.size"),
        (x, "float", "astype"),
        (mt, "manual_seed", "default_rng"),
        (mt.nn, "Conv2d", "docs/pytorch.md"),
        (mt.optim, "lr_scheduler", "mt.optim.cosine"),
    ):
        with pytest.raises(AttributeError, match=words):
            getattr(owner, name)
    # An operator, a call of numpy() or of size() in PyTorch's way.
    with pytest.raises(AttributeError, match="write x @ y"):
        x.matmul(x)
    assert x.size == 2 and x.size() == (1, 2) and x.size(1) == x.size(-1) == 2
    with pytest.raises(IndexError, match=r"^size: axis 2 of a tensor of shape \(1, 2\)$"):
        x.size(2)
    with pytest.raises(RuntimeError, match=r"requires a gradient.*x\.detach\(\)\.numpy\(\)"):
        mt.tensor([1.0], requires_grad=True).numpy()
    assert not hasattr(x, "nowhere") and not hasattr(mt, "nowhere")
    for theirs, ours in (("dim", "axis"), ("keepdim", "keepdims")):
        with pytest.raises(TypeError, match=f"the option is called {ours}, as in NumPy"):
            mt.sum(x, **{theirs: 1})
    assert mt.gradcheck(mt.exp, mt.tensor([1.0], requires_grad=True, dtype="float64"))


def test_every_hint_is_for_a_name_that_is_not_there():
    x = mt.tensor([1.0])
    assert not [name for name in TENSOR if hasattr(x, name)]
    assert not [name for name in MODULE if hasattr(mt, name)]


def test_where_of_two_numbers_widens_nothing():
    x, mask = mt.tensor([1.0, 2.0]), np.array([True, False])
    assert (x * mt.where(mask, 1.0, 0.0)).dtype == mt.where(mask, 1, 0.5).dtype == np.float32
    assert mt.where(mask, 1, 0).dtype == np.int64
