"""The ops, one file a family: each a forward and its backward, side by side."""

from minitensor.ops.elementwise import (
    abs,
    add,
    clip,
    cos,
    div,
    erf,
    exp,
    log,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    relu,
    rsqrt,
    sigmoid,
    silu,
    sin,
    softplus,
    sqrt,
    sub,
    tanh,
    where,
)
from minitensor.ops.linalg import einsum, matmul, outer, pinv
from minitensor.ops.loss import binary_cross_entropy_with_logits, mse_loss
from minitensor.ops.reduce import argmax, logsumexp, max, mean, min, std, sum, var
from minitensor.ops.shape import (
    astype,
    concat,
    expand,
    getitem,
    pad,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
    transpose,
    tril,
    unsqueeze,
)
