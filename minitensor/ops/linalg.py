"""Products of matrices, and the pseudo-inverse.

With <A, B> = sum of A * B, a gradient G of Y = f(X) is what makes dL = <G, dY>. The rule that
turns every derivation below into one line: <G, A B C> = <Aᵀ G Cᵀ, B>.
"""

from __future__ import annotations

import math
import string
from typing import Any

import numpy as np

from minitensor.op import op
from minitensor.ops.elementwise import Cases, Forward, drawn
from minitensor.tape import Array
from minitensor.tensor import Tensor


def _matmul_cases(rng: np.random.Generator) -> Cases:
    for shapes in (
        ((2, 3), (3, 4)),
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((2, 4, 3), (3, 2)),
        ((2, 4, 3), (2, 3, 2)),
        ((5, 1, 2, 3), (4, 3, 2)),
        ((3,), (2, 3, 4)),
        ((2, 4, 3), (3,)),
        ((2, 3), (5, 3, 2)),
        ((2, 0), (0, 3)),
        ((0, 2, 3), (3, 2)),
        ((2, 4, 0), (0, 3)),
        ((2, 4, 3), (1, 3, 2)),
    ):
        yield drawn(rng, *shapes), {}


@op(cases=_matmul_cases, integers=True)
def matmul(a: Array, b: Array) -> Forward:
    """a @ b by NumPy's rules: (..., n, k) @ (..., k, m) -> (..., n, m), leading axes broadcast; an
    operand of one axis is a row on the left and a column on the right, and that axis is dropped.

    dY = dA B + A dB, so A gets G Bᵀ and B gets Aᵀ G. Leading axes before one matrix are folded
    into rows, so that each of the three products is a single large one.
    Errors: ValueError if the inner lengths differ or an operand is a number.
    """
    if not (np.ndim(a) and np.ndim(b)):
        raise ValueError("an operand has no axes; use * to scale by a number")
    row, column = a.ndim == 1, b.ndim == 1
    A = a[None] if row else a
    B = b[:, None] if column else b
    if A.shape[-1] != B.shape[-2]:
        raise ValueError(f"the inner lengths {A.shape[-1]} and {B.shape[-2]} differ")
    fold = A.ndim > 2 and B.ndim == 2
    if fold:
        lead = A.shape[:-1]
        A = A.reshape(math.prod(lead), A.shape[-1])
    y = A @ B

    def left(g: Array) -> Array:
        g = g.reshape(y.shape) @ B.swapaxes(-1, -2)
        return g.reshape(a.shape) if fold else g[..., 0, :] if row else g

    def right(g: Array) -> Array:
        g = A.swapaxes(-1, -2) @ g.reshape(y.shape)
        return g[..., 0] if column else g

    out = y.reshape(*lead, B.shape[-1]) if fold else y
    out = out[..., 0, :] if row else out
    return (out[..., 0] if column else out), (left, right)


@op(
    cases=lambda rng: iter([(drawn(rng, (3,), (4,)), {}), (drawn(rng, (0,), (2,)), {})]),
    integers=True,
)
def outer(a: Array, b: Array) -> Forward:
    """y[i, j] = a[i] b[j] of two vectors. dY = da bᵀ + a dbᵀ, so a gets G b and b gets Gᵀ a."""
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError("needs two vectors")
    return a[:, None] * b, (lambda g: g @ b, lambda g: a @ g)


# ------------------------------------------------------------------------------------------ einsum


def _parse(subscripts: str, operands: tuple[Array, ...]) -> tuple[list[str], str]:
    """Subscripts of every operand and of the result, with "..." written out as spare letters."""
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"'{subscripts}' names {len(terms)} operands")
    spare = [c for c in string.ascii_letters if c not in text]
    widest = 0
    for i, (term, x) in enumerate(zip(terms, operands, strict=True)):
        n = x.ndim - len(term.replace("...", ""))
        if n < 0 or (n and "..." not in term):
            raise ValueError(f"'{term}' does not fit an operand of {x.ndim} axes")
        if "..." in term:
            terms[i] = term.replace("...", "".join(reversed(spare[:n])))
            widest = max(widest, n)
    dots = "".join(reversed(spare[:widest]))
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        right = dots + "".join(once)
    return terms, right.replace("...", dots)


def _spread(term: str, g: Array, letters: str, sizes: dict[str, int]) -> Array:
    """`g`, whose axes are `letters`, as an array with the axes `term`: letters it lacks were summed
    over, so it is repeated along them; a letter that comes twice was a diagonal."""
    unique = "".join(dict.fromkeys(term))
    present = "".join(c for c in unique if c in letters)
    g = np.einsum(f"{letters}->{present}", g)
    g = np.expand_dims(g, tuple(i for i, c in enumerate(unique) if c not in present))
    g = np.broadcast_to(g, [sizes[c] for c in unique])
    if unique == term:
        return g
    full = np.zeros([sizes[c] for c in term], g.dtype)
    np.einsum(f"{term}->{unique}", full)[...] = g  # a view of the diagonal
    return full


def _einsum_cases(rng: np.random.Generator) -> Cases:
    for subscripts, *shapes in (
        ("ij,jk->ik", (2, 3), (3, 4)),
        ("ij->ji", (2, 3)),
        ("ij->", (2, 3)),
        ("ij,jk", (2, 3), (3, 2)),
        ("ii->i", (3, 3)),
        ("ii", (3, 3)),
        ("bhqd,bhkd->bhqk", (2, 2, 3, 2), (2, 2, 4, 2)),
        ("i,j,k->kij", (2,), (3,), (2,)),
        ("ij,kl->k", (2, 2), (3, 2)),
        ("...ij,...jk->...ik", (2, 2, 3), (3, 2)),
        ("iij,j->ji", (2, 2, 3), (3,)),
        ("...i,i", (2, 1, 3), (3,)),
        ("ij,ij->i", (2, 3), (1, 3)),
    ):
        yield drawn(rng, *shapes), {"subscripts": subscripts}


@op(name="einsum", cases=_einsum_cases, integers=True)
def _einsum(*operands: Array, subscripts: str) -> Forward:
    terms, right = _parse(subscripts, operands)
    y = np.einsum(f"{','.join(terms)}->{right}", *operands, optimize=len(operands) > 1)
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for c, n in zip(term, x.shape, strict=True):
            sizes[c] = n if sizes.get(c, 1) == 1 else sizes[c]

    def vjp(g: Array, i: int) -> Array:
        others = [(t, x) for j, (t, x) in enumerate(zip(terms, operands, strict=True)) if j != i]
        known = right + "".join(t for t, _ in others)
        keep = "".join(c for c in dict.fromkeys(terms[i]) if c in known)
        g = np.einsum(
            f"{','.join([right, *(t for t, _ in others)])}->{keep}",
            g,
            *(x for _, x in others),
            optimize=bool(others),
        )
        return _spread(terms[i], g, keep, sizes)

    return y, tuple(lambda g, i=i: vjp(g, i) for i in range(len(operands)))


def einsum(subscripts: str, *operands: Any) -> Tensor:
    """Sum of products in Einstein's notation, as `np.einsum`: "ij,jk->ik" is the matrix product.

    The result is a sum over products of one element of each operand, so the derivative for one
    operand is the same sum without it: einsum of the gradient and the other operands, with that
    operand's letters as the result. A letter that nothing else has was only summed over: the
    gradient is repeated along it. "..." and repeated letters (diagonals) are understood.
    Errors: ValueError if the subscripts do not fit the operands.
    """
    return _einsum(*operands, subscripts=subscripts)


_einsum.__doc__ = einsum.__doc__


# -------------------------------------------------------------------------------------------- pinv


@op(cases=lambda rng: (((rng.normal(size=shape),), {}) for shape in ((6, 3), (4, 4), (5, 1))))
def pinv(E: Array) -> Forward:
    """The Moore-Penrose pseudo-inverse P = (EᵀE)⁻¹ Eᵀ, (D, V), of E (V, D) with full column rank.

    With S = (EᵀE)⁻¹, so dS = -S (dEᵀ E + Eᵀ dE) S, and P = S Eᵀ:
        dP = S dEᵀ (I - E P) - P dE P
    and E gets (I - E P) Gᵀ S - Pᵀ G Pᵀ (Golub and Pereyra, 1973, for constant rank). No V x V array
    is formed. Computed in float64 on columns of length 1, whatever the dtype. Errors: ValueError if
    E is no matrix, has V < D, is not finite or not of full column rank.
    """
    if E.ndim != 2 or E.shape[0] < E.shape[1]:
        raise ValueError("needs a matrix with at least as many rows as columns")
    X = E.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->j", X, X))
    if not np.isfinite(lengths).all():
        raise ValueError("the matrix holds a non-finite value")
    unit = 1 / np.where(lengths == 0, 1, lengths)
    X *= unit
    gram = X.T @ X
    rank = int(np.linalg.matrix_rank(gram, hermitian=True)) if X.size else 0
    if rank < E.shape[1]:
        raise ValueError(
            f"the {E.shape[1]} columns are not independent (rank {rank}), so the "
            "pseudo-inverse has no derivative"
        )
    S = np.linalg.inv(gram)
    P = S @ X.T  # of X; that of E has its rows multiplied by `unit`

    def vjp(g: Array) -> Array:
        G = g.astype(np.float64) * unit[:, None]
        T = G.T @ S
        return (((T - X @ (P @ T)) - P.T @ (G @ P.T)) * unit).astype(E.dtype)

    return (P * unit[:, None]).astype(E.dtype), (vjp,)
