"""The environment that holds PyTorch and JAX, for comparisons: made on first use, in benchmarks/.

    python benchmarks/peers.py          # makes .venv-peers beside this file and prints its python

The environment variable MINITENSOR_PEERS names the python of another environment instead.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / ".venv-peers"
PACKAGES = ["torch==2.13.0", "jax==0.10.2", "numpy"]


def python():
    """Path of a python with PyTorch and JAX."""
    given = os.environ.get("MINITENSOR_PEERS")
    if given:
        return Path(given)
    windows = sys.platform == "win32"
    path = FOLDER / ("Scripts/python.exe" if windows else "bin/python")
    done = FOLDER / "complete"
    if not done.exists() or done.read_text(encoding="utf-8").split() != PACKAGES:
        print(f"making {FOLDER} with {', '.join(PACKAGES)} …", file=sys.stderr)
        venv.create(FOLDER, with_pip=True, clear=True)
        subprocess.run(
            [path, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr
        )
        done.write_text("\n".join(PACKAGES), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(python())
