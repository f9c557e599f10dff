"""Changes in place: operators that write, `.data`, copies, and what NumPy may take."""

import copy
import pickle

import numpy as np
import pytest

import minitensor as mt


def leaf(*values):
    return mt.Tensor(np.array(values), requires_grad=True)


# ------------------------------------------------------------------------------ operators


def test_a_step_by_hand_writes_into_the_parameter():
    p = leaf(1.0, 2.0)
    same, view = p, p.detach()
    (p * p).sum().backward()
    with mt.no_grad():
        p -= 0.1 * p.grad
    assert p is same and p.requires_grad and p.is_leaf
    np.testing.assert_allclose(view.data, [0.8, 1.6])


@pytest.mark.parametrize(
    "change, want",
    [
        ("x += y", [4.0, 10.0]),
        ("x -= y", [2.0, 6.0]),
        ("x *= y", [3.0, 16.0]),
        ("x /= y", [3.0, 4.0]),
        ("x **= y", [3.0, 64.0]),
        ("x += 1", [4.0, 9.0]),
        ("x -= [1, 2]", [2.0, 6.0]),
        ("x *= np.array([2, 0])", [6.0, 0.0]),
    ],
)
def test_every_operator_writes_where_the_tensor_lies(change, want):
    x, y = mt.Tensor([3.0, 8.0]), mt.Tensor([1.0, 2.0])
    scope, view = {"x": x, "y": y, "np": np}, x.reshape(2, 1)
    exec(change, scope)
    assert scope["x"] is x and x.dtype == np.float32
    np.testing.assert_array_equal(view.data[:, 0], want)


def test_a_change_by_an_operator_is_noticed_by_the_backward():
    x, w = leaf(1.0, 2.0), mt.Tensor(np.array([3.0, 4.0]))
    y = (x * w).sum()
    w *= 2
    with pytest.raises(RuntimeError, match="'mul' needs was changed in place"):
        y.backward()


def test_a_result_that_is_its_input_is_watched_with_it():
    x, w = leaf(1.0), mt.Tensor(np.array([3.0]))
    for same in (w.astype(w.dtype), w.reshape(1), w**1):
        y = (x * w).sum()
        same *= 2
        shared = np.shares_memory(same.data, w.data)
        assert (w.tolist() != [3]) == shared
        if shared:
            with pytest.raises(RuntimeError, match="changed in place"):
                y.backward()
        w.copy_([3.0])


def test_a_leaf_that_requires_a_gradient_is_guarded_outside_no_grad():
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match=r"in-place sub on a leaf .* inside no_grad\(\)"):
        x -= 1.0
    np.testing.assert_array_equal(x.data, [1, 2])


def test_sums_on_the_tape_go_on_with_their_gradient():
    x = leaf(1.0, 2.0)
    total = mt.Tensor(np.zeros(2))
    before = total
    for _ in range(3):
        total += x * x
    total *= total
    total.sum().backward()
    assert total is before
    np.testing.assert_allclose(x.grad, 2 * 3 * x.data**2 * 3 * 2 * x.data)


def test_what_others_used_of_a_changed_result_keeps_its_gradient():
    x = leaf(3.0)
    h = mt.exp(x)
    used = h * h
    h += 1.0  # exp's backward needs the old values, and so does the product's
    h.retain_grad()
    (used + h * 5).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * np.exp(6) + 5 * np.exp(3))
    assert h.grad == 5


def test_retain_grad_goes_along_with_a_change():
    x = leaf(3.0)
    h = (x * 2).retain_grad()
    h *= 4
    (h * 7).sum().backward()
    assert h.grad == 7 and x.grad == 56


def test_a_tracked_tensor_that_others_look_at_is_not_changed():
    x = leaf(1.0, 2.0)
    h = x * 2
    row = h[:1]
    for t in (h, row):
        with pytest.raises(RuntimeError, match="another one looks at"):
            t += 1
    with pytest.raises(RuntimeError, match="on the tape"):
        h[0] += 1
    buffer = mt.Tensor(np.zeros(2))
    kept = buffer.detach()
    with pytest.raises(RuntimeError, match="another one looks at"):
        buffer += x
    np.testing.assert_array_equal(kept.data, [0, 0])


def test_results_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"in-place add: the result is float32\[2, 2\], expected"):
        x = mt.Tensor([1.0, 2.0])
        x += mt.Tensor([[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"in-place mul: .* expected int64\[1\]"):
        n = mt.Tensor([1])
        n *= 0.5
    with pytest.raises(ValueError, match="in-place matmul"):
        x @= mt.Tensor([1.0, 1.0])
    with pytest.raises(RuntimeError, match="broadcast view"):
        y = mt.Tensor([1.0]).expand(3)
        y += 1
    assert x.tolist() == [1, 2] and n.tolist() == [1]


def test_values_with_a_gradient_are_not_written_without_it():
    x, buffer = leaf(1.0), mt.Tensor(np.zeros(2))
    with pytest.raises(RuntimeError, match=r"would be lost; use stack\(\)"):
        buffer[0] = x[0]
    with mt.no_grad():
        buffer[0] = x[0]
    buffer[1] = x[0].detach()
    assert buffer.tolist() == [1, 1]


# ------------------------------------------------------------------------------ data


def test_data_can_be_stepped_as_in_pytorch():
    p = leaf(1.0, 2.0)
    (p * p).sum().backward()
    p.data -= 0.1 * p.grad
    np.testing.assert_allclose(p.data, [0.8, 1.6])
    p.data = [5, 6]
    assert p.dtype == np.float64 and p.tolist() == [5, 6] and p.is_leaf
    with pytest.raises(ValueError, match=r"data: expected shape \(2,\), got \(3,\)"):
        p.data = np.zeros(3)


def test_data_is_read_only_while_a_graph_or_another_tensor_uses_it():
    p = leaf(1.0, 2.0)
    y = (p * p).sum()
    with pytest.raises(ValueError, match="read-only"):
        p.data[0] = 9
    y.backward()
    p.data[0] = 9
    assert p.tolist() == [9, 2]
    for t in (mt.Tensor([1.0]), p * 2):
        with pytest.raises(ValueError, match="read-only"):
            t.data[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        p.detach().numpy()[0] = 1


def test_assigned_data_is_noticed_by_the_backward():
    p = leaf(1.0, 2.0)
    y = (p * p).sum()
    p.data = np.zeros(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_an_array_may_be_changed_after_its_use():
    x, w = leaf(1.0, 2.0), np.array([3.0, 4.0])
    ids, table = np.array([0, 0]), leaf([1.0, 2.0], [3.0, 4.0])
    y = (x * w).sum() + mt.checkpoint(lambda t, a: t * a, x, w).sum()
    z = mt.embedding(table, ids).sum()
    taken = (table[ids] + table[[0, 1]][ids == 0] * 10).sum()
    w[...], ids[...] = 0, 1
    y.backward()
    (z + taken).backward()
    np.testing.assert_array_equal(x.grad, [6, 8])
    np.testing.assert_array_equal(table.grad, [[14, 14], [10, 10]])


# ------------------------------------------------------------------------------ copies


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_leaves_are_copied_with_all_they_have(duplicate):
    p = mt.nn.Parameter(np.arange(6.0).reshape(2, 3).T)
    (p * p).sum().backward()
    q = duplicate(p)
    assert type(q) is mt.nn.Parameter and q.requires_grad and q.dtype == p.dtype
    np.testing.assert_array_equal(q.grad, p.grad)
    (q * 3).sum().backward()
    with mt.no_grad():
        q -= 1
    np.testing.assert_array_equal(p.grad, 2 * p.data)
    np.testing.assert_array_equal(q.data, p.data - 1)
    frozen = duplicate(mt.Tensor([1, 2]))
    assert frozen.tolist() == [1, 2] and not frozen.requires_grad


def test_a_shallow_copy_shares_memory_and_changes_are_noticed():
    p = leaf(1.0, 2.0)
    q = copy.copy(p)
    y = (p * p).sum()
    with mt.no_grad():
        q += 1
    assert p.tolist() == [2, 3]
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_result_on_the_tape_is_not_copied(duplicate):
    y = leaf(1.0) * 2
    with pytest.raises(RuntimeError, match=r"result of 'mul' .* copy x.detach\(\)"):
        duplicate(y)
    duplicate(y.detach())


def build(rng):
    net = mt.nn.Sequential(
        mt.nn.Linear(3, 4, rng=rng), mt.tanh, mt.nn.Dropout(0.2, rng=rng), mt.nn.Linear(4, 4)
    )
    net.register_buffer("seen", np.zeros(1))
    net.tied = net[0].weight
    return net


def train(net, optimizer, steps):
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) ** 2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_a_copied_model_and_its_optimizer_train_themselves(duplicate):
    net = build(np.random.default_rng(0))
    optimizer = mt.optim.AdamW(net.parameters(), lr=0.1)
    train(net, optimizer, 2)
    before = net.state_dict()
    twin, its = duplicate((net, optimizer))
    assert twin.tied is twin[0].weight and its.parameters[0] is twin.parameters()[0]
    train(twin, its, 3)
    for name, values in net.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
    train(net, optimizer, 3)
    for name, values in net.state_dict().items():
        np.testing.assert_array_equal(values, twin.state_dict()[name])
        assert name == "seen" or not np.array_equal(values, before[name])


def test_a_shallow_copy_of_a_module_shares_its_parameters_but_not_its_attributes():
    net = build(np.random.default_rng(0))
    twin = copy.copy(net)
    twin.register_buffer("more", np.ones(1))
    assert twin.parameters()[0] is net.parameters()[0]
    assert [n for n, _ in net.named_buffers()] == ["seen"]


# ------------------------------------------------------------------------------ NumPy and others


@pytest.mark.parametrize(
    "call",
    [
        lambda x: np.stack([x, x]),
        lambda x: np.asarray(x),
        lambda x: np.array([x[0], x[1]]),
        lambda x: np.concatenate([x, x]),
        lambda x: mt.Tensor([x[0], x[1]]),
        lambda x: mt.Tensor(np.ones(2)) * [x[0], x[1]],
        lambda x: np.linalg.norm(x),
    ],
)
def test_numpy_does_not_lose_a_gradient_in_silence(call):
    with pytest.raises(RuntimeError, match=r"requires a gradient.*x\.detach\(\)\.numpy\(\)"):
        call(leaf(1.0, 2.0))


@pytest.mark.parametrize("call", [np.exp, np.sum, np.max, lambda x: np.add(x, x)])
def test_numpy_functions_of_a_tracked_tensor_are_errors(call):
    with pytest.raises(TypeError):
        call(leaf(1.0, 2.0))


def test_numpy_takes_tensors_without_a_gradient():
    x = mt.Tensor([1.0, 2.0])
    np.testing.assert_array_equal(np.stack([x, x]), [[1, 2], [1, 2]])
    assert np.asarray(x, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(x, copy=True), x.data)


def test_dlpack_both_ways():
    x = mt.Tensor([1.0, 2.0])
    assert np.shares_memory(np.from_dlpack(x), x.data)
    a = np.array([[1.0, 2.0]])
    y = mt.from_dlpack(a)
    a[...] = 0
    assert y.tolist() == [[1, 2]] and y.dtype == np.float64, "a copy, as Tensor() makes"
    assert mt.from_dlpack(x).tolist() == [1, 2]
    with pytest.raises(RuntimeError, match=r"dlpack: .*requires a gradient"):
        np.from_dlpack(leaf(1.0))


def test_one_element_is_a_number():
    x = leaf(2.5)
    assert (float(x), int(x), f"{x:.3f}", f"{x.sum()}") == (2.5, 2, "2.500", "2.5")
    assert [10, 20, 30][mt.Tensor(1)] == 20 and bool(mt.Tensor([[0.0]])) is False
    assert f"{mt.Tensor([1.0, 2.0])}" == "Tensor([1., 2.], float32)"
    many = mt.Tensor([1.0, 2.0])
    for call in (many.item, lambda: float(many), lambda: int(many), lambda: bool(many)):
        with pytest.raises(ValueError, match=r"expected a tensor of one element, got shape \(2,\)"):
            call()
    with pytest.raises(ValueError, match="one element"):
        format(many, ".3f")
    with pytest.raises(TypeError, match="expected an integer tensor, got float32"):
        [1][mt.Tensor(0.0)]
    for call in (len, iter, list):
        with pytest.raises(TypeError, match="has no axes"):
            call(mt.Tensor(1.0))
