"""Writes docs/quick.html, the finished page of the default recipe, and the pictures of page.md.

python docs/make_page.py --quick runs/quick --shakespeare-char runs/char --mini-1m runs/mini

makes what belongs to the runs that are given. The folder of `--quick` is trained first if it is not
there. Needs Chromium, and Pillow, which comes with the extra `plot`.
"""

from __future__ import annotations

import argparse
import io
import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tinygpt import cli

DOCS = Path(__file__).parent
MOST = 3_000_000  # bytes of the finished page
STORY = (  # the beginning of one that no model was trained on
    "Once upon a time, there was a young boy named Bob. He lived in a quiet town. His grandma was "
    "sick, so Bob wanted to bring home a shell.\nOne windy morning, he looked by the river, but he "
    "found no shell. On the way, he saw an old hen. The hen was stuck in a deep hole. "
    '"Can you help me?" asked the hen. "If I stop, I will be late," thought'
)
PLAY = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the"


def main() -> None:
    """Make the page and the pictures of the runs that are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("quick", "shakespeare-char", "mini-1m"):
        parser.add_argument(f"--{name}", type=Path, metavar="RUN")
    args = parser.parse_args()
    with runpy.run_path(str(DOCS.parent / "tests" / "browser.py"))["browsing"]() as browser:
        browser.shape(760, 800)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.html"
            if args.quick:
                if not args.quick.exists():
                    tinygpt("train", "--out", args.quick, "--set", "sample_interval=100")
                out = DOCS / "quick.html"
                tinygpt("page", args.quick, "--prompt", STORY, "--out", out)
                size = out.stat().st_size
                assert size <= MOST, f"{out}: {size:,} bytes, at most {MOST:,} are wanted"
                quick(browser, out)
            if args.shakespeare_char:
                tinygpt("page", args.shakespeare_char, "--prompt", PLAY, "--out", page)
                characters(browser, page)
            if args.mini_1m:
                tinygpt("page", args.mini_1m, "--out", page)
                leftovers(browser, page)


def tinygpt(*args: Any) -> None:
    """A command of tinygpt, which must succeed."""
    status = cli.main([str(arg) for arg in args])
    assert status == 0, f"tinygpt {args[0]}: exit status {status}"


def quick(browser: Any, page: Path) -> None:
    """A picture of each part, and of what carries the names."""
    browser.open(page)
    browser.shape(1000, 800)
    keep(browser, "#charts", "run")
    browser.shape(760, 800)
    keep(browser, "#tokens", "prompt")
    show(browser, 3, 1)
    keep(browser, "#heads", "heads")
    browser.click("#measure")
    browser.wait("/grows most/.test(document.querySelector('#effect').textContent)")
    keep(browser, "#parts", "parts")
    without(browser, "blocks.3.attn")
    keep(browser, "#stories", "without")
    browser.click("#restore")
    browser.shape(1000, 800)
    choose(browser, "␣so")
    keep(browser, "#arcs-scroll", "arcs")
    keep(browser, "#weights .scroll", "tensors", height=460)
    browser.shape(760, 800)
    browser.click("#cut-tokens button:nth-child(9)")
    keep(browser, "#cut-token", "token")


def characters(browser: Any, page: Path) -> None:
    """What the first feed-forward does to a model of characters."""
    browser.open(page)
    choose(browser, "e")
    keep(browser, "#lens", "lens")
    without(browser, "blocks.0.ffn")
    keep(browser, "#stories", "characters")


def leftovers(browser: Any, page: Path) -> None:
    """The tokens that nothing was learned of, on the map of the embedding."""
    browser.open(page)
    browser.click("#find")
    browser.type("underst")
    keep(browser, "#map", "map")


def choose(browser: Any, token: str) -> None:
    """The last place of a token in the text."""
    browser.ask(
        f"[...document.querySelectorAll('#tokens button')].findLast((button) => "
        f"button.firstChild.data === {json.dumps(token)}).click()"
    )


def show(browser: Any, layer: int, head: int) -> None:
    """Enlarge a head."""
    browser.click(f"#heads .layer:nth-child({layer + 1}) button:nth-child({head + 1})")


def without(browser: Any, part: str) -> None:
    """Take a part out, and wait for the two texts."""
    browser.ask(f"document.querySelector('[data-part=\"{part}\"]').click()")
    browser.wait("document.querySelector('#story-read').textContent")


def keep(browser: Any, selector: str, name: str, height: int = 2000) -> None:
    """An element, down to `height`, as docs/img/page-NAME.png of 64 colours: few have more."""
    picture = Image.open(io.BytesIO(browser.picture(selector))).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(height, picture.height)))
    path = DOCS / "img" / f"page-{name}.png"
    picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
