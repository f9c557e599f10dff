"""No kernel is called with what it does not fit: one door, one declaration, two sides alike."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minitensor as mt
from minitensor import kernels
from minitensor.kernels import contract
from minitensor.kernels.bundles import Attend, Drop, Linear, Norm, Rope
from minitensor.kernels.contract import KERNELS, Declaration

ROOT = Path(__file__).parents[2]
PACKAGES = Path(mt.__file__).parents[1]  # a checkout, or where they are installed
COMPILED = {declaration.numba.rpartition(".")[2] for declaration in KERNELS.values()}


def f(*shape):
    """float32 numbers."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


NO_DROP = Drop(0, 1.0, 0, 0)
ATTEND = Attend(2, 1, 4, None, 0.5, 0, True)
TARGETS = np.array([0, 4, -100, 1])

# ----------------------------------------------------------------------------- the one way in


def test_a_kernel_without_a_declaration_is_not_reached():
    with pytest.raises(AttributeError, match="no attribute 'normalise'"):
        kernels.normalise
    with pytest.raises(KeyError):
        kernels.twin("normalise", "numba")


@pytest.mark.parametrize("file", sorted(COMPILED))
def test_what_a_compiled_file_offers_to_the_ops_is_declared(file):
    """Compiled kernels without an underscore have a declaration that leads to them."""
    jit = importlib.import_module("minitensor.kernels.compiling")
    module = importlib.import_module(f"minitensor.kernels.{file}")
    compiled = {n for n, x in vars(module).items() if isinstance(x, jit.Kernel) and n[0] != "_"}
    declared = {n for n, d in KERNELS.items() if d.numba == module.__name__}
    assert compiled <= declared
    assert all(hasattr(module, name) for name in declared)


@pytest.mark.slow
def test_nothing_else_imports_the_compiled_files():
    """The door has no way around it: only the kernels' own files import one another."""
    for path in [*PACKAGES.glob("minitensor/**/*.py"), *PACKAGES.glob("tinygpt/**/*.py")]:
        if path.parent.name == "kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            else:
                continue
            assert not names & {f"minitensor.kernels.{file}" for file in COMPILED}, path


def test_a_declaration_must_name_the_arguments():
    with pytest.raises(TypeError, match=r"takes \['x', 'y'\], but declares \['x'\]"):

        @contract.kernel("gemm", x="(N)")
        def product(x, y):
            return x * y

    assert "product" not in KERNELS
    with pytest.raises(TypeError, match="declared as 'a matrix', which is nothing"):
        contract.parse("x", "a matrix")


def test_help_shows_the_declaration():
    assert "linear(x: (N, I), weight: (O, I), bias: (O) or None)" in kernels.linear.__doc__
    assert "y = x Wᵀ + b" in kernels.linear.__doc__


# ----------------------------------------------------------------------------- what is refused

REFUSED = {
    "another size": ("linear", [f(2, 3), f(5, 4), None], ValueError,
        r"linear: expected weight \(O, I\) with I = 3, got \(5, 4\)"),
    "an axis too few": ("linear", [f(3), f(5, 3), None], ValueError,
        r"expected x \(N, I\), got \(3,\)"),
    "a bundle's field": ("feed_forward_sublayer",
        [f(2, 3), Norm(f(3), None, True, 1e-5), None, Linear(f(5, 3), f(4)), Linear(f(3, 5), None),
         True, NO_DROP], ValueError, r"expected up.bias \(F\) with F = 5, got \(4,\)"),
    "a size that is computed": ("attention", [f(1, 3, 5, 4), ATTEND, NO_DROP], ValueError,
        r"expected packed \(B, T, H \+ 2\*K, d\) with H \+ 2\*K = 4, got \(1, 3, 5, 4\)"),
    "a pair that is not one": ("attention",
        [f(1, 3, 4, 4), ATTEND._replace(rope=Rope(f(3, 2), f(1, 2))), NO_DROP], ValueError,
        r"expected attend.rope.sin \(T, d/2\) with T = 3, got \(1, 2\)"),
    "a condition": ("attention", [f(1, 3, 7, 4), ATTEND._replace(H=3, K=2), NO_DROP], ValueError,
        r"expected attend with H % K == 0, got Attend\(H=3, K=2"),
    "a gate that was not saved": ("feed_forward_sublayer_backward",
        [f(2, 3), f(2, 3), Norm(f(3), None, True, 1e-5), None, Linear(f(5, 3), None),
         Linear(f(3, 5), None), kernels.bundles.FeedForwardSaved(f(2), f(2), f(2, 5), f(2, 5)),
         True, NO_DROP], ValueError, r"expected \(gate is None\) == \(saved.gate is None\)"),
    "a bias of an RMSNorm": ("feed_forward_sublayer",
        [f(2, 3), Norm(f(3), f(3), False, 1e-5), None, Linear(f(5, 3), None),
         Linear(f(3, 5), None), True, NO_DROP], ValueError, "centred or bias is None"),
    "another dtype": ("linear", [f(2, 3), f(5, 3).astype(float), None], TypeError,
        "expected weight of float32 as the rest, got float64"),
    "integers": ("gelu", [np.arange(3), True], TypeError,
        "expected x of float32 or float64, got int64"),
    "half precision": ("gelu", [f(3).astype(np.float16), True], TypeError, "got float16"),
    "the other byte order": ("gelu", [f(3).astype(">f4"), True], TypeError, "got >f4"),
    "no array": ("gelu", [[1.0, 2.0], True], TypeError, r"expected x, an array \(N\), got \[1.0"),
    "no truth": ("gelu", [f(3), 1], TypeError, "expected tanh, True or False, got 1"),
    "an id too high": ("embedding_backward", [f(2, 3), np.array([0, 5]), 5], IndexError,
        r"expected ids in 0..4, got 5 at 1"),
    "an id below 0": ("embedding_backward", [f(2, 3), np.array([-1, 2]), 5], IndexError,
        r"expected ids in 0..4, got -1 at 0"),
    "ids that are no integers": ("embedding_backward", [f(2, 3), f(2), 5], TypeError,
        r"expected ids, an array \(N\) in \[0, rows\), got float32"),
    "a target too high": ("cross_entropy", [f(4, 3), TARGETS, -100, 0.0, 1.0], IndexError,
        r"expected targets in 0..2 or -100, got 4 at 1"),
    "no classes": ("cross_entropy", [f(0, 0), TARGETS[:0], -100, 0.0, 1.0], ValueError,
        r"expected V >= 1, got V = 0"),
    "negative eps": ("rms_norm", [f(2, 3), f(3), -1e-5], ValueError, "a float >= 0, got -1e-05"),
    "eps that is no number": ("rms_norm", [f(2, 3), f(3), np.nan], ValueError, "got nan"),
    "a window below 0": ("attention", [f(1, 3, 4, 4), ATTEND._replace(window=-1), NO_DROP],
        ValueError, "expected attend.window, an int >= 0, got -1"),
    "bits beyond 32": ("dropout", [f(3), NO_DROP._replace(k0=2**32)], ValueError, "a uint32"),
    "beta of 1": ("adamw", [f(3), f(3), f(3), f(3), 0.1, 1.0, 0.9, 1e-8, 0.0, 1, 1.0], ValueError,
        r"expected beta1, a float in \[0, 1\), got 1.0"),
    "a truth for a number": ("rms_norm", [f(2, 3), f(3), True], TypeError,
        "expected eps, a float >= 0, got True"),
    "a word for a number": ("rms_norm", [f(2, 3), f(3), "x"], TypeError, "got 'x'"),
    "a number beyond all floats": ("rms_norm", [f(2, 3), f(3), 10**400], ValueError, "a float"),
    "a truth for a whole number": ("embedding_backward", [f(1, 3), np.array([0]), True], TypeError,
        "expected rows, an int >= 0, got True"),
    "a float for a whole number": ("embedding_backward", [f(1, 3), np.array([0]), 2.0], TypeError,
        "expected rows, an int >= 0, got 2.0"),
    "a number beyond 63 bits": ("attention", [f(1, 3, 4, 4), ATTEND._replace(window=2**63),
        NO_DROP], ValueError, "expected attend.window, an int >= 0, got 9223372036854775808"),
    "two widths": ("attention", [f(1, 3, 4, 4), ATTEND._replace(d=5), NO_DROP], ValueError,
        "expected attend.d of 4, got 5"),
    "a truth for bits": ("dropout", [f(3), NO_DROP._replace(k0=True)], TypeError, "a uint32"),
    "a float for bits": ("dropout", [f(3), NO_DROP._replace(k1=1.0)], TypeError, "a uint32"),
    "bits below 0": ("dropout", [f(3), NO_DROP._replace(k1=-1)], ValueError, "a uint32, got -1"),
    "a tuple for a bundle": ("dropout", [f(3), (0, 1.0, 0, 0)], TypeError,
        r"expected drop, a Drop\(threshold, rescale, k0, k1\), got \(0, 1.0"),
    "an array of integers askew": ("embedding_backward", [f(2, 3), np.array([[0], [1]]), 5],
        ValueError, r"expected ids \(N\) in \[0, rows\) with N = 2, got \(2, 1\)"),
    "a list of targets": ("cross_entropy", [f(2, 3), [0, 1], -100, 0.0, 1.0], TypeError,
        "expected targets, an array"),
    "a number without end": ("dropout", [f(3), NO_DROP._replace(rescale=np.inf)], ValueError,
        "expected drop.rescale, a number >= 1, got inf"),
    "a number of the dtype without end": ("cross_entropy", [f(4, 5), TARGETS, -100, 0.0, 1e300],
        ValueError, "expected factor, a number, got inf"),
    "a number below all others": ("cross_entropy", [f(4, 5), TARGETS, -100, 0.0, -np.inf],
        ValueError, "expected factor, a number, got -inf"),
    "arguments too few": ("gelu", [f(3)], TypeError, "expected 2 arguments, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("side", ["numba", "numpy"])
@pytest.mark.parametrize("what", REFUSED)
def test_both_sides_refuse_what_does_not_fit(what, side):
    name, args, error, words = REFUSED[what]
    with pytest.raises(error, match=words):
        kernels.twin(name, side)(*args)


def fixed(x):
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("side", ["numba", "numpy"])
def test_what_is_written_is_written_in_place_or_not_at_all(side):
    logits = f(4, 5)
    kernels.twin("cross_entropy", side)(logits, TARGETS, -100, 0.0, 1.0)
    assert not np.array_equal(logits, f(4, 5))
    for bad in (fixed(f(4, 5)), np.asfortranarray(f(4, 5)), f(4, 10)[:, ::2]):
        before = bad.copy()
        with pytest.raises(ValueError, match="expected logits to be C-contiguous"):
            kernels.twin("cross_entropy", side)(bad, TARGETS, -100, 0.0, 1.0)
        assert np.array_equal(bad, before)


@pytest.mark.parametrize("side", ["numba", "numpy"])
def test_what_is_read_may_lie_as_it_likes(side, tmp_path):
    x, w = f(20, 32), f(24, 32)
    expected = kernels.twin("linear", side)(x, w, None)
    askew = np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(np.float32).reshape(w.shape)
    (tmp_path / "w").write_bytes(w.tobytes())
    mapped = np.memmap(tmp_path / "w", np.float32, "r", shape=w.shape)
    for same in (fixed(w.copy()), np.asfortranarray(w), np.repeat(w, 2, 1)[:, ::2], askew, mapped):
        assert np.array_equal(kernels.twin("linear", side)(x, same, None), expected)


def test_a_kernel_is_handed_plain_arrays_and_numbers():
    """Of each argument one kind, so that numba compiles each kernel once for each dtype."""
    check = KERNELS["linear_cross_entropy"].check
    x, w, t = f(4, 6), f(5, 6), np.array([0, 4, -100, 1])
    askew = np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(np.float32).reshape(5, 6)
    strided = np.asfortranarray(w), np.repeat(w, 2, 1)[:, ::2]
    for weight in (w, fixed(w.copy()), *strided, w.view(Sub), askew):
        for targets in (t.astype(np.int8), np.repeat(t, 2)[::2], t.view(Sub), fixed(t.copy())):
            out = check((x, weight, targets, np.int64(-100), np.float64(2), np.bool_(True)))
            assert out[0] is x
            assert [type(v) for v in out] == [*[np.ndarray] * 3, int, np.float32, bool]
            assert all(v.flags.carray for v in out[:3])
            assert np.array_equal(out[1], w) and np.array_equal(out[2], t)
    wide = check((x.astype(np.float64), w.astype(np.float64), t, -100, 2.0, True))
    assert type(wide[4]) is np.float64  # a dtype that is not known yet is not taken for this one
    assert KERNELS["rms_norm"].check((x, f(6), 0))[2] == 0.0  # a bound belongs to what is allowed
    assert type(KERNELS["rms_norm"].check((x, f(6), np.float32(1)))[2]) is float
    assert KERNELS["gelu"].check((f(3).astype(np.float64), True))[0].dtype == np.float64
    assert KERNELS["adamw"].check((*[f(3)] * 4, 0.1, 0, 0.5, 0, 0, 1, 1))[4:7] == [0.1, 0.0, 0.5]
    bits = KERNELS["dropout"].check((f(3), Drop(np.int64(0), 1, 2**32 - 1, np.uint32(3))))[1]
    assert [type(v) for v in bits] == [np.uint32, np.float32, np.uint32, np.uint32]


class Sub(np.ndarray):
    """A subclass, as np.memmap is one."""


def leaves(x):
    """What is in nested bundles, one after the other."""
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, (list, tuple)) else [x]


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_does_not_fit(what):
    name, args, _, _ = REFUSED[what]
    declared = KERNELS[name]
    assert len(args) != len(declared.checks) or not declared.accepts(*args)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the harness guards memory with mprotect")
def test_the_quick_look_and_the_checks_agree():
    """What the checks hand on fits; what fits, they hand on as it is; what they refuse does not
    fit. On calls drawn as benchmarks/wrong_shapes.py draws them, right ones and wrong ones."""
    spec = importlib.util.spec_from_file_location(
        "wrong_shapes", ROOT / "benchmarks" / "wrong_shapes.py"
    )
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    rng, seen = np.random.default_rng(0), {"right": 0, "wrong": 0}
    for _ in range(1500):
        name, args, _ = harness.kernel_call(rng)
        if rng.random() < 0.7:
            i = int(rng.integers(len(args)))
            args[i] = harness.spoil(args[i], rng)
        declared = KERNELS[name]
        try:
            checked = declared.check(tuple(args))
        except (TypeError, ValueError, IndexError):
            assert not declared.accepts(*args), (name, args)
            seen["wrong"] += 1
            continue
        again = declared.check(tuple(checked))
        allowed = name.endswith("cross_entropy")  # an ignored target is for the checks to allow
        assert allowed or declared.accepts(*checked), (name, args)
        for given in (args, checked):
            if declared.accepts(*given):
                for a, b in zip(leaves(given), leaves(declared.check(tuple(given))), strict=True):
                    assert a is b or (type(a) is type(b) and a == b)
        assert len(leaves(again)) == len(leaves(checked))
        seen["right"] += 1
    assert min(seen.values()) > 200


# ------------------------------------------------------------------------- through the ops


def test_a_head_given_the_wrong_way_round_is_refused():
    with pytest.raises(ValueError, match=r"weight is \(64, 300\); expected \(V, D\)"):
        mt.linear_cross_entropy(f(256, 64), f(64, 300), np.zeros(256, int))
    with pytest.raises(ValueError, match=r"weight \(V, D\) with D = 64, got \(64, 300\)"):
        kernels.linear_cross_entropy(f(256, 64), f(64, 300), np.zeros(256, int), -100, 1.0, True)


@pytest.mark.parametrize("short", [0, 1])
def test_both_tables_of_rope_are_looked_at(short):
    rope = list(mt.rope_table(8, 4))
    rope[short] = rope[short][:1]
    words = r"attend.rope.(cos|sin) \(T, d/2\) with T = 8, got \(1, 2\)"
    with pytest.raises(ValueError, match=words):
        mt.self_attention(f(1, 8, 24), 2, rope=tuple(rope))
    with pytest.raises(ValueError, match=words):
        mt.attention_sublayer(
            f(1, 8, 8), f(8), None, f(24, 8), None, f(8, 8), None, n_head=2, rope=tuple(rope)
        )


@pytest.mark.parametrize("side", ["numba", "numpy"])
@pytest.mark.parametrize("window", [8, 9, 2**32 - 1, 2**32, 2**62])
def test_a_window_that_hides_nothing_is_none(window, side):
    with kernels.using(side):
        local, whole = (mt.self_attention(f(1, 8, 24), 2, window=w) for w in (window, 0))
    assert np.array_equal(local.data, whole.data)


EMPTY = {  # op, inputs, options, shape of the result; PyTorch's
    "linear of no rows": (mt.linear, [f(0, 3), f(5, 3), f(5)], {}, (0, 5)),
    "linear of no inputs": (mt.linear, [f(2, 0), f(5, 0), f(5)], {}, (2, 5)),
    "linear to nothing": (mt.linear, [f(2, 3), f(0, 3), f(0)], {}, (2, 0)),
    "rms_norm of width 0": (mt.rms_norm, [f(2, 0), f(0)], {}, (2, 0)),
    "layer_norm of width 0": (mt.layer_norm, [f(2, 0), f(0), f(0)], {}, (2, 0)),
    "layer_norm of no rows": (mt.layer_norm, [f(0, 3), f(3), f(3)], {}, (0, 3)),
    "embedding of width 0": (mt.embedding, [f(5, 0), np.array([[1, 2]])], {}, (1, 2, 0)),
    "embedding of nothing": (mt.embedding, [f(5, 3), np.zeros((2, 0), int)], {}, (2, 0, 3)),
    "gelu": (mt.gelu, [f(2, 0)], {}, (2, 0)),
    "swiglu": (mt.swiglu, [f(0, 2), f(0, 2)], {}, (0, 2)),
    "dropout": (mt.dropout, [f(2, 0)], {"p": 0.5, "key": 1}, (2, 0)),
    "attention of no time": (mt.attention, [f(2, 4, 0, 3)] * 3, {}, (2, 4, 0, 3)),
    "attention of no batch": (mt.attention, [f(0, 4, 5, 3)] * 3, {}, (0, 4, 5, 3)),
    "attention of width 0": (mt.attention, [f(2, 4, 5, 0)] * 3, {}, (2, 4, 5, 0)),
    "self_attention of no time": (
        mt.self_attention, [f(2, 0, 24)], {"n_head": 2, "rope": mt.rope_table(0, 4)}, (2, 0, 8)),
    "attention_sublayer of no time": (mt.attention_sublayer,
        [f(2, 0, 8), f(8), None, f(24, 8), None, f(8, 8), None], {"n_head": 2}, (2, 0, 8)),
    "feed_forward_sublayer of no rows": (mt.feed_forward_sublayer,
        [f(0, 8), f(8), f(8), None, None, f(5, 8), f(5), f(8, 5), f(8)], {}, (0, 8)),
    "feed_forward_sublayer through nothing": (mt.feed_forward_sublayer,
        [f(2, 8), f(8), f(8), None, None, f(0, 8), f(0), f(8, 0), f(8)], {}, (2, 8)),
    "cross_entropy of no rows": (
        mt.cross_entropy, [f(0, 3), np.zeros(0, int)], {"reduction": "none"}, (0,)),
    "linear_cross_entropy of no rows": (
        mt.linear_cross_entropy, [f(0, 3), f(5, 3), np.zeros(0, int)], {"reduction": "sum"}, ()),
}  # fmt: skip


@pytest.mark.parametrize("side", ["numba", "numpy"])
@pytest.mark.parametrize("what", EMPTY)
def test_nothing_is_computed_of_nothing(what, side):
    """The shapes are right, values are those of empty sums, gradients have the inputs' shapes."""
    op, inputs, options, shape = EMPTY[what]
    leaves = [
        mt.Tensor(x, requires_grad=True) if x is not None and x.dtype.kind == "f" else x
        for x in inputs
    ]
    with kernels.using(side):
        y = op(*leaves, **options)
        differentiated = [x for x in leaves if isinstance(x, mt.Tensor)]
        grads = mt.grad(y, differentiated, np.ones(y.shape, np.float32))
    assert y.shape == shape
    assert np.isfinite(y.data).all()
    for x, g in zip(differentiated, grads, strict=True):
        assert g.shape == x.shape
        assert np.isfinite(g).all()
    if what == "linear of no inputs":
        np.testing.assert_array_equal(y.data, np.broadcast_to(inputs[2], shape))
    if what == "feed_forward_sublayer through nothing":
        np.testing.assert_allclose(y.data, inputs[0] + inputs[8], rtol=1e-6)


# ------------------------------------------------------------------------------ by the thousand


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="guards memory with mprotect")
def test_wrong_calls_do_no_harm():
    """A short form of benchmarks/wrong_shapes.py, which makes 100,000 calls."""
    script = ROOT / "benchmarks" / "wrong_shapes.py"
    done = subprocess.run(
        [sys.executable, str(script), "--calls", "150"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    refused, computed = (int(done.stdout.split(f" {w}")[0].split()[-1]) for w in ("refused", "com"))
    assert refused > 30
    assert computed > 30


@pytest.mark.slow
def test_a_read_past_the_end_would_be_noticed():
    """The harness itself: without the check, a wrong call ends its process."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import wrong_shapes as w\n"
        "import numpy as np\n"
        "x = w.fenced(np.ones(512, np.float32))\n"
        "print(np.lib.stride_tricks.as_strided(x, (1024,)).sum())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode < 0, done.stdout + done.stderr


def test_a_declaration_can_be_read():
    """What parse and formula make of the parts of a declaration."""
    names = {"x": "(N, 2*d + 1)", "d": "int >= 0", "ids": "(N) in [0, V) or none", "V": "int",
             "none": "int"}  # fmt: skip
    declared = Declaration("thing", "", None, "V > d", names)
    x, ids = f(3, 5), np.array([0, 6, -1])
    checked = declared.check((x, np.int64(2), ids.astype(np.int8), 7, -1))
    assert checked[0] is x
    assert [type(c) for c in checked[1:]] == [int, np.ndarray, int, int]
    assert checked[2].dtype == np.int64
    with pytest.raises(ValueError, match=r"x \(N, 2\*d \+ 1\) with 2\*d \+ 1 = 7, got \(3, 5\)"):
        declared.check((x, 3, ids, 7, -1))
    with pytest.raises(IndexError, match=r"ids in 0..5 or -1, got 6 at 1"):
        declared.check((x, 2, ids, 6, -1))
    with pytest.raises(ValueError, match="expected V > d, got d = 2, V = 2"):
        declared.check((x, 2, ids * 0, 2, -1))
