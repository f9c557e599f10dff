"""The chain rule by hand, then by `backward()`: the whole idea of this library on five numbers.

A program that computes a number from others leaves a graph: which result was made of which. The
chain rule walks that graph from the result to the inputs and multiplies by one local derivative at
each step. You will do it on paper for f = (a b + c)², and see `backward()` find the same numbers;
then see why gradients of a value that is used twice are added up.

Run it with `python examples/01_scalar_graph_by_hand.py`; `--out DIR` keeps the drawing of the graph
(open the .svg in a browser).

Exercises (solutions in tests/exercises/test_01.py):

1. Derive the three derivatives of f = a b / (b + c) on paper; what are they at (2, 3, 1)?
2. Find √2 with `backward()` and Newton's method: x − f(x) / f'(x), for f = x² − 2.
3. Call `backward()` on x² and then on 3 x, without clearing `grad`. What is in it, and why is that
   what a training loop with several losses wants?
"""

import argparse
import tempfile
from pathlib import Path

import minitensor as mt


def scalar(value):
    """A leaf: a number that we want the derivative for."""
    return mt.Tensor(value, requires_grad=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the drawing (default: temporary)")
    args = parser.parse_args()

    # Forward, one operation a line, with the value it gives.
    a, b, c = scalar(2.0), scalar(-3.0), scalar(10.0)
    d = a * b  # -6
    e = d + c  # 4
    f = e * e  # 16

    # Backward, on paper. Each line is one local derivative times what is already known.
    df_de = 2 * 4.0  # f = e²        so df/de = 2e
    df_dd = df_de * 1  # e = d + c     so de/dd = 1 ...
    df_dc = df_de * 1  #               ... and de/dc = 1
    df_da = df_dd * -3.0  # d = a b       so dd/da = b ...
    df_db = df_dd * 2.0  #               ... and dd/db = a

    # Leaves keep their gradient by themselves, results in between only if asked.
    for result in (d, e, f):
        result.retain_grad()
    # The picture first: a graph is freed as backward() passes.
    names = {"a": a, "b": b, "c": c, "d = a b": d, "e = d + c": e, "f = e²": f}
    drawing = mt.draw(f, names=names)

    f.backward()
    print(f"f = (a b + c)² = {f.item():g}")
    for name, leaf, by_hand in (("a", a, df_da), ("b", b, df_db), ("c", c, df_dc), ("d", d, df_dd)):
        print(f"df/d{name}: by hand {by_hand:6.1f}, backward() {float(leaf.grad):6.1f}")
        assert leaf.grad == by_hand

    # What a derivative promises: move a by a little, and f moves by df/da times as much.
    step = 0.001
    moved = ((2.0 + step) * -3.0 + 10.0) ** 2
    print(f"a + {step}: f becomes {moved:.6f}, the derivative promised {16 + step * df_da:.6f}")
    assert abs(moved - (16 + step * df_da)) < 20 * step**2

    # A value used twice feeds the result along two paths, and each path adds its share:
    # g = x² + x gives 2x from the first and 1 from the second.
    x = scalar(3.0)
    g = x * x + x
    g.backward()
    print(f"g = x² + x at 3: dg/dx = 2·3 + 1 = {float(x.grad):g}")
    assert x.grad == 7

    out = args.out or Path(tempfile.mkdtemp(prefix="minitensor-"))
    out.mkdir(parents=True, exist_ok=True)
    drawing.save(out / "graph.svg")
    print(f"the graph is drawn in {out / 'graph.svg'}")


if __name__ == "__main__":
    main()
