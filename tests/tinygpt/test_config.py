"""Configurations: what they refuse, and that every field survives every file format."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt import UsageError
from tinygpt.model import config, recipes
from tinygpt.model.config import BOUNDS, CHOICES, Config

fractions = st.floats(0, 1, exclude_max=True)
rates = st.floats(0, 1e6)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
names = st.text(st.characters(categories=["L", "N"]) | st.sampled_from("-_+=#'\"[]{}"), max_size=20)


@st.composite
def configs(draw) -> Config:
    """Valid configurations that differ from the defaults in every field that is free."""
    heads, kv, width = draw(st.sampled_from([(1, 0, 2), (4, 2, 8), (6, 3, 4), (8, 1, 16)]))
    values = {
        "name": draw(names),
        "data": draw(text),
        "context": draw(st.integers(1, 512)),
        "n_head": heads,
        "n_kv_head": kv,
        "d_model": heads * width,
        "vocab_size": draw(st.integers(heads * width, 1 << 20)),
        "windows": tuple(draw(st.lists(st.integers(0, 512), min_size=1, max_size=4))),
        "rope_theta": draw(st.floats(1, 1e6)),
        "reduced_from": 1 << 20,
        "eps": draw(st.floats(1e-30, 1)),
        "tokenizer": draw(st.sampled_from(config.TOKENIZERS)),
        **{key: draw(st.sampled_from(options)) for key, options in CHOICES.items()},
    }
    for field in dataclasses.fields(Config):
        if field.name in values:
            continue
        most = int(min(10**6, BOUNDS.get(field.name, (0, 10**6))[1]))
        kind = {"int": st.integers(1, most), "bool": st.booleans(), "float": rates}[str(field.type)]
        if field.name in ("dropout", "beta1", "beta2", "valid_fraction"):
            kind = fractions
        values[field.name] = draw(kind)
    if draw(st.booleans()):
        values |= {"replicas": 1, "local_steps": 0}
    else:
        values["replicas"] += 1
        values["local_steps"] = draw(st.integers(1, 1000))
        for key in ("max_iters", "eval_interval", "sample_interval", "checkpoint_interval"):
            values[key] *= values["local_steps"]
    if values["init"] == "unit":
        values["head"] = "untied"  # the one that it is for
    return Config(**values)


@pytest.mark.slow
@given(configs())
@settings(deadline=None)
@pytest.mark.parametrize("suffix", [".json", ".toml", ".yaml"])
def test_every_field_survives_every_format(suffix, c):
    assert config.loads(config.dumps(c, suffix), suffix) == c


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_survive_a_file(tmp_path, name):
    config.save(recipes.get(name), tmp_path / "c.toml")
    assert config.load(tmp_path / "c.toml") == recipes.get(name)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"replicas": 2}, "replicas: 2 with local_steps 0"),
        ({"local_steps": 10}, "replicas: 1 with local_steps 10"),
        ({"replicas": 2, "local_steps": 7}, "divides max_iters, 1000"),
        ({"replicas": 2, "local_steps": 10, "eval_interval": 15}, "divides eval_interval, 15"),
    ],
)
def test_replicas_have_to_meet_where_the_run_is_judged(given, told):
    with pytest.raises(UsageError, match=told):
        Config(**given)


def test_a_file_may_give_some_fields_only(tmp_path):
    (tmp_path / "c.yml").write_text("lr: 3e-4\nn-layer: 2\nwindows: [0, 64]\n", encoding="utf-8")
    c = config.load(tmp_path / "c.yml", recipes.get("quick"))
    assert (c.lr, c.n_layer, c.windows, c.name) == (3e-4, 2, (0, 64), "quick")


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("lr=3e-4", 3e-4),
        ("max-iters=1_000", 1000),
        ("max_iters=1e3", 1000),
        ("scale_attention=false", False),
        ("windows=0,256", (0, 256)),
        ("name=3", "3"),
    ],
)
def test_set_parses_by_the_type_of_the_field(assignment, value):
    c = config.from_dict(config.assigned([assignment]))
    assert getattr(c, assignment.partition("=")[0].replace("-", "_")) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning=1", "unknown configuration key 'learning'"),
        ("batchsize=8", "did you mean 'batch_size'?"),
        ("batch_size=2.5", "batch_size: expected a whole number, got '2.5'"),
        ("lr=fast", "lr: expected a number, got 'fast'"),
        ("lr=nan", "lr: expected a number"),
        ("norm_bias=maybe", "expected true or false"),
        ("windows=a,b", "expected whole numbers"),
        ("head=tide", "did you mean 'tied'?"),
        ("dropout=1", "expected 0 <= dropout < 1"),
        ("n_layer=0", "expected at least 1"),
        ("d_model=131", "not a multiple of n_head"),
        ("n_kv_head=3", "does not divide"),
        ("init=unit", "it needs head=untied, got tied"),
        ("lr", "expected key=value"),
        ("context=30000000", "context: expected at most 65,536, got 30000000"),
        ("context=65536", "table of 65,536 rope positions exceeds the bound of 4,194,304 numbers"),
        ("n_layer=1000000000000", "n_layer: expected at most 1,024"),
        ("lr=" + "9" * 400, "lr: expected a number"),
        ("lr=" + "9" * 100_000, "lr: expected a number, got '999"),
        ("windows=" + "1," * 2000, "at most one a layer, got a tuple of 2000"),
        ("name=../../elsewhere", "name: expected one that a folder can have"),
        ("name=\x1b[2J", r"got '\x1b[2J'"),
        ("data=a\0b", "data: expected at most 4096 bytes of text"),
        ("data=\udcff", r"data: expected at most 4096 bytes of text, got '\udcff'"),
    ],
)
def test_errors_teach_in_one_line(assignment, message):
    with pytest.raises(UsageError) as caught:
        Config(positions="rope", d_model=256, n_head=2).replace(**config.assigned([assignment]))
    assert message in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "sinusoidal", "d_model": 255, "n_head": 1}, "an even d_model, got 255"),
        (
            {"n_layer": 1024, "context": 65536, "positions": "learned"},
            "the keys and values of 65,536 tokens in 1024 layers are 34,359,738,368 numbers",
        ),
        ({"head": "pinv", "vocab_size": 128}, "at least d_model, got 128 < 256"),
        ({"tokenizer": "reduced", "reduced_from": 10}, "reduced_from: expected at least vocab"),
        ({"windows": True}, "windows: expected whole numbers"),
        ({"windows": 256}, None),
        ({"data": 3}, "data: expected text"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    base = Config(d_model=256, n_head=2)
    if message is None:
        assert config.from_dict(fields, base).windows == (256,)
        return
    with pytest.raises(UsageError, match=message):
        config.from_dict(fields, base)


@pytest.mark.parametrize(("name", "extra"), [("c.yaml", "yaml"), ("c.toml", "toml")])
def test_what_reads_a_format_may_be_missing(tmp_path, monkeypatch, name, extra):
    (tmp_path / name).write_text("", encoding="utf-8")
    for module in ("yaml", "tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'tinygpt\[{extra}\]'"):
        config.load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", "{", "not valid JSON"),
        ("c.toml", "a = = 1", "not valid TOML"),
        ("c.yaml", "a: [1", "not valid YAML"),
        ("c.json", "[1]", "expected keys"),
        ("c.ini", "", "a configuration is"),
        ("c.json", '{"lrr": 1}', "unknown configuration key"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        config.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


BOMB = "a: &a [1]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefgh")
)


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", '{"lr": ' + "[" * 10_000, "nested too deeply"),
        ("c.json", '{"lr": 1, "lr": 2}', "the key 'lr' is twice"),
        ("c.json", '{"lr": NaN}', "NaN is not JSON"),
        ("c.json", '{"context": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ("c.json", '{"lr": 1}' + " " * 20_000, "at most 16,384 bytes"),
        ("c.json", b"\xff", "not UTF-8"),
        ("c.toml", "lr = " + "[" * 10_000, "nested too deeply"),
        ("c.toml", "lr." + "a." * 5000 + "b = 1", "lr: expected a number|nested too deeply"),
        ("c.toml", "context = 0x" + "f" * 10_000, "got a number of 40000 bits"),
        ("c.toml", "lr = " + "9" * 4000, "lr: expected a number"),
        ("c.yaml", BOMB, "no aliases and no tags"),
        ("c.yaml", "lr: !!int ''", "no aliases and no tags"),
        ("c.yaml", "lr: !!python/object:os.system x", "no aliases and no tags"),
        ("c.yaml", "lr: " + "[" * 10_000, "nested too deeply"),
        ("c.yaml", "- " * 5000, "nested too deeply"),
        ("c.yaml", 'lr: "\\x1b[2J"', r"got '\\x1b\[2J'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_strangers_file_may_hold(tmp_path, name, content, message):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UsageError, match=message) as caught:
        config.load(tmp_path / name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
