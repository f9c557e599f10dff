"""A sublayer as one op is what its parts compute one after the other, and says what it is given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitensor as mt

D, HEAD = 8, 4


def arrays(seed, *shapes):
    """Leaves to differentiate; None where no shape is given."""
    rng = np.random.default_rng(seed)
    return [shape and mt.Tensor(rng.normal(size=shape), requires_grad=True) for shape in shapes]


def given_if(there, *shape):
    return shape if there else None


def same(whole, parts, leaves):
    """Equal values and gradients."""
    np.testing.assert_allclose(whole.data, parts.data, rtol=1e-12, atol=1e-13)
    weights = np.cos(np.arange(whole.size)).reshape(whole.shape)
    leaves = [x for x in leaves if x is not None]
    for a, b in zip(mt.grad(whole, leaves, weights), mt.grad(parts, leaves, weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def norm_of(x, kind, weight, bias):
    return mt.rms_norm(x, weight) if kind == "rms" else mt.layer_norm(x, weight, bias)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.integers(0, 9),
    st.sampled_from(["layer", "rms"]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 2]),
)
def test_attention_is_its_parts(seed, norm, biased, p, groups, window):
    K = 2 // groups
    x, w, b, qkv, qb, out, ob = leaves = arrays(
        seed,
        (2, 5, D),
        (D,),
        given_if(biased and norm == "layer", D),
        ((2 + 2 * K) * HEAD, D),
        given_if(biased, (2 + 2 * K) * HEAD),
        (D, 2 * HEAD),
        given_if(biased, D),
    )
    table = mt.rope_table(5, HEAD, dtype=np.float64)
    options = {"n_head": 2, "n_kv_head": K, "rope": table, "window": window, "dropout": p}
    whole = mt.attention_sublayer(*leaves, norm=norm, keys=(3, 4), **options)
    heard = mt.self_attention(mt.linear(norm_of(x, norm, w, b), qkv, qb), key=3, **options)
    same(whole, mt.dropout_add(x, mt.linear(heard, out, ob), p, 4), leaves)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.integers(0, 9),
    st.sampled_from(["layer", "rms"]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(["gelu", "gelu_tanh", "swiglu"]),
)
def test_feed_forward_is_its_parts(seed, norm, biased, p, activation):
    gated, F = activation == "swiglu", 11
    x, w, b, gate, gb, up, ub, down, db = leaves = arrays(
        seed,
        (2, 5, D),
        (D,),
        given_if(biased and norm == "layer", D),
        given_if(gated, F, D),
        given_if(gated and biased, F),
        (F, D),
        given_if(biased, F),
        (D, F),
        given_if(biased, D),
    )
    whole = mt.feed_forward_sublayer(*leaves, activation=activation, norm=norm, dropout=p, key=4)
    h = norm_of(x, norm, w, b)
    z = mt.linear(h, up, ub)
    c = (
        mt.swiglu(mt.linear(h, gate, gb), z)
        if gated
        else mt.gelu(z, "tanh" if activation == "gelu_tanh" else "none")
    )
    same(whole, mt.dropout_add(x, mt.linear(c, down, db), p, 4), leaves)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm": "batch"}, "norm is 'batch'; it must be 'layer' or 'rms'"),
        ({"norm": "rms"}, "an RMSNorm has no bias"),
        ({"activation": "relu"}, "activation is 'relu'; it must be"),
        ({"activation": "swiglu"}, "gate must be given"),
    ],
)
def test_feed_forward_says_which_option_is_wrong(change, words):
    leaves = arrays(0, (2, D), (D,), (D,), None, None, (11, D), None, (D, 11), None)
    with pytest.raises(ValueError, match=words):
        mt.feed_forward_sublayer(*leaves, **change)


def test_shapes_that_do_not_fit_are_named():
    leaves = arrays(0, (2, D), (D,), (D,), None, None, (11, D), None, (11, D), None)
    with pytest.raises(
        ValueError, match=r"expected down.weight \(D, F\) with D = 8, F = 11, got \(11, 8\)"
    ):
        mt.feed_forward_sublayer(*leaves)
    leaves = arrays(0, (1, 2, D), (D,), (D,), (13, D), None, (D, D), None)
    with pytest.raises(ValueError, match="qkv gives 13 features, which 2 query"):
        mt.attention_sublayer(*leaves, n_head=2)


def test_no_shape_is_left_to_the_kernels():
    """Each input but x and the sizes that others follow, one longer than it should be."""
    rng = np.random.default_rng(0)

    def refused(op, shapes, free, **options):
        for place in set(range(len(shapes))) - free:
            wrong = [(*s[:-1], s[-1] + 1) if i == place else s for i, s in enumerate(shapes)]
            with pytest.raises(ValueError, match="expected"):
                op(*(mt.Tensor(rng.normal(size=s).astype(np.float32)) for s in wrong), **options)

    refused(
        mt.attention_sublayer,
        [(1, 20, 32), (32,), (32,), (96, 32), (96,), (32, 32), (32,)],
        {0},
        n_head=2,
    )
    refused(
        mt.feed_forward_sublayer,
        [(20, 32), (32,), (32,), (40, 32), (40,), (40, 32), (40,), (32, 40), (32,)],
        {0},
        activation="swiglu",
    )
    refused(mt.linear, [(20, 32), (40, 32), (40,)], {0, 1})
    refused(mt.layer_norm, [(20, 32), (32,), (32,)], {0})
    refused(mt.rms_norm, [(20, 32), (32,)], {0})


def test_a_bias_of_another_dtype_is_no_obstacle():
    """Wide enough for the compiled kernels, whose panels are float32."""
    leaves = [
        None if x is None else mt.Tensor(x.data / 4, requires_grad=True, dtype=np.float32)
        for x in arrays(0, (20, 32), (32,), None, None, None, (40, 32), None, (32, 40), None)
    ]
    for place, size in ((2, 32), (6, 40), (8, 32)):
        bias = np.linspace(-1, 1, size)
        results = []
        for dtype in (np.float64, np.float32):
            leaves[place] = mt.Tensor(bias.astype(dtype), requires_grad=True)
            y = mt.feed_forward_sublayer(*leaves)
            results.append([y.data, *mt.grad(y.sum(), [x for x in leaves if x is not None])])
            leaves[place] = None
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
