"""Modules: names, state, modes; initialisers."""

import numpy as np
import pytest

import minitensor as mt
from minitensor import nn


def rng(seed=0):
    return np.random.default_rng(seed)


class Net(nn.Module):
    def __init__(self):
        self.layers = nn.ModuleList([nn.Linear(3, 4, rng=rng(1)), nn.LayerNorm(4)])
        self.scale = nn.Parameter(np.ones(4, np.float32))
        self.register_buffer("steps", np.array([7]))
        self.same = self.layers[0]

    def forward(self, x):
        return self.layers[1](self.layers[0](x)) * self.scale


NAMES = ["scale", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


def test_names_are_paths_and_a_shared_tensor_comes_once():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == NAMES
    assert len(net.parameters()) == 5
    assert [n for n, _ in net.named_buffers()] == ["steps"]
    assert [n for n, _ in net.named_modules()] == ["", "layers", "layers.0", "layers.1", "same"]
    assert "same.weight" in net.state_dict()
    assert "(layers): ModuleList" in repr(net) and "Linear(weight[4, 3], bias[4])" in repr(net)


def test_a_frozen_parameter_is_still_one():
    net = Net()
    net.scale.requires_grad = False
    assert "scale" in dict(net.named_parameters())
    net(np.ones((2, 3), np.float32)).sum().backward()
    assert net.scale.grad is None and net.layers[0].weight.grad is not None
    net.zero_grad()
    assert net.layers[0].weight.grad is None


def test_train_and_eval_reach_everything_below():
    net = Net().eval()
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())


def test_state_goes_round_and_is_a_copy():
    net, other = Net(), Net()
    with mt.no_grad():
        net.scale[...] = 5
        net.steps[...] = 8
    state = net.state_dict()
    assert other.load_state_dict(state) == ([], [])
    assert other.scale.data[0] == 5 and other.steps.data[0] == 8
    state["scale"][...] = 6
    assert net.scale.data[0] == other.scale.data[0] == 5


def test_a_wrong_state_names_everything_and_changes_nothing():
    net = Net()
    state = net.state_dict()
    state["extra"] = state.pop("scale")
    state["layers.0.bias"] = np.zeros(9)
    state["layers.0.weight"] = state["layers.0.weight"] + 1
    before = net.state_dict()
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    assert str(error.value) == (
        "load_state_dict of Net: missing: scale; unexpected: extra; "
        "misshapen: layers.0.bias (9,) instead of (4,)"
    )
    with pytest.raises(ValueError, match=r"Net: misshapen: layers.0.bias"):
        net.load_state_dict(state, strict=False)
    for name, values in net.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
    del state["layers.0.bias"]
    assert net.load_state_dict(state, strict=False) == (["scale", "layers.0.bias"], ["extra"])


def test_astype_turns_everything_floating():
    net = Net().astype(np.float64)
    assert all(p.dtype == np.float64 and p.requires_grad for p in net.parameters())
    assert net.steps.dtype == np.int64
    y = net(np.ones((2, 3)))
    y.sum().backward()
    assert y.dtype == net.scale.grad.dtype == np.float64


def test_a_parameter_is_not_replaced_by_chance():
    layer = nn.Linear(3, 4, rng=rng())
    weight, before = layer.weight, layer.weight.data.copy()
    for value in (np.zeros((4, 3)), mt.Tensor(before), weight * 2, 1.0):
        with pytest.raises(TypeError, match=r"Linear.weight is a parameter: .* no_grad\(\)"):
            layer.weight = value
    with mt.no_grad():
        layer.weight -= 1
        layer.weight *= 2
    assert layer.weight is weight and len(layer.parameters()) == 2
    np.testing.assert_allclose(weight.data, (before - 1) * 2, rtol=1e-6)
    layer.weight = nn.Parameter(before)
    layer.bias = None
    np.testing.assert_array_equal(layer(np.eye(3, dtype=np.float32)).data, before.T)
    del layer.weight
    layer.weight = before  # no parameter any more, so nothing is lost
    assert layer.parameters() == []


def test_a_buffer_is_not_replaced_by_chance():
    net = Net()
    for value in (np.zeros(1), 3, nn.Parameter(np.zeros(1))):
        with pytest.raises(TypeError, match=r"Net.steps is a buffer: expected a Tensor or None"):
            net.steps = value
    net.steps = mt.Tensor([8])
    net.steps += 1
    assert [b.tolist() for b in net.buffers()] == [[9]]
    net.steps = None
    assert "steps" not in net.state_dict()
    del net.steps
    net.steps = 5  # a plain attribute now
    assert net.buffers() == []
    with pytest.raises(TypeError, match="'scale' is a parameter"):
        net.register_buffer("scale", np.ones(4))
    with pytest.raises(TypeError, match="'other' is a parameter"):
        net.register_buffer("other", net.scale)


def test_children_and_apply_go_over_the_modules():
    net, seen = Net(), []
    assert [name for name, _ in net.named_children()] == ["layers", "same"]
    assert list(net.layers.children()) == list(net.layers)
    assert net.apply(lambda m: seen.append(type(m).__name__)) is net
    assert seen == ["Linear", "LayerNorm", "ModuleList", "Linear", "Net"]
    assert not any(p.requires_grad for p in net.requires_grad_(False).parameters())


def test_gradients_can_be_set_to_zeros():
    net = Net()
    net(np.ones((2, 3), np.float32)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert not net.scale.grad.any()
    net.zero_grad()
    assert net.scale.grad is None


def test_a_module_dict_is_a_dict_of_modules():
    heads = nn.ModuleDict({"a": nn.Linear(2, 1, rng=rng())})
    heads["b"] = nn.Identity()
    assert list(heads) == heads.keys() == ["a", "b"] and len(heads) == 2 and "a" in heads
    assert [n for n, _ in heads.named_parameters()] == ["a.weight", "a.bias"]
    assert dict(heads.items())["b"] is heads["b"] is heads.values()[1]
    del heads["b"]
    assert "b" not in heads
    for name in ("a.b", "keys", ""):
        with pytest.raises(ValueError, match=r"ModuleDict: .* cannot be a name"):
            heads[name] = nn.Identity()
    with pytest.raises(TypeError, match="'c' is Op, expected a Module"):
        heads["c"] = mt.relu


X, T = rng(3).normal(size=(2, 3)), np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5]])


@pytest.mark.parametrize(
    "module, want",
    [
        (nn.ReLU(), lambda x: mt.relu(x)),
        (nn.GELU("tanh"), lambda x: mt.gelu(x, approximate="tanh")),
        (nn.SiLU(), lambda x: mt.silu(x)),
        (nn.Tanh(), lambda x: mt.tanh(x)),
        (nn.Sigmoid(), lambda x: mt.sigmoid(x)),
        (nn.Softplus(), lambda x: mt.softplus(x)),
        (nn.Softmax(0), lambda x: mt.softmax(x, 0)),
        (nn.LogSoftmax(), lambda x: mt.log_softmax(x)),
        (nn.Identity(), lambda x: x),
        (nn.Flatten(0), lambda x: x.reshape(-1)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_modules_of_functions(module, want):
    x = mt.Tensor(X)
    np.testing.assert_array_equal(module(x).data, want(x).data)
    assert repr(module).startswith(type(module).__name__)


def test_modules_of_losses():
    x, target = mt.Tensor(X), np.array([2, 0])
    for reduction in ("mean", "sum"):
        for loss, want in [
            (nn.MSELoss(reduction)(x, T), mt.mse_loss(x, T, reduction)),
            (
                nn.BCEWithLogitsLoss(reduction)(x, T),
                mt.binary_cross_entropy_with_logits(x, T, reduction),
            ),
            (
                nn.CrossEntropyLoss(label_smoothing=0.1, reduction=reduction)(x, target),
                mt.cross_entropy(x, target, label_smoothing=0.1, reduction=reduction),
            ),
        ]:
            assert loss.item() == want.item()


def test_flatten_keeps_an_empty_batch():
    assert nn.Flatten()(np.zeros((0, 2, 3))).shape == (0, 6)


def test_without_a_generator_weights_are_drawn_anew():
    a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    assert not np.array_equal(a.weight.data, b.weight.data)
    assert nn.Embedding(3, 2).weight.shape == (3, 2) and nn.Dropout().seed != nn.Dropout().seed


def test_sequential_takes_modules_and_functions():
    net = nn.Sequential(nn.Linear(2, 3, rng=rng()), mt.relu, nn.Linear(3, 1, bias=False, rng=rng()))
    assert len(net) == 3 and net[-1].bias is None
    assert [n for n, _ in net.named_parameters()] == ["0.weight", "0.bias", "2.weight"]
    assert net(np.ones((5, 2), np.float32)).shape == (5, 1)
    assert "(1): relu" in repr(net)
    head = net[:2]
    assert type(head) is nn.Sequential and head[0] is net[0] and len(head) == 2
    assert (head(np.ones((5, 2), np.float32)).data >= 0).all()
    for make in (lambda: nn.Sequential([net[0]]), lambda: nn.ModuleList([net[0].weight])):
        with pytest.raises(TypeError, match=r"expected modules, got (list|Parameter)"):
            make()
    assert len(nn.ModuleList([net[0]]).extend(net[1:])) == 3


def test_layers_compute_what_they_say():
    x = rng().normal(size=(2, 3)).astype(np.float32)
    layer = nn.Linear(3, 4, rng=rng())
    np.testing.assert_allclose(layer(x).data, x @ layer.weight.data.T + layer.bias.data, rtol=1e-5)
    assert np.abs(layer.weight.data).max() <= 3**-0.5
    table = nn.Embedding(5, 2, rng=rng())
    np.testing.assert_array_equal(table([[1, 1, 4]]).data, table.weight.data[[[1, 1, 4]]])
    y = nn.LayerNorm(3, bias=False)(x).data
    np.testing.assert_allclose([y.mean(1), y.std(1)], [[0, 0], [1, 1]], atol=1e-4)
    np.testing.assert_allclose((nn.RMSNorm(3)(x).data ** 2).mean(1), 1, rtol=1e-4)
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()()


def test_dropout_acts_in_training_only_and_anew_each_time():
    drop = nn.Dropout(0.25, rng=rng())
    x = mt.Tensor(np.ones(20_000, np.float32))
    a, b = drop(x).data, drop(x).data
    assert set(np.unique(a)) == {0, np.float32(1 / 0.75)}
    assert abs(a.mean() - 1) < 0.02 and not np.array_equal(a, b)
    np.testing.assert_array_equal(drop(x, key=3).data, drop(x, key=3).data)
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match=r"Dropout: p=1\.5"):
        nn.Dropout(1.5, rng=rng())


def test_initialisers():
    x = nn.Parameter(np.empty((400, 300), np.float32))
    for fill, std in [
        (lambda: nn.init.normal_(x, 0.3, rng(), mean=0.1), 0.3),
        (lambda: nn.init.uniform_(x, -1, 1, rng()), 3**-0.5),
        (lambda: nn.init.xavier_uniform_(x, rng=rng()), (2 / 700) ** 0.5),
        (lambda: nn.init.kaiming_uniform_(x, rng=rng()), (2 / 300) ** 0.5),
    ]:
        assert fill() is x and x.requires_grad
        assert abs(x.data.std() / std - 1) < 0.01
    assert nn.init.zeros_(x).data.max() == 0 and nn.init.ones_(x).data.min() == 1
    assert nn.init.constant_(x, 2.5).data.max() == 2.5
    with pytest.raises(ValueError, match="give rng="):
        nn.init.normal_(x)
    with pytest.raises(ValueError, match="at least 2 axes"):
        nn.init.xavier_uniform_(nn.Parameter(np.ones(3)), rng=rng())
