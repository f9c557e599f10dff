"""Imports run one way, between the packages and inside of them."""

import ast
import functools
from pathlib import Path

import pytest

import minitensor

ROOT = Path(minitensor.__file__).parents[1]  # where the packages are: a checkout or installed
PACKAGES = ("minitensor", "bpe", "tinygpt")

# A module imports from the rows above its own only.
BPE = [
    ["terminal", "untrusted"],
    ["errors"],
    ["alphabet", "checks", "files", "patterns", "workers"],
    ["modelfile"],
    ["sources"],
    ["base", "training"],
    ["bytelevel", "char"],
    ["reduced"],
    ["huggingface", "ranks"],
    ["formats"],
    ["cli"],
    ["__main__"],
]
# The rooms of `tinygpt`. Modules of one row may import each other, but not in a circle.
TINYGPT = [
    ["archive", "files", "machine", "progress", "ranks"],
    ["data", "model"],
    ["formats"],
    ["training", "inspection", "generate", "interactive"],
    ["language_model"],
    ["run"],
    ["cli"],
    ["__main__"],
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(tree: ast.AST):
    """Every import of a module that runs, those inside of functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.expr) and not only_for_types(node):  # none is in those
            yield from statements(node)


def imported(source: str):
    """(module, name) for each name that `source` imports; "" where it imports a whole module."""
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        else:
            assert node.level == 0 and node.module, "imports are written in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, "") if inner in FILES else (node.module, alias.name)


@functools.cache
def graph() -> dict[str, set[tuple[str, str]]]:
    """What each of the project's modules imports."""
    return {name: set(imported(path.read_text(encoding="utf-8"))) for name, path in FILES.items()}


def modules_of(name: str) -> set[str]:
    """The project's modules that `name` imports."""
    return {module for module, _ in graph()[name]} & FILES.keys()


@pytest.mark.parametrize(
    ("package", "others"), [("minitensor", {"bpe", "tinygpt"}), ("bpe", {"minitensor", "tinygpt"})]
)
def test_the_packages_below_know_nothing_of_others(package, others):
    for name in FILES:
        if name.partition(".")[0] == package:
            assert not {module.partition(".")[0] for module in modules_of(name)} & others, name


def test_bpe_imports_one_way():
    rows = {f"bpe.{module}": row for row, modules in enumerate(BPE) for module in modules}
    assert rows.keys() | {"bpe"} == {name for name in FILES if name.partition(".")[0] == "bpe"}
    upwards = [
        (name, module)
        for name, row in rows.items()
        for module in modules_of(name)
        if rows.get(module, len(BPE)) >= row
    ]
    assert not upwards


def test_rooms_of_tinygpt_import_one_way():
    rows = {name: row for row, names in enumerate(TINYGPT) for name in names}
    room = {
        name: rows[name.split(".")[1]]  # a new one has to be given its row
        for name in FILES
        if name.startswith("tinygpt.")
    }
    upwards = [
        (name, module)
        for name, row in room.items()
        for module in modules_of(name) & room.keys()
        if room[module] > row
    ]
    assert not upwards
    # Only once an error is to be told, a model to be loaded or trained.
    assert modules_of("tinygpt") == {"bpe.untrusted", "tinygpt.language_model", "tinygpt.run"}


@pytest.mark.parametrize("package", ["bpe", "tinygpt"])
def test_there_are_no_circles(package):
    below = {name: modules_of(name) for name in FILES if name.startswith(package + ".")}
    while below:
        free = {name for name, modules in below.items() if not modules & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {name: modules for name, modules in below.items() if name not in free}


def test_no_module_imports_a_private_name_of_another():
    private = set()
    for name in FILES:
        package = name.rpartition(".")[0]
        for module, what in graph()[name]:
            parent, _, last = module.rpartition(".")
            if module in FILES and what.startswith("_") and not what.startswith("__"):
                private.add((name, what))
            if module in FILES and last.startswith("_") and parent != package and last[1] != "_":
                private.add((name, last))
    assert not private


def test_the_walk_sees_imports_wherever_they_stand():
    source = (
        "from typing import TYPE_CHECKING\nimport bpe.base as b\n"
        "if TYPE_CHECKING:\n    from tinygpt import Error\n"
        "def f():\n    try:\n        from bpe.cli import main, _say\n    except ImportError:\n"
        "        from bpe import formats\n"
    )
    assert set(imported(source)) == {
        ("typing", "TYPE_CHECKING"),
        ("bpe.base", ""),
        ("bpe.cli", "main"),
        ("bpe.cli", "_say"),
        ("bpe.formats", ""),
    }
