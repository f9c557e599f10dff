"""Drawings: what is on them, and that they are well-formed."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

import minitensor as mt

SVG = "{http://www.w3.org/2000/svg}"


def example():
    a, b = mt.Tensor([2.0], requires_grad=True), mt.Tensor([-3.0], requires_grad=True)
    return a, b, ((a * b + a) * mt.tanh(a * b)).sum()


def texts(drawing):
    return [t.text for t in ET.fromstring(drawing.svg).iter(f"{SVG}text")]


def test_boxes_have_names_ops_shapes_values_and_gradients():
    a, b, y = example()
    drawing = mt.draw(y, names={"a": a, "b<&>": b})
    seen = texts(drawing)
    assert seen.count("mul") == 3 and {"a", "b<&>", "add", "tanh", "sum"} <= set(seen)
    assert "float32 [1] = 2" in seen and "float32 [1] = -3" in seen
    (grad_a,) = mt.grad(y, [a])
    assert f"grad {grad_a.item():.4g}" in seen
    assert a.grad is None, "drawing writes no gradient"


def test_a_drawing_says_how_large_it_is():
    _, _, y = example()
    assert repr(mt.draw(y)) == "<drawing of 8 boxes; .save('graph.svg') writes it>"


def test_arrays_show_the_norm_of_their_gradient():
    x = mt.Tensor(np.full((3, 4), 2.0), requires_grad=True)
    assert "|grad| 13.86" in texts(mt.draw((x * x).sum()))
    assert not any("grad" in t for t in texts(mt.draw(x * x)))
    assert not any("grad" in t for t in texts(mt.draw((x * x).sum(), gradients=False)))


def test_dot_has_every_node_and_edge():
    drawing = mt.draw(example()[2])
    assert drawing.dot.startswith("digraph {") and drawing.dot.endswith("}\n")
    assert drawing.dot.count("[label=") == 8 and drawing.dot.count("->") == 10


def test_boxes_do_not_overlap_and_inputs_are_to_the_left():
    rng = np.random.default_rng(0)
    net = mt.nn.Sequential(mt.nn.Linear(2, 3, rng=rng), mt.tanh, mt.nn.Linear(3, 2, rng=rng))
    loss = mt.cross_entropy(net(rng.normal(size=(4, 2)).astype("f")), np.array([0, 1, 0, 1]))
    for _ in range(30):
        loss = loss + mt.sin(loss) * 0.5
    svg = ET.fromstring(mt.draw(loss)._repr_svg_())
    boxes = [
        tuple(int(r.get(k)) for k in ("x", "y", "width", "height")) for r in svg.iter(f"{SVG}rect")
    ]
    assert len(boxes) > 90
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0 and x + w <= int(svg.get("width")) and y + h <= int(svg.get("height"))
        for u, v, *_ in boxes[:i]:
            assert abs(x - u) >= w or abs(y - v) >= h
    for path in svg.iter(f"{SVG}path"):
        if path.get("stroke"):
            points = path.get("d")[1:].replace("C", "").split()
            assert int(points[0].split(",")[0]) < int(points[-1].split(",")[0])


def test_saving_and_refusals(tmp_path):
    _, _, y = example()
    drawing = mt.draw(y)
    drawing.save(tmp_path / "g.svg")
    drawing.save(str(tmp_path / "g.dot"))
    assert (tmp_path / "g.svg").read_text(encoding="utf-8") == drawing.svg
    assert (tmp_path / "g.dot").read_text(encoding="utf-8") == drawing.dot
    with pytest.raises(ValueError, match=r"cannot write 'g\.png'"):
        drawing.save(tmp_path / "g.png")
    y.backward()
    for thing in (y, mt.Tensor([1.0])):
        with pytest.raises(RuntimeError, match="draw: this tensor has no graph"):
            mt.draw(thing)


def test_a_box_is_as_wide_as_the_longest_name():
    x = mt.Tensor([1.0, 2.0], requires_grad=True)
    name = "blocks.11.attention.output_projection.weight"
    drawing = mt.draw((x * x).sum(), names={name: x})
    boxes = ET.fromstring(drawing.svg).iter(f"{SVG}rect")
    assert all(int(box.get("width")) >= 7 * len(name) for box in boxes)
