"""The page's scripts, run by node, against the models and tokenizers that they stand for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bpe
import minitensor as mt
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection.page import page
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.drawing import draw, probabilities
from tinygpt.model.sample import generate
from tinygpt.model.transformer import GPT

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None, reason="node is not installed: the page's scripts are untested"
)
HERE = Path(page.__file__).parent
CASES: dict[str, Config] = {
    **{
        name: c.replace(
            vocab_size=70, context=24, n_layer=3, d_model=4 * c.n_head, d_ff=20,
            windows=[min(window, 6) for window in c.windows], tokenizer="char", reduced_from=0,
        )
        for name, c in recipes.RECIPES.items()
    },
    "alibi": Config(
        vocab_size=70, context=24, n_layer=2, n_head=6, d_model=24, d_ff=20, positions="alibi"
    ),
    "grouped": Config(
        vocab_size=70, context=24, n_layer=2, n_head=4, n_kv_head=2, d_model=24, d_ff=20,
        positions="rope", windows=[3], ffn="swiglu", head="untied",
    ),
}  # fmt: skip


def node(script: str, given: object) -> object:
    """What `script` makes of `given`, both JSON; Forward and Tokenizers are there."""
    opening = "".join(
        f"const {name} = require({json.dumps(str(HERE / file))});\n"
        for name, file in (("Forward", "forward.js"), ("Tokenizers", "tokenizer.js"))
    )
    reading = 'const given = JSON.parse(require("fs").readFileSync(0, "utf-8"));\n'
    done = subprocess.run(
        ["node", "-e", f"{opening}{reading}{script}"],
        input=json.dumps(given), capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def model_of(config: Config, seed: int = 0) -> tuple[GPT, np.ndarray]:
    """A model whose every part counts, biases as well, and a text of the length of its context."""
    rng = np.random.default_rng(seed)
    model = GPT(config)
    for name, p in model.named_parameters():
        with mt.no_grad():
            size = 0.3 if p.ndim > 1 else 0.1
            p[...] = (rng.normal(0, size, p.shape) + name.endswith("norm.weight")).astype(p.dtype)
    model.eval()
    return model, rng.integers(0, config.vocab_size, (1, config.context))


def payload(model: GPT, dtype: str) -> dict:
    params = {name: p.data for name, p in model.named_parameters()}
    saved = Saved(model.config, bpe.CharTokenizer("ab"), params)
    return {"config": model.config.to_dict(), "weights": page.weights(saved, dtype)}


OPEN = """
function open({config, weights}) {
  return new Forward.Model(config, Forward.unpack(weights));
}
"""


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_numpy(name):
    model, ids = model_of(CASES[name])
    with mt.no_grad():
        expected = model(ids).data[0]
    script = f"""{OPEN}
        const model = open(given), all = model.logits(given.ids);
        const cache = model.cache(), steps = [];
        for (const id of given.ids) steps.push(...model.logits([id], {{cache}}));
        console.log(JSON.stringify([Array.from(all), steps]));
    """
    whole, steps = node(script, {**payload(model, "float32"), "ids": ids[0].tolist()})
    assert np.abs(expected).max() > 1  # else a bound on the difference says little
    np.testing.assert_allclose(np.array(whole).reshape(expected.shape), expected, atol=1e-4)
    np.testing.assert_allclose(np.array(steps).reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.slow
def test_a_variant_that_the_page_does_not_know_is_refused():
    script = """
        const errors = ["norm", "positions", "ffn", "head"].map(key => {
          try {
            new Forward.Model({...given, [key]: "new"}, {});
          } catch (error) {
            return error.message;
          }
        });
        console.log(JSON.stringify(errors));
    """
    errors = node(script, Config().to_dict())
    assert errors == [
        f"{key}: new is not known to this page" for key in ("norm", "positions", "ffn", "head")
    ]


@pytest.mark.slow
@pytest.mark.mostly_slow
@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", ["quick", "pinv-0.8m"])
def test_rounded_weights_differ_by_what_the_page_says(name, dtype):
    model, ids = model_of(CASES[name])
    params = {name: p.data for name, p in model.named_parameters()}
    saved = Saved(model.config, bpe.CharTokenizer("ab"), params)
    said = page.rounding_error(saved, dtype, ids[0].tolist())
    with mt.no_grad():
        expected = model(ids).data[0]
    script = f"{OPEN} console.log(JSON.stringify(Array.from(open(given).logits(given.ids))));"
    logits = node(script, {**payload(model, dtype), "ids": ids[0].tolist()})
    found = np.abs(np.reshape(logits, expected.shape) - expected).max()
    assert found > 1e-4
    assert abs(found - said) < 1e-4


@pytest.mark.slow
def test_what_is_shown_and_taken_out_is_that_of_the_model():
    model, ids = model_of(CASES["grouped"])
    shown: dict[str, np.ndarray] = {}

    def look(name, x):
        if name == "blocks.1.attn.heads":
            other = x.data.copy()
            other[:, 2] = 0
            shown[name] = other
            return mt.Tensor(other)
        if name == "blocks.0.ffn":
            shown[name] = np.zeros_like(x.data)
            return mt.Tensor(shown[name])
        shown[name] = x.data.copy()
        return None

    with mt.no_grad():
        final = model.hidden(ids, look=look).data
    script = f"""{OPEN}
        const shown = {{}};
        const keep = (name, x, shape) => {{ shown[name] = [shape, Array.from(x)]; }};
        const look = Forward.ablation(["blocks.0.ffn", "blocks.1.attn.2"], keep);
        const final = Array.from(open(given).hidden(given.ids, {{look}}));
        console.log(JSON.stringify([shown, final]));
    """
    seen, last = node(script, {**payload(model, "float32"), "ids": ids[0].tolist()})
    assert list(seen) == list(shown)  # the same names in the same order
    for name, (shape, values) in seen.items():
        assert shape == list(shown[name].shape[1:])
        np.testing.assert_allclose(
            np.array(values).reshape(shown[name].shape), shown[name], atol=1e-4, err_msg=name
        )
    np.testing.assert_allclose(np.array(last).reshape(final.shape), final, atol=1e-4)


@pytest.mark.slow
def test_tokens_are_drawn_as_in_python():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, 50).astype(np.float32)
    logits[3] = logits[7]  # equal ones are kept or left out together
    options = [(0, 0, 1), (1, 0, 1), (0.7, 5, 1), (1.5, 0, 0.8), (1, 20, 0.5), (0.8, 1, 1)]
    draws = [0.0, 0.3, 0.77, 0.999999]
    script = """
        const out = given.options.map((option) => {
          const p = Forward.probabilities(Float32Array.from(given.logits), ...option);
          return [Array.from(p), given.draws.map((u) => Forward.draw(p, u))];
        });
        console.log(JSON.stringify(out));
    """
    found = node(script, {"logits": logits.tolist(), "options": options, "draws": draws})
    for option, (p, drawn) in zip(options, found, strict=True):
        expected = probabilities(logits, *option)
        np.testing.assert_allclose(p, expected, atol=1e-9)
        assert drawn == [draw(expected, u) for u in draws]


@pytest.mark.slow
@pytest.mark.mostly_slow
@pytest.mark.parametrize("context", [7, 8])
def test_a_text_goes_on_as_in_python_when_the_context_is_full(context):
    model, ids = model_of(CASES["grouped"].replace(context=context))
    expected = list(generate(model, ids[0, :5].tolist(), max_new_tokens=30, temperature=0))
    script = f"""{OPEN}
        const pick = (z) => z.reduce((best, v, i) => (v > z[best] ? i : best), 0);
        const found = [], model = open(given);
        for (const {{ id, dropped }} of Forward.continuation(model, given.ids, given.size, pick)) {{
          found.push([id, dropped]);
          if (found.length === 30) break;
        }}
        console.log(JSON.stringify(found));
    """
    given = {"ids": ids[0, :5].tolist(), "size": model.config.vocab_size}
    found = node(script, {**payload(model, "float32"), **given})
    assert [id for id, _ in found] == expected
    assert sum(dropped > 0 for _, dropped in found) > 5


TEXTS = [
    "Once upon a time, there was a cat. It's 12 years old; don't you think?",
    "  two  spaces\n\n\tand tabs \u00a0 no-break\u0085next\ufeffbom  ",
    "naïve café Straße ΑΒΓ абв 漢字かな 한국어 العربية हिन्दी",
    "👩‍👩‍👧 🙂 𝔘𝔫𝔦 e\u0301 \u200d ½ ² Ⅷ ٣",
    "I'LL we'Ve 'ſ x'S \r\n\r\n a1b22c333d4444 !!!\n\n?",
    "<|endoftext|>A <s> b</s> <unk>[x]</script>",
    "",
]


@pytest.mark.slow
def test_tokens_are_those_of_bpe():
    source = [*TEXTS, "the cat and the dog and the cat sat on the mat " * 5]
    base = bpe.train(source, 400)
    four = bpe.train(source, 330, pattern="gpt4")
    chunks = bpe.BPETokenizer(
        four.vocab, four.merges, pattern="none", by_token=True, whole_chunks=True, characters=True
    )
    tokenizers = [
        base, four, chunks,
        bpe.CharTokenizer("".join(sorted(set("".join(TEXTS[:3]))))),
        bpe.CharTokenizer("".join(sorted(set("".join(TEXTS)))), control_tokens=False),
        bpe.ReducedTokenizer.train(base, source, 300),
    ]  # fmt: skip
    script = """
        const out = given.tokenizers.map((data) => {
          const tokenizer = Tokenizers.make(data);
          return given.texts.map((text) => {
            const ids = tokenizer.encode(text);
            return [ids, tokenizer.decode(ids), tokenizer.decode(ids.slice(1, -1))];
          }).concat([[tokenizer.separator, tokenizer.size]]);
        });
        console.log(JSON.stringify(out));
    """
    given = {"tokenizers": [t.to_dict() for t in tokenizers], "texts": TEXTS}
    for tokenizer, found in zip(tokenizers, node(script, given), strict=True):
        for text, (ids, whole, part) in zip(TEXTS, found, strict=False):
            assert ids == tokenizer.encode(text, allowed_special="all"), (tokenizer.kind, text)
            assert whole == tokenizer.decode(ids)
            assert part == tokenizer.decode(ids[1:-1])
        assert found[-1] == [tokenizer.separator_id, tokenizer.vocab_size]


@pytest.mark.slow
def test_a_tree_of_merges_ends_in_bytes():
    tokenizer = bpe.train(["the cat and the dog and the cat " * 9], 262)
    script = """
        const leaves = (n) => (n.parts.length ? n.parts.flatMap(leaves) : [n.id]);
        const tokenizer = Tokenizers.make(given.tokenizer);
        const nodes = tokenizer.tree(" the");
        console.log(JSON.stringify([nodes.length, nodes[0].rank, nodes.flatMap(leaves)]));
    """
    count, rank, leaves = node(script, {"tokenizer": tokenizer.to_dict()})
    assert count == 1
    assert rank == tokenizer.encode(" the")[0] - 256
    assert leaves == [tokenizer.byte_ids[b] for b in b" the"]
