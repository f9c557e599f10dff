"""The models of the recipes in PyTorch, as one would write them there, and a step of training.

It runs in the environment that peers.py makes. Started by step.py with a configuration of
`tinygpt` as JSON, a number of threads, and "eager" or "compile".
"""

import json
import math
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from workers import serve


def norm(c):
    if c["norm"] == "rms":
        return nn.RMSNorm(c["d_model"], eps=c["norm_eps"])
    return nn.LayerNorm(c["d_model"], eps=c["norm_eps"], bias=c["norm_bias"])


def rotate(x, cos, sin):
    """RoPE on interleaved pairs."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, width, hidden = c, c["d_model"], c["d_ff"]
        self.norm1, self.norm2 = norm(c), norm(c)
        self.qkv = nn.Linear(width, 3 * width, bias=c["qkv_bias"])
        self.out = nn.Linear(width, width, bias=c["out_bias"])
        self.gate = None
        if c["ffn"] == "swiglu":
            self.gate = nn.Linear(width, hidden, bias=c["gate_bias"])
        self.up = nn.Linear(width, hidden, bias=c["ffn_bias"])
        self.down = nn.Linear(hidden, width, bias=c["ffn_bias"])

    def forward(self, x, rope):
        c, batch, length = self.c, len(x), x.shape[1]
        p = c["dropout"] if self.training else 0.0
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, c["n_head"], -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        scale = None if c["scale_attention"] else 1.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True, scale=scale)
        x = x + F.dropout(self.out(y.transpose(1, 2).reshape(x.shape)), p, self.training)
        h = self.norm2(x)
        if self.gate is not None:
            h = F.silu(self.gate(h)) * self.up(h)
        else:
            h = F.gelu(self.up(h), approximate="tanh" if c["ffn"] == "gelu_tanh" else "none")
        return x + F.dropout(self.down(h), p, self.training)


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, width = c, c["d_model"]
        self.embedding = nn.Embedding(c["vocab_size"], width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["n_layer"]))
        self.norm = norm(c)
        if c["positions"] == "learned":
            self.positions = nn.Parameter(torch.zeros(c["context"], width))
        if c["head"] == "untied":
            self.head = nn.Linear(width, c["vocab_size"], bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.02)
        size = width // c["n_head"] if c["positions"] == "rope" else width
        rates = c["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(c["context"]), rates)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, targets):
        c = self.c
        x = self.embedding(ids)
        if c["positions"] == "learned":
            x = x + self.positions
        elif c["positions"] == "sinusoidal":
            x = x + torch.stack((self.sin, self.cos), -1).flatten(-2)
        x = F.dropout(x, c["dropout"], self.training)
        rope = (self.cos, self.sin) if c["positions"] == "rope" else None
        for block in self.blocks:
            x = block(x, rope)
        x = self.norm(x)
        if c["head"] == "pinv":
            head = torch.linalg.pinv(self.embedding.weight)
        else:
            head = (self.head if c["head"] == "untied" else self.embedding).weight.T
        return F.cross_entropy((x @ head).flatten(0, 1), targets.flatten())


def main():
    c, threads, mode = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    assert set(c["windows"]) == {0}, "local attention has no fast path in PyTorch: leave it out"
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GPT(c)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": c["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, c["lr"], (c["beta1"], c["beta2"]), c["eps"])
    forward = torch.compile(model) if mode == "compile" else model
    shape = (c["batch_size"], c["context"])
    ids, targets = (torch.randint(0, c["vocab_size"], shape) for _ in range(2))

    def step():
        loss = forward(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), c["grad_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    first = step()
    step()
    parameters = sum(p.numel() for p in model.parameters())
    serve(
        step,
        parameters=parameters,
        loss=first,
        at_start=math.log(c["vocab_size"]),
        version=torch.__version__,
    )


if __name__ == "__main__":
    main()
