"""The page of a run: what it tells, what it says is missing, and how it does in a browser."""

from __future__ import annotations

import base64
import html.parser
import json
import os
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpe
import minitensor as mt
from tinygpt import cli
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection.page import page
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.sample import prompt_ids
from tinygpt.model.transformer import GPT, layout

DRIVER = runpy.run_path(str(Path(__file__).parents[1] / "browser.py"))
CHROMIUM = DRIVER["CHROMIUM"]
TEXT = "Once upon a time there was a cat. It said “miau” to a dog. The cat and the dog played.\n"
EVIL = "</script><script>window.hurt = 1</script><img src=x onerror='hurt=1'><!-- {{data}} \u2028"


def model(**changes: Any) -> Saved:
    """A small model whose weights are large enough for it to have opinions."""
    tokenizer = bpe.train([TEXT * 3], 300)
    values: dict[str, Any] = {
        "name": "small", "vocab_size": 300, "context": 32, "n_layer": 2, "n_head": 4, "d_model": 16,
        "d_ff": 24, "positions": "rope", "ffn": "swiglu", "windows": (0, 3), "head": "untied",
    }  # fmt: skip
    config = Config(**{**values, **changes})
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in layout(config).items()
    }
    return Saved(config, tokenizer, params, {"recipe": "small", "step": 40, "data_sha256": "ab12"})


def folder(path: Path, steps: int = 40, valid: bool = True, saved: Saved | None = None) -> Path:
    """A run's folder, as training would have left it."""
    path.mkdir(exist_ok=True)
    saved = saved or model()
    checkpoint.save(path / "model.npz", saved)
    (path / "config.json").write_text(json.dumps(saved.config.to_dict()))
    start = {"event": "start", "step": -2, "threads": 2, "machine": "an abacus, 2 cores"}
    lines: list[dict[str, Any]] = [start]
    for step in (-2, -1):
        lines.append({"step": step, "copy_loss": 9 + step, "tokens": 0, "seconds": 0})
    for step in range(steps):
        pace = {"tokens": step * 64, "seconds": step / 2}
        lines.append({"step": step, "loss": 5 / (step + 1), "lr": 0.1, "grad_norm": 0.1, **pace})
        if valid and step % 10 == 0:
            lines.append({"step": step, "valid_loss": 6 / (step + 1), "valid_perplexity": 1,
                          "valid_bits_per_byte": 1, **pace})  # fmt: skip
        if step == 20:
            lines.append({"event": "pause", "step": step, "paused": 60, "seconds": step / 2})
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "token_counts.json").write_text(json.dumps([*range(saved.tokenizer.vocab_size)]))
    (path / "samples.txt").write_text(f"=== step 20 ===\n{EVIL}\n\n=== step 39 ===\nThe end.\n\n")
    return path


class Reader(html.parser.HTMLParser):
    """The elements of a page, the text that a reader sees, and what is in the script of data."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.seen, self.data, self._inside = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = "data" if dict(attrs).get("id") == "data" else tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "data":
            self.data += data
        elif self._inside not in ("script", "style"):
            self.seen += data


def read(path: Path, *args: str, **options: Any) -> Reader:
    return Reader(page.write(*page.find(path), *args, **options))


# ------------------------------------------------------------------------------ what it tells


def test_a_page_of_a_run_stands_by_itself(tmp_path, capsys):
    run, out = folder(tmp_path / "run"), tmp_path / "out.html"
    assert cli.main(["page", str(run), "--out", str(out), "--prompt", "The cat"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n" and "replaced" not in told.err
    assert cli.main(["page", str(run), "-o", str(out), "--prompt", "The cat"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == (
        f"{out}\n",
        f"tinygpt: {out}: replaced the one that was there\n",
    )
    text = out.read_text(encoding="utf-8")
    found = Reader(text)
    links = [a for _, attrs in found.tags for key, a in attrs.items() if key in ("src", "href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML", text)
    assert "default-src 'none'" in text
    data = json.loads(found.data)
    assert data["prompt"] == "The cat"
    assert set(data["weights"]["tensors"]) == set(layout(model().config))
    assert len(data["runs"][0]["curves"]["loss"]) == 40
    assert [event["event"] for event in data["runs"][0]["events"]] == ["start", "pause"]
    assert data["runs"][0]["curves"]["rate"][1] == 128  # 64 tokens in half a second
    assert data["counts"][7] == 7
    assert data["runs"][0]["copying"]["copy_loss"] == [7, 8]
    seen = ("The end.", "d_model", "data sha256", "ab12", "blocks.1.ffn.gate.weight", "an abacus")
    for said in seen:
        assert said in found.seen


def test_text_of_strangers_is_text(tmp_path):
    saved = model(name="<b>{{data}}")
    saved.provenance["recipe"] = EVIL[:-1]  # a line's end would not come through a model file
    found = read(folder(tmp_path / "run", saved=saved), prompt=EVIL)
    assert found.seen.count(EVIL[:-1]) == 2  # the sample and where the model comes from
    assert json.loads(found.data)["prompt"] == EVIL
    tags = [tag for tag, _ in found.tags]
    assert tags.count("script") == 5
    assert "img" not in tags and "b" not in tags


@pytest.mark.slow
def test_weights_are_written_as_said(tmp_path):
    saved = model()
    for dtype, bound in (("float32", 0), ("float16", 2**-11), ("int8", 1 / 254)):
        data = json.loads(read(folder(tmp_path / "run"), dtype=dtype).data)
        for name, (kind, text) in data["weights"]["tensors"].items():
            assert kind == (
                "float32" if saved.params[name].ndim == 1 and dtype == "int8" else dtype
            )
            written = np.frombuffer(base64.b64decode(text), np.dtype(kind).newbyteorder("<"))
            written = written.reshape(saved.params[name].shape).astype(np.float64)
            if name in data["weights"]["scales"]:
                scales = base64.b64decode(data["weights"]["scales"][name])
                written *= np.frombuffer(scales, "<f4")[:, None]
            most = np.abs(saved.params[name]).max(axis=-1, keepdims=True)
            assert (np.abs(written - saved.params[name]) <= 1.001 * bound * most).all()
        assert (data["error"] > 0) == (dtype != "float32")


@pytest.mark.slow
def test_the_first_kind_with_room_is_taken(tmp_path):
    saved, path = model(), folder(tmp_path / "run")
    for kind, other in (("float16", 0), ("int8", -3000)):
        rest = json.loads(read(path, dtype="none").data)
        del rest["pictures"]  # which stand for the weights
        limit = len(page.for_script(rest)) + 150_000 + page.weights_size(saved, "float16") + other
        data = json.loads(read(path, limit=limit + 10).data)
        assert data["weights"]["dtype"] == kind


def test_numbers_that_float16_has_no_place_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINITENSOR_KERNELS", "numpy")
    saved = model()
    saved.params["blocks.0.attn_norm.weight"][:] = 1e-9  # so that logits stay what they are
    saved.params["blocks.0.attn.qkv.weight"][0] = 1e5
    path = folder(tmp_path / "run", saved=saved)
    data = json.loads(read(path).data)
    assert data["weights"]["dtype"] == "int8" and data["error"] < 100
    call = ["page", str(path), "--out", str(tmp_path / "p.html")]
    assert cli.main([*call, "--weights", "float16"]) == 2
    assert "got float16: blocks.0.attn.qkv.weight holds numbers" in capsys.readouterr().err
    saved.params["head.weight"][:, ::2] = 3e38  # less than the largest float32
    folder(path, saved=saved)
    assert cli.main([*call, "--weights", "int8"]) == 1
    assert "logits that are not finite; --weights none" in capsys.readouterr().err
    assert cli.main([*call, "--weights", "none"]) == 0


def test_a_log_of_numbers_that_no_run_would_write(tmp_path):
    path = folder(tmp_path / "run")
    row = {"step": 1, "loss": 9e299, "lr": 0, "grad_norm": 0}
    times = [(0, 1), (9e299, 1 + 2**-52), (0, 1e308)]  # the last are beyond what is read
    lines = [json.dumps({**row, "tokens": n, "seconds": s}) for n, s in times]
    (path / "log.jsonl").write_text("\n".join(lines))
    (curves,) = (run["curves"] for run in json.loads(read(path).data)["runs"])
    assert curves["loss"] == [9e299] * 2 and curves["rate"] == [None, None]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_counts_that_are_a_pipe_are_not_waited_for(tmp_path):
    path = folder(tmp_path / "run")
    (path / "token_counts.json").unlink(missing_ok=True)
    os.mkfifo(path / "token_counts.json")
    assert "token_counts.json" in " ".join(page.read_run(path).missing)


def test_how_far_weights_moved_is_counted_from_their_start(tmp_path):
    config = model(
        norm_bias=False, qkv_bias=False, out_bias=False, ffn_bias=False
    ).config  # they start at 0
    params = {name: p.data for name, p in GPT(config.replace(seed=5)).named_parameters()}
    params["norm.weight"] = params["norm.weight"] * 1.5
    origin = {"recipe": "small", "step": 40, "seed": 5}
    rows = page.tensors(Saved(config, model().tokenizer, params, origin)).split("<tr>")
    moved = [row.rsplit("<td>", 1)[1].partition("<")[0] for row in rows[2:]]
    assert moved == ["0"] * (len(moved) - 2) + ["0.5", "0"]  # the last is the head


def test_a_run_is_watched_to_its_end(tmp_path, monkeypatch, capsys):
    run, naps = folder(tmp_path / "run"), []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 2:  # nothing grew before that
            with (run / "log.jsonl").open("a") as log:
                log.write('{"event": "end", "step": 40, "seconds": 20}\n')

    monkeypatch.setattr(page.time, "sleep", sleep)
    out = tmp_path / "page.html"
    assert cli.main(["page", str(run), "--watch", "--out", str(out)]) == 0
    assert len(naps) == 2
    assert capsys.readouterr().out == f"{out}\n" * 2
    assert "end at step 40" in Reader(out.read_text(encoding="utf-8")).seen
    assert cli.main(["page", str(run / "model.npz"), "--watch", "--out", str(out)]) == 2


def test_a_long_log_is_thinned_to_means():
    size = 10_007
    columns = {key: np.arange(size, dtype=float) for key in page.TRAIN_KEYS}
    columns["loss"][0] = np.nan  # one that was not finite
    thinned = page.thin(columns)
    assert len(thinned["step"]) == page.POINTS
    assert thinned["loss"][0] is None and thinned["loss"][1] == thinned["step"][1]
    assert thinned["rate"][5] == pytest.approx(1, rel=1e-3)
    lengths = np.diff(np.linspace(0, size, page.POINTS + 1).astype(int))
    assert np.average(thinned["step"], weights=lengths) == pytest.approx((size - 1) / 2, rel=1e-4)


def test_runs_are_compared(tmp_path):
    one = folder(tmp_path / "one")
    two = folder(tmp_path / "two", saved=model(n_head=2, lr=0.25))
    out = tmp_path / "page.html"
    assert cli.main(["page", str(one), "--compare", str(two), "--out", str(out)]) == 0
    found = Reader(out.read_text(encoding="utf-8"))
    assert [run["name"] for run in json.loads(found.data)["runs"]] == ["one", "two"]
    differing = found.seen.partition("Settings that differ between the runs")[2]
    assert differing.startswith("settingonetwo") or "n_head" in differing
    assert "0.25" in differing


# ---------------------------------------------------------------------- what it says is missing


def cut(path: Path) -> None:
    log = path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-9])


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    "options, change, said",
    [
        ({"valid": False}, None, "no validation"),
        ({"steps": 3}, None, "3 steps only"),
        ({"steps": 0}, None, "No step of training"),
        ({}, cut, "One line of the log cannot be read"),
        ({}, lambda path: (path / "samples.txt").unlink(), "No sample"),
        ({}, lambda path: (path / "token_counts.json").unlink(), "no readable"),
        ({}, lambda path: (path / "token_counts.json").write_text("[1, -2]"), "no readable"),
        ({}, lambda path: (path / "log.jsonl").unlink(), "no log.jsonl"),
        ({}, lambda path: (path / "config.json").unlink(), "no config.json"),
        ({}, lambda path: (path / "model.npz").unlink(), "There is no model yet"),
    ],
)
def test_what_is_missing_is_said(tmp_path, options, change, said):
    path = folder(tmp_path / "run", **options)
    if change:
        change(path)
    found = read(path)
    assert said in found.seen
    assert json.loads(found.data)["runs"]


def test_a_model_without_a_run(tmp_path):
    checkpoint.save(tmp_path / "model.npz", model())
    for path in (tmp_path / "model.npz", tmp_path):  # or a folder with nothing else
        found = read(path)
        assert "a model without a run" in found.seen
        assert json.loads(found.data)["weights"]


def without_room() -> Saved:
    """A model of 41 million weights, of which few are not 0."""
    c = recipes.NEO.replace(tokenizer="bpe", vocab_size=8001, reduced_from=0)
    base = bpe.train([TEXT], 300)
    params = {name: np.zeros(shape, np.float32) for name, shape in layout(c).items()}
    params["embedding.weight"][:300, :4] = np.random.default_rng(0).normal(size=(300, 4))
    return Saved(c, base, params)


@pytest.mark.slow
def test_a_model_that_has_no_room_is_left_out():
    saved = without_room()
    text = page.write(None, saved)
    assert len(text) < 1_500_000
    found = Reader(text)
    assert "41,026,560 weights are left out: as int8" in found.seen
    data = json.loads(found.data)
    assert "weights" not in data
    rows, columns, picture = data["pictures"]["embedding.weight"]
    drawn = np.frombuffer(base64.b64decode(picture), np.int8).reshape(rows, columns)
    full = saved.params["embedding.weight"]
    assert (rows, columns) == (64, 64)
    assert (np.sign(drawn[:3, 0]) == np.sign(full[[0, 127, 254], 0])).all() and not drawn[3:].any()


def test_a_page_in_a_checkout_links_to_the_documentation(tmp_path):
    checkout = Path(page.__file__).parents[3]
    if not (checkout / "docs").is_dir():
        pytest.skip("the package is installed elsewhere than in a checkout")
    docs = (checkout / "docs" / "page.md").read_text(encoding="utf-8")
    assert page.docs_from(checkout / "a.html") == "docs/"
    assert page.docs_from(checkout / "docs" / "a.html") == ""
    assert page.docs_from(checkout / "runs" / "one" / "a.html") == "../../docs/"
    assert page.docs_from(tmp_path / "a.html") is None
    text = page.write(*page.find(folder(tmp_path / "run")), docs="docs/")
    links = set(re.findall(r'href="docs/([^"]+)"', text))
    headings = re.findall(r"^#+ (.+)$", docs, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    assert len(links) > 6
    for link in links:
        name, _, anchor = link.partition("#")
        assert (checkout / "docs" / name).is_file(), link
        assert not anchor or anchor in anchors, link


def test_what_is_no_run_is_an_error_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for args in (["nowhere"], ["empty"], ["run", "--compare", "empty"], ["run", "--out", "empty"]):
        folder(tmp_path / "run")
        paths = [a if a.startswith("--") else str(tmp_path / a) for a in args]
        if "--out" not in paths:
            paths += ["--out", str(tmp_path / "p.html")]
        assert cli.main(["page", *paths]) in (1, 2)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "Traceback" not in said
    assert not (tmp_path / "p.html").exists()


# ------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or os.name != "posix":
        pytest.skip("no Chromium is installed: the page was not opened in a browser")
    with DRIVER["browsing"]() as chromium:
        yield chromium


def opened(browser: Any, path: Path, tmp_path: Path, **options: Any) -> None:
    out = tmp_path / "page.html"
    out.write_text(page.write(*page.find(path), **options), encoding="utf-8")
    browser.open(out)


@pytest.mark.slow
def test_a_page_is_used(browser, tmp_path):
    opened(browser, folder(tmp_path / "run"), tmp_path, prompt="The cat")
    ids = len(model().tokenizer.encode("The cat")) + 1
    assert browser.ask("document.querySelectorAll('#tokens button').length") == ids
    # typing
    browser.click("#text")
    browser.key("End")
    browser.call("Input.insertText", text=" and the dog")
    browser.wait(f"document.querySelectorAll('#tokens button').length > {ids}")
    assert browser.ask("document.querySelector('#text').value") == "The cat and the dog"
    # choosing a place, and a token for it
    browser.click("#tokens button:nth-child(3)")
    assert browser.ask("document.querySelectorAll('#tokens button[aria-pressed=true]').length") == 1
    chosen = browser.text("#next tbody tr:nth-child(2) button")
    browser.click("#next tbody tr:nth-child(2) button")
    assert browser.ask("document.querySelectorAll('#tokens button').length") == 4
    assert browser.text("#tokens button:last-child").startswith(chosen)
    # going on, until the model ends the text or a hundred tokens are written
    browser.click("#go")
    browser.wait("/written/.test(document.querySelector('#status').textContent)")
    assert re.search("^100 tokens written|ended the text", browser.text("#status"))
    # inside: another head, a part taken out by the keyboard, and what each part does
    browser.click("#heads .layer:nth-child(2) button:nth-child(2)")
    assert "Layer 1, head 1: a token sees itself and the 2 before it" in browser.text(
        "#large-title"
    )
    browser.ask("document.querySelector('[data-part=\"blocks.0.attn.1\"]').focus()")
    before = browser.text("#next tbody")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r",
                 windowsVirtualKeyCode=13)  # fmt: skip
    assert "Taken out: blocks.0.attn.1" in browser.text("#parts caption")
    assert browser.ask("document.activeElement.dataset.part") == "blocks.0.attn.1"
    assert browser.text("#next tbody") != before
    browser.click("#restore")
    assert browser.text("#next tbody") == before
    browser.click("#measure")
    browser.wait("/grows most/.test(document.querySelector('#effect').textContent)")
    # the same head as arcs
    browser.click("#arcs text:nth-of-type(2)")
    assert browser.text("#large-read").endswith("(place 2).")
    assert "looks at" in browser.ask("document.querySelector('#arcs').getAttribute('aria-label')")
    # a tensor enlarged, and its numbers by the keyboard
    name = "blocks.0.attn.qkv.weight"
    browser.click(f"[data-tensor='{name}']")
    browser.ask("document.querySelector('.whole').focus()")
    browser.key("ArrowRight")
    said = browser.text(".enlarged .hint")
    assert said.startswith("Row 0, query of head 0, column 1: ")
    value = np.float16(model().params[name][0, 1])
    assert float(said.rpartition(" ")[2]) == pytest.approx(float(value), rel=1e-3)
    browser.click(f"[data-tensor='{name}']")
    assert not browser.ask("document.querySelectorAll('.whole').length")
    # the curves by keyboard, the samples, the map, the tokenizer
    browser.ask("document.querySelector('#charts svg').focus()")
    browser.key("Home")
    assert "steps 0: training" in browser.text("#charts .hint")
    assert "repeat. loss: first 7.5" in browser.ask(
        "document.querySelector('#charts figure:last-child svg').getAttribute('aria-label')"
    )
    assert browser.ask("[...document.querySelectorAll('.sample')].map(f => f.hidden)") == [
        True,
        False,
    ]
    browser.click("#find")
    browser.call("Input.insertText", text="cat")
    assert "nearest" in browser.text("#near")
    before = browser.text("#near")
    x, y, width, height = browser.ask(
        "(() => { const b = document.querySelector('#plane').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    for i in range(900):  # somewhere there is another token under the pointer
        browser.move(x + width * (i % 30) / 30, y + height * (i // 30) / 30)
        if browser.text("#near") != before:
            break
    assert "nearest" in browser.text("#near") != before
    browser.click("#cut-tokens button:nth-child(2)")
    assert "How its bytes are merged" in browser.text("#cut-token")
    assert "among the 44,850 tokens of the training text" in browser.text("#cut-token")
    assert browser.complaints() == []


@pytest.mark.slow
def test_a_stranger_s_text_does_nothing(browser, tmp_path):
    saved = model(name="<b>{{data}}")
    opened(browser, folder(tmp_path / "run", saved=saved), tmp_path, prompt=EVIL)
    assert browser.ask("document.querySelector('#text').value").startswith("</script>")
    assert browser.ask("window.hurt === undefined && !document.querySelector('img, b')")
    assert browser.text(".sample blockquote") == EVIL
    assert browser.complaints() == []


@pytest.mark.slow
def test_scores_are_those_of_the_weights(browser, tmp_path):
    saved, text = model(), "The cat and the dog. The cat and the dog. The cat."
    opened(browser, folder(tmp_path / "run"), tmp_path, prompt=text, dtype="float32")
    ids = prompt_ids(saved.tokenizer, text)
    weights: dict[str, np.ndarray] = {}

    def look(name, x):
        if name.endswith("attn.weights"):
            weights[name] = x.numpy()[0].copy()

    with mt.no_grad():
        saved.model().hidden(np.array([ids]), look=look)
    again = [t for t in range(len(ids) - 1) if ids[t + 1] in ids[: t + 1]]
    assert len(again) > 4
    for layer in range(2):
        for head in range(4):
            w = weights[f"blocks.{layer}.attn.weights"][head]
            copies = []
            for t in again:
                first = max(0, t - 2) if layer else 0  # the second layer has a window of 3
                there = np.equal(ids[first : t + 1], ids[t + 1])
                if not there.all():
                    on_them = w[t, first : t + 1][there].sum()
                    copies.append((on_them - there.mean()) / (1 - there.mean()))
            expected = [np.diag(w, -1).mean(), w[2:, 0].mean(), np.diag(w)[1:].mean()]
            row = f"#scores tbody tr:nth-child({4 * layer + head + 1})"
            found = [float(browser.text(f"{row} td:nth-child({i})")) for i in range(3, 7)]
            assert found == pytest.approx([*expected, np.mean(copies)], abs=0.0051)


@pytest.mark.slow
def test_a_text_goes_on_when_the_context_is_full(browser, tmp_path):
    opened(browser, folder(tmp_path / "run"), tmp_path, prompt=" cat" * 60)
    count = len(model().tokenizer.encode(" cat" * 60)) + 1
    assert f"The text has {count} tokens; the context holds 32" in browser.text("#status")
    assert browser.text("#window-words").startswith(f"The first {count - 32} tokens")
    assert browser.ask("document.querySelectorAll('#tokens button').length") == 32
    browser.click("#next tbody tr:nth-child(2) button")  # a token more: the older half goes
    assert browser.ask("document.querySelectorAll('#tokens button').length") == 16
    browser.ask("document.querySelector('#temperature').value = 0")
    for _ in range(20):
        browser.click("#step")
    browser.wait("/^1 token written/.test(document.querySelector('#status').textContent)")
    text = browser.ask("document.querySelector('#text').value")
    assert text.startswith(" cat" * 60)
    ids = model().tokenizer.encode(text)
    assert len(ids) >= count or text.endswith("<|endoftext|>")
    browser.click("#undo")
    assert browser.complaints() == []


@pytest.mark.slow
def test_without_a_part_the_text_is_another(browser, tmp_path):
    opened(browser, folder(tmp_path / "run"), tmp_path, prompt="The cat")
    assert browser.ask("document.querySelector('#stories').hidden")
    browser.click("[data-part='blocks.1.ffn']")
    browser.wait("/The texts part after/.test(document.querySelector('#story-read').textContent)")
    assert browser.text("#story-title") == "Without blocks.1.ffn"
    whole, without = browser.text("#story-whole"), browser.text("#story-without")
    assert whole.startswith("…The cat") and without.startswith("…The cat") and whole != without
    browser.click("#others")
    browser.wait(f"document.querySelector('#story-whole').textContent !== {json.dumps(whole)}")
    browser.click("#restore")
    assert browser.ask("document.querySelector('#stories').hidden")
    assert browser.complaints() == []


AUDIT = (Path(__file__).parents[1] / "audit.js").read_text(encoding="utf-8")
SPOKEN = {"button", "link", "textbox", "searchbox", "slider", "combobox", "image", "img", "region",
          "table", "navigation", "heading"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_and_heard(browser, tmp_path, theme):
    try:
        browser.theme(theme)
        opened(browser, folder(tmp_path / "run"), tmp_path, prompt="The cat and the dog")
        browser.click("[data-part='blocks.1.ffn']")
        browser.wait("/part after/.test(document.querySelector('#story-read').textContent)")
        browser.click(".tensor button")
        browser.click("#cut-tokens button")
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == (
            "rgb(20, 23, 27)" if theme == "dark" else "rgb(255, 255, 255)"
        )
        assert browser.ask(AUDIT) == []
        heard = browser.sees()
        assert len([role for role, _ in heard if role in SPOKEN]) > 100
        assert [role for role, name in heard if role in SPOKEN and not name] == []
        # an examination that cannot fail examines nothing
        browser.ask(
            "document.body.insertAdjacentHTML('beforeend', '<h4 id=main>x</h4><button></button>"
            '<p style="color: #777; background: #888">grey</p><label for=nothing></label>\'), 0'
        )
        assert len(browser.ask(AUDIT)) == 4
        assert ("button", "") in browser.sees()
    finally:
        browser.theme("light")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("AXE"), reason="AXE does not name a file axe.min.js")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_axe_has_nothing_to_say(browser, tmp_path, theme, width):
    try:
        browser.theme(theme)
        browser.shape(width, 800)
        opened(browser, folder(tmp_path / "run"), tmp_path, prompt="The cat and the dog")
        browser.click("[data-part='blocks.1.ffn']")
        browser.click(".tensor button")
        browser.ask(Path(os.environ["AXE"]).read_text(encoding="utf-8") + "; 0")
        browser.ask("axe.run().then((found) => { window.found = found; }), 0")
        browser.wait("window.found")
        assert browser.ask("found.passes.length") > 20
        assert browser.ask("found.violations.map((v) => [v.id, v.nodes.map((n) => n.html)])") == []
    finally:
        browser.theme("light")
        browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.slow
def test_it_can_be_printed(browser, tmp_path):
    try:
        browser.theme("dark", media="print")
        run = folder(tmp_path / "run", saved=model(name="quick"))
        opened(browser, run, tmp_path, prompt="The cat")
        assert browser.ask("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
        assert not browser.ask("document.querySelector('nav').checkVisibility()")
        browser.ask(
            "addEventListener('beforeprint', () => { window.printed = [...document."
            "querySelectorAll('.sample, details > .scroll')].map((e) => e.checkVisibility()); }), 0"
        )
        printed = base64.b64decode(browser.call("Page.printToPDF")["data"])
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 3
        assert browser.ask("window.printed") == [True] * 3
        # A page that is dark on the screen is dark on white on paper, its canvases too.
        browser.theme("dark")
        browser.ask(
            """addEventListener('beforeprint', () => {
            const c = document.querySelector('#plane'), seen = {};
            const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            for (let i = 0; i < all.length; i += 4) seen[`${all[i]} ${all[i + 3]}`] = true;
            window.ink = [seen['27 255'], seen['232 255']]; }), 0"""
        )
        browser.call("Page.printToPDF")
        assert browser.ask("window.ink.map(Boolean)") == [True, False]
        assert browser.ask("document.querySelector('details').open") is False  # as it was
    finally:
        browser.theme("light")


@pytest.mark.slow
def test_an_old_browser_is_told(browser, tmp_path):
    opened(browser, folder(tmp_path / "run"), tmp_path)
    assert not browser.ask("document.querySelector('#old').checkVisibility()")
    text = page.write(*page.find(folder(tmp_path / "run")))
    old = tmp_path / "old.html"  # which cannot be read where this is no JavaScript yet
    old.write_text(text.replace("const $ = (id) =>", "const $ = (id) =@>"), encoding="utf-8")
    browser.open(old)
    assert browser.ask("document.querySelector('#old').checkVisibility()")
    assert "The end." in browser.ask("document.querySelector('#main').innerText")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["no model", "no weights", "a model", "three steps", "other kinds", "no room", "cut"]
)
def test_pages_with_something_missing_open(browser, tmp_path, what):
    saved, options, path = model(), {}, folder(tmp_path / "run")
    if what == "no model":
        (path / "model.npz").unlink()
    if what == "cut":
        cut(path)
    if what == "no room":
        path = tmp_path / "m.npz"
        saved = without_room()
        checkpoint.save(path, saved)
    if what == "no weights":
        options["dtype"] = "none"
    if what == "three steps":
        folder(path, steps=3, valid=False)
    if what == "a model":
        path = tmp_path / "m.npz"
        checkpoint.save(path, saved)
    if what == "other kinds":
        c = saved.config.replace(head="pinv", positions="alibi", norm="layer", vocab_size=80)
        chars = bpe.CharTokenizer("".join(sorted(set(TEXT))), vocab_size=80)
        params = {name: p.data for name, p in GPT(c).named_parameters()}
        path, saved = tmp_path / "m.npz", Saved(c, chars, params)
        checkpoint.save(path, saved)
    opened(browser, path, tmp_path, **options)
    alive = what in ("a model", "three steps", "other kinds", "cut")
    assert browser.ask("!document.querySelector('#alive').hidden") == alive
    assert browser.ask("document.querySelector('#prompt > .absent').hidden") == alive
    assert browser.ask("!document.querySelector('#curves').hidden") == (path.name == "run")
    assert browser.ask("document.querySelector('#failed').hidden")
    pictures = browser.ask("[...document.querySelectorAll('.tensor canvas')].map((c) => c.width)")
    assert len(pictures) == (0 if what == "no model" else len(saved.params))
    assert browser.complaints() == []


@pytest.mark.slow
def test_it_fits_a_telephone_and_reads_without_scripts(browser, tmp_path):
    path = folder(tmp_path / "run")
    browser.shape(360, 700)
    try:
        opened(browser, path, tmp_path)
        assert browser.ask("document.documentElement.scrollWidth") == 360
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        opened(browser, path, tmp_path)
        assert "JavaScript is off" in browser.ask("document.querySelector('noscript').textContent")
        shown = browser.ask("document.querySelector('#main').innerText")
        for said in ("The end.", "window.hurt", "d_model", "The model does not run here"):
            assert said in shown
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        browser.call("Emulation.clearDeviceMetricsOverride")
