"""Pictures of a run or a model: ``tinygpt plot RUN`` (needs the extra ``plot``).

training_curves.png       loss of training and validation by step, and perplexity
attention_heatmaps/       each layer's heads on a prompt: how much a token looks at which other
weight_distributions/     histograms of each layer's matrices; spectral norms by layer
embedding_map.png         tokens in the plane of the two widest directions of their rows
temperatures.png          the next token's probabilities and a text at 0.3, 0.7, 1.0 and 1.5
"""

from __future__ import annotations

import argparse
import math
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bpe.terminal import counted
from tinygpt import Error
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.exchange import load_any
from tinygpt.inspection.probe import Embedding
from tinygpt.model.sample import prompt_ids
from tinygpt.progress import tell
from tinygpt.training.journal import read_records
from tinygpt.training.report import perplexity

Array = np.ndarray
PROMPT = "Once upon a time, there was a little girl named Lily. She loved to play with her dog."
UNSURE = "One day, Tom went to the"  # many words can follow, so the temperature matters
TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
LIKELIEST = 8  # tokens that have a bar of their own beside them
TOKENS = 24  # of the prompt, on the axes of an attention map
LABELS = 600  # tokens that are candidates for a label on the embedding map
TRAIN_KEYS = ("step", "loss", "lr", "grad_norm", "tokens", "seconds")
VALID_KEYS = ("step", "valid_loss", "valid_perplexity", "valid_bits_per_byte", "tokens", "seconds")
MATPLOTLIB = "pictures need matplotlib: 'pip install matplotlib', where tinygpt is installed"
BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#9aa0a6"


def figure(width: float, height: float) -> Any:
    """An empty figure of that many inches, drawn without a screen.

    Raises Error if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # saving it picks the Agg backend by itself
    except ImportError as error:
        raise Error(MATPLOTLIB) from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def save(picture: Any, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with no_glyph_warnings():
        picture.savefig(path)
    return path


@contextmanager
def no_glyph_warnings() -> Iterator[None]:
    """A token in a script that the font lacks is drawn as boxes; matplotlib need not warn of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def literal(text: str) -> str:
    """`text` as matplotlib shows it unchanged: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def tidy(axes: Any, title: str = "", x: str = "", y: str = "", grid: bool = True) -> Any:
    """Give axes their labels, a light grid, and no box; return them."""
    axes.set_title(literal(title), fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(alpha=0.25, linewidth=0.6)
    return axes


# ------------------------------------------------------------------------------------- the log


def read_log(run: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """The columns of a run's log.jsonl: those of its training lines, those of its validations.

    What was not finite is NaN. Lines that a power cut or another hand damaged are left out, with a
    warning on standard error. Raises Error for a missing log.
    """
    path = run / "log.jsonl"
    records, damaged = read_records(path)
    tables = []
    for keys in (TRAIN_KEYS, VALID_KEYS):
        rows = [r for r in records if keys[1] in r]
        whole = [r for r in rows if all(key in r and _is_number(r[key]) for key in keys)]
        damaged += [0] * (len(rows) - len(whole))
        columns = {key: np.array([r[key] for r in whole], float) for key in keys}
        tables.append(columns if whole else {})
    if damaged:
        where = f", the first of them line {min(filter(None, damaged))}" if any(damaged) else ""
        left_out = f"{'is' if len(damaged) == 1 else 'are'} left out"
        tell(f"{path}: {counted(len(damaged), 'line')} that cannot be read {left_out}{where}")
    return tables[0], tables[1]


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def perplexities(losses: Array) -> Array:
    """exp of each loss; NaN, which is not drawn, where that is beyond 1e100: an axis overflows."""
    return np.where(losses < 230, np.exp(np.fmin(losses, 230)), np.nan)


def smooth(values: Array, width: int) -> Array:
    """The mean of each value and those around it, `width` in all and fewer at the ends."""
    half = min(width, len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def training_curves(run: Path, name: str, out: Path) -> Path:
    """Training loss, raw and smoothed, with the validation loss; beside it the perplexity."""
    train, valid = read_log(run)
    if not train:
        raise Error(f"{run / 'log.jsonl'}: no step is logged yet; there is nothing to draw")
    picture = figure(12, 4.8)
    left, right = picture.subplots(1, 2)
    tidy(left, f"{name}: loss", "step", "nats per token")
    left.plot(train["step"], train["loss"], color=BLUE, alpha=0.25, linewidth=0.8)
    width = max(len(train["loss"]) // 50, 1)
    left.plot(train["step"], smooth(train["loss"], width), color=BLUE, label="training")
    final = f", at last {perplexity(valid['valid_loss'][-1]):.4g}" if valid else ""
    tidy(right, f"{name}: validation perplexity{final}", "step", "perplexity")
    if valid:
        dots = {"color": ORANGE, "marker": "o", "markersize": 3.5}
        left.plot(valid["step"], valid["valid_loss"], label="validation", **dots)
        right.plot(valid["step"], perplexities(valid["valid_loss"]), **dots)
        plain_log(right)
    if np.nanmax(train["loss"]) > 4 * np.nanmin(train["loss"]) > 0:
        plain_log(left)  # or the fall of the first steps leaves no room for the rest
    left.legend(frameon=False)
    return save(picture, out / "training_curves.png")


def plain_log(axes: Any) -> None:
    """A logarithmic y axis with a few plain numbers: 5, 10, 20 and not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if 1 <= value < 1e7 else f"{value:.4g}")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


# ---------------------------------------------------------------------------- what is inside


def token_label(tokenizer: Any, id: int) -> str:
    """A token as it is shown: a space as an open box, bytes that are no character as numbers."""
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    data = names[id].encode() if id in names else tokenizer.token_bytes(id)
    text = data.decode("utf-8", "replace").replace(" ", "␣").replace("\n", "↵").replace("\t", "→")
    return literal(text if text.isprintable() and "\ufffd" not in text else f"0x{data.hex()}")


def known(tokenizer: Any, text: str) -> str:
    """`text` without the characters that the tokenizer lacks; if none is left, its first tokens."""

    def has(text: str) -> bool:
        try:
            return bool(tokenizer.encode(text))
        except ValueError:
            return False

    rest = text if has(text) else "".join(filter(has, text))
    return rest or tokenizer.decode(list(range(min(TOKENS, tokenizer.vocab_size))))


def attention_heatmaps(model: Any, tokenizer: Any, prompt: str, out: Path) -> list[Path]:
    """One picture a layer with a map a head: row by row, where each token looks.

    The weights are the model's own (`GPT.attention_maps`), after the softmax: every row adds up to
    one. What a token cannot see, above the diagonal or left of a local window, is grey.
    """
    ids = prompt_ids(tokenizer, prompt)[: min(TOKENS, model.config.context)]
    maps = model.attention_maps(np.array([ids]))[:, 0]  # (L, H, T, T)
    labels = [token_label(tokenizer, id) for id in ids]
    turn = 90 if max(map(len, labels)) > 3 else 0  # characters stay upright
    heads, length = maps.shape[1:3]
    columns = min(4, heads)
    rows = math.ceil(heads / columns)
    side = max(2.2, 0.125 * length)
    paths = []
    for layer, weights in enumerate(maps):
        picture = figure(side * columns + 1.8, side * rows + 1.5)
        picture.set_layout_engine("compressed")  # no gaps between squares
        window = model.config.window(layer)
        reach = f"the last {window} tokens" if window else "itself and all before it"
        picture.suptitle(f"Layer {layer}: attention of a token (row) to {reach} (columns)")
        grid = picture.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[heads:]:
            axes.set_visible(False)
        for head, axes in enumerate(grid.flat[:heads]):
            hidden = np.ma.masked_where(unseen(length, window), weights[head])
            # The square root shows weak attention too; the colour bar has the true numbers.
            image = axes.imshow(hidden, cmap="viridis", norm=_root_norm(), interpolation="nearest")
            axes.set_title(f"head {head}", fontsize=10)
            axes.set_facecolor("#d5d5d5")
            axes.set_xticks(range(length), labels, rotation=turn, fontsize=7.5)
            axes.set_yticks(range(length), labels, fontsize=7.5)
            axes.tick_params(length=0, labelbottom=head + columns >= heads)
        picture.colorbar(image, ax=grid, shrink=0.6, ticks=[0, 0.05, 0.2, 0.5, 1])
        paths.append(save(picture, out / "attention_heatmaps" / f"layer_{layer}.png"))
    return paths


def unseen(length: int, window: int) -> Array:
    """Which keys (columns) a query (row) does not see: those after it, and, in a local layer, those
    before the last `window`; (T, T)."""
    ahead = np.arange(length) - np.arange(length)[:, None]  # column - row
    return np.asarray((ahead > 0) | ((ahead <= -window) if window else False))


def _root_norm() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def matrices(saved: Saved) -> dict[str, dict[str, Array]]:
    """A model's matrices by group: ``model`` for what stands outside the layers, ``layer_I``.

    The packed projection of queries, keys and values is taken apart.
    """
    c = saved.config
    groups: dict[str, dict[str, Array]] = {}
    for name, weight in saved.params.items():
        if weight.ndim < 2:
            continue
        group, short = "model", name.removesuffix(".weight")
        if name.startswith("blocks."):
            _, layer, short = short.split(".", 2)
            group = f"layer_{layer}"
        parts = {short: weight}
        if short == "attn.qkv":
            names = ("attn.query", "attn.key", "attn.value")
            parts = dict(zip(names, np.split(weight, c.qkv_cuts), strict=True))
        groups.setdefault(group, {}).update(parts)
    return groups


def singular_values(matrix: Array) -> Array:
    """Of a matrix, the largest first: roots of the eigenvalues of the smaller of W Wᵀ and Wᵀ W."""
    wide = matrix.astype(np.float64)
    size = float(np.abs(wide).max()) or 1.0  # its square may be beyond what a float holds
    wide /= size
    gram = wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide
    return size * np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def weight_distributions(saved: Saved, out: Path) -> list[Path]:
    """Histograms of every matrix, a picture a layer, and all spectral norms over the layers."""
    folder, paths, norms = out / "weight_distributions", [], dict[str, list[float]]()
    for group, weights in matrices(saved).items():
        columns = min(len(weights), 4)
        rows = math.ceil(len(weights) / columns)
        picture = figure(max(3.4 * columns, 6), 2.9 * rows + 0.5)
        picture.suptitle(f"{saved.config.name}, {group.replace('_', ' ')}: values of the weights")
        grid = picture.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(weights) :]:
            axes.set_visible(False)
        for axes, (name, weight) in zip(grid.flat, weights.items(), strict=False):
            norm = float(singular_values(weight)[0])  # how much it can stretch a vector
            if group != "model":
                norms.setdefault(name, []).append(norm)
            tidy(axes, f"{name}  {weight.shape[0]:,} × {weight.shape[1]:,}")
            axes.set_title(axes.get_title(), fontsize=10)
            wide = weight.astype(np.float64)
            low, high = np.percentile(wide, [0.05, 99.95])
            margin = 0 if low < high else abs(low) / 2 or 1  # all numbers are the same
            axes.hist(wide.ravel(), bins=80, range=(low - margin, high + margin), color=BLUE)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.locator_params(axis="x", nbins=5)
            figures = f"std {wide.std():.3g}\nspectral\nnorm {norm:.3g}"
            axes.text(
                0.98, 0.97, figures, fontsize=8.5, ha="right", va="top", transform=axes.transAxes
            )
        paths.append(save(picture, folder / f"{group}.png"))
    picture = figure(8, 4.8)
    axes = tidy(
        picture.subplots(),
        f"{saved.config.name}: spectral norm of each matrix by layer",
        "layer",
        "largest singular value",
    )
    for (name, values), marker in zip(norms.items(), "osD^v<>P", strict=False):
        axes.plot(values, marker=marker, label=name)
    axes.set_xticks(range(saved.config.n_layer))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return [*paths, save(picture, folder / "spectral_norms.png")]


def principal_components(rows: Array, count: int = 2) -> tuple[Array, Array]:
    """The coordinates (V, count) of `rows` (V, D) along their widest directions; variance shares.

    The directions are the eigenvectors of the covariance with the largest eigenvalues, each
    turned so that its largest entry is positive: the picture does not depend on the machine.
    """
    size = float(np.abs(rows).max()) or 1.0  # its square may be beyond what a float holds
    centred = rows / size - (rows / size).mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :count]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(count)])
    return centred @ axes * size, values[::-1][:count] / max(values.sum(), 1e-300)


def embedding_map(saved: Saved, out: Path) -> Path:
    """All tokens as dots in the plane of the first two principal components, many of them named.

    Names come in the order of ids, which is that of learning, words before parts of words; one
    that would cover another is left out.
    """
    embedding = Embedding.of(saved)
    ids = list(embedding.tokens)
    points, shares = principal_components(embedding.rows[ids])
    picture = figure(11, 9)
    axes = tidy(
        picture.subplots(),
        f"{saved.config.name}: token embeddings, principal components",
        f"first component ({shares[0]:.1%} of the variance)",
        f"second component ({shares[1]:.1%})",
    )
    axes.plot(*points.T, ".", color=GREY, markersize=3, alpha=0.5)
    labels = [token_label(saved.tokenizer, id) for id in ids]
    order = [n for n, label in enumerate(labels) if not label.startswith("0x")]
    order.sort(key=lambda n: not _is_word(labels[n]))
    picture.draw_without_rendering()  # settles the layout, so that places in pixels are known
    taken: list[Any] = []
    for n in order[:LABELS]:
        name = labels[n][1:] if _is_word(labels[n]) else labels[n]
        text = axes.annotate(
            name,
            points[n],
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=BLUE,
        )
        with no_glyph_warnings():
            box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
            axes.plot(*points[n], ".", color=BLUE, markersize=4)
    return save(picture, out / "embedding_map.png")


def _is_word(label: str) -> bool:
    return label.startswith("␣") and len(label) > 3 and label[1:].isalpha()


# ------------------------------------------------------------------------------- temperatures


def opening(prompt: str, words: int = 7) -> str:
    """The first words of a prompt, as they stand there."""
    found = re.match(rf"\s*(\S+\s+){{0,{words - 1}}}\S*", prompt)
    return found[0] if found else prompt


def temperatures(model: Any, tokenizer: Any, prompt: str, out: Path, seed: int = 0) -> Path:
    """A page with a row a temperature: probabilities of the next token, and a text.

    Dividing the logits by a temperature below one makes likely tokens likelier, above one it
    evens them out, and all the tokens that have no bar of their own gain. All texts are drawn with
    the same seed.
    """
    from tinygpt.model.sample import sample_text

    texts = [  # first: what gives no finite logits is told here
        sample_text(model, tokenizer, prompt=prompt, max_new_tokens=240, temperature=t, seed=seed)
        for t in TEMPERATURES
    ]
    ids = prompt_ids(tokenizer, prompt)[: model.config.context]
    logits = model(np.array([ids])).data[0, -1].astype(np.float64)
    order = np.argsort(-logits, kind="stable")
    labels = [token_label(tokenizer, int(id)) for id in order[:LIKELIEST]]
    scaled = np.exp(np.outer(1 / np.array(TEMPERATURES), logits[order] - logits.max()))
    shares = scaled / scaled.sum(axis=1, keepdims=True)  # (temperatures, V)
    rest = shares[:, LIKELIEST:].sum(axis=1, keepdims=True)
    shares = np.concatenate([shares[:, :LIKELIEST], rest], axis=1)
    picture = figure(12, 10)
    picture.suptitle(f"What follows {literal(prompt)!r} at four temperatures")
    grid = picture.subplots(len(TEMPERATURES), 2, width_ratios=(1, 3))
    for (bars, page), temperature, p, text in zip(grid, TEMPERATURES, shares, texts, strict=True):
        tidy(bars, f"temperature {temperature}", grid=False)
        drawn = bars.barh(range(len(p)), p, color=[BLUE] * len(labels) + [GREY])
        bars.bar_label(drawn, [f"{share:.1%}" for share in p], padding=3, fontsize=8)
        bars.set_yticks(range(len(p)), [*labels, "all others"])
        bars.invert_yaxis()
        bars.set_xlim(0, 1.15 * shares.max())
        bars.xaxis.set_visible(False)
        bars.spines["bottom"].set_visible(False)
        page.axis("off")
        lines = [line for part in text.splitlines() for line in textwrap.wrap(part, 95) or [""]]
        page.text(
            0,
            1,
            literal("\n".join(lines[:11])),
            va="top",
            fontsize=10,
            linespacing=1.3,
            transform=page.transAxes,
            in_layout=False,
        )
    return save(picture, out / "temperatures.png")


# ---------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tinygpt plot``."""
    add = parser.add_argument
    add("run", type=Path, help="a run folder, such as runs/quick, or a model file")
    add(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="where the pictures go, in place of those of the same names (default: RUN/plots, or "
        "plots beside the file)",
    )
    add("--model", type=Path, help="the model to look into (default: RUN/best.npz, or model.npz)")
    add("--prompt", help="the text on which attention is shown (default: a story's beginning)")


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt plot``: print the path of each picture."""
    run = args.run if args.run.is_dir() else args.run.parent
    out = args.out or run / "plots"
    logged = (run / "log.jsonl").is_file()
    best = run / "best.npz"
    path = args.model or (best if args.run.is_dir() and best.is_file() else args.run)
    curves_only = logged and path == run and not (run / "model.npz").is_file()
    saved = None if curves_only else load_any(path)
    if any(out.glob("*.png")):
        tell(f"{out}: the pictures that are there are replaced")
    if saved is None:
        print(training_curves(run, run.name, out))
        tell("no model.npz in the run yet: curves only")
        return 0
    if logged:
        print(training_curves(run, saved.config.name, out))
    else:
        tell("no log.jsonl beside the model: no curves")
    model = saved.model()
    prompt = known(saved.tokenizer, PROMPT) if args.prompt is None else args.prompt
    unsure = known(saved.tokenizer, UNSURE) if args.prompt is None else opening(args.prompt)
    try:
        saved.tokenizer.encode(prompt)
    except ValueError as error:
        raise Error(f"--prompt: {error}") from error
    for picture in attention_heatmaps(model, saved.tokenizer, prompt, out):
        print(picture)
    for picture in weight_distributions(saved, out):
        print(picture)
    print(embedding_map(saved, out))
    print(temperatures(model, saved.tokenizer, unsure, out))
    return 0
