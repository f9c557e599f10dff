"""Names that PyTorch's users reach for and that are different here, for errors that say so."""

from __future__ import annotations

CPU = "nothing of the kind: everything is on the CPU"
TENSOR = {
    "numel": "x.size",
    "dim": "x.ndim",
    "clamp": "x.clip(low, high)",
    "to": "x.astype(dtype); everything is on the CPU",
    "type": "x.astype(dtype)",
    "float": "x.astype('float32')",
    "double": "x.astype('float64')",
    "long": "x.astype('int64')",
    "cuda": CPU,
    "cpu": CPU,
    "t": "x.T",
    "mm": "x @ y",
    "bmm": "x @ y",
    "matmul": "x @ y",
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "div": "x / y",
    "square": "x**2",
    "pow": "x ** n",
    "contiguous": "nothing of the kind: ops copy where they must",
    "norm": "(x * x).sum().sqrt()",
    "sort": "np.sort(x.data); docs/pytorch.md has it with a gradient",
    "argsort": "np.argsort(x.data)",
    "topk": "np.argsort(-x.data); docs/pytorch.md has it with a gradient",
    "grad_fn": "mt.draw(x), which shows the graph",
    "unfold": "indexing; docs/pytorch.md writes a convolution out",
    "zero_": "x[...] = 0 within no_grad()",
    "fill_": "x[...] = value within no_grad()",
    "add_": "x += y within no_grad()",
    "sub_": "x -= y within no_grad()",
    "normal_": "mt.nn.init.normal_(x)",
    "uniform_": "mt.nn.init.uniform_(x)",
    "mul_": "x *= y within no_grad()",
}
MODULE = {
    **dict.fromkeys(("float32", "float64", "int64", "bool"), "NumPy's dtypes, as np.float32"),
    "from_numpy": "mt.tensor(array)",
    "manual_seed": "rng=np.random.default_rng(seed), handed to what draws",
    "device": CPU,
    "cuda": CPU,
    "empty": "mt.zeros",
    "eye": "mt.tensor(np.eye(n))",
    "linspace": "mt.tensor(np.linspace(low, high, n))",
    "mm": "a @ b",
    "allclose": "np.allclose(a.data, b.data)",
    "functional": "the functions of minitensor itself: mt.relu, mt.cross_entropy",
    "inference_mode": "mt.no_grad()",
    "set_grad_enabled": "mt.no_grad() and mt.enable_grad()",
    "Conv2d": "no convolution; docs/pytorch.md writes one out",
    "lr_scheduler": "the schedules of mt.optim, functions of the step, as mt.optim.cosine",
}


def missing(what: str, name: str, hints: dict[str, str]) -> AttributeError:
    """The error for an attribute that is not there, with what to write instead if it is known."""
    hint = f"; write {hints[name]}" if name in hints else ""
    return AttributeError(f"{what} has no attribute {name!r}{hint}", name=name)
