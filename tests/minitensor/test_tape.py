"""The tape: what is recorded, how the walk goes back, what it frees and what it refuses."""

import gc
import threading
import weakref

import numpy as np
import pytest

import minitensor as mt


def leaf(*values):
    return mt.Tensor(np.array(values), requires_grad=True)


# ------------------------------------------------------------------------------ gradients


def test_gradients_add_up_over_uses_and_over_calls():
    x = leaf(2.0, 3.0)
    (x * x + x).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 7])
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad, [7, 9])


def test_a_gradient_of_leaves_is_nobody_elses_array():
    x, y = leaf(1.0), leaf(2.0)
    (x + y).backward()
    x.grad += 1
    np.testing.assert_array_equal(y.grad, [1])
    a, b, c = mt.grad((x + y).sum(), [x, y, x])
    a += 1
    assert b[0] == c[0] == 1


def test_grad_writes_nowhere_and_weighs_several_outputs():
    x = leaf(1.0, 2.0)
    a, b = x * 3, x * x
    (g,) = mt.grad([a, b], [x], [np.array([1.0, 0.0]), np.array([0.0, 10.0])])
    np.testing.assert_array_equal(g, [3, 40])
    assert x.grad is None


def test_grad_of_an_intermediate_result_stops_there():
    x = leaf(3.0)
    y = x * x
    z = (y * y).sum()
    y_grad, x_grad = mt.grad(z, [y, x])
    assert (y_grad, x_grad) == (18, 108)


def test_one_tensor_may_stand_for_a_list_of_one():
    x = leaf(1.0, 2.0)
    grads = mt.grad((x * x).sum(), x)
    assert len(grads) == 1
    np.testing.assert_array_equal(grads[0], [2, 4])
    with pytest.raises(ValueError, match=r"input 0 \(shape \(1,\)\) has no part"):
        mt.grad((x * x).sum(), leaf(1.0))
    with pytest.raises(TypeError, match="grad: input 1 is float, expected a tensor"):
        mt.grad((x * x).sum(), [x, 2.0])
    assert len(mt.grad(x.sum(), (t for t in (x, x)))) == 2


def test_grad_frees_only_what_it_walked():
    x = leaf(3.0)
    y = x * x
    z = mt.exp(y).sum()
    assert mt.grad(z, y) == np.exp(9)
    y.backward()
    assert x.grad == 6
    with pytest.raises(RuntimeError, match="'sum' was already freed"):
        z.backward()


def test_an_input_without_a_part_is_named_or_gets_zeros():
    x, y = leaf(1.0), leaf(2.0, 3.0)
    with pytest.raises(ValueError, match=r"input 1 \(shape \(2,\)\) has no part"):
        mt.grad(x.sum(), [x, y])
    zeros = mt.grad(x.sum(), [x, y], materialize_grads=True)[1]
    np.testing.assert_array_equal(zeros, [0, 0])
    assert mt.grad(x.sum(), [x, y], allow_unused=True)[1] is None
    with pytest.raises(ValueError, match="does not require a gradient"):
        mt.grad(x.sum(), [mt.Tensor([1.0])])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_gradient_is_told_as_soon_as_it_is_complete(checkpointed):
    first, shared, last, unused = (leaf(float(i), 2.0) for i in range(4))
    done = []

    def block(t):
        return t * first + shared

    def result():
        x = shared * 2
        hidden = (mt.checkpoint(block, x) if checkpointed else block(x)) + 1
        hidden.register_hook(lambda g: done.append("hidden"))
        return (hidden + last).sum()  # one array is the gradient of `hidden` and of `last`

    def ready(i, g):
        done.append(i)
        told[i] = g.copy()
        g[...] = np.nan  # whoever is told may do so

    told: dict[int, np.ndarray] = {}
    inputs = [first, shared, last, unused]
    plain = mt.grad(result(), inputs, materialize_grads=True)
    done.clear()
    mt.grad(result(), inputs, materialize_grads=True, ready=ready)
    # Nobody knows what a checkpointed block uses before it is replayed.
    assert done == (["hidden", 2, 1, 0, 3] if checkpointed else [2, "hidden", 0, 1, 3])
    for i, g in enumerate(plain):
        np.testing.assert_array_equal(told[i], g)


def test_leaves_that_one_op_uses_are_told_together_the_oldest_first():
    x, y, z = leaf(3.0), leaf(5.0), leaf(7.0)
    told = {}
    mt.grad((x * y + y * z).sum(), [z, y, x], ready=lambda i, g: told.update({i: float(g[0])}))
    assert list(told.items()) == [(0, 5.0), (2, 5.0), (1, 10.0)]
    told.clear()
    mt.grad((y * x).sum(), [y, x], ready=lambda i, g: told.update({i: float(g[0])}))
    assert list(told.items()) == [(1, 5.0), (0, 3.0)]


def test_what_is_no_leaf_is_told_before_the_walk_goes_through_it():
    x = leaf(3.0)
    y = x * x
    told = {}

    def ready(i, g):
        told[i] = float(g[0])
        g[...] = 0

    mt.grad((y * 2).sum(), [x, y], ready=ready)
    assert told == {0: 12.0, 1: 2.0}


def test_the_output_must_be_a_scalar_or_be_weighed():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match="only a scalar has an implicit gradient"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"the gradient has shape \(3,\), the output \(2,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="does not depend on any"):
        mt.Tensor([1.0]).sum().backward()


def test_a_second_backward_needs_retain_graph():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad, [8])
    with pytest.raises(RuntimeError, match=r"'sum' was already freed.*retain_graph=True"):
        y.backward()


def test_a_slice_gets_its_part_of_the_gradient_whatever_the_order():
    x = mt.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    (x[0].sum() + (x * 2).sum() + x[:, 1].sum() + x[1, 1]).backward()
    np.testing.assert_array_equal(x.grad, [[3, 4, 3], [2, 4, 2]])


# ------------------------------------------------------------------------------ modes


def test_no_grad_and_enable_grad_nest_and_restore():
    x = leaf(1.0)
    with mt.no_grad():
        assert not (x * 2).requires_grad
        with mt.enable_grad():
            assert (x * 2).requires_grad
        assert not mt.is_grad_enabled()
    assert mt.is_grad_enabled()

    @mt.no_grad()
    def double(t):
        return t * 2

    assert not double(x).requires_grad
    with pytest.raises(ZeroDivisionError), mt.no_grad():
        1 / 0
    assert mt.is_grad_enabled()


def test_a_mode_can_be_entered_again_but_not_wrap_a_generator():
    off = mt.no_grad()
    with off, off:
        assert not mt.is_grad_enabled()
    with off:
        assert not mt.is_grad_enabled()
    assert mt.is_grad_enabled()
    with pytest.raises(TypeError, match="cannot decorate the generator batches"):

        @mt.no_grad()
        def batches():
            yield 1


def test_modes_belong_to_a_thread():
    seen = []
    with mt.no_grad():
        thread = threading.Thread(target=lambda: seen.append(mt.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_shares_memory_but_no_history():
    x = leaf(1.0, 2.0)
    d = (x * 2).detach()
    assert not d.requires_grad
    y = x.detach()
    y[0] = 5.0
    assert x.data[0] == 5


def test_recording_tells_an_op_whether_its_gradient_is_wanted():
    seen = []
    x = leaf(1.0)

    @mt.op(cases=lambda rng: [((rng.normal(size=2),), {})])
    def spy(a: np.ndarray):
        seen.append(mt.recording())
        return a.copy(), (lambda g: g,)

    del mt.registry["spy"]
    spy(x)
    with mt.no_grad():
        spy(x)
    spy(x.detach())
    assert seen == [True, False, False]


# ------------------------------------------------------------------------------ hooks


def test_retain_grad_keeps_an_intermediate_gradient():
    x = leaf(3.0)
    y = (x * x).retain_grad()
    (y * 2).sum().backward()
    assert (y.grad, x.grad) == (2, 12)


def test_a_hook_sees_the_whole_gradient_and_may_replace_it():
    x, seen = leaf(3.0), []
    y = x * x
    remove = y.register_hook(lambda g: seen.append(float(g[0])))
    other = y.register_hook(lambda g: g * 10)
    (y * 2 + y * 3).sum().backward(retain_graph=True)
    assert seen == [5] and x.grad == 300
    remove()
    other()
    remove()
    x.grad = None
    (y * 2).sum().backward()
    assert seen == [5] and x.grad == 12
    with pytest.raises(RuntimeError, match="register_hook"):
        mt.Tensor([1.0]).register_hook(lambda g: None)


def test_a_hook_has_a_handle_and_a_shape_to_keep():
    x, seen = leaf(1.0, 2.0), []
    y = x * 2
    first = y.register_hook(seen.append)
    y.register_hook(seen.append)
    first.remove()
    first.remove()
    y.sum().backward(retain_graph=True)
    assert len(seen) == 1 and not seen[0].flags.writeable
    y.register_hook(lambda g: g.sum())
    with pytest.raises(ValueError, match=r"hook of 'mul': expected .* shape \(2,\), got \(\)"):
        y.sum().backward()


def test_a_hook_cannot_change_the_gradient_of_others():
    x, y = leaf(1.0), leaf(2.0)
    a = x * 1

    def spoil(g):
        g *= 10

    a.register_hook(spoil)
    with pytest.raises(ValueError, match="read-only"):
        (a + y).backward()


def test_an_observer_sees_every_op_both_ways():
    seen = []
    with mt.observe(lambda op, phase, seconds, arrays, array: seen.append((op, phase))):
        x = leaf(3.0)
        (x * x).sum().backward()
    assert seen == [
        ("mul", "forward"),
        ("sum", "forward"),
        ("sum", "backward"),
        ("mul", "backward"),
    ]


# ------------------------------------------------------------------------------ changes in place


def test_a_change_of_what_backward_needs_is_noticed():
    x, w = leaf(1.0, 2.0), mt.Tensor(np.array([3.0, 4.0]))
    y = (x * w).sum()
    w[0] = 5.0
    with pytest.raises(RuntimeError, match="'mul' needs was changed in place"):
        y.backward()


def test_a_change_through_a_view_is_noticed():
    x, w = leaf(1.0, 2.0), mt.Tensor(np.array([3.0, 4.0]))
    y = (x * w.reshape(1, 2)).sum()
    w.copy_([5.0, 6.0])
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_tensor_on_the_tape_cannot_be_changed():
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match="on the tape"):
        x[0] = 1
    y = x * 2
    with mt.no_grad(), pytest.raises(RuntimeError, match="on the tape"):
        y[0] = 1
    with mt.no_grad():
        x[0] = 7.0
    assert x.data[0] == 7
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 1
    with pytest.raises(RuntimeError, match="broadcast view"):
        mt.Tensor([1.0]).expand(3)[0] = 1


def test_requires_grad_is_for_floating_leaves():
    with pytest.raises(TypeError, match="only floating"):
        mt.Tensor([1, 2], requires_grad=True)
    y = leaf(1.0) * 2
    with pytest.raises(ValueError, match="only a leaf"):
        y.requires_grad = False
    with pytest.raises(TypeError, match="cannot hold"):
        mt.Tensor(["a"])


# ------------------------------------------------------------------------------ memory and depth


@pytest.fixture
def no_collector():
    big_step(leaf(1.0, 2.0, 3.0, 5.0).reshape(2, 2)).backward()  # compiling leaves cycles behind
    gc.disable()
    yield
    gc.enable()


def big_step(x):
    """Uses ops of every family: elementwise, reduce, shape, linalg, loss and transformer."""
    h = mt.softmax(mt.layer_norm(x @ x.T).reshape(2, -1).transpose(0, 1).T, axis=-1)
    h = mt.concat([h[:, :2], h[:, 2:]], axis=1) + mt.checkpoint(lambda t: t.exp() * t, h)
    h = h.mean(axis=1, keepdims=True) * h.std() - mt.pinv(x).sum() + h[[0, 1, 1]].sum()
    return mt.mse_loss(h, h.detach() * 0.5) + mt.cross_entropy(h, np.array([0, 0]))


@pytest.mark.parametrize("how", ["dropped", "backward", "retained", "failed"])
def test_a_graph_frees_itself_by_reference_count(no_collector, how):
    x = mt.Tensor(np.random.default_rng(0).normal(size=(2, 2)), requires_grad=True)
    middle = (x * 3).retain_grad()
    loss = big_step(middle)
    alive = [weakref.ref(t) for t in (middle, loss)]
    nodes, stack = [], [loss._node]
    while stack:
        node = stack.pop()
        nodes.append(weakref.ref(node))
        stack += [p for p in node.parents if p is not None and p.op != "leaf"]
    del node, stack
    if how == "backward":
        loss.backward()
    elif how == "retained":
        loss.backward(retain_graph=True)
    elif how == "failed":
        loss.backward()
        with pytest.raises(RuntimeError):
            loss.backward()
    assert len(nodes) > 10
    del middle, loss
    assert [r for r in alive + nodes if r() is not None] == []


def test_backward_frees_as_it_goes(no_collector):
    """When the walk reaches the first op, what the later ones held is gone already."""
    x = leaf(1.0, 2.0)
    first = x * 1.0
    h, held = first, []
    for _ in range(5):
        h = mt.exp(h * 0.1)
        held.append(weakref.ref(h._node))
    loss = h.sum()
    del h
    first.register_hook(
        lambda g: alive.append(sum(r() is not None and r().backward is not None for r in held))
    )
    alive = []
    loss.backward()
    assert alive == [0]


@pytest.mark.slow
@pytest.mark.parametrize("walked", [True, False])
def test_a_graph_of_100_000_nodes(walked):
    x = leaf(1.0)
    h = x
    for _ in range(100_000):
        h = h + 1.0
    if walked:
        h.backward()
        assert x.grad == 1
    else:
        del h  # must not exhaust the stack either


def test_shared_subgraphs_are_walked_once():
    """2**60 paths, 60 nodes."""
    x = leaf(1.0)
    h = x
    for _ in range(60):
        h = h + h
    h.backward()
    assert x.grad == 2.0**60


# ------------------------------------------------------------------------------ checkpointing


def test_a_checkpoint_gives_the_same_gradients_to_everything_used():
    rng = np.random.default_rng(0)
    w1, w2 = (mt.Tensor(rng.normal(size=(3, 3)), requires_grad=True) for _ in range(2))
    x = mt.Tensor(rng.normal(size=(2, 3)), requires_grad=True)

    def block(h, scale):
        return mt.tanh(h @ w1 * scale) @ w2 + h

    plain = mt.grad((block(block(x, 2.0), 1.0) * x).sum(), [x, w1, w2])
    kept = mt.grad(
        (mt.checkpoint(block, mt.checkpoint(block, x, 2.0), scale=1.0) * x).sum(), [x, w1, w2]
    )
    nested = mt.grad(
        (mt.checkpoint(lambda t: mt.checkpoint(block, block(t, 2.0), 1.0), x) * x).sum(),
        [x, w1, w2],
    )
    for a, b, c in zip(plain, kept, nested, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-14)
        np.testing.assert_allclose(c, a, rtol=1e-14)


def test_a_checkpoint_whose_input_needs_no_gradient_still_reaches_the_parameters():
    w = leaf(2.0)
    mt.checkpoint(lambda t: t * w, mt.Tensor(np.array([3.0]))).sum().backward()
    assert w.grad == 3
    with mt.no_grad():
        assert not mt.checkpoint(lambda t: t * w, w).requires_grad
    assert mt.checkpoint(lambda t: t, w) is w


def test_a_checkpoint_keeps_only_its_result(no_collector):
    inside = []

    def block(h):
        for _ in range(3):
            h = mt.exp(h * 0.1)
            inside.append(weakref.ref(h._node))
        return h

    x = leaf(1.0, 2.0)
    y = mt.checkpoint(block, x)
    assert [r for r in inside if r() is not None] == []
    y.sum().backward()
    assert len(inside) == 6, "computed a second time"
    assert [r for r in inside if r() is not None] == []


def test_a_checkpoint_draws_the_same_dropout_again():
    rng = np.random.default_rng(0)
    drop = mt.nn.Dropout(0.5, rng=rng)
    x = mt.Tensor(rng.normal(size=(4, 50)), requires_grad=True)
    for block in (drop, lambda t: mt.checkpoint(drop, drop(t))):
        y = mt.checkpoint(block, x)
        (g,) = mt.grad(y.sum(), [x])
        np.testing.assert_allclose(g * x.data, y.data, rtol=1e-12)
    assert drop.calls == 3


def test_a_checkpoint_notices_a_parameter_changed_meanwhile():
    x, w = leaf(1.0), leaf(2.0)
    y = mt.checkpoint(lambda t: t * w, x)
    with mt.no_grad():
        w[0] = 9.0
    with pytest.raises(RuntimeError, match="'checkpoint' needs was changed in place"):
        y.backward()
    with pytest.raises(TypeError, match="returned tuple"):
        mt.checkpoint(lambda t: (t, t), x)


# ------------------------------------------------------------------------------ anomaly mode


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_anomaly_names_the_op_and_the_line_of_the_forward():
    x = leaf(0.0, 1.0)
    with mt.detect_anomaly(), pytest.raises(FloatingPointError) as error:
        y = x * 2
        z = mt.log(y)  # the line to find
        z + 1
    assert "'log' made a non-finite value from finite inputs" in str(error.value)
    assert "test_tape.py" in str(error.value) and "the line to find" in str(error.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_anomaly_names_the_op_and_the_line_of_the_backward():
    x = leaf(0.0, 1.0)
    with mt.detect_anomaly(), pytest.raises(FloatingPointError) as error:
        y = mt.sqrt(x)  # fine so far
        (y * 2).sum().backward()
    assert "backward of 'sqrt' made a non-finite gradient for its input 0" in str(error.value)
    assert "fine so far" in str(error.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_anomaly_tells_a_non_finite_input_from_a_fault():
    with mt.detect_anomaly(), pytest.raises(FloatingPointError, match="from a non-finite input 0"):
        leaf(np.nan) * 2
    assert np.isnan((leaf(np.nan) * 2).item()), "outside the mode nothing is said"
