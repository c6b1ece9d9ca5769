"""Which file of a folder is opened, what is said of the choice, and which of the files beside it are read or named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from diptych import weights
from diptych.errors import WeightsError
from diptych.models import create_model
from diptych.weights import convert, inspect_file
from diptych.weights._beside import TABLE, known
from diptych.weights._download import CONFIGS
from diptych.weights._folder import SEARCH
from diptych.weights._vocabulary import FILES


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    weights.save(path, create_model("tiny-test"))
    return path


@pytest.fixture
def openclip(weight_file, tmp_path):
    convert(weight_file, "openclip", tmp_path / "oc")
    return tmp_path / "oc"


def put(weight_file, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(weight_file, path)


def checkpoint(path, step, model):
    """A checkpoint of Diptych's training, with what an objective adds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"model.{name}": item for name, item in model.state_dict().items()} | {"queue": torch.zeros(3)}
    parts = {"step": step, "weights": state, "step_state": {"optimizer": {}}, "config": {"model": {"model": ""}}}
    torch.save({**parts, "architecture": model.config.to_dict()}, path)


def test_a_checkpoint_of_training_its_folder_and_the_unfinished_run_are_weights(tmp_path, capsys):
    first, second = create_model("tiny-test"), create_model("tiny-test")
    checkpoint(tmp_path / "run/checkpoints/step_00000900.pt", 900, first)
    checkpoint(tmp_path / "run/checkpoints/step_00001000.pt", 1000, second)
    for source in ("run", "run/checkpoints", "run/checkpoints/step_00001000.pt"):
        capsys.readouterr()
        again = weights.load(tmp_path / source)
        assert again.config == second.config
        assert torch.equal(again.text.token_embedding.weight, second.text.token_embedding.weight)
        said = capsys.readouterr().err
        assert ("the last of 2 checkpoints" in said) == (not source.endswith(".pt"))
    assert inspect_file(tmp_path / "run")["architecture"] == "tiny-test"


def test_a_trainers_numbered_folders_are_taken_by_number(weight_file, tmp_path, capsys):
    put(weight_file, tmp_path / "checkpoint-90/model.safetensors")
    weights.save(tmp_path / "checkpoint-100/model.safetensors", create_model("tiny-test-resnet"))
    (tmp_path / "checkpoint-100/optimizer.pt").write_bytes(b"x")
    assert weights.load(tmp_path).config.name == "tiny-test-resnet"
    assert "checkpoint-100/model.safetensors is taken, the last of 2" in capsys.readouterr().err


def test_of_two_weight_files_the_choice_is_said(openclip, capsys):
    torch.save({"a": torch.zeros(1)}, openclip / "open_clip_pytorch_model.bin")
    assert weights.load(openclip).config.name == "tiny-test"
    said = capsys.readouterr().err
    assert "open_clip_model.safetensors is taken" in said
    assert "open_clip_pytorch_model.bin" in said


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.ckpt", "b.ckpt"), r"2 weight files.*a\.ckpt.*b\.ckpt"),
        (("sub/model.safetensors",), r"there is one in .*sub: give that folder"),
        (("tf_model.h5",), r"another framework only \(tf_model\.h5\)"),
        (("optimizer.pt", "notes.txt"), r"no model\.safetensors in this folder.*holds notes\.txt, optimizer\.pt"),
        (("adapter_config.json", "adapter_model.safetensors"), r"LoRA adapter of some/base.*merge_and_unload"),
    ],
)
def test_a_folder_without_weights_says_what_to_give(files, message, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(tmp_path)
    assert "\n" not in caught.value.line


ADAPTED = "transformer.resblocks.1.mlp.c_fc"


def adapter(folder, base, **changes):
    """What peft's save_pretrained leaves of rank 2 and alpha 8, for one matrix of the text tower; and the two factors."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    down, up = torch.randn(2, 32), torch.randn(128, 2)
    tensors = {f"base_model.model.{ADAPTED}.lora_A.weight": down, f"base_model.model.{ADAPTED}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    return up, down


def test_a_lora_adapter_is_merged_into_the_base_that_it_names(openclip, tmp_path, capsys):
    up, down = adapter(tmp_path / "a", openclip)
    base, adapted = weights.load(openclip), weights.load(tmp_path / "a")
    difference = adapted.text.layers[1].mlp_in.weight - base.text.layers[1].mlp_in.weight
    assert torch.allclose(difference, 4 * up @ down, atol=1e-5)
    assert torch.equal(adapted.text.layers[0].mlp_in.weight, base.text.layers[0].mlp_in.weight)
    assert "LoRA adapter (peft), merged into its base" in capsys.readouterr().err
    up, down = adapter(tmp_path / "b", openclip, use_rslora=True)
    difference = weights.load(tmp_path / "b").text.layers[1].mlp_in.weight - base.text.layers[1].mlp_in.weight
    assert torch.allclose(difference, 8 / 2**0.5 * up @ down, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"modules_to_save": ["ln_final"]},
        {"r": 0},
        {"base": "a/b"},
    ],
)
def test_other_adapters_say_how_they_are_merged(changes, openclip, tmp_path):
    changes = {"base_model_name_or_path": changes["base"]} if "base" in changes else changes
    adapter(tmp_path / "a", openclip, **changes)
    with pytest.raises(WeightsError, match=r"merge_and_unload|not a LoRA's config") as caught:
        weights.load(tmp_path / "a")
    assert "\n" not in caught.value.line


def test_an_adapter_of_another_base_is_refused(openclip, tmp_path):
    adapter(tmp_path / "a", openclip)
    tensors = {
        "base_model.model.nowhere.lora_A.weight": torch.ones(2, 3),
        "base_model.model.nowhere.lora_B.weight": torch.ones(3, 2),
    }
    save_file(tensors, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"nowhere\.lora_A"):
        weights.load(tmp_path / "a")


def test_sentence_transformers_clip_is_opened_and_its_other_modules_are_not_passed_over(weight_file, tmp_path):
    put(weight_file, tmp_path / "0_CLIPModel/model.safetensors")
    modules = [{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert weights.load(tmp_path).config.name == "tiny-test"
    modules.append({"idx": 1, "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert weights.load(tmp_path).config.name == "tiny-test"
    modules.append({"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError, match=r"runs Normalize, Dense|runs Dense"):
        weights.load(tmp_path)


def test_what_is_not_read_and_may_matter_is_named(openclip, capsys):
    (openclip / "adapter_config.json").write_text("{}")
    (openclip / "generation_config.json").write_text("{}")
    (openclip / "strange.json").write_text("{}")
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    (openclip / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    weights.load(openclip)
    said = capsys.readouterr().err
    assert "adapter beside the weights" in said
    assert "'find: '" in said
    assert "strange.json" in said
    assert "generation_config" not in said


def test_the_table_knows_every_file_that_is_read():
    assert all(entry.read for entry in TABLE)
    assert all(known(name) for name in (*CONFIGS, *FILES))
    assert not any(known(name) for name in SEARCH if not name.endswith(".index.json"))


def test_open_clips_local_folder_is_a_model_and_brings_its_weights(openclip, capsys):
    name = f"local-dir:{openclip}"
    expected = weights.load(openclip).state_dict()
    model, _, _ = weights.create_model_and_transforms(name)
    assert torch.equal(model.logit_scale, expected["logit_scale"])
    assert torch.equal(model.text.ln_final.weight, expected["text.ln_final.weight"])
    assert inspect_file(name)["architecture"] == "tiny-test"
    assert weights.get_tokenizer(name).context_length == 77
    capsys.readouterr()
    config, pretrained = weights.choose(name, "")
    assert (config.name, pretrained) == ("tiny-test", name)
    assert "its architecture and its weights" in capsys.readouterr().err
    assert weights.choose(name, "other.pt")[1] == "other.pt"
    with pytest.raises(WeightsError, match="no such weight file"):
        weights.load("local-dir:/nowhere/at/all")


def test_without_a_model_the_architecture_is_the_weights_own(weight_file, tmp_path):
    assert weights.choose("", "")[0].name == weights.DEFAULT_MODEL
    config, pretrained = weights.choose("", str(weight_file))
    assert weights.create(config, pretrained).config.name == "tiny-test"
    with pytest.raises(WeightsError, match=r"--model 'tiny-test-resnet'.*use --model tiny-test, or leave --model out"):
        weights.create("tiny-test-resnet", str(weight_file))
