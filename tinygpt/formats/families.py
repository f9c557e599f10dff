"""The architectures of Hugging Face that a configuration can be: GPT-2, GPT-Neo and Llama.

A family says three things: why a configuration is not one of its own, what its ``config.json``
holds, and which of its tensors make up which of ours. The last is a list of `Link`s, each with the
way there and the way back, so that export and import cannot disagree.

What a family has and a configuration has not (a bias, say) is written as zeros, and must be zeros
when it is read again with that configuration. Nothing is ever left out that would change a logit.

Shapes: linear weights are (out, in) here, as in GPT-Neo and Llama; GPT-2 stores (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from bpe.untrusted import shown
from tinygpt import Error
from tinygpt.model.config import Config
from tinygpt.model.transformer import layout, sinusoids

Array = np.ndarray


class Link(NamedTuple):
    """Foreign tensors and the one of ours that they make up; ``own`` is "" where we have none."""

    foreign: tuple[str, ...]
    own: str
    split: Callable[[Array], Sequence[Array]]  # ours -> theirs
    join: Callable[[Sequence[Array]], Array]  # theirs -> ours
    fixed: Array | None = None  # what we would have, where ``own`` is ""


def same(foreign: str, own: str) -> Link:
    """One tensor, stored alike."""
    return Link((foreign,), own, lambda a: [a], lambda parts: parts[0])


def transposed(foreign: str, own: str) -> Link:
    """A weight that is stored (in, out) over there."""
    return Link((foreign,), own, lambda a: [a.T], lambda parts: parts[0].T)


def constant(foreign: str, value: Array) -> Link:
    """A tensor that is not a parameter here: its value follows from the configuration."""
    return Link((foreign,), "", lambda a: [a], lambda parts: parts[0], value)


@dataclass(frozen=True)
class Family:
    """One architecture of Hugging Face's transformers."""

    name: str  # `model_type`
    title: str  # as people say it
    prefix: str  # of every tensor but the head
    head: str  # name of an untied head
    refusals: Callable[[Config], Iterator[str]]
    describe: Callable[[Config], dict[str, Any]]
    understand: Callable[[Mapping[str, Any]], dict[str, Any]]
    body: Callable[[Config], Iterator[Link]]
    ignored: tuple[str, ...] = ()  # endings of names that hold no parameter

    def links(self, c: Config) -> list[Link]:
        """Every foreign tensor of a configuration, with what it is here."""
        links = [link._replace(foreign=tuple(self.prefix + name for name in link.foreign))
                 for link in self.body(c)]  # fmt: skip
        if c.head != "tied":
            links.append(same(self.head, "head.weight"))
        return links


# --------------------------------------------------------------------------------- common parts


def _linear(
    c: Config, theirs: str, ours: str, weight: Callable[[str, str], Link]
) -> Iterator[Link]:
    """A linear map with a bias over there; zeros where it has none here."""
    yield weight(f"{theirs}.weight", f"{ours}.weight")
    yield _vector(c, f"{theirs}.bias", f"{ours}.bias")


@lru_cache(1)  # asked for each of thousands of vectors
def _shapes(c: Config) -> dict[str, tuple[int, ...]]:
    return layout(c)


def _vector(c: Config, theirs: str, ours: str) -> Link:
    """A bias that may be missing here: zeros."""
    shapes = _shapes(c)
    if ours in shapes:
        return same(theirs, ours)
    outputs = shapes[ours.removesuffix("bias") + "weight"][0]
    return constant(theirs, np.zeros(outputs, c.dtype))


def _qkv(c: Config, names: tuple[str, str, str], own: str, arrange: Any, restore: Any) -> Link:
    """Three projections over there, one packed here."""
    return Link(
        names,
        own,
        lambda a: [arrange(part, n) for n, part in enumerate(np.split(a, c.qkv_cuts))],
        lambda parts: np.concatenate([restore(part, n) for n, part in enumerate(parts)]),
    )


def require(c: Config, **wanted: Any) -> Iterator[str]:
    """A reason for each field that has not the value over there."""
    for key, value in wanted.items():
        if getattr(c, key) != value:
            yield f"it needs {key}={value}, this model has {getattr(c, key)}"


def no_local_attention(c: Config) -> Iterator[str]:
    """A reason where a layer does not see all tokens."""
    if any(0 < c.window(i) < c.context for i in range(c.n_layer)):
        yield f"it has no local attention, this model windows={c.windows} (train with --windows 0)"


def _positions(c: Config, theirs: str) -> Link:
    """Learned positions, or the fixed sinusoids written out as if they had been learned."""
    if c.positions == "sinusoidal":
        return constant(theirs, sinusoids(c.context, c.d_model, np.dtype(c.dtype)))
    return same(theirs, "positions.weight")


def _added_positions(c: Config) -> Iterator[str]:
    if c.positions not in ("learned", "sinusoidal"):
        yield f"it needs learned or sinusoidal positions, this model has {c.positions}"


def _gelu(c: Config) -> Iterator[str]:
    if c.ffn not in ("gelu", "gelu_tanh"):
        yield f"it needs ffn=gelu or gelu_tanh, this model has {c.ffn}"


ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
OWN_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def _activation(name: Any) -> str:
    if not isinstance(name, str) or name not in OWN_ACTIVATIONS:
        raise Error(f"the activation {shown(name)} is not known here; known: gelu_new, gelu")
    return OWN_ACTIVATIONS[name]


def _number(d: Mapping[str, Any], key: str, default: int) -> int:
    """A value to calculate with: a list or a text times a billion takes all memory."""
    value = d.get(key, default)
    if not isinstance(value, (int, float)):
        raise Error(f"{key}: expected a number, got {shown(value)}")
    return value  # type: ignore[return-value]  # whether it is whole is for `Config` to tell


# ------------------------------------------------------------------------------------------ GPT-2


def _gpt2_refusals(c: Config) -> Iterator[str]:
    yield from require(c, norm="layer", kv_heads=c.n_head)
    yield from _added_positions(c)
    yield from _gelu(c)
    yield from no_local_attention(c)


def _gpt2_config(c: Config) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.d_model,
        "n_inner": c.d_ff,
        "n_positions": c.context,
        "activation_function": ACTIVATIONS[c.ffn],
        "layer_norm_epsilon": c.norm_eps,
        "scale_attn_weights": c.scale_attention,
    }


def _own_gpt2(d: Mapping[str, Any]) -> dict[str, Any]:
    if d.get("scale_attn_by_inverse_layer_idx"):
        raise Error("scale_attn_by_inverse_layer_idx: not supported")
    return {
        "n_layer": d.get("n_layer", 12),
        "n_head": d.get("n_head", 12),
        "d_model": d.get("n_embd", 768),
        "d_ff": d.get("n_inner") or 4 * _number(d, "n_embd", 768),
        "context": d.get("n_positions", 1024),
        "ffn": _activation(d.get("activation_function", "gelu_new")),
        "norm_eps": d.get("layer_norm_epsilon", 1e-5),
        "scale_attention": d.get("scale_attn_weights", True),
        **_ALL_BIASES,
    }


_ALL_BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True, "norm_bias": True}


def _gpt2_body(c: Config) -> Iterator[Link]:
    yield same("wte.weight", "embedding.weight")
    yield _positions(c, "wpe.weight")
    for i in range(c.n_layer):
        here, there = f"blocks.{i}", f"h.{i}"
        yield from _linear(c, f"{there}.ln_1", f"{here}.attn_norm", same)
        yield from _linear(c, f"{there}.attn.c_attn", f"{here}.attn.qkv", transposed)
        yield from _linear(c, f"{there}.attn.c_proj", f"{here}.attn.out", transposed)
        yield from _linear(c, f"{there}.ln_2", f"{here}.ffn_norm", same)
        yield from _linear(c, f"{there}.mlp.c_fc", f"{here}.ffn.up", transposed)
        yield from _linear(c, f"{there}.mlp.c_proj", f"{here}.ffn.down", transposed)
    yield from _linear(c, "ln_f", "norm", same)


# ---------------------------------------------------------------------------------------- GPT-Neo


def _neo_refusals(c: Config) -> Iterator[str]:
    yield from require(c, norm="layer", kv_heads=c.n_head, qkv_bias=False, scale_attention=False)
    yield from _added_positions(c)
    yield from _gelu(c)
    if len({c.window(i) for i in range(c.n_layer)} - {0}) > 1:
        yield f"all its local layers have one window, this model has windows={c.windows}"


def _neo_config(c: Config) -> dict[str, Any]:
    windows = [c.window(i) for i in range(c.n_layer)]
    kinds = ["local" if window else "global" for window in windows]
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "num_layers": c.n_layer,
        "num_heads": c.n_head,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.context,
        "activation_function": ACTIVATIONS[c.ffn],
        "layer_norm_epsilon": c.norm_eps,
        "attention_layers": kinds,
        "attention_types": [[[kind], 1] for kind in kinds],
        "window_size": max(windows) or 256,
    }


MAX_LAYERS = 1 << 10  # more are no model here, and a line can ask for a billion


def _listed_kinds(types: Any) -> list[Any]:
    """The kind of each layer, from [[[kind, …], times], …]."""
    kinds: list[Any] = []
    try:
        for names, times in types:
            if not 0 <= times <= MAX_LAYERS or len(kinds) + len(names) * times > MAX_LAYERS:
                raise Error(f"attention_types: expected at most {MAX_LAYERS:,} layers, got more")
            kinds += list(names) * times
    except (TypeError, ValueError):
        raise Error("attention_types: expected [[[kind, …], times], …]") from None
    return kinds


def _own_neo(d: Mapping[str, Any]) -> dict[str, Any]:
    layers = d.get("num_layers", 24)
    kinds = d.get("attention_layers")
    if not isinstance(kinds, list):
        kinds = _listed_kinds(d.get("attention_types", [[["global", "local"], 12]]))
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        raise Error(f"attention_layers: expected {layers} times 'global' or 'local'")
    window = d.get("window_size", 256)
    return {
        "n_layer": layers,
        "n_head": d.get("num_heads", 16),
        "d_model": d.get("hidden_size", 2048),
        "d_ff": d.get("intermediate_size") or 4 * _number(d, "hidden_size", 2048),
        "context": d.get("max_position_embeddings", 2048),
        "ffn": _activation(d.get("activation_function", "gelu_new")),
        "norm_eps": d.get("layer_norm_epsilon", 1e-5),
        "scale_attention": False,
        "windows": tuple(window if kind == "local" else 0 for kind in kinds),
        **_ALL_BIASES,
        "qkv_bias": False,
    }


def _neo_body(c: Config) -> Iterator[Link]:
    def plain(part: Array, n: int) -> Array:
        return part

    yield same("wte.weight", "embedding.weight")
    yield _positions(c, "wpe.weight")
    for i in range(c.n_layer):
        here, there = f"blocks.{i}", f"h.{i}"
        attention = f"{there}.attn.attention"
        q, k, v = (f"{attention}.{name}_proj.weight" for name in "qkv")
        yield from _linear(c, f"{there}.ln_1", f"{here}.attn_norm", same)
        yield _qkv(c, (q, k, v), f"{here}.attn.qkv.weight", plain, plain)
        yield from _linear(c, f"{attention}.out_proj", f"{here}.attn.out", same)
        yield from _linear(c, f"{there}.ln_2", f"{here}.ffn_norm", same)
        yield from _linear(c, f"{there}.mlp.c_fc", f"{here}.ffn.up", same)
        yield from _linear(c, f"{there}.mlp.c_proj", f"{here}.ffn.down", same)
    yield from _linear(c, "ln_f", "norm", same)


# ------------------------------------------------------------------------------------------ Llama


def _llama_refusals(c: Config) -> Iterator[str]:
    yield from require(c, norm="rms", positions="rope", ffn="swiglu", scale_attention=True)
    yield from no_local_attention(c)


def _llama_config(c: Config) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "hidden_act": "silu",
        "attention_bias": c.qkv_bias or c.out_bias,
        "mlp_bias": c.gate_bias or c.ffn_bias,
    }


def _own_llama(d: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = d.get("hidden_size", 4096), _number(d, "num_attention_heads", 32)
    rope = d.get("rope_parameters") or d.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise Error(f"rope_parameters: expected an object, got {shown(rope)}")
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise Error(f"rope_parameters: only the default rotation is known here, not {shown(rope)}")
    if d.get("head_dim") is not None and _number(d, "head_dim", 0) * heads != width:
        raise Error(f"head_dim: expected hidden_size / num_attention_heads, got "
                    f"{shown(d['head_dim'])}")  # fmt: skip
    if d.get("hidden_act", "silu") != "silu":
        raise Error(f"hidden_act: expected silu, got {shown(d['hidden_act'])}")
    biased, mlp = bool(d.get("attention_bias")), bool(d.get("mlp_bias"))
    return {
        "n_layer": d.get("num_hidden_layers", 32),
        "n_head": heads,
        "n_kv_head": d.get("num_key_value_heads") or heads,
        "d_model": width,
        "d_ff": d.get("intermediate_size", 11008),
        "context": d.get("max_position_embeddings", 2048),
        "norm": "rms",
        "norm_bias": False,
        "norm_eps": d.get("rms_norm_eps", 1e-6),
        "positions": "rope",
        "rope_theta": rope.get("rope_theta", d.get("rope_theta", 10000.0)),
        "ffn": "swiglu",
        "qkv_bias": biased,
        "out_bias": biased,
        "ffn_bias": mlp,
    }


def halves(rows: Array, heads: int) -> Array:
    """Rows of q or k from our order to the Hub's: first all x of a head's pairs, then all y.

    RoPE turns pairs (x, y). Here and in llama2.c a pair is two neighbours; Hugging Face's models
    turn number n with number n + d/2.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def neighbours(rows: Array, heads: int) -> Array:
    """The way back from `halves`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _llama_body(c: Config) -> Iterator[Link]:
    heads = (c.n_head, c.kv_heads)

    def arrange(part: Array, n: int) -> Array:
        return part if n == 2 else halves(part, heads[n])

    def restore(part: Array, n: int) -> Array:
        return part if n == 2 else neighbours(part, heads[n])

    yield same("embed_tokens.weight", "embedding.weight")
    for i in range(c.n_layer):
        here, there = f"blocks.{i}", f"layers.{i}"
        attention, mlp = f"{there}.self_attn", f"{there}.mlp"
        yield same(f"{there}.input_layernorm.weight", f"{here}.attn_norm.weight")
        for kind in ("weight", "bias") if c.qkv_bias else ("weight",):
            q, k, v = (f"{attention}.{name}_proj.{kind}" for name in "qkv")
            yield _qkv(c, (q, k, v), f"{here}.attn.qkv.{kind}", arrange, restore)
        yield same(f"{attention}.o_proj.weight", f"{here}.attn.out.weight")
        if c.out_bias and not c.qkv_bias:
            for name, width in (("q", c.d_model), *((n, c.kv_heads * c.head_dim) for n in "kv")):
                yield constant(f"{attention}.{name}_proj.bias", np.zeros(width, c.dtype))
        if c.qkv_bias or c.out_bias:
            yield _vector(c, f"{attention}.o_proj.bias", f"{here}.attn.out.bias")
        yield same(f"{there}.post_attention_layernorm.weight", f"{here}.ffn_norm.weight")
        for name in ("gate", "up", "down"):
            theirs, ours = f"{mlp}.{name}_proj", f"{here}.ffn.{name}"
            yield same(f"{theirs}.weight", f"{ours}.weight")
            if c.gate_bias or c.ffn_bias:
                yield _vector(c, f"{theirs}.bias", f"{ours}.bias")
    yield same("norm.weight", "norm.weight")


# -------------------------------------------------------------------------------- all of them

GPT2 = Family("gpt2", "GPT-2", "transformer.", "lm_head.weight", _gpt2_refusals, _gpt2_config,
              _own_gpt2, _gpt2_body, (".attn.bias", ".attn.masked_bias"))  # fmt: skip
NEO = Family("gpt_neo", "GPT-Neo", "transformer.", "lm_head.weight", _neo_refusals, _neo_config,
             _own_neo, _neo_body,
             (".attn.attention.bias", ".attn.attention.masked_bias"))  # fmt: skip
LLAMA = Family("llama", "Llama", "model.", "lm_head.weight", _llama_refusals, _llama_config,
               _own_llama, _llama_body, (".rotary_emb.inv_freq",))  # fmt: skip
FAMILIES = {family.name: family for family in (LLAMA, GPT2, NEO)}


def family_of(c: Config) -> Family:
    """The family that can hold a configuration. Raises Error with each one's reasons."""
    reasons = []
    for family in FAMILIES.values():
        against = list(family.refusals(c))
        if not against:
            return family
        reasons.append(f"{family.title}: {'; '.join(against)}")
    raise Error(f"no architecture of Hugging Face holds this model. {'. '.join(reasons)}")


# ----------------------------------------------------------------------------------- the tensors


def to_foreign(family: Family, c: Config, params: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a family from our parameters, in C order."""
    out: dict[str, Array] = {}
    for link in family.links(c):
        value = params[link.own] if link.own else link.fixed
        assert value is not None
        parts = link.split(value)
        out.update((n, np.ascontiguousarray(p)) for n, p in zip(link.foreign, parts, strict=True))
    return out


def from_foreign(
    family: Family, c: Config, names: Sequence[str], read: Callable[[str], Array]
) -> dict[str, Array]:
    """Our parameters from the tensors of a family: `names` are there, `read` gives one of them.

    Raises Error that lists what is missing, unexpected, of a wrong shape, or not what follows
    from the configuration.
    """
    links, shapes = family.links(c), layout(c)
    there = {_full(family, name): name for name in names
             if not name.endswith(family.ignored)}  # fmt: skip
    if c.head == "tied":
        there.pop(family.head, None)  # a copy of the embedding, checked by nobody who reads it
    wanted = dict.fromkeys(name for link in links for name in link.foreign)
    problems = _listed("missing", [name for name in wanted if name not in there])
    problems += _listed("unexpected", [there[name] for name in there if name not in wanted])
    if problems:
        raise Error(f"tensors that do not fit {family.title}: {'; '.join(problems)}")
    params: dict[str, Array] = {}
    for link in links:
        parts = [read(there[name]) for name in link.foreign]
        try:
            value = np.ascontiguousarray(link.join(parts), c.dtype)
        except ValueError:
            value = np.empty(0)
        shape = shapes[link.own] if link.own else np.asarray(link.fixed).shape
        if value.shape != shape:
            got = " and ".join(str(part.shape) for part in parts)
            raise Error(f"{', '.join(link.foreign)}: shape {got}, which the configuration does "
                        "not give")  # fmt: skip
        if link.own:
            params[link.own] = value
        elif link.fixed is not None and not np.array_equal(value, link.fixed):
            raise Error(f"{link.foreign[0]}: the configuration has no such parameter, and its "
                        "values are not the ones that go without saying")  # fmt: skip
    return {name: params[name] for name in shapes}


def _full(family: Family, name: str) -> str:
    """A tensor's name with the prefix that some files leave out."""
    if name == family.head or name.startswith(family.prefix):
        return name
    return family.prefix + name


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{what}: {', '.join(sorted(names)[:5])}{more}"]
