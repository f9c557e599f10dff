"""Every example runs as a reader would run it, in a process of its own, and says what it should.

The code in the docs prints what stands below it."""

import ast
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minitensor as mt

ROOT = Path(__file__).parent.parent

# What each example must print: lines that a reader could check, as regular expressions.
EXPECTED = {
    "00_scalar_tape": [
        r"df/da: backward\(\) -0\.257732, measured -0\.257732",
        r"loss 1\.\d+ at first, 0\.01\d+ at the end",
    ],
    "01_scalar_graph_by_hand": [
        r"df/da: by hand  -24\.0, backward\(\)  -24\.0",
        r"dg/dx = 2·3 \+ 1 = 7",
    ],
    "02_check_a_gradient": [
        r"share: the backward agrees",
        r"share_with_a_fault: gradcheck: input 0 at \[\d, \d\]: the backward "
        r"says .*12 of 12 elements are off",
    ],
    "03_logistic_regression": [r"loss with w = 0: 0\.693147", r"exact minimum +\[1\.319967 1\.24"],
    "04_two_moons": [r"a line +3 parameters", r"two hidden layers +337 parameters.*9[89]\.\d%"],
    "05_your_own_op": [r"right in 3 of 3 cases", r"\[-2\.  0\.  2\.\]"],
    "06_character_model": [
        r"a guess +[34]\.\d+ +\d\d\.0",
        r"network +0\.[56]\d\d +1\.\d",
        "it writes:",
    ],
    "07_train_a_bpe": [r"the same merges: True"],
    "08_transformer_block": [
        r"weights +\(2, 4, 6, 6\)",
        "no token before it noticed",
        r"tinygpt's block: \d\.\de-1[3-9]",
    ],
    "09_attention_by_hand": [
        r"dq +\d\.\de-1[3-9] +\d\.\de-1[3-9]",
        "row by row: true",
        r"fused +[\d.]+ ms, keeps +16 KB",
    ],
    "10_train_and_generate": [
        r"loss 5\.99\d at first \(ln 400 = 5\.991\)",
        "same bits: True",
        r"it writes:\s+Once upon a time",
    ],
    "11_from_python": [
        r"<run of quick in .*: 300 of 300 steps, loss 6\.00\d → ",
        "the callback saw 5 validations",
        r"it writes:\s+Once upon a time",
        r"attention \(2, 4, \d+, \d+\): every row sums to 1: True",
    ],
}
FILES = {
    "01_scalar_graph_by_hand": ["graph.svg"],
    "04_two_moons": ["two_moons.png"],
    "10_train_and_generate": ["model.npz"],
    "11_from_python": ["copy.npz"],
}

# A block of Python in a page, and the block of text right below it.
PRINTS = r"```python\n((?:(?!```).)*)```\n```text\n(.*?)```"


def run(name, tmp_path, *options):
    """Run an example in an empty folder; returns what it printed."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "TINYGPT_CACHE": str(tmp_path / "cache"),
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
        # On machines with many cores BLAS is slower with all of them on arrays this small.
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *options],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_here_and_numbered():
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == sorted(EXPECTED)
    assert [name[:3] for name in sorted(EXPECTED)] == [f"{n:02}_" for n in range(len(EXPECTED))]


def test_every_exercise_has_a_solution_and_is_listed():
    page = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
    sections = dict(
        re.findall(r"^## (\d\d) (.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    )
    for path in sorted((ROOT / "examples").glob("*.py")):
        number = path.stem[:2]
        solutions = ROOT / "tests" / "exercises" / f"test_{number}.py"
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        asked = docstring.partition(f"Exercises (solutions in tests/exercises/test_{number}.py):")[
            2
        ]
        numbers = re.findall(r"^(\d)\. ", asked, flags=re.MULTILINE)
        assert len(numbers) in (2, 3), path.name
        tests = re.findall(
            r"^def test_(\d)_", solutions.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        listed = re.findall(r"^(\d)\. ", sections[number], flags=re.MULTILINE)
        assert numbers == tests == listed, path.name
        assert f"examples/{path.name}" in sections[number]
        assert f"tests/exercises/{solutions.name}" in sections[number]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name, tmp_path):
    out = tmp_path / "out"
    printed = run(name, tmp_path, *(["--out", str(out)] if name in FILES else []))
    for pattern in EXPECTED[name]:
        assert re.search(pattern, printed), f"{pattern!r} is not in:\n{printed}"
    for file in FILES.get(name, []):
        assert (out / file).stat().st_size > 1000 and str(out / file) in printed


# What the lesson's cells must print, by a piece of their source.
LESSON = {
    "backward(f)": r"df/da = -24\.0, df/db = 16\.0, df/dc = 8\.0",
    "f.backward()": r"-24\.0 16\.0 8\.0",
    "def measured": r"df/da: -24\.0",
    "def square": r"wrong: gradcheck: .* 12 of 12 elements are off",
    "def learn": r"\[0\.02 0\.99 0\.99 1\.  \]",
    "learn([0.0, 1.0, 1.0, 0.0])": r"199: loss 0\.6931\n\[0\.5 0\.5 0\.5 0\.5\]",
    "def moons": r"step   0: loss 0\.\d+\n(.*\n)+(9[89]\.\d|100\.0)% of 400 new points",
    "words = [": r"cat +0\.644 +surprise if it comes: 0\.440",
    "mt.cross_entropy(scores, [1])": r"(\[ 0\.6439 -0\.7631  0\.0321  0\.0871\])\np - y +\1",
    "fused = ": r"(largest difference: \de-1[5-7]\n){3}",
    "bpe.train(": r"Once \|  up \| on \|  a \|  time .* z \| e \| b \| ra \|",
    "STEPS = 60": r"60 of 60 steps, loss 7\.08\d → 1\.\d",
    "stream=True": r"^Once upon a time\W",
    "temperature in": r"0\.0: 'The dog",
    "surprise = ": r"next: ' \w+' \d+%(.*\n){9}",
    "norms = ": r"head\.weight",
}
SHOWN = {"mt.draw(": "image/svg+xml", "STEPS = 60": "text/html", "model  #": "text/html"}


@pytest.mark.slow
def test_the_lesson_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    import nbformat

    for name in ("TINYGPT_CACHE", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the lesson's run goes
    notebook = nbformat.read(ROOT / "examples" / "12_lesson.ipynb", as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for piece, pattern in LESSON.items():
        (cell,) = [cell for cell in cells if piece in cell.source]
        printed = "".join(
            out.text if "text" in out else out.data["text/plain"]
            for out in cell.outputs
            if out.get("name") != "stderr"
        )
        assert re.search(pattern, printed), f"{pattern!r} is not in:\n{printed}"
    for piece, kind in SHOWN.items():
        (cell,) = [cell for cell in cells if piece in cell.source]
        assert kind in cell.outputs[-1].data
    (training,) = [cell for cell in cells if "STEPS = 60" in cell.source]
    errors = "".join(out.text for out in training.outputs if out.get("name") == "stderr")
    assert "60/60" in errors and "Warning" not in errors


@pytest.mark.slow
def test_without_matplotlib_an_example_says_so_and_goes_on(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError\n", encoding="utf-8")
    source = (ROOT / "examples" / "04_two_moons.py").read_text(encoding="utf-8")
    (tmp_path / "example.py").write_text(source, encoding="utf-8")  # its folder comes first
    done = subprocess.run(
        [sys.executable, "example.py", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "no picture: matplotlib is not installed" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []


# Pages that quote functions, and the files that these come from.
QUOTED = {
    "matmul": [ROOT / "benchmarks/matmul_ladder.py", Path(mt.__file__).parent / "kernels/gemm.py"],
    "sublayer": [ROOT / "benchmarks/sublayer_ladder.py"],
    "generating": [ROOT / "benchmarks/generating_ladder.py"],
}


@pytest.mark.parametrize("page", QUOTED)
def test_what_a_page_quotes_stands_in_the_file(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    sources = [file.read_text(encoding="utf-8") for file in QUOTED[page]]
    quotes = re.findall(r"```python\n((?:(?!```).)*)```\n(?!```text)", text, flags=re.DOTALL)
    assert len(quotes) > 2
    for quote in quotes:
        assert any(quote in source for source in sources), quote


def script(name):
    """A program of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_rung_of_the_product_is_right():
    ladder = script("matmul_ladder")
    for M, K, N in ((24, 40, 96), (36, 800, 32)):
        for name, product in ladder.RUNGS.items():
            assert ladder.error(product, *ladder.operands(M, K, N)) < 1e-6, name


@pytest.mark.slow
def test_every_rung_of_the_sublayer_is_right():
    ladder = script("sublayer_ladder")
    *arrays, g = ladder.operands(48, 32, 64)
    expected = ladder.by_formulas(g, *arrays)
    for sublayer in (ladder.separate, ladder.fused):
        for a, b in zip(expected, ladder.by_ops(sublayer)(g, *arrays), strict=True):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
        assert np.allclose(expected[0], ladder.forward_by_ops(sublayer)(*arrays), atol=1e-5)
    for height in (12, 16, 48):
        assert np.allclose(expected[0], ladder.in_blocks(*arrays, height), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["guide", "attention", "matmul", "sublayer", "generating", "pytorch", "python"]
)
def test_the_code_of_a_page_prints_what_stands_below_it(page, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path))
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(PRINTS, text, flags=re.DOTALL)
    namespace: dict[str, object] = {}
    assert blocks
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        assert printed.getvalue() == expected
