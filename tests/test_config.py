"""Recipes and flags become one typed tree, and every slip is one line that names the fix."""

import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diptych import config
from diptych.errors import ConfigError


@dataclass(frozen=True)
class Reading:
    batch_size: int = 64
    """Pairs."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Two decays."""
    local_loss: bool = True
    """A switch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """One of two."""


@dataclass(frozen=True)
class Moving:
    lr: float = 1e-3
    """Peak."""
    label: str | None = None
    """A word."""


@dataclass(frozen=True)
class Tree:
    reading: Reading = field(default_factory=Reading)
    moving: Moving = field(default_factory=Moving)


def parse(*argv, default=None):
    return config.parse(Tree, argv, program="diptych x", default=default)


def test_flags_are_flat_and_take_dashes_or_underscores():
    assert parse("--batch-size", "8", "--lr", "1").reading.batch_size == 8
    assert parse("--batch_size", "8").reading.batch_size == 8
    assert parse("--no-local-loss").reading.local_loss is False
    assert parse("--local-loss").reading.local_loss is True


def test_flags_win_over_the_recipe():
    recipe = config.from_dict(Tree, {"moving": {"lr": 0.5, "label": "a"}}, "r.toml")
    tree = parse("--lr", "2", default=recipe)
    assert (tree.moving.lr, tree.moving.label) == (2.0, "a")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--batchsize", "3"], "Did you mean '--batch-size'?"),
        (["--lr", "fast"], "could not convert string to float: 'fast'"),
        (["--precision", "fp8"], "fp8"),
        (["stray"], "'stray' stands alone"),
        (["--lr"], "Missing value for argument '--lr'"),
    ],
)
def test_a_wrong_flag_is_one_line(argv, expected):
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr": 1.0}, "the option 'lr' belongs in the table [moving]"),
        ({"moving": {"lrr": 1.0}}, "Did you mean 'lr'?"),
        ({"moving": {"lr": "fast"}}, "expected float, got str"),
        ({"moving": 3}, "[moving] is a table of options"),
        ({"reading": {"betas": [1.0]}}, "expected 2 values"),
        ({"reading": {"batch_size": True}}, "expected int, got bool"),
        ({"reading": {"precision": "fp8"}}, "expected one of 'fp32', 'bf16'"),
    ],
)
def test_a_wrong_recipe_key_is_one_line_that_names_the_file(values, expected):
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Tree, values, "r.toml")
    assert str(caught.value).startswith("r.toml")
    assert expected in str(caught.value)


@given(
    st.integers(-(2**40), 2**40),
    st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)),
    st.none() | st.text(st.characters(blacklist_categories=["Cs"])),
    st.booleans(),
)
@example(0, (0.0, 0.0), "a line\x85break\u2028to some", False)
def test_what_is_saved_reads_back_equal(size, betas, label, switch):
    tree = Tree(Reading(size, betas, switch), Moving(label=label))
    again = config.from_dict(Tree, tomllib.loads(config.to_toml(config.to_dict(tree))), "saved")
    assert again == tree


def test_a_missing_or_malformed_recipe_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        config.read_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config.read_toml(broken)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.read_toml(binary)


def test_an_unknown_recipe_name_lists_those_that_ship():
    with pytest.raises(ConfigError, match="unknown recipe"):
        config.find_recipe("no-such-recipe")


def test_leaf_names_are_unique_over_the_training_tree():
    from diptych.objectives import OBJECTIVES
    from diptych.train.config import tree_for

    for objective in OBJECTIVES.names():
        names = [leaf for _, leaf in config.leaves(tree_for(objective))]
        assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


@dataclass(frozen=True)
class Renamed:
    max_steps: Annotated[int, config.Range(0), config.Alias("--num-steps"), config.Alias("--steps")] = 0
    """Has two old names."""
    shuffle: Annotated[bool, config.Alias("--permute")] = True
    """A renamed switch."""
    text_lr: config.NotNegative | None = None
    """Optional and bounded."""


@dataclass(frozen=True)
class RenamedTree:
    run: Renamed = field(default_factory=Renamed)


def parse_renamed(*argv):
    return config.parse(RenamedTree, argv, program="diptych x").run


@pytest.mark.parametrize("argv", [["--num-steps", "7"], ["--num_steps", "7"], ["--steps=7"], ["--max-steps", "7"]])
def test_an_old_flag_still_parses(argv):
    assert parse_renamed(*argv).max_steps == 7


def test_an_old_switch_still_parses_both_ways():
    assert parse_renamed("--no-permute").shuffle is False
    assert parse_renamed("--permute").shuffle is True


def test_an_old_name_never_replaces_a_value():
    assert config.parse(Tree, ["--label", "steps"], program="x").moving.label == "steps"
    with pytest.raises(ConfigError, match="stands alone"):
        parse_renamed("steps", "7")


def test_an_old_key_of_a_recipe_still_reads():
    assert config.from_dict(RenamedTree, {"run": {"num_steps": 7}}, "r.toml").run.max_steps == 7
    with pytest.raises(ConfigError, match="old name of 'max_steps'"):
        config.from_dict(RenamedTree, {"run": {"max_steps": 1, "num_steps": 7}}, "r.toml")
    with pytest.raises(ConfigError, match=r"belongs in the table \[run\]"):
        config.from_dict(RenamedTree, {"num_steps": 7}, "r.toml")


def test_every_name_of_a_flag_is_listed():
    assert config.flags(RenamedTree) == {
        "--max-steps": "max_steps",
        "--num-steps": "max_steps",
        "--steps": "max_steps",
        "--shuffle": "shuffle",
        "--permute": "shuffle",
        "--text-lr": "text_lr",
    }


def test_the_range_of_an_optional_number_is_checked():
    assert parse_renamed().text_lr is None
    assert parse_renamed("--text-lr", "0").text_lr == 0.0
    with pytest.raises(ConfigError, match=r"--text-lr -1.0: expected a number of at least 0"):
        parse_renamed("--text-lr", "-1")
    with pytest.raises(ConfigError, match="--max-steps -1: expected a number of at least 0"):
        parse_renamed("--num-steps", "-1")


@pytest.mark.parametrize(("value", "fits"), [("0.0", True), ("1.0", True), ("-0.001", False), ("1.001", False)])
def test_a_range_holds_both_its_ends(value, fits):
    @dataclass(frozen=True)
    class Bounded:
        share: config.Share = 0.5

    if fits:
        assert config.parse(Bounded, ["--share", value], program="x").share == float(value)
    else:
        with pytest.raises(ConfigError, match="from 0 to 1"):
            config.parse(Bounded, ["--share", value], program="x")
