"""What cannot be done of DeCLIP's YAML, and what is no such file: one line that names the key."""

import pytest

from diptych.commands._declip_yaml import flags_of
from diptych.errors import ConfigError

from .test_declip_yaml import written


def at(*keys, value):
    """A change that sets one value, deep in the tree."""

    def change(tree):
        for key in keys[:-1]:
            tree = tree[key] if isinstance(key, int) else tree.setdefault(key, {})
        tree[keys[-1]] = value

    return change


REFUSED = [
    (at("model", "type", value="declip_vitb16"), "model.type 'declip_vitb16': unknown model type"),
    (at("model", "kwargs", "image_encode", "embed_dim", value=[512]), "vitb32 has an embedding of"),
    (at("model", "kwargs", "image_encode", "embed_dim", value=640), "vitb32 has an embedding of 512 or 768 or 3072"),
    (
        at("model", "kwargs", "image_encode", "embed_dim", value=3072),
        "embed_dim 512: the image tower's embedding has 3072",
    ),
    (at("model", "kwargs", "text_encode", "text_encode_type", value="Bert"), "text_encode_type 'Bert'"),
    (at("model", "kwargs", "clip", "dense_aug", value=True), "it is an option of defilip"),
    (at("clip_simsiam_loss_weight", "mae_loss", value=0.1), "there is no such loss here"),
    (at("clip_simsiam_loss_weight", "type", value="linear"), "weights are constant here"),
    (at("clip_simsiam_loss_weight", "filip", value=0.2), "model.type defilip_vitb32"),
    (at("grad_clip", "type", value="logit_scale_grad"), "grad_clip.type 'logit_scale_grad': expected norm"),
    (at("grad_clip", "type", value="value"), "grad_clip.type 'value': expected norm"),
    (at("optimizer", "type", value="LARS"), "optimizer.type 'LARS': expected AdamW, SGD"),
    (at("optimizer", "pconfig", "bias", value={"weight_decay": 0.1}), "vectors and the scale never decay here"),
    (at("optimizer", "pconfig", "bias", value={"lr": 0.1}), "only the logit scale"),
    (at("optimizer", "kwargs", "eps", value="tiny"), "optimizer.kwargs.eps 'tiny': expected a number"),
    (at("lr_scheduler", "type", value="Step"), "lr_scheduler.type 'Step': expected Cosine"),
    (at("lr_scheduler", "kwargs", "max_iter", value=1.5), "expected a whole number"),
    (at("lr_scheduler", "kwargs", value={"base_lr": 1.0}), "base_lr and max_iter are needed"),
    (at("label_smooth", value=0.1), "label_smooth 0.1"),
    (at("data", "read_from", value="ceph"), "data.read_from 'ceph'"),
    (at("data", "train", "root_dir", value=["a", "b"]), "expected one folder, or 1"),
    (at("data", "train", "transforms", "type", value="STANDARD_SLIP"), "declip has the views of MOCOV2"),
    (at("data", "train", "transforms", "type", value="OTHER"), "expected one of STANDARD_SLIP"),
    (at("data", "train", "meta_file", value=None), "data.train.meta_file: it is missing"),
    (at("data", "test", 0, "test", "transforms", "type", value="CENTER"), "give ONECROP"),
    (at("data", "test", 0, "test", "evaluator", "kwargs", "topk", value=[1, 10]), "give [1, 5]"),
    (at("data", "colour", value=1), "data.colour: no key of DeCLIP's"),
    (at("saver", "fancy", "deep", value=1), "saver.fancy.deep: no key of DeCLIP's"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_is_one_line_that_names_the_key(tmp_path, change, message):
    with pytest.raises(ConfigError) as error:
        flags_of(written(tmp_path, change))
    assert message in error.value.line and "\n" not in error.value.line and "config.yaml" in error.value.line


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "", "given by --recipe"),
        ("a.yaml", "a: [1", "not valid YAML"),
        ("a.yaml", "- 1\n", "finds no model"),
        ("a.yaml", "a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("none.yaml", None, "no such file"),
    ],
)
def test_what_is_no_configuration_is_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        flags_of(str(path))
    assert message in error.value.line and "\n" not in error.value.line
