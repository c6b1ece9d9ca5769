"""A model comes out of whatever wrapper a trainer put it into, the right one, and what was chosen or left alone is said."""

import argparse
import json
import pathlib
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych import weights
from diptych.errors import WeightsError
from diptych.models import create_model, model_config
from diptych.tensorfiles.read import Stored
from diptych.weights import CHECKPOINT_FORMATS, convert, inspect_file
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._rename import to_theirs

from .test_formats import random_model

MARK = "ln_final.bias"


@pytest.fixture(scope="module")
def model():
    return random_model(model_config("tiny-test"))


@pytest.fixture(scope="module")
def state(model):
    """The model under OpenAI's names, as open_clip's trainer has it."""
    return to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict())


def stored(folder, checkpoint):
    torch.save(checkpoint, folder / "last.ckpt")
    return folder / "last.ckpt"


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def scaled(state, factor):
    return {name: tensor * factor for name, tensor in state.items()}


def is_ours(loaded, model, factor=1.0):
    return torch.equal(loaded.text.ln_final.bias, model.text.ln_final.bias * factor)


WRAPPERS = {
    "lightning": lambda state: {"state_dict": under("model.", state), "epoch": 3, "hyper_parameters": {"lr": 1e-5}},
    "with a loss": lambda state: {"state_dict": under("model.", state) | {"criterion.scale": torch.ones(1)}},
    "an attribute": lambda state: under("clip_backbone.", state),
    "deep": lambda state: {"net": under("module._orig_mod.student_net.clip.", state)},
    "averaged": lambda state: under("module.", state) | {"n_averaged": torch.tensor(5)},
    "only averaged": lambda state: {"ema_state_dict": state, "n_averaged": torch.tensor(5)},
    "an optimizer beside": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "amp": {"scale": torch.ones(1)},
    },
    "options": lambda state: {
        "state_dict": under("model.", state),
        "hyper_parameters": argparse.Namespace(lr=1e-5, folder=pathlib.PurePosixPath("/data")),
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_model_is_read_out_of_a_trainers_wrapper(wrapper, model, state, tmp_path):
    path = stored(tmp_path, WRAPPERS[wrapper](state))
    assert is_ours(weights.load(path, model="tiny-test"), model)
    # Inspection says the architecture, too.
    assert inspect_file(path)["architecture"] == "tiny-test"


def test_tensors_outside_of_the_model_are_listed_once_and_at_most_ten(model, state, tmp_path, capsys):
    path = stored(tmp_path, under("net.", state) | {f"head.{index}": torch.zeros(2) for index in range(13)})
    assert is_ours(weights.load(path, model="tiny-test"), model)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left alone" in line]
    assert "13 tensors" in line
    assert "'net.'" in line
    assert len(re.findall(r"head\.\d+", line)) == 10


def test_of_raw_and_averaged_weights_the_raw_are_taken_and_said(model, state, tmp_path, capsys):
    path = stored(tmp_path, {"model": under("module.", state), "model_ema": scaled(state, 0.5), "args": {"ema": True}})
    assert is_ours(weights.load(path, model="tiny-test"), model)
    said = capsys.readouterr().err
    assert "averaged" in said
    assert f"{path}#ema" in said
    for which in ("ema", "model_ema"):
        assert is_ours(weights.load(f"{path}#{which}", model="tiny-test"), model, 0.5)
        assert is_ours(weights.create("tiny-test", f"{path}#{which}"), model, 0.5)
    assert is_ours(weights.load(f"{path}#raw", model="tiny-test"), model)
    assert "averaged" not in capsys.readouterr().err  # the choice was the user's
    with pytest.raises(WeightsError, match=r"no such weights.*#model"):
        weights.load(f"{path}#exponential", model="tiny-test")


def test_a_choice_where_there_is_none_is_an_error(model, tmp_path):
    weights.save(tmp_path / "a.safetensors", model)
    with pytest.raises(WeightsError, match="one model only"):
        weights.load(f"{tmp_path / 'a.safetensors'}#ema")


def test_averaged_weights_may_lie_in_the_same_state_dict(model, state, tmp_path):
    path = stored(tmp_path, {"state_dict": under("model.", state) | under("ema_model.", scaled(state, 2.0))})
    assert is_ours(weights.load(path, model="tiny-test"), model)
    assert is_ours(weights.load(f"{path}#ema", model="tiny-test"), model, 2.0)


def test_two_models_of_one_kind_are_not_chosen_between(model, state, tmp_path):
    path = stored(tmp_path, {"state_dict": under("student.", state) | under("teacher.", scaled(state, 3.0))})
    with pytest.raises(WeightsError, match=r"2 models.*#state_dict\.student.*#state_dict\.teacher") as caught:
        weights.load(path, model="tiny-test")
    assert "\n" not in caught.value.line
    assert is_ours(weights.load(f"{path}#teacher", model="tiny-test"), model, 3.0)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
def test_a_model_that_was_pickled_whole_is_read_without_its_classes(model, state, tmp_path):
    class Tower(torch.nn.Module):
        pass

    root = Tower()
    for name, tensor in state.items():
        parent = root
        *way, leaf = name.split(".")
        for step in way:
            if step not in parent._modules:
                parent.add_module(step, torch.nn.Module())
            parent = parent._modules[step]
        parent.register_parameter(leaf, torch.nn.Parameter(tensor))
    Tower.__qualname__ = "Tower"
    globals()["Tower"] = Tower
    try:
        for old in (False, True):
            torch.save(root, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
            assert is_ours(weights.load(tmp_path / "a.pt", model="tiny-test"), model)
    finally:
        del globals()["Tower"]


def test_a_state_dict_of_diptychs_own_needs_only_the_architecture(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save({"net": under("clip.", model.state_dict())}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        assert is_ours(weights.load(tmp_path / name, model="tiny-test"), model)
        with pytest.raises(WeightsError, match="--model"):
            weights.load(tmp_path / name)


@pytest.mark.parametrize("name", CHECKPOINT_FORMATS.names())
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torchscript", "paddle"])
def test_no_format_takes_one_tower_for_a_model(name, kind, state):
    """Else the longest prefix that it knows would be the tower's."""
    checkpoint_format = CHECKPOINT_FORMATS.get(name)()
    for towers in (lambda part: part.startswith("visual."), lambda part: not part.startswith("visual.")):
        half = {part: item for part, item in state.items() if towers(part)}
        for tensors in (half, under("text.", half)):
            assert not checkpoint_format.recognizes(Stored(pathlib.Path("openai.pt"), kind, tensors))


ATTRIBUTES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(ATTRIBUTES, max_size=4),
    wrappers=st.lists(ATTRIBUTES, max_size=3),
    rest=st.dictionaries(ATTRIBUTES, st.integers(0, 3), max_size=4),
    lost=st.booleans(),
)
def test_whatever_the_prefix_it_is_the_right_model_or_an_error(steps, wrappers, rest, lost, model, state, tmp_path):
    prefix = "".join(f"{step}." for step in steps)
    tensors = under(prefix, {name: item for name, item in state.items() if not (lost and name == MARK)})
    tensors |= {f"{name}.extra": torch.full((2,), float(value)) for name, value in rest.items()}
    checkpoint = tensors
    for wrapper in wrappers:
        checkpoint = {wrapper: checkpoint, "epoch": 3}
    path = stored(tmp_path, checkpoint)
    try:
        loaded = weights.load(path, model="tiny-test")
    except WeightsError as error:
        assert "\n" not in error.line
        return
    assert not lost
    assert is_ours(loaded, model)


def test_weights_that_are_not_finite_are_refused_by_name(model, state, tmp_path):
    bad = {name: tensor.clone() for name, tensor in state.items()}
    bad["visual.proj"][0, 0], bad[MARK][1] = float("nan"), float("inf")
    path = stored(tmp_path, bad)
    with pytest.raises(
        WeightsError, match=r"2 of \d+ tensors hold NaN.*ln_final\.bias|2 of \d+ tensors hold NaN.*proj"
    ):
        weights.load(path, model="tiny-test")
    assert weights.load(path, model="tiny-test", allow=["visual.proj", MARK]).config.name == "tiny-test"


def test_adapters_quantized_weights_and_shards_are_named_with_a_way_on(state, tmp_path):
    name = "transformer.resblocks.0.mlp.c_fc"
    adapted = {f"base_model.model.{key}": item for key, item in state.items() if not key.startswith(name)}
    adapted |= {f"base_model.model.{name}.lora_{letter}.default.weight": torch.zeros(4, 4) for letter in "AB"}
    adapted[f"base_model.model.{name}.base_layer.weight"] = state[f"{name}.weight"]
    packed = dict(state) | {f"{name}.weight": state[f"{name}.weight"].to(torch.int8), f"{name}.SCB": torch.ones(3)}
    for tensors, expected in ((adapted, "LoRA adapter.*merge_and_unload"), (packed, "quantized weights")):
        with pytest.raises(WeightsError, match=expected) as caught:
            weights.load(stored(tmp_path, tensors), model="tiny-test")
        assert "\n" not in caught.value.line
    half = dict(list(state.items())[:9])
    torch.save(half, tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(WeightsError, match=r"shard 1 of 2.*give the folder"):
        weights.load(tmp_path / "pytorch_model-00001-of-00002.bin")


def test_shards_of_torch_files_are_followed_through_their_index(model, state, tmp_path):
    weights.save(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", "openclip", tmp_path / "b")
    (tmp_path / "b" / "open_clip_model.safetensors").unlink()
    names, files = list(state), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    where = {name: files[index % 2] for index, name in enumerate(names)}
    for file in files:
        torch.save({name: state[name] for name in names if where[name] == file}, tmp_path / "b" / file)
    with pytest.raises(WeightsError, match="without their index"):
        weights.load(tmp_path / "b")
    (tmp_path / "b" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert is_ours(weights.load(tmp_path / "b"), model)


def test_half_precision_files_are_trained_in_fp32(model, tmp_path):
    half = create_model("tiny-test", dtype=torch.float16)
    half.load_state_dict(model.state_dict())
    weights.save(tmp_path / "a.safetensors", half)
    trained = weights.create("tiny-test", str(tmp_path / "a.safetensors"))
    assert {item.dtype for item in trained.parameters()} == {torch.float32}
