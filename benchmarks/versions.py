"""The whole suite on other Pythons and other versions of the libraries, from a wheel.

    python benchmarks/versions.py python3.10 python3.12 python3.13
    python benchmarks/versions.py --oldest python3.10 [--only "tests/bpe -x"]

For each Python: an environment of its own with the wheel of this checkout and what its metadata
asks for, the newest versions that it allows, or with `--oldest` the oldest. Then all tests, in a
copy of the checkout that lacks the three packages, so that only the installed ones can be imported.
Prints the versions and the last line of each suite; the status is 1 if one of them failed. The
environment variables of the tests count here too: `MINITENSOR_KERNELS=numpy` runs them without
kernels.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("minitensor", "bpe", "tinygpt")

LIST = """
import importlib.metadata as m, re, platform
names = {re.match("[A-Za-z0-9._-]+", r)[0] for r in m.requires("tinygpt")}
found = {n: m.version(n) for n in sorted(names, key=str.lower) if any(m.distributions(name=n))}
print("Python", platform.python_version(), *(f"{n} {v}" for n, v in found.items()), sep=", ")
"""


def oldest(metadata: str) -> list[str]:
    """The lower bounds among the `Requires-Dist` lines of `metadata`, as pip's constraints."""
    found = re.findall(r"^Requires-Dist: ([\w.-]+)\s*[^;\n]*?>=([\w.]+)", metadata, re.MULTILINE)
    return [f"{name}=={version}" for name, version in dict(found).items()]


def copy(target: Path) -> None:
    """The files that git knows or would add: what lies in build/ would get into the wheel."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, names.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def run(*command: str | Path, **options: object) -> str:
    """What a command printed; its errors are ours."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def suite(python: str, use_oldest: bool, only: list[str], folder: Path) -> bool:
    """Make the environment, run the tests, say how it ended."""
    run(python, "-m", "venv", folder / "venv")
    own = folder / "venv" / "bin" / "python"
    pip = (own, "-m", "pip", "--quiet", "--disable-pip-version-check")
    checkout = folder / "checkout"
    copy(checkout)
    run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, checkout)
    (wheel,) = folder.glob("tinygpt-*.whl")
    for name in (*PACKAGES, "build"):  # what is not there cannot be imported instead of the wheel
        shutil.rmtree(checkout / name)
    bounds = folder / "bounds.txt"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    bounds.write_text("\n".join(oldest(metadata)) if use_oldest else "", "utf-8")
    run(*pip, "install", "--constraint", bounds, f"{wheel}[test]")
    print(run(own, "-c", LIST), end="", flush=True)
    done = subprocess.run(
        [str(own), "-m", "pytest", *only], cwd=checkout, capture_output=True, text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
    print(f"    {done.stdout.strip().splitlines()[-1]}", flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="+", help="a Python to test with, as a command or a path")
    parser.add_argument("--oldest", action="store_true", help="the oldest libraries allowed")
    parser.add_argument("--only", default="", metavar="ARGS", help="arguments for pytest")
    args = parser.parse_args()
    good = []
    for python in args.python:
        with tempfile.TemporaryDirectory() as name:
            good.append(suite(python, args.oldest, shlex.split(args.only), Path(name)))
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
