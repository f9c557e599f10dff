"""Tiny models as Hugging Face's transformers writes them, and the logits it computes with them.

    ENV/bin/python tests/goldens/make_exchange.py

ENV has torch, transformers, and this project's requirements. Writes the folders of
tests/goldens/exchange/: GPT-2 (one file), GPT-Neo in shards, Llama with fewer key/value heads in
bfloat16, each with its tokenizer and `expected.npz` (ids and logits, of the weights as stored).
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
import bpe

OUT = Path(__file__).parent / "exchange"
TEXT = ["the cat sat on the mat, and the dog sat too. " * 3]
tokenizer = bpe.train(TEXT, 270)
V = tokenizer.vocab_size

torch.manual_seed(0)
MODELS = {
    "gpt2": GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=12)
    ),
    "gpt_neo": GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=V,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            max_position_embeddings=12,
            intermediate_size=24,
        )
    ),
    "llama": LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=12,
            tie_word_embeddings=False,
        )
    ).to(torch.bfloat16),
}

shutil.rmtree(OUT, ignore_errors=True)
ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [200, 17, 260, 0, 0, 8, 30, 99, 150, 261]])
for name, model in MODELS.items():
    with torch.no_grad():  # away from the init, so that every bias and norm counts
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.mean() if p.ndim == 1 else 0))
    model.eval().save_pretrained(
        OUT / name, **({"max_shard_size": "12KB"} if name == "gpt_neo" else {})
    )
    tokenizer.save(OUT / name / "tokenizer.json", format="huggingface")
    # Read again, in float32: a model turned to bfloat16 has rounded its rotations, too.
    model = type(model).from_pretrained(OUT / name, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits.numpy()
    np.savez_compressed(OUT / name / "expected.npz", ids=ids, logits=logits.astype(np.float32))
    print(name, type(model).__name__, [p.name for p in sorted((OUT / name).iterdir())])
