"""The other side of exchange_peers.py, run in the environment of transformers and llama.cpp.

Reads JSON objects, one a line: {"to", "path", "prompt", "new", "text", "logits"}; answers each with
one: the class that loaded the model, the tokens of `text`, and `new` greedy tokens after `prompt`.
The logits (T, V) of the prompt go into the file `logits`, as .npy.
"""

import json
import os
import sys

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"


def hugging_face(job):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["path"], attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(job["path"])
    ids = list(job["prompt"])
    with torch.no_grad():
        np.save(job["logits"], model(torch.tensor([ids])).logits[0].float().numpy())
        for _ in range(job["new"]):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    tokens = tokenizer(job["text"], add_special_tokens=False)["input_ids"]
    return {"class": type(model).__name__, "tokens": tokens, "greedy": ids}


def gguf(job):
    from llama_cpp import Llama

    model = Llama(
        job["path"],
        n_ctx=len(job["prompt"]) + job["new"],
        logits_all=True,
        type_k=0,  # float32 keys and values; its default is float16
        type_v=0,
        verbose=False,
    )
    ids = list(job["prompt"])
    model.eval(ids)
    np.save(job["logits"], np.array(model.scores[: len(ids)]))
    for _ in range(job["new"]):
        ids.append(int(np.argmax(model.scores[len(ids) - 1])))
        model.eval(ids[-1:])
    tokens = model.tokenize(job["text"].encode(), add_bos=False)
    return {"class": "llama.cpp", "tokens": tokens, "greedy": ids}


for line in sys.stdin:
    job = json.loads(line)
    try:
        answer = {"hf": hugging_face, "gguf": gguf}[job["to"]](job)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(answer), flush=True)
