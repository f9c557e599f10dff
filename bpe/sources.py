"""Where training text comes from: files, or texts in any iterable."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpe.errors import TokenizerError, UsageError
from bpe.files import BLOCK, read_blocks
from bpe.patterns import segments
from bpe.untrusted import shown

Source = str | os.PathLike[str] | Iterable["str | os.PathLike[str]"]


def documents(
    source: Source,
    specials: Iterable[str],
    last_cut: Callable[[str, int], int],
    *,
    progress: bool = False,
) -> Iterator[str]:
    """The texts of `source`, divided at `specials`, with files read in blocks.

    Long texts come in several parts where `last_cut` (see `Splitter.last_cut`) has a place.
    """
    specials = list(specials)
    items = source_items(source)
    paths = [i for i in items if isinstance(i, Path)] if isinstance(items, list | tuple) else []
    total = sum(os.path.getsize(path) for path in paths if path.is_file())
    with bar(progress, total or None, "reading", unit="B", unit_scale=True) as advance:
        for item in items:
            if not isinstance(item, str | os.PathLike):
                raise TokenizerError(f"source: expected texts or Paths, got {type(item).__name__}")
            parts = [item] if isinstance(item, str) else read_blocks(Path(item), advance)
            for text, is_special in segments(parts, specials, last_cut, block=BLOCK):
                if not is_special:
                    yield text


def source_items(source: Source) -> Iterable[str | os.PathLike[str]]:
    """`source` as an iterable of texts (`str`) and files (`Path`)."""
    if isinstance(source, str) and (len(source) > 1000 or {"\n", "\0"} & set(source)):
        raise TokenizerError("source: a string names a file; to train on a text, pass it in a list")
    if isinstance(source, str | os.PathLike):
        return [Path(source)]
    if isinstance(source, bytes | Mapping) or not isinstance(source, Iterable):
        raise TokenizerError(f"source: expected files or texts, got {type(source).__name__}")
    if isinstance(source, list | tuple) and source and all(map(_names_a_file, source)):
        raise TokenizerError(  # it would train a tokenizer on the names
            f"source: {source[0]!r} is a file, and strings in a list are texts: "
            "pass Path objects to train on files"
        )
    return source


def check_counts(counts: Counter[Any], kind: type) -> Counter[Any]:
    """The same counts; TokenizerError unless what they count is of this kind."""
    for part in counts:
        if not isinstance(part, kind):
            raise TokenizerError(
                f"source: expected a Counter of {kind.__name__}, but it counts {shown(part)}"
            )
    return counts


def _names_a_file(text: Any) -> bool:
    return isinstance(text, str) and len(text) < 256 and "\0" not in text and os.path.isfile(text)


def check_specials(special_tokens: Iterable[str]) -> list[str]:
    """`special_tokens` as a list of distinct, non-empty strings."""
    names = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
    for name in names:
        if not isinstance(name, str) or not name:
            raise UsageError(f"special_tokens: expected non-empty strings, got {name!r}")
        if names.count(name) > 1:
            raise UsageError(f"special_tokens: {name!r} is given twice")
    return names


def batches(texts: Iterable[str], size: int = 1 << 22) -> Iterator[list[str]]:
    """`texts` in lists of about `size` characters."""
    batch: list[str] = []
    filled = 0
    for text in texts:
        batch.append(text)
        filled += len(text)
        if filled >= size:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


@contextmanager
def bar(show: bool, total: int | None, title: str, **options: Any) -> Iterator[Callable]:
    """A progress bar on standard error, as a function that advances it."""
    if not show:
        yield lambda step: None
        return
    from tqdm import tqdm  # only here: importing it takes longer than importing bpe

    with tqdm(total=total, desc=title, **options) as progress:
        yield progress.update
