"""Configurations: what they refuse, and that every field survives every file format."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt import UsageError
from tinygpt.model import config, recipes
from tinygpt.model.config import CHOICES, Config

counts = st.integers(1, 10**6)
fractions = st.floats(0, 1, exclude_max=True)
rates = st.floats(0, 1e6)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def configs(draw) -> Config:
    """Valid configurations that differ from the defaults in every field that is free."""
    heads, kv, width = draw(st.sampled_from([(1, 0, 2), (4, 2, 8), (6, 3, 4), (8, 1, 16)]))
    values = {
        "name": draw(text),
        "data": draw(text),
        "n_head": heads,
        "n_kv_head": kv,
        "d_model": heads * width,
        "vocab_size": draw(st.integers(heads * width, 10**6)),
        "windows": tuple(draw(st.lists(st.integers(0, 512), min_size=1, max_size=4))),
        "rope_theta": draw(st.floats(1, 1e6)),
        "reduced_from": 10**7,
        "tokenizer": draw(st.sampled_from(config.TOKENIZERS)),
        **{key: draw(st.sampled_from(options)) for key, options in CHOICES.items()},
    }
    for field in dataclasses.fields(Config):
        if field.name in values:
            continue
        kind = {"int": counts, "bool": st.booleans(), "float": rates}[str(field.type)]
        if field.name in ("dropout", "beta1", "beta2", "valid_fraction"):
            kind = fractions
        values[field.name] = draw(kind)
    if values["init"] == "unit":
        values["head"] = "untied"  # the one that it is for
    return Config(**values)


@pytest.mark.slow
@given(configs())
@pytest.mark.parametrize("suffix", [".json", ".toml", ".yaml"])
def test_every_field_survives_every_format(suffix, c):
    assert config.loads(config.dumps(c, suffix), suffix) == c


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_survive_a_file(tmp_path, name):
    config.save(recipes.get(name), tmp_path / "c.toml")
    assert config.load(tmp_path / "c.toml") == recipes.get(name)


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
    c = config.override(Config(), [assignment])
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
        ("d_model=130", "not a multiple of n_head"),
        ("n_kv_head=3", "does not divide"),
        ("init=unit", "it needs head=untied, got tied"),
        ("lr", "expected key=value"),
    ],
)
def test_errors_teach_in_one_line(assignment, message):
    with pytest.raises(UsageError) as caught:
        config.override(Config(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
