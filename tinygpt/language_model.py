"""A model with its tokenizer, from Python: text in, text and arrays out.

    >>> import tinygpt
    >>> model = tinygpt.load("runs/first")              # doctest: +SKIP
    >>> print(model.generate("Once upon a time"))       # doctest: +SKIP

What this is not: the model itself (that is `model.gpt`, with its parameters and its gradients), or
a place for new ways of looking at one: it calls what the command line calls.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import minitensor as mt
from tinygpt import UsageError
from tinygpt.formats import box, checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.exchange import WRITERS, load_any
from tinygpt.model.config import Config
from tinygpt.model.sample import pieces, prompt_ids
from tinygpt.model.transformer import GPT, components, count

if TYPE_CHECKING:
    from bpe import Tokenizer

Array = np.ndarray
Text = str | Sequence[int]  # a text, or its tokens


def load(path: str | Path | None = None) -> LanguageModel:
    """The model at `path`: a model.npz, a run folder, a folder of Hugging Face (GPT-2, GPT-Neo or
    Llama, as safetensors), a llama2.c .bin with its tokenizer.bin, or a safetensors file of ours.
    Without a path it is the one that comes with the package.

    Raises tinygpt.Error, in one line, for anything else.
    """
    return LanguageModel(box.load() if path is None else load_any(path))


class LanguageModel:
    """A trained model and its tokenizer.

    Attributes: `gpt` (the `minitensor` module, in evaluation mode), `tokenizer`, `config`,
    `provenance` (where the weights come from).
    """

    def __init__(self, saved: Saved):
        self._saved = saved
        self.gpt: GPT = saved.model()
        self.tokenizer: Tokenizer = saved.tokenizer
        self.config: Config = saved.config
        self.provenance = saved.provenance

    # ---------------------------------------------------------------- text

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 200,
        top_p: float = 1.0,
        seed: int = 1337,
        ignore_eot: bool = False,
        past_context: str = "drop",
        stream: bool = False,
    ) -> Any:
        """`prompt` and how the model goes on, up to the end of the text or `max_new_tokens`: a str.

        A temperature below 1 makes likely tokens likelier, 0 is greedy; `top_k` (0: off) and
        `top_p` (1: off) leave out unlikely ones. The same seed gives the same text. With `stream`
        an iterator of pieces of text instead, the prompt first, each given as soon as it is there.
        """
        text = pieces(
            self.gpt,
            self.tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            ignore_eot=ignore_eot,
            past_context=past_context,
        )
        return text if stream else "".join(text)

    # ---------------------------------------------------------------- arrays

    def ids(self, text: Text) -> Array:
        """Tokens (1, T) of a text, as training saw it: with the separator in front, if there is
        one. A sequence of integers is taken as it is."""
        tokens = prompt_ids(self.tokenizer, text) if isinstance(text, str) else list(text)
        ids = np.array(tokens, np.int64).reshape(1, -1)
        if not ids.size or ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UsageError(
                f"ids: expected at least one token of 0..{self.config.vocab_size - 1}, got "
                f"{str(tokens)[:60]}"
            )
        if ids.shape[1] > self.config.context:
            raise UsageError(
                f"ids: {ids.shape[1]} tokens, but the context is {self.config.context}; give a "
                "shorter text"
            )
        return ids

    def tokens(self, text: Text) -> list[str]:
        """What each row of `logits`, `embed` and `attention` stands for."""
        return [self.tokenizer.decode([int(id)]) for id in self.ids(text)[0]]

    def logits(self, text: Text) -> Array:
        """Scores (T, V) of the token that comes after each token of `text`."""
        with mt.no_grad():
            return np.array(self.gpt(self.ids(text)).numpy()[0])

    def loss(self, text: str) -> dict[str, Any]:
        """How well the model predicts a text of any length, as `tinygpt eval` judges it: "loss" in
        nats per token, "perplexity", "bits_per_byte", and more."""
        from tinygpt.inspection.evaluate import evaluate

        return evaluate(self.gpt, self.tokenizer, text)

    def embed(self, text: Text) -> Array:
        """The final states (T, D), after the last norm: what the logits are made of."""
        with mt.no_grad():
            return np.array(self.gpt.hidden(self.ids(text)).numpy()[0])

    def attention(self, text: Text) -> Array:
        """Attention weights (L, H, T, T): row i of a head is what token i looks at."""
        return self.gpt.attention_maps(self.ids(text))[:, 0]

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write a model.npz with the weights as they are now."""
        checkpoint.save(path, self._current())

    def export(self, path: str | Path, to: str) -> None:
        """Write the model in another program's format: one of those of ``tinygpt export``."""
        if to not in WRITERS:
            raise UsageError(f"to: expected one of {', '.join(WRITERS)}, got {to!r}")
        WRITERS[to][0](self._current(), Path(path))

    def _current(self) -> Saved:
        params = {name: p.data for name, p in self.gpt.named_parameters()}
        return Saved(self.config, self.tokenizer, params, self.provenance)

    # ---------------------------------------------------------------- how it is shown

    def __repr__(self) -> str:
        c = self.config
        heads = f"{c.n_head} heads" + (f" ({c.kv_heads} key/value)" if c.n_kv_head else "")
        return (
            f"<{c.name}: {sum(count(c)):,} parameters, {c.n_layer} layers, {heads}, width "
            f"{c.d_model}, context {c.context}, {self.tokenizer.kind} vocabulary {c.vocab_size:,}, "
            f"step {self.provenance.get('step', '?')}>"
        )

    def _repr_html_(self) -> str:
        """A notebook's view: the parameters by component."""
        total = sum(count(self.config))
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td><td>{n:,}</td>"
            f"<td>{n / total:.1%}</td></tr>"
            for name, n in components(self.config)
        )
        return f"<p>{html.escape(repr(self))}</p><table>{rows}</table>"
