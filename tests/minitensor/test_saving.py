"""A module with its optimiser in a file: training goes on with the same bits, bad files change
nothing."""

import io
import json
import zipfile

import numpy as np
import pytest

import minitensor as mt
from minitensor import nn
from minitensor.files import write_npz

MAKERS = {
    "SGD": lambda ps: mt.optim.SGD(ps, lr=0.1, momentum=0.9),
    "AdamW": lambda ps: mt.optim.AdamW(
        [{"params": ps[:1], "lr": np.float64(0.01)}, {"params": ps[1:], "betas": (0.8, 0.9)}]
    ),
}


def build(seed, width=4):
    rng = np.random.default_rng(seed)
    net = nn.Sequential(
        nn.Linear(3, width, rng=rng), nn.GELU(), nn.Dropout(0.3, rng=rng), nn.Linear(width, 2)
    )
    net.register_buffer("seen", np.array([0]))
    return net


def train(net, optimizer, steps):
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) ** 2).sum().backward()
        mt.optim.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        net.seen += 1


@pytest.mark.parametrize("name", MAKERS)
def test_training_goes_on_with_the_same_bits(name, tmp_path):
    net, other = build(0), build(7)
    optimizer = MAKERS[name](net.parameters())
    train(net, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.05
    mt.save(tmp_path / "run.npz", net, optimizer)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    its = MAKERS[name](other.parameters())
    mt.load(tmp_path / "run.npz", other, its)
    assert its.param_groups[0]["lr"] == 0.05
    train(net, optimizer, 3)
    train(other, its, 3)
    for key, values in net.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[key], values)
    assert other.seen.tolist() == [6]


def test_a_module_alone_and_an_optimizer_before_its_first_step(tmp_path):
    net, other = build(0), build(1)
    path = str(tmp_path / "net.npz")
    mt.save(path, net)
    mt.load(path, other)
    np.testing.assert_array_equal(other[0].weight.data, net[0].weight.data)
    with pytest.raises(ValueError, match="the optimiser is None, expected AdamW"):
        mt.load(path, other, mt.optim.AdamW(other.parameters()))
    mt.save(path, net, mt.optim.AdamW(net.parameters(), lr=0.5))
    optimizer = mt.optim.AdamW(other.parameters())
    mt.load(path, other, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.state[0] == {}


def test_what_does_not_fit_is_said_in_a_line_and_changes_nothing(tmp_path):
    net, path = build(0), tmp_path / "run.npz"
    optimizer = MAKERS["AdamW"](net.parameters())
    train(net, optimizer, 1)
    mt.save(path, net, optimizer)
    plain = nn.Sequential(nn.Linear(3, 4))
    for module, its, match in [
        (build(1, width=5), None, "misshapen: 0.weight"),
        (plain, None, "dropout is at"),
        (build(1), MAKERS["SGD"], "the optimiser is AdamW, expected SGD"),
        (build(1), mt.optim.AdamW, "has groups of"),
    ]:
        before, state = module.state_dict(), None
        if its is not None:
            state = its(module.parameters())
        with pytest.raises(ValueError, match=f"^load: .*run.npz is .*{match}") as error:
            mt.load(path, module, state)
        assert "\n" not in str(error.value)
        for name, values in module.state_dict().items():
            np.testing.assert_array_equal(values, before[name])
        assert state is None or not any(state.state)


@pytest.mark.slow
def test_damaged_files_are_refused_in_a_line(tmp_path):
    net, path = build(0), tmp_path / "run.npz"
    optimizer = MAKERS["SGD"](net.parameters())
    train(net, optimizer, 1)
    mt.save(path, net, optimizer)
    whole = path.read_bytes()
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes())

    def rewritten(**changes):
        text = json.dumps({**meta, **changes}).encode()
        with path.open("wb") as handle:
            np.savez(handle, **{**arrays, "meta": np.frombuffer(text, np.uint8)})
        return path.read_bytes()

    bad = [b"", b"text", whole[: len(whole) // 2], rewritten(format=2), rewritten(dropout=3)]
    bad += [rewritten(steps={"9": 1}), rewritten(param_groups=[]), rewritten(steps={"x": 1})]
    for place in range(0, len(whole), 37):
        bad.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    np.savez_compressed(tmp_path / "zip", **arrays)
    bad.append((tmp_path / "zip.npz").read_bytes())
    refused = 0
    for content in bad:
        path.write_bytes(content)
        fresh = build(3)
        try:
            mt.load(path, fresh, MAKERS["SGD"](fresh.parameters()))
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"load: {path}") and "\n" not in str(error)
        else:  # a byte that says nothing, such as a time
            for name, values in net.state_dict().items():
                np.testing.assert_array_equal(fresh.state_dict()[name], values)
    assert refused > 9 + len(whole) // 37 // 2


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    net, path = build(0), tmp_path / "run.npz"
    mt.save(path, net)
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match=r"No space left on device: .*run.npz"):
        mt.save(path, net)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError, match="missing"):
        mt.save(tmp_path / "missing" / "x.npz", net)
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        mt.load(tmp_path / "missing.npz", net)


def test_the_order_of_arguments_is_told():
    with pytest.raises(
        TypeError, match=r"save: expected save\(path, module, optimizer=None\), got"
    ):
        mt.save(build(0), "net.npz")
    with pytest.raises(TypeError, match="got str, dict, NoneType"):
        mt.load("net.npz", {})


def test_the_file_is_plain(tmp_path):
    net = build(0)
    mt.save(tmp_path / "run.npz", net, mt.optim.SGD(net.parameters()))
    with zipfile.ZipFile(tmp_path / "run.npz") as archive:
        assert "module/0.weight.npy" in archive.namelist()
    with np.load(tmp_path / "run.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["module/3.bias"], net[3].bias.data)


def test_an_archive_is_what_numpy_writes_and_is_closed_where_that_fails():
    arrays = {"a/b": np.arange(6.0).reshape(2, 3).T, "empty": np.zeros((0, 4), np.float32)}
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_npz(ours, arrays)
    np.savez(theirs, **arrays)
    with zipfile.ZipFile(ours) as a, zipfile.ZipFile(theirs) as b:
        for one, other in zip(a.infolist(), b.infolist(), strict=True):
            assert one.filename == other.filename and a.read(one) == b.read(other)
            assert (one.extra, one.header_offset, one.compress_type) == (
                *(other.extra, other.header_offset, other.compress_type),
            )

    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 300:
                raise OSError(28, "No space left on device")
            return super().write(data)

    handle = Full()
    with pytest.raises(OSError, match="No space"):
        write_npz(handle, {"x": np.zeros(1000)})
    handle.close()  # an archive that is still open would now write to it, when it is collected
