"""How much of each package the tests run, in lines and in branches, child processes included.

    python benchmarks/coverage_of_tests.py [--only "tests/bpe -x"] [--keep FOLDER]

Prints a table by package and what no test reaches, file by file; the status is 1 if a package is
below its bounds or a test fails. Functions that numba compiles are left out (see pyproject.toml):
the tests of each kernel against its NumPy twin stand for them. What is not installed is
not measured: the ranks want ``pip install 'tinygpt[mpi]'``, the page Chromium and node.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = {"lines": 97.0, "branches": 93.0}


def measure(only: list[str], folder: Path) -> bool:
    """Run the tests and write `folder`/coverage.json; whether they passed."""
    coverage = [sys.executable, "-m", "coverage"]
    env = os.environ | {"COVERAGE_FILE": str(folder / ".coverage"), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([*coverage, "run", "-m", "pytest", *only], cwd=ROOT, env=env)
    subprocess.run([*coverage, "combine", "--quiet"], cwd=ROOT, env=env, check=True)
    report = ["json", "--quiet", "-o", str(folder / "coverage.json")]
    subprocess.run([*coverage, *report], cwd=ROOT, env=env, check=True)
    return done.returncode == 0


def show(report: dict) -> bool:
    """Print the table and the gaps; whether every package is within its bounds."""
    files, good = report["files"], True
    for name, file in sorted(files.items()):
        gaps = [str(line) for line in file["missing_lines"]]
        gaps += [f"{a}→{'end' if b < 0 else b}" for a, b in file["missing_branches"]
                 if a not in file["missing_lines"] and b not in file["missing_lines"]]  # fmt: skip
        if gaps:
            print(f"{name}: {', '.join(gaps)}")
    print("\n| package | lines | run | branches | taken |\n| --- | --- | --- | --- | --- |")
    for package in ("minitensor", "bpe", "tinygpt"):
        totals = [f["summary"] for name, f in files.items() if Path(name).parts[0] == package]
        counts = {
            key: sum(t[key] for t in totals)
            for key in ("num_statements", "covered_lines", "num_branches", "covered_branches")
        }
        lines = 100 * counts["covered_lines"] / counts["num_statements"]
        branches = 100 * counts["covered_branches"] / counts["num_branches"]
        print(f"| {package} | {counts['num_statements']:,} | {lines:.1f} % | "
              f"{counts['num_branches']:,} | {branches:.1f} % |")  # fmt: skip
        good &= lines >= BOUNDS["lines"] and branches >= BOUNDS["branches"]
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="ARGS", help="arguments for pytest")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep coverage.json here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        passed = measure(shlex.split(args.only), folder.resolve())
        good = show(json.loads((folder / "coverage.json").read_text("utf-8")))
    sys.exit(not (passed and good))


if __name__ == "__main__":
    main()
