"""Packaging. The distribution is called `tinygpt` and installs three packages."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (HERE / "tinygpt" / "__init__.py").read_text(encoding="utf-8")
).group(1)

PLOT = ["matplotlib>=3.9"]
YAML = ["PyYAML>=6.0.1"]
TOML = ['tomli>=2.0; python_version < "3.11"']  # later Pythons have tomllib
MPI = ["mpi4py>=4.0", "mpich>=4.2"]  # a system's own MPI does as well as this one
FORMATS = ["safetensors>=0.4.3", "gguf>=0.17.1", "ml_dtypes>=0.4"]
TEST = [
    "pytest>=8.0",
    "coverage>=7.10",
    "hypothesis>=6.100",
    "pytest-randomly>=3.15",
    "ruff==0.17.5",
    "mypy==2.4.1",
    "types-PyYAML",
    "types-tqdm",
    "types-regex",
    "nbclient>=0.8",
    "ipykernel>=6.29",
]

setup(
    name="tinygpt",
    version=VERSION,
    description="Train, inspect and run a small language model on a plain CPU, on an autograd "
    "engine written from scratch in NumPy",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # Listed one by one, so that tests and examples are never installed.
    packages=[
        "minitensor",
        "minitensor.gradcheck",
        "minitensor.kernels",
        "minitensor.nn",
        "minitensor.ops",
        "bpe",
        "tinygpt",
        "tinygpt.data",
        "tinygpt.formats",
        "tinygpt.inspection",
        "tinygpt.inspection.page",
        "tinygpt.model",
        "tinygpt.training",
    ],
    package_data={
        "minitensor": ["py.typed"],
        "bpe": ["py.typed"],
        "tinygpt": ["py.typed", "box.npz"],
        "tinygpt.inspection.page": ["*.html", "*.css", "*.js"],
    },
    # numpy and numba are bounded to versions that work together: numba refuses a newer numpy.
    install_requires=[
        "numpy>=2.0,<2.5",
        "numba>=0.61,<0.69",
        "regex>=2023.12.25",
        "tqdm>=4.66",
        "threadpoolctl>=3.5",
    ],
    extras_require={
        "plot": PLOT,
        "yaml": YAML,
        "toml": TOML,
        "formats": FORMATS,
        "mpi": MPI,
        "all": PLOT + YAML + TOML + FORMATS,
        "test": PLOT + YAML + TOML + FORMATS + TEST,
    },
    entry_points={"console_scripts": ["tinygpt = tinygpt.cli:command", "bpe = bpe.cli:main"]},
)
