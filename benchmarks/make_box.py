"""Makes the model that comes with the package from a trained one, and tells what float16 costs it.

python -m tinygpt train --out runs/box        # the default recipe; a kind of machine, the same bits
python benchmarks/make_box.py runs/box        # writes tinygpt/box.npz, at most 2 MB
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinygpt.data import stories
from tinygpt.formats import box, checkpoint
from tinygpt.formats.exchange import load_any
from tinygpt.inspection.evaluate import evaluate

STORIES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="run folder or model file")
    parser.add_argument("--out", type=Path, help="default: the package's own place")
    args = parser.parse_args()
    out = args.out or Path(str(box.place()))
    saved = load_any(args.model)
    print(f"{out}: {box.make(saved, out):,} bytes")
    text = "\n<|endoftext|>\n".join(stories.corpus(STORIES, seed=1, split="valid"))
    for name, model in (("float32", saved), ("float16", checkpoint.load(out))):
        loss = evaluate(model.model(), model.tokenizer, text)["loss"]
        print(f"{name}: loss {loss:.5f} on {STORIES} stories it has not seen")


if __name__ == "__main__":
    main()
