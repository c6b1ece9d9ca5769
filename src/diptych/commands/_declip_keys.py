"""What each section of DeCLIP's configurations becomes: model, losses, optimizer, schedule, saving. Data is ``_declip_data``.

A function takes the keys of its section, adds flags, and says what is dropped. The values that their nine published files have
all map; what has no counterpart is an error. No file is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from diptych.commands._declip_data import tests, train_data
from diptych.commands._yaml_keys import Keys
from diptych.registry import did_you_mean

OBJECTIVES = ("clip", "slip", "filip", "declip", "defilip")
TOWERS = {
    "res50": {1024: "declip-RN50"},
    "vitb32": {512: "declip-ViT-B-32", 768: "declip-ViT-B-32-filip", 3072: "declip-ViT-B-32-88m"},
}
"""Name in model.type -> width of the embedding -> our architecture."""
TYPES = [f"{objective}_{tower}" for objective in OBJECTIVES for tower in TOWERS]
SELF_SUPERVISED = ("declip", "defilip")
WEIGHTS = {
    "clip_loss": "--contrastive-weight", "nn_text": "--nn-weight", "simsiam_loss": "--simsiam-weight",
    "masking_language": "--mlm-weight",
}  # fmt: skip
ABSENT_LOSSES = ("mae_loss", "text_simsiam_loss", "nn_text_simsiam_loss", "convirt_loss")
BY_TOWERS = "follows from the towers here"
INHERENT = "the objective decides it here"


def _objective(keys: Keys) -> str:
    return str(keys.take("model.type", "")).partition("_")[0]


def model(keys: Keys) -> None:
    """``model``: the objective and the architecture; text masks, queue and heads."""
    kind = str(keys.take("model.type", ""))
    if kind not in TYPES:
        raise keys.error("model.type", did_you_mean(kind, TYPES, "model type").rstrip("."))
    objective, _, tower = kind.partition("_")
    image, text = "model.kwargs.image_encode", "model.kwargs.text_encode"
    usual = 768 if kind == "filip_vitb32" else next(iter(TOWERS[tower]))
    width = keys.take(f"{image}.embed_dim", usual)
    keys.only(
        f"{image}.embed_dim", TOWERS[tower], f"{tower} has an embedding of {' or '.join(map(str, TOWERS[tower]))}"
    )
    keys.only(f"{text}.embed_dim", (width,), f"the image tower's embedding has {width}")
    keys.flag("--objective", objective)
    keys.flag("--model", TOWERS[tower][width])
    if tower == "vitb32":
        keys.flag("--lock-patch-embedding")
    for key in ("bn_group_size", "bn_sync_stats", "use_sync_bn"):
        keys.drop(f"{image}.{key}", "batch norm of towers is of each process; that of heads of all")
    keys.drop(f"{text}.bpe_path", "the vocabulary comes with the package")
    keys.only(f"{text}.text_encode_type", ("Transformer",), "other text towers than DeCLIP's Transformer are not here")
    keys.only(f"{text}.text_model_utils.random", (True,), "a pretrained text tower is given by --pretrained; give true")
    if keys.take(f"{text}.text_model_utils.freeze"):
        keys.flag("--lock-text")
    _heads(keys, objective)


def _heads(keys: Keys, objective: str) -> None:
    clip = "model.kwargs.clip"
    keys.drop(f"{clip}.use_allgather", "features are always compared over all processes")
    if objective in SELF_SUPERVISED:
        keys.only(f"{clip}.EDA", (True,), "the second caption is changed by EDA; give true, or --second-text another")
    for key in ("return_nn_bank", "return_sim", "return_dense", "return_filip", "EDA"):
        keys.only(f"{clip}.{key}", (True, False), "expected true or false")
        keys.drop(f"{clip}.{key}", INHERENT)
    for key in ("feature_dim", "patch_number"):
        keys.drop(f"{clip}.{key}", BY_TOWERS)
    keys.only(f"{clip}.text_mask_type", ("MLM",), "captions are masked for masked language modeling alone")
    if objective not in SELF_SUPERVISED:
        reason = "add --compat for captions with masked tokens" if objective == "filip" else "its loss masks nothing"
        keys.drop(f"{clip}.text_mask_type", reason)
    keys.only(f"{clip}.mask_rate", (0.15,), "the share of masked tokens is 0.15")
    keys.only(f"{clip}.select_topk", (True,), "tokens are always selected; give true")
    for key, flag, owners in (
        ("nn_size", "--queue-size", SELF_SUPERVISED),
        ("nn_topk", "--nn-topk", SELF_SUPERVISED),
        ("sim_dim", "--ssl-dim", ("slip",)),
    ):
        value = keys.whole(f"{clip}.{key}")
        if value is not None and objective in owners:
            keys.flag(flag, value)
        elif value is not None:
            keys.drop(f"{clip}.{key}", f"it is none of {objective}'s options")
    if keys.take(f"{clip}.dense_aug"):
        if objective != "defilip":
            raise keys.error(f"{clip}.dense_aug", "it is an option of defilip; give false")
        keys.flag("--dense-aug")


def losses(keys: Keys) -> None:
    """``clip_simsiam_loss_weight`` and SLIP's ``loss_weight``."""
    objective, section = _objective(keys), "clip_simsiam_loss_weight"
    keys.only(f"{section}.type", ("none", "None"), "weights are constant here; give none")
    for name in ABSENT_LOSSES:
        keys.only(f"{section}.{name}", (0, 0.0), "there is no such loss here; give 0")
    dense = [value for name in ("filip", "clip_dense_loss") if (value := keys.number(f"{section}.{name}"))]
    given = {name: value for name in WEIGHTS if (value := keys.number(f"{section}.{name}")) is not None}
    if objective in SELF_SUPERVISED:
        for name, value in given.items():
            keys.flag(WEIGHTS[name], value)
        if dense and objective == "declip":
            raise keys.error(section, "a token-wise loss beside DeCLIP's is model.type defilip_vitb32")
        for value in dense[:1]:
            keys.flag("--dense-weight", value)
    elif objective == "filip":
        if dense[:1] not in ([], [1.0]):
            raise keys.error(section, "the token-wise loss of filip has weight 1; give 1")
        keys.flag("--filip-global-weight", given.pop("clip_loss", 0.0))
        _no_weights(keys, section, given)
    else:
        if given.pop("clip_loss", 1.0) != 1:
            raise keys.error(f"{section}.clip_loss", f"the contrastive loss of {objective} has weight 1")
        _no_weights(keys, section, given)
    weight, simclr = keys.number("loss_weight.clip_loss", 1.0), keys.number("loss_weight.simclr_loss")
    if weight != 1:
        raise keys.error("loss_weight.clip_loss", "the contrastive loss has weight 1; scale simclr_loss in its place")
    if simclr is not None:
        if objective != "slip":
            raise keys.error("loss_weight.simclr_loss", "it is a loss of slip")
        keys.flag("--ssl-weight", simclr)
    keys.only("label_smooth", (0, 0.0), "the contrastive loss smooths no labels; give 0")


def _no_weights(keys: Keys, section: str, given: dict[str, float]) -> None:
    wrong = next((name for name, value in given.items() if value), None)
    if wrong is not None:
        raise keys.error(f"{section}.{wrong}", f"{_objective(keys)} has no such loss; give 0")


def gradients(keys: Keys) -> None:
    """``grad_clip``: the norm of all gradients, or the range of the scale's logarithm; and ``dist``."""
    keys.drop("dist", "torchrun says which processes there are")
    kind = keys.take("grad_clip.type")
    value, most = keys.number("grad_clip.value"), keys.number("grad_clip.max_value")
    if kind is None:
        return
    if value is None:
        raise keys.error("grad_clip.value", "it is missing; give a number")
    if kind == "norm":
        keys.flag("--grad-clip-norm", value)
    elif kind in ("logit_scale_param_value", "logit_scale_param_abs_min"):
        ends = most if most is not None and kind.endswith("_value") else math.log(100.0)
        if _objective(keys) in ("clip", *SELF_SUPERVISED):
            ends = min(ends, math.log(100.0))  # their forward pass limits the scale to 100
        keys.flags += ["--scale-range", repr(float(value)), repr(float(ends))]
    else:
        raise keys.error(
            "grad_clip.type", "expected norm, logit_scale_param_value or logit_scale_param_abs_min, which are here"
        )


def optimizer(keys: Keys) -> None:
    """``optimizer``: AdamW or SGD, in fp32 or fp16; which parameters do not decay."""
    kind = str(keys.take("optimizer.type", "AdamW"))
    plain = kind.removeprefix("Fused").removeprefix("FP16")
    if plain not in ("AdamW", "SGD"):
        raise keys.error("optimizer.type", "expected AdamW, SGD, or FP16... or FusedFP16... of them")
    keys.flag("--optimizer", plain.lower())
    keys.flag("--precision", "fp16" if "FP16" in kind else "fp32")
    section = "optimizer.kwargs"
    keys.drop(f"{section}.lr", "lr_scheduler's rates are taken, as there")
    decay, betas = keys.number(f"{section}.weight_decay"), keys.take(f"{section}.betas")
    keys.flag("--wd", 0.0 if decay is None else decay)
    if plain == "AdamW":
        if betas is not None and (not isinstance(betas, list) or len(betas) != 2):
            raise keys.error(f"{section}.betas", "expected two numbers")
        for flag, value in zip(("--beta1", "--beta2"), betas or (0.9, 0.999), strict=True):
            keys.flag(flag, float(value))
        eps = keys.number(f"{section}.eps", 1e-8)
        keys.flag("--eps", eps)
        keys.only(f"{section}.amsgrad", (False,), "there is no AMSGrad here; give false")
    else:
        momentum = keys.number(f"{section}.momentum", 0.0)
        keys.flag("--momentum", momentum)
        if momentum and keys.take(f"{section}.nesterov") is not True:
            raise keys.error(f"{section}.nesterov", "momentum has Nesterov's form here; give true")
        keys.take(f"{section}.nesterov")
    for key in ("fp16_normal_bn", "fp16_normal_fc", "fp16_normal_ln"):
        keys.drop(f"optimizer.{key}", "autocast decides what runs in half precision")
    _exceptions(keys)


def _exceptions(keys: Keys) -> None:
    """``pconfig``: weight decay of vectors, and an own rate of the scale."""
    for name in ("bn_w", "bn_b", "ln_w", "ln_b", "bias", "conv_b", "linear_b", "logit_scale"):
        decay = keys.number(f"optimizer.pconfig.{name}.weight_decay")
        if decay:
            raise keys.error(f"optimizer.pconfig.{name}.weight_decay", "vectors and the scale never decay here; give 0")
        rate = keys.number(f"optimizer.pconfig.{name}.lr")
        if rate is not None and name != "logit_scale":
            raise keys.error(
                f"optimizer.pconfig.{name}.lr", "of single kinds only the logit scale has a rate of its own"
            )
        if rate is not None:
            keys.flag("--scale-lr", rate)
    keys.dropped.append(
        "optimizer.pconfig: biases, norms, class embeddings and the scale, all vectors, never decay here"
    )


def schedule(keys: Keys) -> None:
    """``lr_scheduler``: warm-up from base_lr to warmup_lr, then a cosine to min_lr; and ``ema``."""
    keys.only("lr_scheduler.type", ("Cosine", "CosineLRScheduler"), "expected Cosine, which is the one that is here")
    section = "lr_scheduler.kwargs"
    base, peak, least = (keys.number(f"{section}.{name}") for name in ("base_lr", "warmup_lr", "min_lr"))
    warm, last = keys.whole(f"{section}.warmup_steps"), keys.whole(f"{section}.max_iter")
    if base is None or last is None:
        raise keys.error(section, "base_lr and max_iter are needed")
    keys.flag("--lr-scheduler", "cosine")
    keys.flag("--lr", base if peak is None else peak)
    # Their iterations are counted from 1, and iteration max_iter is the one that is not taken.
    keys.flag("--max-steps", last - 1)
    keys.flag("--warmup", max(0, (warm or 0) - 1))
    if (warm or 0) > 1:
        keys.flag("--warmup-start-lr", base)
        keys.flag("--warmup-from-start")
    if least:
        keys.flag("--min-lr", least)
    decay = keys.number("ema.kwargs.decay", 0.999)
    keys.only("ema.enable", (True, False), "expected true or false")
    if keys.take("ema.enable"):
        keys.flag("--ema", decay)


def saver(keys: Keys) -> None:
    """``saver``: how often it logs and saves, and which weights it begins with."""
    for key, flag in (("print_freq", "--log-every-n-steps"), ("save_freq", "--save-every-steps")):
        value = keys.whole(f"saver.{key}")
        if value is not None:
            keys.flag(flag, value)
    validation = keys.whole("saver.val_freq")
    if validation is not None:
        keys.drop("saver.val_freq", "zero-shot is measured every --zeroshot-frequency epochs, and at the end")
    if keys.take("saver.save_many") is True:
        keys.flag("--keep-checkpoints", 0)
    if keys.take("saver.pretrain.path"):
        keys.flag("--pretrained", keys.take("saver.pretrain.path"))
    keys.drop("saver.pretrain.auto_resume", "a run is continued with --resume latest")
    keys.drop("saver.pretrain.ignore", "weights are matched by name and shape, and what does not fit is an error")


SECTIONS: tuple[Callable[[Keys], None], ...] = (
    model, losses, gradients, optimizer, schedule, train_data, tests, saver,
)  # fmt: skip
