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
from minitensor.ops.sublayer import attention_sublayer, feed_forward_sublayer
from minitensor.ops.transformer import (
    attention,
    cross_entropy,
    dropout,
    dropout_add,
    embedding,
    gelu,
    layer_norm,
    linear,
    linear_cross_entropy,
    log_softmax,
    rms_norm,
    rope,
    rope_table,
    self_attention,
    softmax,
    swiglu,
)

# fmt: off
__all__ = [
    "abs", "add", "argmax", "astype", "attention", "attention_sublayer",
    "binary_cross_entropy_with_logits", "clip", "concat", "cos", "cross_entropy", "div", "dropout",
    "dropout_add", "einsum", "embedding", "erf", "exp", "expand", "feed_forward_sublayer", "gelu",
    "getitem", "layer_norm", "linear", "linear_cross_entropy", "log", "log_softmax", "logsumexp",
    "matmul", "max", "maximum", "mean", "min", "minimum", "mse_loss", "mul", "neg", "outer", "pad",
    "pinv", "pow", "relu", "reshape", "rms_norm", "rope", "rope_table", "rsqrt", "self_attention",
    "sigmoid", "silu", "sin", "softmax", "softplus", "split", "sqrt", "squeeze", "stack", "std",
    "sub", "sum", "swapaxes", "swiglu", "tanh", "transpose", "tril", "unsqueeze", "var", "where",
]
# fmt: on
