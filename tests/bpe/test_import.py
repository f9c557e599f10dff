"""The package stands alone and is quick to import."""

import subprocess
import sys
from pathlib import Path

import bpe


def test_importing_bpe_imports_little():
    program = "import sys; a = {*sys.modules}; import bpe, bpe.cli; print(*{*sys.modules} - a)"
    root = Path(bpe.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "regex" in loaded
    assert not loaded & {"numpy", "numba", "tqdm", "minitensor", "tinygpt", "multiprocessing"}


def test_every_public_name_is_there_and_described():
    for name in bpe.__all__:
        assert getattr(bpe, name).__doc__
