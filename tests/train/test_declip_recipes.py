"""The published rows of DeCLIP's repository as recipes: found by name, what they say, and three steps on generated data."""

import json
import tomllib

import pytest

from diptych import config
from diptych.config import RECIPES
from diptych.data import open_source
from diptych.models import list_models
from diptych.objectives import OBJECTIVES
from diptych.train.config import build, read, tree_for
from diptych.train.loop import train
from tests.data.world import write_jsonl

NAMES = sorted(path.stem for path in (RECIPES / "declip").glob("*.toml"))
# SOURCES: the published zero-shot top-1 on ImageNet, peak rate and weight decay of each row.
PUBLISHED = {
    "clip-vit-b-32": ("32.8", 1e-3, 0.1), "slip-vit-b-32": ("34.3", 5e-4, 0.5), "filip-vit-b-32": ("39.5", 5e-4, 0.5),
    "declip-vit-b-32": ("43.2", 1e-3, 0.1), "defilip-vit-b-32": ("45.0", 1e-3, 0.1), "clip-rn50": ("37.2", 1e-3, 0.1),
    "slip-rn50": ("28.5", 5e-4, 0.5), "filip-rn50": ("21.3", 5e-4, 0.5), "declip-rn50": ("44.4", 1e-3, 0.1),
    "declip-88m-vit-b-32": ("66.2", 0.2, 0.0), "declip-88m-rn50": ("62.5", 0.2, 1e-4),
}  # fmt: skip
SMALL = {
    "slip": "--ssl-width 16 --ssl-dim 8",
    "filip": "--dense-dim 8",
    "declip": "--queue-size 64 --simsiam-width 16 --simsiam-bottleneck 8",
    "defilip": "--queue-size 64 --simsiam-width 16 --simsiam-bottleneck 8 --dense-dim 8",
}


def text_of(name):
    return (RECIPES / "declip" / f"{name}.toml").read_text(encoding="utf-8")


def values_of(name, needs_architecture=True):
    """The recipe, where all that it names is there; else the test is skipped with what is not."""
    values = tomllib.loads(text_of(name))
    objective = values["objective"]["objective"]
    if objective not in OBJECTIVES.names():
        pytest.skip(f"the objective {objective} is not registered")
    known = set(config.leaves(tree_for(objective)))
    missing = [key for table, options in values.items() for key in options if (table, key) not in known]
    if missing:
        pytest.skip(f"the option {missing[0]} is not there")
    if needs_architecture and values["model"]["model"] not in list_models():
        pytest.skip(f"the architecture {values['model']['model']} is not there")
    return values


def test_every_published_row_has_a_recipe_with_its_figure():
    assert set(NAMES) == PUBLISHED.keys()
    for name, (figure, rate, decay) in PUBLISHED.items():
        text, values = text_of(name), tomllib.loads(text_of(name))
        assert f"{figure} %" in text and "not reproduced here: no YFCC15M" in text
        assert (values["optimizer"]["lr"], values["optimizer"]["wd"]) == (rate, decay)
        assert config.find_recipe(f"declip/{name}") == RECIPES / "declip" / f"{name}.toml"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_configuration(name):
    assert build(values_of(name), name).schedule.warmup_from_start


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_three_steps(name, tmp_path):
    objective = values_of(name, needs_architecture=False)["objective"]["objective"]
    pairs = write_jsonl(tmp_path / "data")
    preset = "tiny-test-resnet" if name.endswith("rn50") else "tiny-test"
    flags = (
        f"--recipe declip/{name} --model {preset} --train-data {pairs} --output {tmp_path / 'a'} --max-steps 3 --workers 0 "
        f"--batch-size 32 --last-batch pad --device cpu --precision fp32 --warmup 1 --log-every-n-steps 1 "
        f"{SMALL.get(objective, '')}"
    )
    outcome = train(read(flags.split(), program="diptych train"))
    assert outcome.steps == 3 and (tmp_path / "a" / "model.safetensors").exists()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    scales = [row["logit_scale"] for row in rows if row["phase"] == "train"]
    # The parameter is held in [3, 6] from the first step on.
    assert len(scales) == 3 and scales[-1] >= 20.08
    assert len(open_source(pairs)) < 32
