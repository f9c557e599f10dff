"""Break every backward and every check in turn, and see whether the tests notice.

    MINITENSOR_KERNELS=numpy python benchmarks/mutation_check.py [MODULE ...]

Every function of the ops (and the NumPy kernels, which the numba ones are tested against) is read
as a syntax tree. In its backward code, one place at a time is changed: a sign turned, one term of a
sum or one factor of a product dropped, a reduction left out, a vjp negated. The mutant takes the
place of the original and the tests are run on it until one fails. In the checks that every call of
a kernel goes through (kernels/contract.py), an error is left out, a bound moved by one, or one of
several conditions dropped. A survivor is a hole in the
tests, or a change that means nothing; the script lists it and exits with status 1. It takes a
minute and is run by hand; docs/gradients.md has its result.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["MINITENSOR_KERNELS"] = "numpy"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import minitensor as mt  # noqa: E402
from minitensor import kernels, tape  # noqa: E402
from minitensor.kernels import contract  # noqa: E402

MODULES = [
    "ops.elementwise",
    "ops.activation",
    "ops.reduce",
    "ops.shape",
    "ops.linalg",
    "ops.loss",
    "ops.transformer",
    "ops.sublayer",
    "kernels.reference",
    "kernels.composed",
    "tape",
]
Site = tuple[ast.AST, str, Callable[[Any], ast.AST]]
SUBLAYERS = ["attention_sublayer", "feed_forward_sublayer"]
IN_FULL = {"unbroadcast", "cross_entropy", "rotate"}  # backward code by another name
SUMMED = "the walk adds up over axes that the parameter lacks, so the sum is made there"
TWICE = "the sign turns for queries and keys alike, and their product does not notice"
HARMLESS = {  # (function, change) -> why it means nothing
    ("linear", "left factor dropped: np.ones(len(rows), g.dtype) @ rows_of(g)"): SUMMED,
    ("rms_norm_backward", "reduction left out: np.sum(g * xhat, axis=0)"): SUMMED,
    ("layer_norm_backward", "reduction left out: np.sum(g * xhat, axis=0)"): SUMMED,
    ("layer_norm_backward", "reduction left out: np.sum(g, axis=0)"): SUMMED,
    ("map_backward", "reduction left out: dy.sum(axis=0)"): SUMMED,
    ("attention", "result negated: x.swapaxes(1, 2)"): TWICE,
    ("rotate", "result negated: out"): TWICE,
    ("rotate", "result negated: x"): TWICE,
}

# -------------------------------------------------------------------------------------- mutants


def sites(function: ast.FunctionDef) -> Iterator[Site]:
    """Places in the backward code, with what to say and how to change a copy of the node."""
    whole = function.name.endswith("_backward") or function.name in IN_FULL
    roots = [
        n
        for n in ast.walk(function)
        if n is not function and isinstance(n, (ast.Lambda, ast.FunctionDef))
    ]
    seen: set[int] = set()
    for root in [function] if whole else roots:
        for node in ast.walk(root):
            if id(node) in seen or isinstance(node, ast.arguments):
                continue
            seen.add(id(node))
            yield from changes(node)


def changes(node: ast.AST) -> Iterator[Site]:
    """What can be done to one node."""
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, (ast.Add, ast.Sub)):
            flip = ast.Sub if isinstance(node.op, ast.Add) else ast.Add
            yield node, "sign", lambda n: ast.BinOp(n.left, flip(), n.right)
            yield node, "right term dropped", lambda n: n.left
            yield node, "left term dropped", lambda n: n.right
        elif isinstance(node.op, (ast.Mult, ast.Div, ast.MatMult)):
            yield node, "right factor dropped", lambda n: n.left
            if not isinstance(node.op, ast.Div):
                yield node, "left factor dropped", lambda n: n.right
    elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
        yield node, "sign", lambda n: ast.AugAssign(n.target, ast.Sub(), n.value)
        yield node, "sum dropped", lambda n: ast.Assign([n.target], n.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node, "sign", lambda n: n.operand
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("sum", "mean") and not isinstance(node.func.value, ast.Name):
            yield node, "reduction left out", lambda n: n.func.value
        elif node.func.attr in ("sum", "mean") and isinstance(node.func.value, ast.Name):
            inner = (
                (lambda n: n.args[0]) if node.func.value.id == "np" else (lambda n: n.func.value)
            )
            yield node, "reduction left out", inner
    elif isinstance(node, ast.Lambda):
        yield node.body, "vjp negated", lambda n: ast.UnaryOp(ast.USub(), n)
    elif isinstance(node, ast.Return) and node.value is not None:
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for value in values:
            if isinstance(value, ast.Starred):
                yield (
                    value,
                    "results negated",
                    lambda n: ast.Starred(
                        ast.Call(
                            ast.Name("map", ast.Load()),
                            [ast.parse("lambda x: -x").body[0].value, n.value],
                            [],
                        ),
                        ast.Load(),
                    ),
                )
            else:
                yield value, "result negated", lambda n: ast.UnaryOp(ast.USub(), n)


class Swap(ast.NodeTransformer):
    """Put `new` in the place of `old`."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().generic_visit(node)


def mutants(function: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every changed copy of a function, with what was changed."""
    originals = list(sites(function))
    for i, (old, what, _) in enumerate(originals):
        if isinstance(old, ast.Constant) and old.value is None:
            continue
        twin = copy.deepcopy(function)
        node, _, change = list(sites(twin))[i]
        new = Swap(node, change(copy.deepcopy(node))).visit(twin)
        yield f"{what}: {ast.unparse(old)[:60]}", ast.fix_missing_locations(new)


# ---------------------------------------------------------------------------------------- tests


def load(name: str) -> ModuleType:
    """A test file as a module."""
    path = ROOT / "tests" / "minitensor" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEST_OPS, TEST_TORCH, TEST_ERRORS, TEST_TAPE, TEST_NN, TEST_CONTRACT = map(
    load, ("test_ops", "test_torch_ops", "test_errors", "test_tape", "test_nn", "test_contract")
)


def tests(names: list[str]) -> Iterator[Callable[[], Any]]:
    """The tests that a fault in these ops should fail, the likeliest first."""
    for name in names:
        yield lambda name=name: TEST_OPS.test_gradient_agrees_with_differences(name)
    for name in names:
        yield lambda name=name: TEST_OPS.test_memory_layout_changes_nothing(name)
        yield lambda name=name: TEST_OPS.test_nothing_is_promoted(name, np.float32)
    for golden in TEST_TORCH.NAMES:
        yield lambda golden=golden: TEST_TORCH.test_op_gives_what_pytorch_gives(golden)
    yield TEST_TAPE.test_gradients_add_up_over_uses_and_over_calls
    yield TEST_NN.test_dropout_acts_in_training_only_and_anew_each_time
    yield TEST_ERRORS.test_ties_share_the_gradient
    yield TEST_ERRORS.test_where_keeps_a_harmless_nan_harmless
    yield TEST_ERRORS.test_extreme_logits_stay_finite
    yield TEST_ERRORS.test_nothing_gives_nan_or_zero_as_numpy_does_and_no_warning
    yield TEST_TAPE.test_a_slice_gets_its_part_of_the_gradient_whatever_the_order
    yield TEST_TAPE.test_leaves_that_one_op_uses_are_told_together_the_oldest_first


def noticed(names: list[str]) -> bool:
    """Whether any test fails now (an exception of any kind fails a test)."""
    for test in tests(names):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                test()
        except Exception:  # whatever a broken backward leads to, the test has failed
            return True
    return False


# ------------------------------------------------------------------------------------------ run


def swap_in(module: ModuleType, name: str, tree: ast.FunctionDef) -> Callable[[], None]:
    """Compile a mutant and put it where the original was; returns how to undo that."""
    before = vars(module)[name]
    exec(compile(ast.Module([tree], []), "<mutant>", "exec"), vars(module))
    mutant = vars(module)[name]
    if isinstance(before, mt.Op):
        original = before.fn
        setattr(module, name, before)
        before.fn = mutant

        def undo() -> None:
            before.fn = original
    else:
        users = [
            m
            for n, m in sys.modules.items()
            if n.startswith("minitensor") and vars(m).get(name) is before
        ]

        declared = kernels.KERNELS.get(name)

        def put(fn: Any) -> None:
            for user in (module, *users):
                setattr(user, name, fn)
            if declared is not None:  # behind its contract
                declared.numpy = fn
                kernels.twin.cache_clear()
                kernels.forget()

        def undo() -> None:
            put(before)

        put(mutant)
    return undo


def ops_of(module: ModuleType, name: str) -> list[str]:
    """The ops that a fault in a function can show in."""
    thing = vars(module)[name]
    if isinstance(thing, mt.Op):
        return [thing.name]
    if module.__name__.endswith(("reference", "composed")):
        stem = name.removesuffix("_backward")
        users = {
            "cross_entropy": ["cross_entropy", "linear_cross_entropy"],
            "attention": ["attention", "self_attention"],
            "rotate": ["rope", "self_attention"],
            "dropout": ["dropout", "dropout_add"],
            "enter": SUBLAYERS,
            "leave": SUBLAYERS,
            "map": SUBLAYERS,
        }
        return users.get(
            stem,
            [stem]
            if stem in mt.registry
            else [o.name for o in mt.registry.values() if o.fn.__module__.endswith("transformer")],
        )
    if module.__name__.endswith("tape"):
        return ["add", "mul", "maximum", "matmul"]
    return [o.name for o in mt.registry.values() if o.fn.__module__ == module.__name__]


def without_broadcast_sums() -> tuple[int, list[str]]:
    """For each op that broadcasts: its gradients not added up over those axes, but one slice taken.

    The adding up is the walk's (`unbroadcast`), so it is broken there, for one op at a time.
    """
    original, reduced = tape.unbroadcast, []

    def broken(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if g.size > math.prod(shape) > 0:
            reduced.append(shape)
        lead = g.ndim - len(shape)
        return g[(0,) * lead + tuple(slice(0, n) for n in shape)].reshape(shape)

    count, alive = 0, []
    tape.unbroadcast = broken
    try:
        for name in sorted(mt.registry):
            reduced.clear()
            try:
                TEST_OPS.test_gradient_agrees_with_differences(name)
                failed = False
            except Exception:  # any failure is a test that noticed
                failed = True
            count += bool(reduced)
            if reduced and not failed:
                alive.append(f"{name}: no sum over broadcast axes")
    finally:
        tape.unbroadcast = original
    return count, alive


CHECKS = {
    "check",
    "plain",
    "fit",
    "fit_formulas",
    "bound",
}  # the methods of contract.py that refuse
SWAPPED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
SLOWER = "only decides whether the exact check, which comes after it, is made"
HARMLESS_CHECKS = {  # (class, method, change) -> why it means nothing
    ("Indices", "bound", "bound 0 moved: x.min() >= 0"): SLOWER
}


def without(i: int, node: ast.BoolOp) -> ast.AST:
    """The node without one of its conditions."""
    rest = node.values[:i] + node.values[i + 1 :]
    return rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def compared_by(ops: list[ast.cmpop], node: ast.Compare) -> ast.AST:
    """The node with other signs between its operands."""
    return ast.Compare(node.left, ops, node.comparators)


def broken_checks(method: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every changed copy of a method, with what was changed."""

    def changed(node: ast.AST, new: Callable[[Any], ast.AST], what: str) -> Any:
        place = list(ast.walk(method)).index(node)
        twin = copy.deepcopy(method)
        old = list(ast.walk(twin))[place]
        text = f"{what}: {ast.unparse(node).splitlines()[0][:60]}"
        return text, ast.fix_missing_locations(Swap(old, new(copy.deepcopy(old))).visit(twin))

    for node in ast.walk(method):
        if isinstance(node, ast.Raise):
            yield changed(node, lambda n: ast.Pass(), "error left out")
        elif isinstance(node, ast.Expr) and ".later." in ast.unparse(node):
            yield changed(node, lambda n: ast.Pass(), "never looked at")
        elif isinstance(node, ast.BoolOp):
            for i in range(len(node.values)):
                yield changed(node, functools.partial(without, i), f"condition {i} dropped")
        elif isinstance(node, ast.Compare):
            for i, op in enumerate(node.ops):
                if type(op) in SWAPPED:
                    ops = [*node.ops[:i], SWAPPED[type(op)](), *node.ops[i + 1 :]]
                    yield changed(node, functools.partial(compared_by, ops), f"bound {i} moved")


def refused_as_before() -> bool:
    """Whether the tests of the contracts pass, on the NumPy side."""
    try:
        for what in TEST_CONTRACT.REFUSED:
            TEST_CONTRACT.test_both_sides_refuse_what_does_not_fit(what, "numpy")
        for what in TEST_CONTRACT.EMPTY:
            TEST_CONTRACT.test_nothing_is_computed_of_nothing(what, "numpy")
        TEST_CONTRACT.test_what_is_written_is_written_in_place_or_not_at_all("numpy")
        TEST_CONTRACT.test_a_kernel_is_handed_plain_arrays_and_numbers()
        TEST_CONTRACT.test_a_declaration_can_be_read()
    except BaseException:  # pytest.raises does not fail with an Exception
        return False
    return True


def without_checks() -> tuple[int, list[str]]:
    """For each method of contract.py that refuses something: one check left out, or moved."""
    count, alive = 0, []
    assert refused_as_before(), "the tests of the contracts fail without any mutant"
    for owner in ast.parse(Path(contract.__file__).read_text(encoding="utf-8")).body:
        if not isinstance(owner, ast.ClassDef):
            continue
        for method in owner.body:
            if not isinstance(method, ast.FunctionDef) or method.name not in CHECKS:
                continue
            kind = vars(contract)[owner.name]
            original = vars(kind)[method.name]
            for what, mutant in broken_checks(method):
                if (owner.name, method.name, what) in HARMLESS_CHECKS:
                    continue
                space: dict[str, Any] = {}
                exec(compile(ast.Module([mutant], []), "<mutant>", "exec"), vars(contract), space)
                setattr(kind, method.name, space[method.name])
                try:
                    caught = not refused_as_before()
                finally:
                    setattr(kind, method.name, original)
                count += 1
                if not caught:
                    alive.append(f"{owner.name}.{method.name}: {what}")
    return count, alive


def main(chosen: list[str]) -> int:
    """Run all mutants of the chosen modules; 1 if one survived."""
    total, survivors = 0, []
    assert not noticed(sorted(mt.registry)), "the tests fail without any mutant"
    for module_name in [name for name in MODULES if not chosen or name in chosen]:
        module = importlib.import_module(f"minitensor.{module_name}")
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        count, alive = 0, []
        for function in tree.body:
            if not isinstance(function, ast.FunctionDef) or function.name.endswith("cases"):
                continue
            function.decorator_list = []
            if not (changed := list(mutants(function))):
                continue
            undo = swap_in(module, function.name, function)
            assert not noticed(ops_of(module, function.name)), "an unchanged copy fails the tests"
            undo()
            for what, mutant in changed:
                if (function.name, what) in HARMLESS:
                    continue
                undo = swap_in(module, function.name, mutant)
                try:
                    caught = noticed(ops_of(module, function.name))
                finally:
                    undo()
                count += 1
                if not caught:
                    alive.append(f"{function.name}: {what}")
        show(module_name, count, alive)
        total, survivors = total + count, survivors + alive
    for what, broken in (("broadcast sums", without_broadcast_sums), ("checks", without_checks)):
        if not chosen or what in chosen:
            count, alive = broken()
            show(what, count, alive)
            total, survivors = total + count, survivors + alive
    harmless = len(HARMLESS) + len(HARMLESS_CHECKS)
    print(f"{total} mutants, {total - len(survivors)} noticed; {harmless} harmless ones left out")
    return 1 if survivors else 0


def show(what: str, count: int, alive: list[str]) -> None:
    """A line of the table, and the survivors."""
    print(f"{what:<20}{count:>5} mutants{count - len(alive):>5} noticed", flush=True)
    for line in alive:
        print(f"    SURVIVED {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
