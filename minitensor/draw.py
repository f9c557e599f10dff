"""The graph of a result as a picture: DOT for Graphviz, and an SVG that needs nothing.

    >>> mt.draw(loss, names=dict(model.named_parameters())).save("graph.svg")

Boxes are tensors with their op, shape and gradient; arrows run from inputs to results. The SVG puts
a node one column after the last of its inputs, lets long arrows pass between the boxes, and orders
each column by the average place of its neighbours in a few sweeps (Sugiyama et al., 1981): clear
for graphs of up to a few hundred nodes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minitensor.tape import Array, Node, walk
from minitensor.tensor import Tensor

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 54, 40, 18, 12
CHARACTER = 8  # width of a bold character, on average at most
COLOURS = {"leaf": "#e8f0fe", "op": "#ffffff", "result": "#e6f4ea"}


class Drawing:
    """A graph as text, in two formats: `dot` and `svg`. `save(path)` chooses by the ending of the
    name. Jupyter shows it as a picture."""

    def __init__(self, dot: str, svg: str, boxes: int):
        self.dot, self.svg, self.boxes = dot, svg, boxes

    def __repr__(self) -> str:
        return f"<drawing of {self.boxes} boxes; .save('graph.svg') writes it>"

    def save(self, path: str | Path) -> None:
        """Write a `.svg` or `.dot` file."""
        path = Path(path)
        if path.suffix not in (".svg", ".dot"):
            raise ValueError(f"draw: cannot write '{path.name}'; the name must end in .svg or .dot")
        path.write_text(self.svg if path.suffix == ".svg" else self.dot, encoding="utf-8")

    def _repr_svg_(self) -> str:
        return self.svg


def draw(
    tensor: Tensor, names: Mapping[str, Tensor] | None = None, *, gradients: bool = True
) -> Drawing:
    """The graph that made `tensor`, before it is freed by a backward.

    `names` labels tensors, such as ``dict(model.named_parameters())``. For a scalar result each box
    also shows the gradient of the result with respect to it (its value, or its 2-norm if it is an
    array); nothing is written to ``.grad``. RuntimeError if there is no graph, or it was freed.
    """
    if tensor._node is None or (tensor._node.backward is None and tensor._node.op != "leaf"):
        raise RuntimeError(
            "draw: this tensor has no graph; draw a result that requires a "
            "gradient, before its backward or with retain_graph=True there"
        )
    nodes = _collect(tensor._node)
    grads: dict[Node, Array] = {}
    if gradients and tensor.size == 1:
        grads = walk([(tensor._node, np.ones(tensor.shape, tensor.dtype))], set(nodes), True)
    called = {t._node: name for name, t in (names or {}).items() if t._node is not None}
    labels = {node: _label(node, called.get(node), grads.get(node)) for node in nodes}
    dot, svg = _dot(nodes, labels, tensor._node), _svg(nodes, labels, tensor._node)
    return Drawing(dot, svg, len(nodes))


def _collect(result: Node) -> list[Node]:
    """Every node the result depends on, oldest first, so that inputs come before their uses."""
    found, stack = {result}, [result]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and parent not in found:
                found.add(parent)
                stack.append(parent)
    return sorted(found, key=lambda node: node.id)


def _label(node: Node, name: str | None, g: Array | None) -> list[str]:
    """The lines in a node's box."""
    tensor = node.tensor() if node.tensor is not None else None
    lines = [name or node.op, f"{node.dtype} {list(node.shape)}" if node.shape else f"{node.dtype}"]
    if tensor is not None and tensor.size == 1:
        lines[1] += f" = {tensor.item():.4g}"
    if g is not None:
        lines.append(f"grad {g.item():.4g}" if g.size == 1 else f"|grad| {np.linalg.norm(g):.4g}")
    return lines


def _kind(node: Node, result: Node) -> str:
    return COLOURS["result" if node is result else "leaf" if node.op == "leaf" else "op"]


def _dot(nodes: list[Node], labels: dict[Node, list[str]], result: Node) -> str:
    number = {node: i for i, node in enumerate(nodes)}
    lines = ["digraph {", "  rankdir=LR;", '  node [shape=box, style="filled,rounded"];']
    for node in nodes:
        text = "\\n".join(s.replace("\\", "\\\\").replace('"', '\\"') for s in labels[node])
        lines.append(f'  n{number[node]} [label="{text}", fillcolor="{_kind(node, result)}"];')
        lines += [f"  n{number[p]} -> n{number[node]};" for p in node.parents if p is not None]
    return "\n".join([*lines, "}", ""])


Stop = Node | tuple[Node, int]  # a box, or where the long arrows of one pass another column


def _layout(nodes: list[Node]) -> tuple[list[list[Stop]], list[tuple[Stop, Stop]]]:
    """The columns, each box after its inputs (leaves just before their first use), and the links
    from column to column that make the arrows; ordered so that links are short."""
    users: dict[Node, list[Node]] = {node: [] for node in nodes}
    column: dict[Node, int] = {}
    for node in nodes:
        inputs = [p for p in node.parents if p is not None]
        column[node] = 1 + max((column[p] for p in inputs), default=-1)
        for p in inputs:
            users[p].append(node)
    for node in nodes:
        if node.op == "leaf" and users[node]:
            column[node] = min(column[user] for user in users[node]) - 1
    columns: list[list[Stop]] = [[] for _ in range(max(column.values()) + 1)]
    for node in nodes:
        columns[column[node]].append(node)
    links: list[tuple[Stop, Stop]] = []
    for start in nodes:
        stops: dict[int, Stop] = {column[start]: start}
        for end in sorted(dict.fromkeys(users[start]), key=column.__getitem__):
            for x in range(max(stops) + 1, column[end]):
                stops[x] = (start, x)
                columns[x].append(stops[x])
                links.append((stops[x - 1], stops[x]))
            links.append((stops[column[end] - 1], end))
    near: dict[Stop, list[Stop]] = {stop: [] for c in columns for stop in c}
    for a, b in links:
        near[a].append(b)
        near[b].append(a)
    for sweep in range(6):
        place = {stop: i - len(c) / 2 for c in columns for i, stop in enumerate(c)}
        for c in columns if sweep % 2 == 0 else columns[::-1]:
            mean = {stop: sum(place[n] for n in near[stop]) / max(len(near[stop]), 1) for stop in c}
            c.sort(key=mean.__getitem__)
            place.update((stop, i - len(c) / 2) for i, stop in enumerate(c))
    return columns, links


def _svg(nodes: list[Node], labels: dict[Node, list[str]], result: Node) -> str:
    columns, links = _layout(nodes)
    heights = [[HEIGHT if isinstance(stop, Node) else 0 for stop in c] for c in columns]
    longest = max(len(line) for lines in labels.values() for line in lines)
    box = max(WIDTH, CHARACTER * longest + MARGIN)  # wide enough for the longest name
    tallest = max(sum(h) + GAP_Y * (len(h) - 1) for h in heights)
    at: dict[Stop, tuple[int, int]] = {}  # left edge and middle
    for x, (c, h) in enumerate(zip(columns, heights, strict=True)):
        y = MARGIN + (tallest - sum(h) - GAP_Y * (len(h) - 1)) // 2
        for stop, height in zip(c, h, strict=True):
            at[stop] = MARGIN + x * (box + GAP_X), y + height // 2
            y += height + GAP_Y
    width = 2 * MARGIN + len(columns) * (box + GAP_X) - GAP_X
    height = 2 * MARGIN + tallest
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="6" refX="7" refY="3" '
        'orient="auto"><path d="M0,0 L8,3 L0,6 z" fill="#5f6368"/></marker></defs>',
    ]
    for a, b in links:
        (x1, y1), (x2, y2), bend = at[a], at[b], GAP_X // 2
        through = f"{x1},{y1} L" if not isinstance(a, Node) else ""
        tip = ' marker-end="url(#tip)"' if isinstance(b, Node) else ""
        x1 += box
        out.append(
            f'<path d="M{through}{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}" '
            f'fill="none" stroke="#5f6368"{tip}/>'
        )
    for node in nodes:
        x, y = at[node][0], at[node][1] - HEIGHT // 2
        out.append(
            f'<rect x="{x}" y="{y}" width="{box}" height="{HEIGHT}" rx="6" '
            f'fill="{_kind(node, result)}" stroke="#5f6368"/>'
        )
        for i, line in enumerate(labels[node]):
            weight = ' font-weight="bold"' if i == 0 else ""
            out.append(
                f'<text x="{x + box // 2}" y="{y + 16 + 15 * i}" text-anchor="middle"'
                f"{weight}>{html.escape(line)}</text>"
            )
    return "\n".join([*out, "</svg>", ""])
