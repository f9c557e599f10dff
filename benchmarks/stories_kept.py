"""Whether the stories that a model writes keep their thread: hero, friend, things and places.

    python benchmarks/stories_kept.py runs/quick      # 1,000 stories at a temperature of 0.8

A story keeps its names if none comes but the first, the hero's, and one of the other gender, the
friend's, and if it is the hero who learns something at the end. It keeps its things, or its place,
if of all that a table of its plot offers (a ball, a kite, a drum, …) no two are told. Its plot is
the one that shares most runs of three words with it, of those that no other plot has.

The check is checked first: every story of the generator's own keeps everything, and none does in
which one later name, thing or place is put in another's stead.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tinygpt.data import stories
from tinygpt.formats.exchange import load_any
from tinygpt.inspection.names import NAMES
from tinygpt.model.sample import generate_many, prompt_ids

THINGS = ("thing", "prize", "foods", "item", "plant", "skill", "fancy", "old")
PLACES = ("place", "where", "landmark")
HOME = re.compile("near the woods|by the river|on a hill|near the sea|next to a farm")
LEARNS = re.compile(rf"{NAMES.pattern} (?:learned that|knew that|never forgot that)")
CHECKS = ("names", "things", "places")
CONTROL = 2000  # stories by which the check is checked
TOGETHER = 100  # stories that are written at a time
LONGEST = 400  # tokens of a story


def runs(text: str) -> set[tuple[str, ...]]:
    """The runs of three words in a text."""
    words = re.findall(r"[a-z']+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def literals(text: stories.Text) -> Iterator[str]:
    """What a plot's text says in all of its ways, between its slots."""
    for node in text:
        if isinstance(node, str):
            yield from re.split(r"\{\w+\}", node)
        else:
            for option in node.options:
                yield from literals(option)


@cache
def own_runs() -> dict[str, set[tuple[str, ...]]]:
    """For each plot the runs of words that it alone has."""
    every = {
        name: set().union(*map(runs, literals(plot.text))) for name, plot in stories.PLOTS.items()
    }
    plots = Counter(run for known in every.values() for run in known)
    return {name: {run for run in known if plots[run] == 1} for name, known in every.items()}


def plot_of(text: str) -> str:
    """The plot that a story most likely follows."""
    mine = runs(text)
    return max(own_runs(), key=lambda name: len(own_runs()[name] & mine))


@cache
def offered(plot: str, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """For each slot of these that a plot has, what its last table offers for it."""
    cells = {
        key: [row[i] for row in rows]
        for slots, rows in stories.PLOTS[plot].tables
        for i, key in enumerate(slots)
        if key in keys
    }
    return [
        tuple(dict.fromkeys(str(cell[0]) for cell in column if "{" not in str(cell[0])))
        for column in cells.values()
    ]


def told(words: tuple[str, ...], text: str) -> list[re.Match[str]]:
    """Where a text tells any of these words."""
    return list(re.finditer(rf"\b({'|'.join(words)})\b", text))


def names_kept(text: str) -> bool:
    """Whether a story has one hero, at most one friend, and the hero learns."""
    told = list(dict.fromkeys(NAMES.findall(text)))
    girls = [name in stories.GIRLS for name in told]
    learns = LEARNS.search(text)
    return (
        0 < len(told) <= 2
        and len(set(girls)) == len(told)
        and (learns is None or learns.group(1) == told[0])
    )


def kept(text: str) -> dict[str, bool]:
    """For each of CHECKS, whether a story keeps to it."""

    def one_each(keys: tuple[str, ...], text: str) -> bool:
        return all(
            len({m.group() for m in told(words, text)}) <= 1 for words in offered(plot, keys)
        )

    plot = plot_of(text)
    return {
        "names": names_kept(text),
        "things": one_each(THINGS, text),
        "places": one_each(PLACES, HOME.sub("at home", text)),
    }


def spoiled(text: str, check: str) -> str | None:
    """A story with the last name, thing or place that it tells twice put in another's stead."""
    lists = {
        "names": [stories.BOYS + stories.GIRLS],
        "things": offered(plot_of(text), THINGS),
        "places": offered(plot_of(text), PLACES),
    }
    text = HOME.sub("at home", text)
    for words in lists[check]:
        *before, last = told(words, text) or [None]
        if last and last.group() in {m.group() for m in before}:
            known = {m.group() for m in (*before, last)}
            other = next(word for word in words if word not in known)
            return text[: last.start()] + other + text[last.end() :]
    return None


def written(model: Path, count: int, temperature: float, seed: int) -> Iterator[str]:
    """Stories of a model, each from the empty prompt."""
    saved = load_any(model)
    tokenizer = saved.tokenizer
    prompt = prompt_ids(tokenizer, "")
    for part in range(0, count, TOGETHER):
        number = min(TOGETHER, count - part)
        texts: list[list[int]] = [[] for _ in range(number)]
        for i, token in generate_many(
            saved,
            [prompt] * number,
            max_new_tokens=LONGEST,
            temperature=temperature,
            seed=seed + part,
            stop=(tokenizer.separator_id,),
            vocab_size=tokenizer.vocab_size,
        ):
            if token is not None:
                texts[i].append(token)
        yield from map(tokenizer.decode, texts)


def check_the_check() -> None:
    """Exit unless true stories keep everything and spoiled ones do not."""
    spoils = 0
    for text in stories.corpus(CONTROL, seed=3, split="valid"):
        if not all(kept(text).values()):
            raise SystemExit(f"a true story is said to lose its thread: {kept(text)}\n{text}")
        for check in CHECKS:
            bad = spoiled(text, check)
            spoils += bad is not None
            if bad is not None and kept(bad)[check]:
                raise SystemExit(f"a spoiled story is said to keep its {check}:\n{bad}")
    print(f"the check: {CONTROL:,} true stories keep all, {spoils:,} spoiled ones do not")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="+", help="run folders or model files")
    parser.add_argument("--count", type=int, default=1000, help="stories (1,000)")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print so many that keep not all")
    args = parser.parse_args()
    check_the_check()
    print(f"{'model':30}" + "".join(f"{c:>9}" for c in (*CHECKS, "all")))
    for model in args.model:
        texts = list(written(model, args.count, args.temperature, args.seed))
        results = [kept(text) for text in texts]
        shares = [sum(r[c] for r in results) / len(results) for c in CHECKS]
        shares.append(sum(all(r.values()) for r in results) / len(results))
        print(f"{model!s:30}" + "".join(f"{share:9.1%}" for share in shares), flush=True)
        lost = [(r, t) for r, t in zip(results, texts, strict=True) if not all(r.values())]
        for result, text in lost[: args.show]:
            print(f"\n{result}\n{text}")


if __name__ == "__main__":
    main()
