"""One HTML file that shows a run and a model, which runs in it: ``tinygpt page RUN_OR_MODEL``.

The file needs no network and no server. Its parts: the run's curves, settings and samples; a prompt
with the probabilities of what comes next; attention, the stream and what happens without a part;
the weights; the tokenizer. What is missing, such as the log of a model from elsewhere, is said.

The weights lie in it as float16, or as int8 if that is too large, with the error that this makes.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import minitensor as mt
from bpe.files import open_ordinary
from bpe.terminal import counted
from bpe.untrusted import MAX_JSON, parse_json
from tinygpt import Error, UsageError, __version__
from tinygpt.files import replacing
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.exchange import load_any
from tinygpt.inspection.plot import (
    PROMPT,
    TRAIN_KEYS,
    VALID_KEYS,
    known,
    principal_components,
    singular_values,
    token_label,
)
from tinygpt.inspection.probe import Embedding
from tinygpt.model import config, recipes
from tinygpt.model.config import Config
from tinygpt.model.sample import prompt_ids
from tinygpt.model.transformer import GPT, components, count
from tinygpt.progress import tell
from tinygpt.training.journal import read_records
from tinygpt.training.report import duration, plain

Array = np.ndarray
LIMIT = 6_000_000  # bytes of a page; a model that is larger stays out of it
POINTS = 1200  # of a curve: more than a screen has columns
SAMPLES = 200  # of a run, evenly chosen
MAX_SAMPLES = 8 << 20  # bytes of samples.txt among which they are
BINS = 40
COPY_KEYS = ("step", "copy_loss", "tokens", "seconds")  # logged by steps on repeated random tokens
CANVAS = '<span class="tensor"></span>'  # into which the page's script draws a tensor
PAUSE = 5.0  # seconds between two looks at a log that grows
SCRIPTS = ("forward.js", "tokenizer.js", "page.js")


@dataclass
class Run:
    """What a page tells of a run. `missing` says, in sentences, what is not there."""

    name: str
    config: Config | None
    curves: dict[str, list[Any]] = field(default_factory=dict)
    valid: dict[str, list[Any]] = field(default_factory=dict)
    copying: dict[str, list[Any]] = field(default_factory=dict)  # of the steps before step 0
    events: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------- the run


def read_run(folder: Path) -> Run:
    """Read a run's folder, whatever of it is there. Raises Error if it holds nothing of a run."""
    if not folder.is_dir():
        raise Error(f"{folder}: not a run's folder, which holds log.jsonl and config.json")
    run = Run(folder.resolve().name, None)
    if (folder / "config.json").is_file():
        run.config = config.load(folder / "config.json")
    else:
        run.missing.append("The run's folder has no config.json.")
    if (folder / "log.jsonl").is_file():
        _read_log(folder / "log.jsonl", run)
    elif run.config is None:
        raise Error(f"{folder}: not a run's folder: it has neither log.jsonl nor config.json")
    else:
        run.missing.append("The run's folder has no log.jsonl, so there are no curves.")
    run.samples = read_samples(folder / "samples.txt")
    if not run.samples:
        run.missing.append("No sample was written in this run yet.")
    run.token_counts = read_counts(folder / "token_counts.json")
    if not run.token_counts:
        run.missing.append(
            "The run's folder has no readable token_counts.json, so how often a token comes in the "
            "training text is unknown."
        )
    return run


def read_counts(path: Path) -> list[int]:
    """How often each token comes in the training text; empty where that is not known."""
    try:
        with open_ordinary(path) as file:
            counts = parse_json(file.read(MAX_JSON + 1))
    except (OSError, ValueError):
        return []
    sound = isinstance(counts, list) and all(type(n) is int and 0 <= n < 1 << 53 for n in counts)
    return counts if sound else []


def _read_log(path: Path, run: Run) -> None:
    records, damaged = read_records(path)
    if damaged:
        one = len(damaged) == 1
        run.missing.append(
            f"{'One line' if one else f'{len(damaged)} lines'} of the log cannot be read and "
            f"{'is' if one else 'are'} left out, the first of them line {damaged[0]}."
        )
    steps, valid = _rows(records, TRAIN_KEYS), _rows(records, VALID_KEYS)
    copying = _rows(records, COPY_KEYS)
    run.copying = thin({key: np.array([r[key] for r in copying], float) for key in COPY_KEYS})
    run.curves = thin({key: np.array([r[key] for r in steps], float) for key in TRAIN_KEYS})
    run.valid = {key: [r[key] for r in valid] for key in VALID_KEYS} if valid else {}
    run.events = [
        r for r in records if isinstance(r.get("event"), str) and _is_number(r.get("step"))
    ]
    if not steps:
        run.missing.append("No step of training is in the log yet, so there are no curves.")
    elif len(steps) < 20:
        run.missing.append(
            f"The log has {counted(len(steps), 'step')} only, so the curves are short."
        )
    if not valid:
        run.missing.append("The run has no validation, so nothing says how it does on other text.")


def _rows(records: list[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The records that have all of `keys`, as numbers; null stands for one that was not finite."""
    rows = [r for r in records if all(key in r for key in keys)]
    return [
        {key: math.nan if r[key] is None else r[key] for key in keys}
        for r in rows
        if all(r[key] is None or _is_number(r[key]) for key in keys)
        and all(_is_number(r[key]) for key in ("step", "tokens", "seconds"))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def thin(columns: dict[str, Array], points: int = POINTS) -> dict[str, list[Any]]:
    """Columns of a log with at most `points` rows: neighbours are averaged. Adds tokens a second,
    from one row to the next."""
    size = len(next(iter(columns.values())))
    if not size:
        return {}
    borders = np.linspace(0, size, min(size, points) + 1).astype(int)[:-1]
    lengths = np.diff([*borders, size])
    rate = np.full(len(borders), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that no run would log
        means = {key: np.add.reduceat(column, borders) / lengths for key, column in columns.items()}
        seconds, tokens = np.diff(means["seconds"]), np.diff(means["tokens"])
        rate[1:] = np.divide(tokens, seconds, out=rate[1:], where=seconds > 0)
    return {key: _short(column) for key, column in {**means, "rate": rate}.items()}


def _short(values: Iterable[float], digits: int = 6) -> list[float | None]:
    """Numbers for JSON, which has none that are not finite, of few digits."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values]


def read_samples(path: Path, most: int = SAMPLES) -> list[dict[str, Any]]:
    """The samples of a run, as {"step", "text"}, oldest first; none where there is no file."""
    try:
        with open_ordinary(path) as file:
            text = file.read(MAX_SAMPLES).decode("utf-8", "replace")
    except OSError:
        return []
    parts = re.split(r"^=== step (\d{1,15}) ===\n", text, flags=re.MULTILINE)[1:]
    samples = [
        {"step": int(step), "text": body.strip("\n")}
        for step, body in zip(parts[::2], parts[1::2], strict=True)
    ]
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int))
    return [samples[i] for i in chosen]


# ----------------------------------------------------------------------------------- the model


def weights(saved: Saved, dtype: str) -> dict[str, Any]:
    """The tensors as base64 of little-endian numbers: of float32, float16, or int8.

    As int8 a matrix has a scale for each row, the largest of its numbers over 127; vectors, which
    are few, stay float32. A pseudo-inverse head is written as the matrix that it is, for the page
    has no factorisation.
    """
    tensors, scales = {}, {}
    for name, a in page_arrays(saved).items():
        kind = _kind(a, dtype)
        if kind == "int8":
            scale = row_scales(a)
            scales[name] = _base64(scale, "float32")
            a = np.rint(a / scale)
        tensors[name] = [kind, _base64(a, kind)]
    return {"dtype": dtype, "tensors": tensors, "scales": scales}


def page_arrays(saved: Saved) -> dict[str, Array]:
    """The arrays that the page's model takes."""
    arrays = dict(saved.params)
    if saved.config.head == "pinv":
        with mt.no_grad():
            arrays["head.weight"] = mt.pinv(mt.Tensor(arrays["embedding.weight"])).T.numpy()
    return arrays


def row_scales(a: Array) -> Array:
    """What the numbers of each row of a matrix (N, M) are counted in as int8, (N, 1)."""
    most = np.abs(a).max(axis=1, keepdims=True)
    return np.where(most > 0, most / 127, 1).astype(np.float32)


def _kind(a: Array, dtype: str) -> str:
    return "float32" if dtype == "int8" and a.ndim < 2 else dtype


def _base64(a: Array, dtype: str) -> str:
    kind = np.dtype(dtype).newbyteorder("<")
    return base64.b64encode(np.ascontiguousarray(a, kind).tobytes()).decode()


def rounded(a: Array, dtype: str) -> Array:
    """`a` as it comes out of `weights`."""
    kind = _kind(a, dtype)
    if kind == "int8":
        scale = row_scales(a)
        return np.asarray(np.rint(a / scale) * scale, a.dtype)
    return a.astype(kind).astype(a.dtype)


def weights_size(saved: Saved, dtype: str) -> int:
    """Characters that `weights` takes in the page, within a percent or so."""
    c = saved.config
    matrices, vectors = count(c)
    if c.head == "pinv":
        matrices += c.vocab_size * c.d_model
    size = np.dtype(dtype).itemsize
    return (matrices * size + vectors * max(size, 4)) * 4 // 3


def too_large(saved: Saved, dtype: str) -> str:
    """The name of a tensor with a number that `dtype` has no place for; "" if there is none."""
    if dtype != "float16":  # a row as int8 has its own scale
        return ""
    most = np.finfo(np.float16).max
    arrays = page_arrays(saved)
    return next((name for name, a in arrays.items() if np.abs(a).max() > most), "")


def rounding_error(saved: Saved, dtype: str, ids: list[int]) -> float:
    """The largest difference that `weights` in `dtype` make to a logit on `ids`.

    Raises Error where logits are not finite: the page would draw nothing.
    """
    arrays = {name: rounded(a, dtype) for name, a in page_arrays(saved).items()}
    exact, other, tokens = saved.model(), GPT(saved.config), np.array([ids])
    head = arrays.get("head.weight", arrays["embedding.weight"])
    other.load_state_dict({name: arrays[name] for name in saved.params})
    other.eval()
    with mt.no_grad(), np.errstate(over="ignore", invalid="ignore"):
        difference = exact(tokens).numpy() - other(tokens, head=mt.Tensor(head)).numpy()
    error = float(np.abs(difference).max())
    if not math.isfinite(error):
        raise Error("the model gives logits that are not finite; --weights none leaves it out")
    return error


def pictures(saved: Saved) -> dict[str, list[Any]]:
    """Of every tensor at most 64 by 64 numbers, evenly chosen, as int8 of the largest of them, to
    draw where the weights are not in the page."""
    found = {}
    for name, a in saved.params.items():
        a = np.atleast_2d(a)
        rows, columns = (np.linspace(0, n - 1, min(n, 64)).round().astype(int) for n in a.shape)
        chosen = a[np.ix_(rows, columns)]
        scaled = np.rint(chosen * (127 / max(float(np.abs(chosen).max()), 1e-30)))
        found[name] = [len(rows), len(columns), _base64(scaled, "int8")]
    return found


def start(saved: Saved) -> dict[str, Array]:
    """The weights with which the model began to learn; none for one that was not trained here."""
    if not {"recipe", "seed", "step"} <= saved.provenance.keys():
        return {}
    c = saved.config.replace(seed=saved.provenance["seed"])
    return {name: p.data for name, p in GPT(c).named_parameters()}


@np.errstate(over="ignore", invalid="ignore")  # where weights near a float's limit are squared
def tensors(saved: Saved) -> str:
    """A table of all tensors, with their histograms and the singular values of the matrices."""
    rows, first = [], start(saved)
    for name, a in saved.params.items():
        wide = a.astype(np.float64)
        low, high = np.percentile(wide, [0.1, 99.9])
        places = (np.clip(wide, low, high) - low) / (high - low) if high > low else wide * 0 + 0.5
        counts, _ = np.histogram(places, BINS, range=(0, 1))
        figures = [f"{v:.4g}" for v in (wide.mean(), wide.std(), np.linalg.norm(wide))]
        cells = [name, " × ".join(map(str, a.shape)), Markup(CANVAS), *figures]
        cells.append(Markup(bars(counts, low, high)))
        values = singular_values(wide) if a.ndim == 2 else np.empty(0)
        cells.append(f"{values[0]:.4g}" if len(values) else "")
        cells.append(Markup(line(values)) if len(values) else "")
        cells.append(_moved(wide, first[name]) if first else "")
        rows.append(cells)
    head = (
        *("tensor", "shape", "picture", "mean", "deviation", "norm", "histogram", "largest σ"),
        *("all σ", "moved"),
    )
    return table("Tensors", head, rows)


def _moved(now: Array, first: Array) -> str:
    """How far a tensor is from its start, in lengths of that."""
    length = np.linalg.norm(first)
    return f"{np.linalg.norm(now - first) / length:.3g}" if length else ""


def bars(counts: Array, low: float, high: float) -> str:
    """A histogram as a small picture."""
    heights = counts / max(counts.max(), 1) * 20
    path = "".join(f"M{i},20v-{h:.1f}h1v{h:.1f}z" for i, h in enumerate(heights) if h)
    return picture(f"0 0 {len(counts)} 20", path, f"from {low:.3g} to {high:.3g}", "spark")


def line(values: Array) -> str:
    """Falling values as a small picture, from 0 up."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), 64)).astype(int))
    heights = 20 - values[chosen] / max(values[0], 1e-300) * 19
    places = chosen / max(len(values) - 1, 1) * 40
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
    said = f"{len(values)} values, from {values[0]:.3g} to {values[-1]:.3g}"
    return picture("0 0 40 20", path, said, "spark line")


def picture(box: str, path: str, said: str, kind: str) -> str:
    """One path as SVG, with the words that stand for it."""
    return (
        f'<svg class="{kind}" viewBox="{box}" preserveAspectRatio="none" role="img" '
        f'aria-label="{said}"><title>{said}</title><path d="{path}"/></svg>'
    )


def embedding_map(saved: Saved) -> dict[str, Any]:
    """The tokens in the plane of the embedding's two widest directions."""
    embedding = Embedding(saved.params["embedding.weight"], saved.tokenizer)
    ids = list(embedding.tokens)
    points, shares = principal_components(embedding.rows[ids])
    labels = [token_label(saved.tokenizer, id).replace(r"\$", "$") for id in ids]
    return {
        "ids": ids,
        "labels": labels,
        "points": [_short(column, 3) for column in points.T],
        "shares": _short(shares, 3),
    }


# ------------------------------------------------------------------- what is there without scripts


class Markup(str):
    """HTML that this program wrote; all else that comes into the page is escaped."""


def text_of(value: Any) -> str:
    """Anything as text that is safe in HTML."""
    if isinstance(value, Markup):
        return str(value)
    if isinstance(value, bool):
        value = "true" if value else "false"
    return html.escape(str(value))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; the first cell of a row is its heading."""
    top = "".join(f'<th scope="col">{text_of(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{text_of(first)}</th>'
        + "".join(f"<td>{text_of(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text_of(caption)}">'
        f"<table><caption>{text_of(caption)}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def settings(c: Config) -> str:
    """The configuration as a table, beside the recipe of its name where it differs from that."""
    recipe, rows = recipes.RECIPES.get(c.name), [(k, plain(v)) for k, v in c.to_dict().items()]
    if recipe is None:
        return table("Settings (no recipe has this name)", ("setting", "value"), rows)
    usual = recipe.to_dict()
    changed = [
        (key, plain(value), plain(usual[key]))
        for key, value in c.to_dict().items()
        if value != usual[key]
    ]
    differs = (
        table(f"What differs from the recipe {c.name}", ("setting", "here", "recipe"), changed)
        if changed
        else f"<p>All settings are those of the recipe {text_of(c.name)}.</p>"
    )
    everything = table("Settings", ("setting", "value"), rows)
    return f"{differs}<details><summary>All settings</summary>{everything}</details>"


def differences(runs: Sequence[Run]) -> str:
    """The settings in which several runs differ, as a table."""
    given = [run.config.to_dict() for run in runs if run.config]
    names = [run.name for run in runs if run.config]
    rows = [
        (key, *(plain(values[key]) for values in given))
        for key in given[0]
        if len({str(values[key]) for values in given}) > 1
    ]
    if not rows:
        return "<p>The runs have the same settings.</p>"
    return table("Settings that differ between the runs", ("setting", *names), rows)


def parameters(c: Config) -> str:
    """Parameters by component, as a table."""
    total = sum(count(c))
    rows = [(name, f"{n:,}", f"{n / total:.1%}") for name, n in components(c)]
    return table(
        "Parameters", ("component", "parameters", "share"), [*rows, ("all", f"{total:,}", "100%")]
    )


def origin(run: Run | None, saved: Saved | None) -> str:
    """Where the weights come from, and how far the run went."""
    rows: list[tuple[str, str]] = []
    if saved:
        for key, value in saved.provenance.items():
            inside = value.items() if isinstance(value, dict) else [("", value)]
            rows += [(f"{key} {name}".strip().replace("_", " "), str(v)) for name, v in inside]
    if run and run.curves:
        rows.append(("time of training", duration(run.curves["seconds"][-1] or 0)))
        rows.append(("tokens seen", f"{run.curves['tokens'][-1] or 0:,.0f}"))
    if run and run.valid:
        rows.append(("last validation loss", f"{run.valid['valid_loss'][-1]:.4f} nats per token"))
    rows += [
        (f"{event['event']} at step {event['step']:,}", _event(event))
        for event in (run.events if run else [])
    ]
    return table("Where it comes from", ("what", "value"), rows) if rows else ""


def _event(event: dict[str, Any]) -> str:
    rest = {k: v for k, v in event.items() if k not in ("event", "step")}
    return ", ".join(f"{key} {value}" for key, value in rest.items())


def samples(run: Run | None) -> str:
    """All samples; the page's script shows one at a time."""
    return "".join(
        f'<figure class="sample"><figcaption>Step {sample["step"]:,}</figcaption>'
        f"<blockquote>{text_of(sample['text'])}</blockquote></figure>"
        for sample in (run.samples if run else [])
    )


# ------------------------------------------------------------------------------------ the page


def for_script(data: Any) -> str:
    """JSON that may stand in a script element: it has no "<", which could end that or open one."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def write(
    run: Run | None,
    saved: Saved | None,
    others: Sequence[Run] = (),
    prompt: str | None = None,
    dtype: str | None = None,
    limit: int = LIMIT,
    docs: str | None = None,
) -> str:
    """The page, as text. `dtype` is that of the weights, or "none"; if not given, the first of
    float16 and int8 for which there is room. `docs` is what a link to a page of the documentation
    begins with; without it, such a page is named."""
    missing = list(run.missing) if run else ["This is a model without a run: there are no curves."]
    data: dict[str, Any] = {"runs": [_columns(r) for r in (run, *others) if r]}
    c = saved.config if saved else run.config if run else None
    if saved:
        try:
            text = known(saved.tokenizer, PROMPT) if prompt is None else prompt
            ids = prompt_ids(saved.tokenizer, text)[-saved.config.context :]
        except ValueError as error:
            raise Error(f"--prompt: {error}") from error
        data |= {
            "config": saved.config.to_dict(),
            "tokenizer": saved.tokenizer.to_dict(),
            "prompt": text,
            "map": embedding_map(saved),
        }
        if run and len(run.token_counts) == saved.tokenizer.vocab_size:
            data["counts"] = run.token_counts
        if dtype == "none":
            missing.append("The weights were left out on request, so the model does not run here.")
        else:
            room = limit - len(for_script(data)) - 150_000  # for scripts and tables
            dtypes = [dtype] if dtype else ["float16", "int8"]
            fitting = next((d for d in dtypes if weights_size(saved, d) <= room), None)
            if fitting and (large := too_large(saved, fitting)):
                if dtype:
                    raise UsageError(
                        f"--weights: expected float32 or int8, got {dtype}: {large} holds numbers "
                        "above 65,504, the largest of float16"
                    )
                fitting = "int8"
            if fitting is None:
                missing.append(
                    f"The model's {sum(count(saved.config)):,} weights are left out: as "
                    f"{dtypes[-1]} they would make the page larger than {limit / 1e6:.3g} MB. What "
                    "needs them does not run here."
                )
            else:
                data["weights"] = weights(saved, fitting)
                exact = fitting == "float32"
                data["error"] = 0.0 if exact else rounding_error(saved, fitting, ids)
        if "weights" not in data:
            data["pictures"] = pictures(saved)
    else:
        missing.append("There is no model yet: the run was stopped before it saved one.")
    name = run.name if run else c.name if c else "model"
    parts = {
        "title": text_of(f"{name}: {c.name}" if c and c.name != name else name),
        "summary": text_of(_summary(c)),
        "missing": "".join(f"<li>{text_of(line)}</li>" for line in missing),
        "settings": settings(c) if c else "",
        "parameters": parameters(c) if c else "",
        "origin": origin(run, saved),
        "tensors": tensors(saved) if saved else "",
        "compare": differences([r for r in (run, *others) if r]) if others else "",
        "samples": samples(run),
        "version": text_of(__version__),
        "style": _part("page.css"),
        "scripts": "\n".join(f"<script>\n{_part(file)}</script>" for file in SCRIPTS),
        "data": for_script(data),
    }
    frame = re.sub(r"\[\[([^\]]+)\]\]", lambda match: _more(match[1], docs), _part("page.html"))
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], frame)


def _more(place: str, docs: str | None) -> str:
    """A link to a place of the documentation, such as ``page.md#attention``."""
    if docs is None:
        return f'<span class="more">More: docs/{place}</span>'
    return f'<a class="more" href="{text_of(docs + place)}">More: {place}</a>'


def docs_from(out: Path) -> str | None:
    """The way from the page `out` to the documentation, if both lie in one checkout: a page that
    lies elsewhere, and may be given to somebody, names no folder of this machine."""
    home = Path(__file__).resolve().parents[3]
    page = out.resolve()
    if not (home / "docs" / "page.md").is_file() or home not in page.parents:
        return None
    way = Path(os.path.relpath(home / "docs", page.parent)).as_posix()
    return "" if way == "." else f"{way}/"


def _columns(run: Run) -> dict[str, Any]:
    curves = {key: [None if v != v else v for v in c] for key, c in run.curves.items()}
    valid = {key: _short(column) for key, column in run.valid.items()}
    return {
        "name": run.name,
        "curves": curves,
        "valid": valid,
        "copying": run.copying,
        "events": run.events,
    }


def _summary(c: Config | None) -> str:
    if c is None:
        return "Nothing says what model this is."
    heads = f"{c.n_head} heads" + (f", {c.kv_heads} of keys and values" if c.n_kv_head else "")
    return (
        f"{sum(count(c)):,} parameters in {c.n_layer} layers of {heads}, width {c.d_model}, "
        f"context {c.context} tokens of {c.vocab_size:,}."
    )


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


# --------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tinygpt page``."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_OR_MODEL", help="a run's folder, or a model of any format")
    add("--prompt", metavar="TEXT", help="the text that stands there at first")
    add(
        "--compare",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="other runs, whose curves are drawn over this one's",
    )
    add(
        "-o",
        "--out",
        type=Path,
        default=Path("page.html"),
        metavar="FILE",
        help="the page, replaced if it is there (default: page.html)",
    )
    add(
        "--weights",
        choices=("float16", "int8", "float32", "none"),
        help="how the weights are written (default: float16, or int8 if they have no room else)",
    )
    add("--watch", action="store_true", help="write the page again as the run goes on")


def find(path: Path) -> tuple[Run | None, Saved | None]:
    """The run and the model at `path`, whichever of them there are. Raises Error for neither."""
    model = next((p for p in (path / "best.npz", path / "model.npz") if p.is_file()), None)
    if (path / "log.jsonl").is_file() or (model and (path / "config.json").is_file()):
        return read_run(path), checkpoint.load(model) if model else None
    return None, load_any(model or path)


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt page``: print the path of the page."""
    if args.out.is_dir():
        raise UsageError(f"--out: expected a file, such as page.html, got the folder {args.out}")
    if args.watch and not args.run.is_dir():
        raise UsageError(f"--watch: expected the folder of a run, got {args.run}")
    replaced = args.out.exists()
    while True:
        size = log_size(args.run)
        run, saved = find(args.run)
        others = list(map(read_run, args.compare))
        docs = docs_from(args.out)
        page = write(run, saved, others, args.prompt, args.weights, docs=docs)
        with replacing(args.out) as handle:
            handle.write(page.encode("utf-8", "replace"))
        print(args.out, flush=True)
        if replaced:
            tell(f"{args.out}: replaced the one that was there")
            replaced = False
        if not args.watch or (run and ended(run)):
            return 0
        while log_size(args.run) == size:
            time.sleep(PAUSE)


def log_size(path: Path) -> int | None:
    """Bytes of a run's log; None where there is none."""
    try:
        return (path / "log.jsonl").stat().st_size
    except OSError:
        return None


def ended(run: Run) -> bool:
    """Whether a run came to its end or was stopped, and no process went on with it."""
    return bool(run.events) and run.events[-1]["event"] in ("stop", "end")
