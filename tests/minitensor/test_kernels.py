"""Every numba kernel against its NumPy twin, in both precisions, through the ops that use it."""

import os
import subprocess
import sys

import numpy as np
import pytest

import minitensor as mt
from minitensor import kernels

TWINS = list(kernels.KERNELS)


def n(*shape):
    """Numbers of about unit size, the same at every call."""
    return np.random.default_rng(sum(shape)).normal(size=shape)


def table(dtype, head=8):
    return mt.rope_table(37, head, dtype=dtype)


IDS = np.random.default_rng(0).integers(0, 29, (3, 37))
MASKED = np.where(IDS % 5 == 0, -100, IDS)
CASES = {  # odd sizes: several vectors or blocks, and a rest
    "linear": lambda d: (mt.linear, [n(5, 7, 67), n(45, 67), n(45)], {}),
    "linear of whole tiles": lambda d: (mt.linear, [n(48, 64), n(32, 64)], {}),
    "linear, a long sum": lambda d: (mt.linear, [n(25, 1601), n(50, 1601), n(50)], {}),
    "linear, several blocks": lambda d: (mt.linear, [n(29, 40), n(6601, 40)], {}),
    "linear, too small": lambda d: (mt.linear, [n(3, 5), n(4, 5), n(4)], {}),
    "rms_norm": lambda d: (mt.rms_norm, [n(5, 7, 67), n(67)], {}),
    "layer_norm": lambda d: (mt.layer_norm, [n(5, 7, 67), n(67), n(67)], {"eps": 1e-3}),
    "layer_norm of a constant": lambda d: (mt.layer_norm, [n(4, 1) + 0 * n(4, 33)], {}),
    "gelu": lambda d: (mt.gelu, [n(9, 41) * 3], {}),
    "gelu tanh": lambda d: (mt.gelu, [n(9, 41) * 3], {"approximate": "tanh"}),
    "gelu far out": lambda d: (mt.gelu, [np.linspace(-40, 40, 333)], {}),
    "swiglu": lambda d: (mt.swiglu, [n(9, 41) * 3, n(41, 9).T], {}),
    "dropout": lambda d: (mt.dropout, [n(9, 41)], {"p": 0.3, "key": 2**63 + 5}),
    "dropout_add": lambda d: (mt.dropout_add, [n(9, 41), n(9, 41)], {"p": 0.1, "key": 11}),
    "cross_entropy": lambda d: (mt.cross_entropy, [n(3, 37, 29) * 4, MASKED], {"axis": -1}),
    "cross_entropy smooth": lambda d: (
        mt.cross_entropy,
        [n(3, 37, 29), MASKED],
        {"label_smoothing": 0.2, "reduction": "none", "axis": -1},
    ),
    "linear_cross_entropy": lambda d: (
        mt.linear_cross_entropy,
        [n(3, 37, 16), n(29, 16), MASKED],
        {},
    ),
    "linear_cross_entropy of many classes": lambda d: (
        mt.linear_cross_entropy,
        [n(3, 37, 19), n(801, 19), MASKED],
        {},
    ),
    "embedding": lambda d: (mt.embedding, [n(29, 17), IDS], {}),
    "attention": lambda d: (
        mt.attention,
        [n(2, 4, 37, 8), n(2, 2, 37, 8), n(2, 2, 37, 8)],
        {"causal": True},
    ),
    "attention to all": lambda d: (
        mt.attention,
        [n(1, 2, 19, 5), n(1, 2, 19, 5), n(1, 2, 19, 5)],
        {"causal": False, "dropout": 0.2, "key": 3},
    ),
    "attention of wide heads": lambda d: (
        mt.attention,
        [n(2, 6, 43, 20), n(2, 3, 43, 20), n(2, 3, 43, 20)],
        {"causal": True, "dropout": 0.3, "key": 4, "window": 21},
    ),
    "attention of one": lambda d: (mt.attention, [n(2, 1, 1, 3), n(2, 1, 1, 3), n(2, 1, 1, 3)], {}),
    "self_attention": lambda d: (
        mt.self_attention,
        [n(2, 37, 96)],
        {"n_head": 4, "rope": table(d), "dropout": 0.15, "key": 9},
    ),
    "self_attention wide": lambda d: (
        mt.self_attention,
        [n(2, 37, 40 * 5)],
        {"n_head": 3, "n_kv_head": 1, "rope": table(d, 40)},
    ),
    "self_attention local": lambda d: (
        mt.self_attention,
        [n(2, 37, 64)],
        {"n_head": 4, "n_kv_head": 2, "rope": table(d), "window": 5, "scale": 1.0},
    ),
    "attention_sublayer": lambda d: (
        mt.attention_sublayer,
        [n(3, 37, 34), n(34), None, n(64, 34) / 6, None, n(34, 32) / 6, None],
        {
            "n_head": 4,
            "n_kv_head": 2,
            "norm": "rms",
            "rope": table(d),
            "dropout": 0.2,
            "keys": (5, 6),
        },
    ),
    "attention_sublayer with biases": lambda d: (
        mt.attention_sublayer,
        [n(2, 97, 32), n(32), n(32), n(96, 32) / 6, n(96), n(32, 32) / 6, n(32)],
        {"n_head": 2},
    ),
    "attention_sublayer, too large": lambda d: (
        mt.attention_sublayer,
        [n(1, 17, 272), n(272), n(272), n(816, 272) / 16, None, n(272, 272) / 16, None],
        {"n_head": 2, "dropout": 0.1, "keys": (7, 8)},
    ),
    "feed_forward_sublayer": lambda d: (
        mt.feed_forward_sublayer,
        [n(205, 33), n(33), None, None, None, n(70, 33) / 4, None, n(33, 70), None],
        {},
    ),
    "feed_forward_sublayer with biases": lambda d: (
        mt.feed_forward_sublayer,
        [n(2, 37, 32), n(32), n(32), None, None, n(64, 32) / 4, n(64), n(32, 64), n(32)],
        {"activation": "gelu_tanh", "dropout": 0.2, "key": 9},
    ),
    "feed_forward_sublayer with a gate": lambda d: (
        mt.feed_forward_sublayer,
        [n(3, 37, 40), n(40), None, n(45, 40) / 4, n(45), n(45, 40) / 4, n(45), n(40, 45), n(40)],
        {"activation": "swiglu", "norm": "rms", "dropout": 0.1, "key": 3},
    ),
    "feed_forward_sublayer, too large": lambda d: (
        mt.feed_forward_sublayer,
        [n(18, 32), n(32), None, None, None, n(777, 32) / 4, None, n(32, 777), n(32)],
        {},
    ),
    "feed_forward_sublayer with a gate, too small": lambda d: (
        mt.feed_forward_sublayer,
        [n(18, 8), n(8), n(8), n(20, 8), None, n(20, 8), n(20), n(8, 20), n(8)],
        {"activation": "swiglu"},
    ),
}


def compute(name, dtype, backend):
    """Value and gradients with all kernels from one side."""
    op, inputs, options = CASES[name](dtype)
    xs = [
        x if x is None or x.dtype.kind == "i" else mt.Tensor(x, dtype=dtype, requires_grad=True)
        for x in inputs
    ]
    with kernels.using(backend):
        y = op(*xs, **options)
        weights = np.cos(np.arange(y.size)).reshape(y.shape)
        return [y.data, *mt.grad(y, [x for x in xs if isinstance(x, mt.Tensor)], weights)]


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_agrees_with_its_twin(name, dtype, tolerance):
    numba, numpy = compute(name, dtype, "numba"), compute(name, dtype, "numpy")
    for a, b in zip(numba, numpy, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_the_optimisers_kernels_agree_with_their_twins(dtype, tolerance):
    results = []
    for backend in ("numba", "numpy"):
        p, m, v = (n(1003).astype(dtype), np.zeros(1003, dtype), np.zeros(1003, dtype))
        for step in (1, 2, 3):
            g = (n(1003 + step)[:1003] * 0.1).astype(dtype)
            kernels.twin("adamw", backend)(p, g, m, v, 1e-2, 0.9, 0.99, 1e-8, 0.1, step, 0.7)
        norm = kernels.twin("sum_of_squares", backend)(g)
        assert norm == pytest.approx((g.astype(np.float64) ** 2).sum(), rel=1e-14)
        results.append((p, m, v))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance * 10, atol=tolerance)


@pytest.mark.parametrize("shape", [(50, 34), (34, 50), (100, 34), (34, 100), (33, 33)])
def test_orthogonal_agrees_with_its_twin(shape):
    u = n(*shape).astype(np.float32)
    numba, numpy = (kernels.twin("orthogonal", side)(u, 5) for side in ("numba", "numpy"))
    assert numba.dtype == np.float32
    np.testing.assert_allclose(numba, numpy, rtol=0, atol=1e-5)


def test_an_inner_product_meets_nothing_but_its_own_numbers():
    """What lies beside a ragged edge in memory, or was left in a panel, must not leak in."""
    x, w = np.full((40, 50), np.nan, np.float32), np.full((45, 50), np.nan, np.float32)
    clean = np.random.default_rng(0).normal(size=(3, 2500)).astype(np.float32)
    kernels.twin("linear", "numba")(x, w, None)  # leaves NaN in freed memory
    x, w = clean[0, :1665].reshape(37, 45), clean[1, :1485].reshape(33, 45)
    assert np.isfinite(kernels.twin("linear", "numba")(x, w, clean[2, :33])).all()
    assert np.isfinite(kernels.twin("linear_dx", "numba")(x @ w.T, w)).all()


@pytest.mark.slow
def test_a_broken_cache_is_compiled_anew(tmp_path):
    """And what other kernels have there is left alone, compiled already or not."""
    code = (
        "import minitensor as mt, numpy as np; x = mt.Tensor(np.ones(8, np.float32)); "
        "print(mt.gelu(x).data[0], mt.swiglu(x, x).data[0], end=' '); "
        "print(mt.dropout(x, 0.5, 1).shape)"
    )
    tmp_path.chmod(0o700)
    folder = {**os.environ, "MINITENSOR_CACHE": str(tmp_path), "MINITENSOR_KERNELS": "numba"}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return done.stdout

    first = run()
    kept = [f for f in tmp_path.rglob("*.nbc") if ".swiglu-" in f.name]
    before = [f.stat().st_mtime_ns for f in kept]
    assert kept
    for file in tmp_path.rglob("*.nbc"):
        if ".gelu-" in file.name:  # a bit of its machine code
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 4
            file.write_bytes(data)
        elif ".dropout-" in file.name:
            file.unlink()
    assert run() == first
    assert [f.stat().st_mtime_ns for f in kept] == before
    for file in tmp_path.rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:20])
    assert run() == first


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes of POSIX")
@pytest.mark.parametrize("case", ["fresh", "open", "group", "above", "link", "owner", "no folder"])
def test_kernels_are_kept_where_nobody_else_can_write(tmp_path, monkeypatch, capsys, case):
    from minitensor.kernels import compiling

    base = tmp_path / "above" / "base"
    monkeypatch.setenv("MINITENSOR_CACHE", str(base))
    if case == "no folder":
        tmp_path.joinpath("above").write_text("a file", encoding="utf-8")
    else:
        folder = compiling.cache_folder()
        assert folder and folder.is_dir() and folder.parent == base
        assert base.stat().st_mode & 0o777 == folder.stat().st_mode & 0o777 == 0o700
    why = {"open": "base can be written by others", "group": " can be written by others"}
    if case == "fresh":
        why = {}
    elif case == "open":
        base.chmod(0o707)
    elif case == "group":
        folder.chmod(0o770)
    elif case == "above":
        base.parent.chmod(0o777)
        why = {case: "above can be written by others"}
    elif case == "link":
        folder.rename(base / "elsewhere")
        folder.symlink_to(base / "elsewhere")
        why = {case: "is a link"}
    elif case == "owner":
        if os.geteuid() == 0:
            os.chown(base, 12345, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        why = {case: "belongs to another user"}
    else:
        why = {case: "Not a directory"}
    capsys.readouterr()
    found = compiling.cache_folder()
    told = capsys.readouterr().err
    if case == "fresh":
        assert found == folder and told == ""
    else:
        assert found is None
        assert why[case] in told and told.count("\n") == 1


@pytest.mark.slow
def test_without_a_folder_kernels_are_compiled_and_not_kept(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    code = (
        "import minitensor as mt, numpy as np; print(mt.gelu(mt.Tensor(np.zeros(8, np.float32))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "MINITENSOR_CACHE": str(tmp_path / "file"),
            "MINITENSOR_KERNELS": "numba",
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "compiled kernels are not kept" in done.stderr and "0." in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_kernel_is_left_out(monkeypatch):
    used = {"adamw", "sum_of_squares", "orthogonal"}

    def seen(name, which):
        def kernel(*args):
            used.add(name)
            return side(*args)

        side = twin(name, which)
        return kernel

    twin = kernels.twin
    monkeypatch.setattr(kernels, "twin", seen)
    for name in CASES:
        compute(name, np.float64, "numpy")
    assert used == set(kernels.KERNELS)


def test_kernels_from_the_cache_come_without_what_only_compiling_needs():
    """It is much of a short run's time and memory. Others can still be compiled after that."""
    code = (
        "import numpy as np, sys; from numba.core.runtime import rtsys; from minitensor import "
        "kernels; x, w = np.ones((4, 32), np.float32), np.ones(32, np.float32); "
        "y, r = kernels.rms_norm(x, w, 1e-5); kernels.rms_norm_backward(x, x, w, r); "
        "print(y[0, 0], 'numba.np.arrayobj' in sys.modules, rtsys._init, end=' '); "
        "from minitensor.kernels.compiling import jit; "
        "print(jit(eval('lambda x: x * 2'))(np.ones(2))[1], rtsys._init)"
    )
    env = {**os.environ, "MINITENSOR_KERNELS": "numba"}
    for _ in range(2):  # the first may have to compile
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
        )
    assert done.stdout == "0.999995 False False 2.0 True\n", done.stderr


@pytest.mark.slow
def test_a_kernel_written_elsewhere_is_compiled_anew_when_its_file_changes(tmp_path):
    """Even where neither size nor time of the file tell."""
    file, cache = tmp_path / "elsewhere.py", tmp_path / "cache"
    source = (
        "from minitensor.kernels.compiling import jit\n\n\n@jit\ndef twice(x):\n    return 2 * x\n"
    )
    code = "import elsewhere; print(elsewhere.twice(21), len(elsewhere.twice.files()) > 0)"
    env = {**os.environ, "MINITENSOR_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(text):
        file.write_text(text)
        os.utime(file, (10**9, 10**9))
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return done.stdout, len(list(cache.rglob("*.nbc")))

    assert run(source) == ("42 True\n", 1)
    assert run(source) == ("42 True\n", 1)
    assert run(source.replace("2 * x", "3 * x")) == ("63 True\n", 2)


@pytest.mark.slow
def test_a_kernel_of_a_module_that_cannot_be_imported_is_compiled_each_time(tmp_path):
    """numba finds a function's globals by its module's name; here there is nothing to be found."""
    file = tmp_path / "elsewhere.py"
    file.write_text(
        "from minitensor.kernels.compiling import inline, jit\n\n\n"
        "@inline\ndef half(x):\n    return x / 2\n\n\n"
        "@jit\ndef quarter(x):\n    return half(half(x))\n"
    )
    code = (
        "import importlib.util as u\n"
        f"spec = u.spec_from_file_location('nowhere', {str(file)!r})\n"
        "module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.quarter(8.0), len(module.quarter.files()))"
    )
    env = {**os.environ, "MINITENSOR_CACHE": str(tmp_path / "cache")}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.stdout == "2.0 0\n", done.stderr


@pytest.mark.parametrize("keeps", [True, False])
def test_a_wait_is_announced_once_with_how_long_it_takes(tmp_path, monkeypatch, capsys, keeps):
    from minitensor.kernels import compiling

    monkeypatch.setattr(compiling, "FOLDER", tmp_path if keeps else None)
    clock = [0.0]
    monkeypatch.setattr(compiling.time, "monotonic", lambda: clock[0])
    once = ", once" if keeps else ""

    def told(wait):
        wait.tell("compiling kernels")
        return capsys.readouterr().err

    wait = compiling.Wait()
    assert told(wait) == f"minitensor: compiling kernels{once}: about 15 s…\n"
    for _ in range(3):  # one kernel after the other
        clock[0] += compiling.Wait.AGAIN * 0.9
        assert told(wait) == ""
    clock[0] += compiling.Wait.AGAIN
    wait.expect({"*_backward-*": 20.0, "decode.*": 18.0})
    assert told(wait) == f"minitensor: compiling kernels{once}: about 38 s…\n"
    clock[0] += compiling.Wait.AGAIN
    (tmp_path / "flash.attention_backward-7.nbc").touch()
    left = "about 18 s" if keeps else "about 38 s"
    assert told(wait) == f"minitensor: compiling kernels{once}: {left}…\n"
    clock[0] += compiling.Wait.AGAIN
    (tmp_path / "decode.write-7.nbc").touch()
    left = "some seconds" if keeps else "about 38 s"
    assert told(wait) == f"minitensor: compiling kernels{once}: {left}…\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no locks that end with their process")
def test_processes_that_need_the_same_kernel_compile_it_once(tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "from minitensor.kernels.compiling import jit\n\n\n@jit\ndef twice(x):\n    return 2 * x\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import elsewhere"
    env = {**os.environ, "MINITENSOR_CACHE": str(tmp_path / "cache")}

    def start(before=""):
        return subprocess.Popen(
            [sys.executable, "-c", f"{before}{code}; print(elsewhere.twice(21))"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    results = [process.communicate(timeout=300) for process in [start() for _ in range(3)]]
    assert [out for out, _ in results] == ["42\n"] * 3
    assert sum("minitensor: compiling" in error for _, error in results) == 1
    assert not list(tmp_path.rglob("*.lock"))

    # One that stands still is not waited for without end.
    import fcntl

    (kept,) = tmp_path.rglob("*.nbc")
    kept.unlink()
    with kept.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        impatient = "from minitensor.kernels import compiling; compiling.PATIENCE = 0.1; "
        out, error = start(impatient).communicate(timeout=300)
    assert out == "42\n" and "compiling" in error and kept.exists()
    with kept.with_suffix(".lock").open("w") as held:
        kept.unlink()
        fcntl.flock(held, fcntl.LOCK_EX)
        impatient = "from minitensor.kernels import compiling; compiling.PATIENCE = 0.1; "
        impatient += "compiling.Wait.PATIENT = 0.0; "
        out, error = start(impatient).communicate(timeout=300)
    assert out == "42\n" and "another process is compiling kernels" in error
