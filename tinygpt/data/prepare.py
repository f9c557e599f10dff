"""Turn text into token files: ``tinygpt data prepare SOURCE... --out FOLDER``.

The folder gets ``train.npy`` and ``valid.npy``, one flat array of ids each that
`numpy.load(..., mmap_mode="r")` opens without reading it, ``tokenizer.json`` and ``meta.json``.

What sources are and how they are divided is in corpus.py. Worker processes count and encode one
piece of them at a time. Each finished piece is a file of its own, so a killed run goes on where it
was. Under ``mpiexec`` the ranks are the workers: each reads the sources, rank 0 alone writes.

With ``--split last`` the tokens are those of ``tinygpt train --data TEXT``, and ``--recipe NAME``
takes all that decides them from a recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bpe
from bpe import Tokenizer
from bpe.terminal import counted
from bpe.untrusted import MAX_JSON, parse_json
from bpe.workers import imap
from minitensor.files import sweep, sync_folder
from tinygpt import Error, UsageError
from tinygpt.data import documents
from tinygpt.data.corpus import Corpus, Options, scan
from tinygpt.data.documents import RULES, SPLITS
from tinygpt.data.streams import FORMAT, NAME, read_meta
from tinygpt.files import alone, replacing, sha256_of
from tinygpt.machine import threads
from tinygpt.model.config import TOKENIZERS, Config
from tinygpt.progress import bar, tell

if TYPE_CHECKING:
    from tinygpt.ranks import World

LEARN = 1 << 27  # bytes of text that a BPE learns from

# What shares work out as `bpe.workers.imap` does, to processes or ranks.
Imap = Callable[[Callable[..., Callable[[Any], Any]], tuple, Iterable[Any]], Iterator[Any]]


# --------------------------------------------------------------------------------- the tokenizer


def _tokenizer(corpus: Corpus, imap: Imap) -> Tokenizer:
    """The tokenizer that the options name: read from its file, or trained on the corpus.

    Of a large corpus, a BPE learns from evenly spread pieces: the memory that it takes grows with
    the number of distinct words.
    """
    options = corpus.options
    total = sum(piece.end - piece.start for piece in corpus.pieces)
    if not total:
        raise Error("the sources are empty; there is nothing to prepare")

    def count(counter: Callable[[Iterable[str]], Counter], *splits: str) -> Counter:
        stride = -(-total // LEARN) if splits == ("train",) else 1
        numbers = range(0, len(corpus.pieces), stride)
        sums: Counter = Counter()
        with bar(len(numbers), "pieces", desc="reading for the tokenizer") as read:
            for counts in imap(_counting, (corpus.to_json(), counter, splits), numbers):
                if isinstance(counts, str):
                    raise Error(counts)
                sums.update(counts)
                read.update()
        return sums

    sizes = options.vocab_size, options.reduced_from
    return documents.make_tokenizer(options.tokenizer, *sizes, count, tell)


def _counting(plan: str, counter: Callable, splits: tuple[str, ...]) -> Callable[[int], Any]:
    """What a worker runs: a function that counts in the piece with a given number."""
    return partial(_count_in_piece, Corpus.from_json(plan), counter, splits)


def _count_in_piece(
    corpus: Corpus, counter: Callable, splits: tuple[str, ...], number: int
) -> Counter | str:
    """What `counter` counts in the texts of these splits, or what is wrong with them."""
    routed = corpus.routed(corpus.pieces[number], Counter())
    try:
        return counter(text for text, split, _ in routed if split in splits)
    except (Error, OSError) as error:  # as a value: a worker hands back no such exceptions
        return str(error)


# ------------------------------------------------------------------------------------- encoding


Encoded = tuple[dict[str, int], dict[str, bytes]]  # counts, and the tokens of each split


def _encoder(plan: str, tokenizer: Tokenizer) -> Callable[[int], Encoded | str]:
    """What a worker runs: a function that encodes the piece with a given number."""
    return partial(_encode_piece, Corpus.from_json(plan), tokenizer)


def _encode_piece(corpus: Corpus, tokenizer: Tokenizer, number: int) -> Encoded | str:
    """Encode one piece, or say what is wrong with it."""
    seen: Counter[str] = Counter()
    streams: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    try:
        for text, split, begins in corpus.routed(corpus.pieces[number], seen):
            streams[split].append(documents.encode(tokenizer, text, begins))
    except (Error, OSError) as error:  # as a value: a worker hands back no such exceptions
        return str(error)
    for split, arrays in streams.items():
        seen[f"{split} tokens"] = sum(map(len, arrays))
    return dict(seen), {s: b"".join(a.tobytes() for a in arrays) for s, arrays in streams.items()}


def _keep(work: Path, number: int, encoded: Encoded) -> dict[str, int]:
    """Write an encoded piece into `work`; return its counts."""
    counts, streams = encoded
    for split, tokens in streams.items():
        with replacing(work / f"{number}.{split}") as file:
            file.write(tokens)
    with replacing(work / f"{number}.json") as file:  # last: it says that the others are whole
        file.write(json.dumps(counts).encode())
    return counts


_COUNTS = {f"{split} {kind}" for split in SPLITS for kind in ("documents", "tokens", "bytes")}


def _done(work: Path, number: int, dtype: np.dtype) -> dict[str, int] | None:
    """The counts of a piece that an earlier run encoded; None if it did not, or they are bad."""
    try:
        with (work / f"{number}.json").open("rb") as file:
            counts = parse_json(file.read(MAX_JSON + 1))
        for key, count in counts.items():
            if key not in _COUNTS | {"duplicates", "repaired"} or type(count) is not int:
                return None
        sizes = {split: (work / f"{number}.{split}").stat().st_size for split in SPLITS}
        fits = all(sizes[s] == counts[f"{s} tokens"] * dtype.itemsize for s in SPLITS)
        return counts if fits and min(counts.values()) >= 0 else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _merge(work: Path, out: Path, pieces: int, split: str, tokens: int, dtype: np.dtype) -> int:
    """Write the parts of a split, one after the other, as one array into a .npy file.

    Returns the checksum of the tokens, by which a reader knows that they are these.
    """
    crc = 0
    with replacing(out / f"{split}.npy") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(pieces):
            part = (work / f"{number}.{split}").read_bytes()
            crc = zlib.crc32(part, crc)
            file.write(part)
    return crc


# ---------------------------------------------------------------------------------- the command


def prepare(
    sources: list[Path],
    out: Path,
    *,
    valid: list[Path] | None = None,
    options: Options | None = None,
    processes: int = 1,
    world: World | None = None,
) -> dict[str, Any]:
    """Write the token files of `sources` into the folder `out` and return its meta.json.

    Args:
        sources: UTF-8 texts, JSON lines, folders of them.
        out: gets train.npy, valid.npy, tokenizer.json and, last of all, meta.json.
        valid: sources of the validation split; documents of it are dropped from the others.
        options: what else decides the result.
        processes: worker processes; the result does not depend on them.
        world: the ranks that do the work instead. All of them call with the same arguments; rank
            0 alone writes and returns something.

    A call that was killed is continued by the same call. One that has nothing left to do returns
    at once. Raises Error, or bpe.TokenizerError, in one line; also while another process works on
    the same folder.
    """
    options = options or Options()
    documents.check_tokenizer(options.tokenizer, options.vocab_size, options.reduced_from)
    if options.split not in RULES:
        raise UsageError(f"split: expected one of {', '.join(RULES)}, got {options.split!r}")
    if not 0 < options.valid_fraction < 1:
        raise UsageError(f"valid-fraction: {options.valid_fraction} is not between 0 and 1")
    if options.max_documents < 0:
        raise UsageError(f"max-documents: expected 0 (all) or more, got {options.max_documents}")
    corpus = scan(sources, valid or [], options)
    plan_id = _plan_id(corpus)
    if world:
        world.compare({"the sources (their SHA-256, as cut into pieces)": plan_id[:16]})
        if world.rank:
            world.serve()
            return {}
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, "preparing data"):
        sweep(out)
        meta = _prepare(
            corpus, plan_id, out, world.imap if world else partial(imap, processes=processes)
        )
    if world:
        world.dismiss()
    return meta


def _plan_id(corpus: Corpus) -> str:
    """SHA-256 of all that decides the result."""
    plan = corpus.to_json()
    if os.path.isfile(corpus.options.tokenizer):
        plan += sha256_of(Path(corpus.options.tokenizer))
    return hashlib.sha256(plan.encode()).hexdigest()


def _prepare(corpus: Corpus, plan_id: str, out: Path, imap: Imap) -> dict[str, Any]:
    meta_file, work = out / "meta.json", out / f".prepare-{plan_id[:16]}"
    before = _finished(meta_file) if meta_file.exists() else {}
    done = before.get("sha256") == plan_id
    for other in out.glob(".prepare-*"):  # of a call with other sources or options, or finished
        if done or other != work:
            shutil.rmtree(other)
    if done:
        return {**before, "resumed": len(corpus.pieces)}
    if meta_file.exists():
        meta_file.unlink()  # what it describes is about to be replaced
        sync_folder(out)
    work.mkdir(exist_ok=True)
    try:
        bpe.load(work / "tokenizer.json")
    except bpe.TokenizerError:  # not there, or damaged
        _tokenizer(corpus, imap).save(work / "tokenizer.json")
    meta = _encode(corpus, work, out, imap, plan_id)
    with replacing(meta_file) as file:
        file.write(json.dumps({k: v for k, v in meta.items() if k != "resumed"}, indent=1).encode())
    shutil.rmtree(work)
    return meta


def _finished(path: Path) -> dict[str, Any]:
    """The meta.json of a finished call; empty if it is none."""
    try:
        return read_meta(path)
    except (OSError, ValueError):
        return {}


def _encode(corpus: Corpus, work: Path, out: Path, imap: Imap, plan_id: str) -> dict[str, Any]:
    """Encode all pieces, join them, and return what meta.json is to hold."""
    total: Counter[str] = Counter()
    numbers = range(len(corpus.pieces))
    tokenizer = bpe.load(work / "tokenizer.json")
    dtype = documents.dtype_of(tokenizer)
    done = {n: counts for n in numbers if (counts := _done(work, n, dtype))}
    left = [n for n in numbers if n not in done]
    size = sum(p.end - p.start for p in corpus.pieces)
    with bar(size, "B", unit_scale=True, desc="encoding") as shown:
        results = imap(_encoder, (corpus.to_json(), tokenizer), left)
        for number, piece in enumerate(corpus.pieces):
            if number in done:
                total.update(done[number], resumed=1)
            elif isinstance(encoded := next(results), str):
                raise Error(encoded)
            else:
                total.update(_keep(work, number, encoded))
            shown.update(piece.end - piece.start)
    crc = {}
    for split in SPLITS:
        if not total[f"{split} tokens"]:
            raise Error(f"no text is left for {split}; give more documents, or another --valid")
        tokens = total[f"{split} tokens"]
        crc[split] = _merge(work, out, len(numbers), split, tokens, dtype)
    with replacing(out / "tokenizer.json") as file:
        file.write((work / "tokenizer.json").read_bytes())
    kinds = ("documents", "tokens", "bytes")
    splits = {
        split: {kind: total[f"{split} {kind}"] for kind in kinds} | {"crc32": crc[split]}
        for split in SPLITS
    }
    return {
        "format": NAME,
        "version": FORMAT,
        **splits,
        "duplicates": total["duplicates"],
        "repaired": total["repaired"],
        "resumed": total["resumed"],
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "source": ", ".join(f["path"] for f in corpus.files),
        "files": corpus.files,
        "options": asdict(corpus.options),
        "sha256": plan_id,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tinygpt data prepare``."""
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="text, JSON lines, or folder")
    add(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="folder for the token files; those of an earlier call are replaced",
    )
    add(
        "--valid",
        nargs="+",
        type=Path,
        default=[],
        metavar="SOURCE",
        help="validation text (default: a share of the sources)",
    )
    add("--recipe", help="tokenizer, validation share and --split last of a recipe, by default")
    add("--split", choices=RULES, help="for validation: by hash (default), or the last documents")
    add("--valid-fraction", type=float, help="their share (default: 0.05)")
    kinds = ", ".join(TOKENIZERS)
    add("--tokenizer", help=f"{kinds}, or a tokenizer's file (default: bpe)")
    add("--vocab-size", type=int, help="ids in all (default: 4096; of characters: all)")
    add("--reduced-from", type=int, help="of reduced: the size of the BPE it is taken from")
    add("--max-documents", type=int, help="only the first N documents")
    add("--field", help="JSON field that holds the text (default: text)")
    add(
        "--repair-mojibake",
        dest="repair",
        action="store_true",
        help="undo UTF-8 that was read as cp1252",
    )
    add(
        "--processes",
        type=int,
        help="worker processes of about 150 MB each (default: one a core, at most 4; under "
        "mpiexec the ranks are the workers)",
    )


def of_recipe(c: Config) -> Options:
    """The options that give the tokens on which `tinygpt train --data TEXT` trains a recipe."""
    return Options(
        tokenizer=c.tokenizer,
        vocab_size=documents.size_asked_for(c),
        reduced_from=c.reduced_from,
        split="last",
        valid_fraction=c.valid_fraction,
        max_documents=c.max_documents,
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt data prepare`` and print what it did."""
    from tinygpt import ranks  # which workers do without

    with ranks.world() as world:
        if world is None:
            perform(args)
            return 0
        if args.processes is not None:
            raise UsageError(
                f"--processes: expected none under mpiexec, got {args.processes}; the ranks do the "
                "work, so start more of them"
            )
        world.kept = lambda: "; the same call goes on where it was"
        world.compare({**ranks.software(), **ranks.asked(args, ("out", "debug"))})
        perform(args, world)
    return 0


def perform(args: argparse.Namespace, world: World | None = None) -> None:
    """Do what the options ask for; rank 0, or who is alone, says what was done."""
    start = time.perf_counter()
    from tinygpt.model import recipes  # which workers do without

    options = Options()
    if args.recipe:
        options = of_recipe(recipes.lay(recipes.get(args.recipe), {"data": str(args.sources[0])}))
    given = {name: getattr(args, name) for name in vars(options)}
    options = replace(options, **{k: value for k, value in given.items() if value is not None})
    word = "replaced" if (args.out / "meta.json").exists() else "wrote"
    meta = prepare(
        args.sources,
        args.out,
        valid=args.valid,
        options=options,
        processes=min(os.cpu_count() or 1, 4)
        if args.processes is None
        else threads(args.processes, "--processes"),
        world=world,
    )
    if world and world.rank:
        return
    size = sum(file["bytes"] for file in meta["files"])
    print(f"read     {counted(len(meta['files']), 'file')}, {counted(size, 'byte')}")
    print(f"tokens   {options.tokenizer}, {meta['vocab_size']:,} ids")
    for split in SPLITS:
        n = meta[split]
        print(
            f"{split:8} {counted(n['documents'], 'document')}, {counted(n['tokens'], 'token')}, "
            f"{counted(n['bytes'], 'byte')} ({n['bytes'] / n['tokens']:.2f} a token)"
        )
    dropped = counted(meta["duplicates"], "training document")
    if meta["duplicates"]:
        print(f"dropped  {dropped}, found in the validation text too")
    if options.repair:
        print(f"repaired {counted(meta['repaired'], 'document')}")
    if meta["resumed"]:
        print(f"resumed  {counted(meta['resumed'], 'piece')} of an earlier call")
    print(f"{word:8} {args.out} in {time.perf_counter() - start:.1f} s")
