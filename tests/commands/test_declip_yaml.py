"""DeCLIP's YAML as flags: a whole configuration of each kind, what is dropped, what is refused, and a run from one."""

import dataclasses
import math

import pytest
import yaml

from diptych.commands._declip_yaml import flags_of
from diptych.commands.train import parse
from diptych.data import open_source
from diptych.errors import ConfigError
from diptych.objectives import OBJECTIVES
from tests.data.world import write_jsonl

# Written after the description of the format in SOURCES 1.6; the values are those of the published ViT-B/32 of DeCLIP.
DECLIP = """
model:
  type: declip_vitb32
  kwargs:
    image_encode: {embed_dim: 512, use_sync_bn: true}
    text_encode:
      bpe_path: text_utils/bpe_simple_vocab_16e6.txt.gz
      text_encode_type: Transformer
      text_model_utils: {random: true, freeze: false}
      embed_dim: 512
    clip:
      use_allgather: true
      text_mask_type: MLM
      return_nn_bank: true
      nn_size: 65536
      nn_topk: 1
      feature_dim: 512
      EDA: true
dist: {sync: false}
grad_clip: {type: logit_scale_param_value, value: 3, max_value: 6}
clip_simsiam_loss_weight: {clip_loss: 0.4, nn_text: 0.2, simsiam_loss: 0.2, masking_language: 0.2, type: none}
optimizer:
  type: AdamW
  kwargs: {lr: 1e-3, weight_decay: 0.1, betas: [0.9, 0.98], amsgrad: false, eps: 1e-8}
  pconfig:
    bn_w: {weight_decay: 0}
    bn_b: {weight_decay: 0}
    ln_w: {weight_decay: 0}
    ln_b: {weight_decay: 0}
    bias: {weight_decay: 0}
    logit_scale: {weight_decay: 0}
lr_scheduler:
  type: Cosine
  kwargs: {base_lr: 1e-4, warmup_lr: 1e-3, min_lr: 0.0, warmup_steps: 2500, max_iter: 128001}
label_smooth: 0.0
ema: {enable: true, kwargs: {decay: 0.999}}
data:
  type: clip
  read_from: fs
  use_dali: true
  batch_size: 128
  num_workers: 9
  pin_memory: false
  input_size: 224
  test_resize: 256
  train:
    root_dir: [dataset/yfcc15m]
    meta_file: [dataset/yfcc15m_clean_open_data.json]
    image_reader: {type: pil}
    sampler: {type: distributed_iteration}
    transforms: {type: MOCOV2}
    image_text_two_view: true
    fseek: true
    use_ranked: false
  test:
    - type: clip
      read_from: fs
      batch_size: 128
      test:
        root_dir: dataset/imagenet_val
        meta_file: dataset/val_official.json
        image_reader: {type: pil}
        sampler: {type: distributed}
        transforms: {type: ONECROP}
        evaluator: {type: imagenet, kwargs: {topk: [1, 5]}}
      label_texts_ensemble: prompt80
saver:
  print_freq: 1
  val_freq: 2000
  save_freq: 1000
  save_many: false
  pretrain: {auto_resume: true}
"""


def written(tmp_path, change=None):
    """The configuration as a file, and flags of ours; ``change`` alters the tree."""
    tree = yaml.safe_load(DECLIP)
    if change:
        change(tree)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def pairs_of(flags):
    """Flags with their values as texts."""
    result, name = {}, ""
    for item in flags:
        if item.startswith("--"):
            name = item
            result[name] = []
        else:
            result[name].append(item)
    return {name: " ".join(values) for name, values in result.items()}


def test_a_whole_configuration_comes_to_flags(tmp_path, capsys):
    path = tmp_path / "declip.yaml"
    path.write_text(DECLIP, encoding="utf-8")
    assert pairs_of(flags_of(str(path))) == {
        "--objective": "declip", "--model": "declip-ViT-B-32", "--lock-patch-embedding": "", "--queue-size": "65536",
        "--nn-topk": "1", "--contrastive-weight": "0.4", "--nn-weight": "0.2", "--simsiam-weight": "0.2",
        "--mlm-weight": "0.2", "--scale-range": f"3.0 {math.log(100)}", "--optimizer": "adamw", "--precision": "fp32",
        "--wd": "0.1", "--beta1": "0.9", "--beta2": "0.98", "--eps": "1e-08", "--lr-scheduler": "cosine", "--lr": "0.001",
        "--max-steps": "128000", "--warmup": "2499", "--warmup-start-lr": "0.0001", "--warmup-from-start": "",
        "--ema": "0.999", "--batch-size": "128", "--workers": "9",
        "--train-data": "dataset/yfcc15m_clean_open_data.json", "--image-root": "dataset/yfcc15m", "--captions": "first",
        "--bad-captions": "cjk", "--bad-samples": "replace", "--strong-recipe": "moco-v2", "--declip-views": "both",
        "--imagenet-val": "dataset/val_official.json", "--imagenet-image-root": "dataset/imagenet_val",
        "--templates": "prompt80", "--log-every-n-steps": "1", "--save-every-steps": "1000",
    }  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if "dropped" in line]
    dropped = {line.split(": ")[1].removesuffix(" is dropped") for line in lines}
    assert {
        "data.use_dali", "data.train.sampler", "optimizer.kwargs.lr", "saver.val_freq", "saver.pretrain.auto_resume", "dist",
        "model.kwargs.text_encode.bpe_path", "data.train.fseek", "model.kwargs.image_encode.use_sync_bn",
    } <= dropped  # fmt: skip
    assert all(len(line.split(": ")) >= 3 for line in lines)


def set_clip(tree, kind="clip_res50", transforms="STANDARD_SLIP"):
    tree["model"]["type"] = kind
    width = 1024 if "res50" in kind else 512
    tree["model"]["kwargs"] = {"image_encode": {"embed_dim": width}, "text_encode": {"embed_dim": width}}
    tree.pop("clip_simsiam_loss_weight")
    tree["data"]["train"]["transforms"]["type"] = transforms


def test_clip_of_a_resnet(tmp_path):
    flags = pairs_of(flags_of(written(tmp_path, set_clip)))
    assert (flags["--objective"], flags["--model"], flags["--aug-scale"]) == ("clip", "declip-RN50", "0.5 1")
    assert "--lock-patch-embedding" not in flags and "--strong-recipe" not in flags and "--declip-views" not in flags


def test_slip_and_its_weight(tmp_path):
    def change(tree):
        set_clip(tree, "slip_vitb32", "SLIP")
        tree["model"]["kwargs"]["clip"] = {"sim_dim": 256, "feature_dim": 768}
        tree["loss_weight"] = {"clip_loss": 1.0, "simclr_loss": 0.5}

    flags = pairs_of(flags_of(written(tmp_path, change)))
    assert (flags["--ssl-weight"], flags["--ssl-dim"], flags["--aug-scale"]) == ("0.5", "256", "0.5 1")
    assert flags["--strong-recipe"] == "moco-v2"
    assert flags["--scale-range"] == "3.0 6.0"  # SLIP's forward pass does not limit the scale


def test_filip_has_another_width_and_weights(tmp_path, capsys):
    def change(tree):
        set_clip(tree, "filip_vitb32", "MOCOV2")
        tree["model"]["kwargs"] = {"image_encode": {"embed_dim": 768}, "text_encode": {"embed_dim": 768}}
        tree["model"]["kwargs"]["clip"] = {"text_mask_type": "MLM", "select_topk": True, "return_dense": True}
        tree["clip_simsiam_loss_weight"] = {"clip_loss": 0.0, "clip_dense_loss": 1.0, "mae_loss": 0, "nn_text": 0}

    flags = pairs_of(flags_of(written(tmp_path, change)))
    assert (flags["--objective"], flags["--filip-global-weight"]) == ("filip", "0")
    assert flags["--model"] == "declip-ViT-B-32-filip"
    assert "add --compat" in capsys.readouterr().err


def test_defilip_adds_the_token_wise_weight(tmp_path):
    def change(tree):
        tree["model"]["type"] = "defilip_vitb32"
        tree["model"]["kwargs"]["clip"]["dense_aug"] = True
        tree["clip_simsiam_loss_weight"]["filip"] = 0.2

    flags = pairs_of(flags_of(written(tmp_path, change)))
    assert (flags["--objective"], flags["--dense-weight"], flags["--dense-aug"]) == ("defilip", "0.2", "")


def test_half_precision_and_momentum(tmp_path):
    def change(tree):
        tree["optimizer"] = {
            "type": "FusedFP16SGD",
            "kwargs": {"lr": 0.1, "nesterov": True, "momentum": 0.9, "weight_decay": "1e-4"},
            "fp16_normal_bn": True,
        }

    flags = pairs_of(flags_of(written(tmp_path, change)))
    assert (flags["--optimizer"], flags["--precision"], flags["--momentum"], flags["--wd"]) == (
        "sgd", "fp16", "0.9", "0.0001",
    )  # fmt: skip
    assert "--beta1" not in flags


def test_gradients_are_clipped_by_their_norm(tmp_path):
    flags = pairs_of(flags_of(written(tmp_path, lambda tree: tree.update(grad_clip={"type": "norm", "value": 1.5}))))
    assert flags["--grad-clip-norm"] == "1.5" and "--scale-range" not in flags


def test_several_lists_from_one_folder_and_a_second_test_set(tmp_path):
    def change(tree):
        tree["data"]["train"] |= {"root_dir": ["d", "d"], "meta_file": ["a.json", "b.json"]}
        other = yaml.safe_load(yaml.safe_dump(tree["data"]["test"][0]))
        other["test"]["meta_file"] = "v2.json"
        tree["data"]["test"].append(other)

    flags = pairs_of(flags_of(written(tmp_path, change)))
    assert (flags["--train-data"], flags["--image-root"]) == ("a.json::b.json", "d")
    assert (flags["--imagenet-val"], flags["--imagenet-v2"]) == ("dataset/val_official.json", "v2.json")


@pytest.mark.parametrize("argv", [["--config"], ["--config", "a.yaml", "--config=b.yaml"]])
def test_the_flag_takes_one_file(argv):
    with pytest.raises(ConfigError, match="--config: expected one file"):
        parse(argv)


def test_a_run_is_configured_by_the_file_and_flags_win(tmp_path):
    pairs = write_jsonl(tmp_path / "data")
    path = written(tmp_path, lambda tree: set_clip(tree))
    options = parse(["--config", path, "--train-data", str(pairs), "--lr", "1e-5", "--model", "tiny-test-resnet"])
    assert (options.optimizer.lr, options.model.model, options.data.batch_size) == (1e-5, "tiny-test-resnet", 128)
    assert options.optimizer.scale_range == pytest.approx((3.0, math.log(100)))
    assert options.schedule.warmup_from_start and options.schedule.max_steps == 128_000
    assert options.data.train_data == str(pairs) and len(open_source(pairs))


@pytest.mark.parametrize("name", ["slip", "filip", "declip", "defilip"])
def test_every_flag_is_an_option_of_the_objective(tmp_path, name):
    """Of the objectives of the family; one that is not there is skipped."""
    if name not in OBJECTIVES.names():
        pytest.skip(f"the objective {name} is not registered")
    known = {item.name for item in dataclasses.fields(OBJECTIVES.get(name).Config)}
    wanted = {
        "slip": {"ssl_weight", "ssl_dim"},
        "filip": {"filip_global_weight"},
        "declip": {
            "contrastive_weight",
            "nn_weight",
            "simsiam_weight",
            "mlm_weight",
            "queue_size",
            "nn_topk",
            "declip_views",
        },
        "defilip": {"contrastive_weight", "dense_weight", "dense_aug", "declip_views"},
    }
    assert wanted[name] <= known
