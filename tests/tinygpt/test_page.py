"""The page of a run: what it tells, what it says is missing, and how it does in a browser."""

from __future__ import annotations

import base64
import contextlib
import html.parser
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpe
from tinygpt import cli
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection.page import page
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT, layout

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
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0, "threads": 2}]
    for step in range(steps):
        pace = {"tokens": step * 64, "seconds": step / 2}
        lines.append({"step": step, "loss": 5 / (step + 1), "lr": 0.1, "grad_norm": 1.0, **pace})
        if valid and step % 10 == 0:
            lines.append({"step": step, "valid_loss": 6 / (step + 1), "valid_perplexity": 1,
                          "valid_bits_per_byte": 1, **pace})  # fmt: skip
        if step == 20:
            lines.append({"event": "pause", "step": step, "paused": 60, "seconds": step / 2})
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
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
    assert capsys.readouterr().out == f"{out}\n"
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
    for said in ("The end.", "d_model", "data sha256", "ab12", "blocks.1.ffn.gate.weight"):
        assert said in found.seen


def test_text_of_strangers_is_text(tmp_path):
    saved = model(name="<b>{{data}}")
    saved.provenance["recipe"] = EVIL[:-1]  # a line's end would not come through a model file
    found = read(folder(tmp_path / "run", saved=saved), prompt=EVIL)
    assert found.seen.count(EVIL[:-1]) == 2  # the sample and where the model comes from
    assert json.loads(found.data)["prompt"] == EVIL
    tags = [tag for tag, _ in found.tags]
    assert tags.count("script") == 4
    assert "img" not in tags and "b" not in tags


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


def test_the_first_kind_with_room_is_taken(tmp_path):
    saved, path = model(), folder(tmp_path / "run")
    for kind, other in (("float16", 0), ("int8", -3000)):
        rest = json.loads(read(path, dtype="none").data)
        limit = len(page.for_script(rest)) + 150_000 + page.weights_size(saved, "float16") + other
        data = json.loads(read(path, limit=limit + 10).data)
        assert data["weights"]["dtype"] == kind


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


def test_singular_values_are_those_of_numpy():
    for shape in ((7, 3), (3, 7)):
        matrix = np.random.default_rng(1).normal(size=shape)
        expected = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(page.singular_values(matrix), expected, rtol=1e-10)


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


@pytest.mark.parametrize(
    "options, change, said",
    [
        ({"valid": False}, None, "no validation"),
        ({"steps": 3}, None, "3 steps only"),
        ({"steps": 0}, None, "No step of training"),
        ({}, cut, "One line of the log cannot be read"),
        ({}, lambda path: (path / "samples.txt").unlink(), "No sample"),
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
    checkpoint.save(tmp_path / "m.npz", model())
    found = read(tmp_path / "m.npz")
    assert "a model without a run" in found.seen
    assert json.loads(found.data)["weights"]


def test_a_model_that_has_no_room_is_left_out(tmp_path):
    c = recipes.NEO.replace(tokenizer="bpe", vocab_size=8001, reduced_from=0)
    base = bpe.train([TEXT], 300)
    params = {name: np.zeros(shape, np.float32) for name, shape in layout(c).items()}
    params["embedding.weight"][:300, :4] = np.random.default_rng(0).normal(size=(300, 4))
    text = page.write(None, Saved(c, base, params))
    assert len(text) < 1_000_000
    found = Reader(text)
    assert "41,026,560 weights are left out: as int8" in found.seen
    assert "weights" not in json.loads(found.data)


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


NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --remote-debugging-pipe"
)
LAUNCH = """if True:  # Chromium hears on 3 and speaks on 4
    import os, sys
    ear, voice = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
    os.dup2(ear, 3), os.dup2(voice, 4), os.set_inheritable(3, True), os.set_inheritable(4, True)
    os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium, told what to do over a pair of pipes in its own protocol: JSON, and a zero byte."""

    def __init__(self, profile: str):
        hear, its_voice = os.pipe()
        its_ear, speak = os.pipe()
        ends = (str(its_ear), str(its_voice))
        command = (CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *ends, *command],
            pass_fds=(its_ear, its_voice),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_ear)
        os.close(its_voice)
        self.hear, self.speak = os.fdopen(hear, "rb", 0), os.fdopen(speak, "wb", 0)
        self.buffer, self.count, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.speak.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.hear], [], [], 60)
            more = self.hear.read(1 << 16) if ready else b""
            assert more, "the browser went away, or says nothing for a minute"
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return self.ask(f"document.querySelector({json.dumps(selector)}).textContent")

    def click(self, selector: str) -> None:
        """A real click, in the middle of what is there, which must be what is seen there."""
        x, y, hit = self.ask(
            f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center"}}); const b = e.getBoundingClientRect();
            const x = b.x + b.width / 2, y = b.y + b.height / 2;
            return [x, y, e.contains(document.elementFromPoint(x, y))]; }})()"""
        )
        assert hit, f"{selector} is covered or out of sight"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self) -> list[Any]:
        """Errors and warnings since the page was opened, and whatever it asked of a network."""
        self.ask("0")
        wrong = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                wrong.append(params)
            if method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    wrong.append(url)
        return wrong


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or os.name != "posix":
        pytest.skip("no Chromium is installed: the page was not opened in a browser")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Browser(profile)
        yield chromium
        with contextlib.suppress(OSError, AssertionError):
            chromium.session = None
            chromium.call("Browser.close")
        chromium.hear.close(), chromium.speak.close()
        try:
            chromium.process.wait(20)
        except subprocess.TimeoutExpired:
            chromium.process.kill()
            chromium.process.wait()


def opened(browser: Browser, path: Path, tmp_path: Path, **options: Any) -> None:
    out = tmp_path / "page.html"
    out.write_text(page.write(*page.find(path), **options), encoding="utf-8")
    browser.open(out)


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
    # going on, until the context is full or the model ends the text
    browser.click("#go")
    browser.wait("/written/.test(document.querySelector('#status').textContent)")
    assert re.search("is full|ended the text", browser.text("#status"))
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
    # the curves by keyboard, the samples, the map, the tokenizer
    browser.ask("document.querySelector('#charts svg').focus()")
    browser.key("Home")
    assert "steps 0: training" in browser.text("#charts .hint")
    assert browser.ask("[...document.querySelectorAll('.sample')].map(f => f.hidden)") == [
        True,
        False,
    ]
    browser.click("#find")
    browser.call("Input.insertText", text="cat")
    assert "nearest" in browser.text("#near")
    browser.click("#cut-tokens button:nth-child(2)")
    assert "How its bytes are merged" in browser.text("#cut-token")
    assert browser.complaints() == []


def test_a_stranger_s_text_does_nothing(browser, tmp_path):
    saved = model(name="<b>{{data}}")
    opened(browser, folder(tmp_path / "run", saved=saved), tmp_path, prompt=EVIL)
    assert browser.ask("document.querySelector('#text').value").startswith("</script>")
    assert browser.ask("window.hurt === undefined && !document.querySelector('img, b')")
    assert browser.text(".sample blockquote") == EVIL
    assert browser.complaints() == []


@pytest.mark.parametrize(
    "what", ["no model", "no weights", "a model", "three steps", "other kinds"]
)
def test_pages_with_something_missing_open(browser, tmp_path, what):
    saved, options, path = model(), {}, folder(tmp_path / "run")
    if what == "no model":
        (path / "model.npz").unlink()
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
        path = tmp_path / "m.npz"
        checkpoint.save(path, Saved(c, chars, params))
    opened(browser, path, tmp_path, **options)
    alive = what in ("a model", "three steps", "other kinds")
    assert browser.ask("!document.querySelector('#alive').hidden") == alive
    assert browser.ask("document.querySelector('#prompt > .absent').hidden") == alive
    assert browser.ask("!document.querySelector('#curves').hidden") == (path.name == "run")
    assert browser.ask("document.querySelector('#failed').hidden")
    assert browser.complaints() == []


def test_it_fits_a_telephone_and_reads_without_scripts(browser, tmp_path):
    path = folder(tmp_path / "run")
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1,
                 mobile=True)  # fmt: skip
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
