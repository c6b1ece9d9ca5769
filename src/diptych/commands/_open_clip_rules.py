"""What the value of an open_clip flag becomes here, where the table alone cannot say it.

A rule takes the flag's name, its values, and all flags given with their values, and returns flags of ours, or raises
ConfigError with one line. It opens no file, and reads no option of ours.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych import log
from diptych.errors import ConfigError

Rule = Callable[[str, Sequence[str], Mapping[str, Sequence[str]]], list[str]]
DASHBOARDS = {"wandb", "trackio", "swanlab", "all"}
TIMM_KEYS = ("ratio", "re_prob", "re_count")
EXACT = {
    "siglip": "the sigmoid loss has no such choice",
    "distill": "distillation always scores this process's rows, with gradients that cross processes",
    "superclip": "superclip always scores this process's rows, with gradients that cross processes",
}
OPTIMIZERS = ("adamw", "lamb", "sgd", "muon")
SAME_LOSS = ("bidir", "shift", "reduce", "gather")


def _dataset_type(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    kind = values[0]
    if kind.endswith("-audio"):
        raise ConfigError(f"{name} {kind}: there are no audio towers; leave the audio flags out.")
    if kind == "synthetic":
        raise ConfigError(
            f"{name} synthetic: there is no made-up data; give --train-data, or time a model with diptych profile --measure."
        )
    return [name, kind]


def _single(name: str, value: str) -> str:
    choices = [choice.strip() for choice in value.split(";") if choice.strip()]
    if len(choices) != 1:
        raise ConfigError(f"{name} {value!r}: expected one name; alternatives in order of priority are not here.")
    return choices[0]


def _image_key(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    return _column(name, values[0], "--csv-img-key", given)


def _text_key(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if name == "--text-key" and "--json-text-key" in given:
        return []  # which takes precedence there too
    return _column(name, values[0], "--csv-caption-key", given)


def _column(name: str, value: str, ours: str, given: Mapping[str, Sequence[str]]) -> list[str]:
    if ours in given:
        raise ConfigError(f"{name} {value}: becomes {ours}, which is given too; leave one of them out.")
    return [ours, _single(name, value)]


def _logs(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if values[0].lower() == "none":
        raise ConfigError(
            f"{name} {values[0]}: a run always leaves a folder; leave it out, or give a temporary folder."
        )
    return [name, values[0]]


def _interpolation(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if values[0] == "random":
        raise ConfigError(f"{name} random: evaluation would differ from training; give bicubic or bilinear.")
    return [name, values[0]]


def _image_size(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if len(values) > 2 or len(set(values)) != 1:
        raise ConfigError(f"{' '.join([name, *values])}: images are squares; give one side in pixels.")
    return [name, values[0]]


def _precision(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if values[0] == "pure_fp16":
        raise ConfigError(f"{name} pure_fp16: gradients of fp16 weights cannot be scaled; give pure_bf16, or fp16.")
    if values[0] == "pure_bf16" and "--master-weights" not in given:
        log.info(
            f"{name} pure_bf16: the optimizer moves fp32 copies of the weights; --master-weights none is as in open_clip."
        )
    return [name, values[0]]


def _siglip(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if "--objective" in given:
        raise ConfigError(f"{name}: becomes --objective siglip, and --objective is given too; leave one of them out.")
    return ["--objective", "siglip"]


def _of_clip(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    objective = "siglip" if "--siglip" in given else _distilled(given) or (given.get("--objective") or ("clip",))[0]
    if objective not in EXACT:
        return [name]
    log.info(f"{name}: no effect here; {EXACT[objective]}.")
    return []


def _distilled(given: Mapping[str, Sequence[str]]) -> str:
    """The objective that a teacher chooses, as there, where none is chosen."""
    teacher = given.get("--distill-model") or ("None",)
    return "distill" if teacher[0] != "None" and "--objective" not in given else ""


def _distill_model(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if "--siglip" in given:
        raise ConfigError(f"{name}: there is no distillation with the sigmoid loss; leave --siglip out.")
    chosen = ["--objective", "distill"] if _distilled(given) else []
    kind = ["--distill-kind", "relation"] if chosen and "--distill-kind" not in given else []
    if kind:
        log.info(f"{name}: read as --objective distill --distill-kind relation, which is open_clip's distillation.")
    return [*chosen, *kind, name, values[0]]


def _distill_pretrained(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if "--distill-model" not in given and "--objective" not in given:
        raise ConfigError(f"{name} {values[0]}: the teacher's architecture is not given; add --distill-model.")
    return [name, values[0]]


def _opt(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    kind = values[0].removeprefix("timm/")
    if values[0] == kind or kind not in OPTIMIZERS:
        raise ConfigError(
            f"{name} {values[0]}: expected adamw, or one of {', '.join(f'timm/{item}' for item in OPTIMIZERS)}."
        )
    if "--optimizer" in given:
        raise ConfigError(f"{name}: becomes --optimizer {kind}, and --optimizer is given too; leave one of them out.")
    if kind == "lamb" and "--grad-clip-norm" not in given:
        log.info(f"{name} {values[0]}: timm's clips gradients to a norm of 1 inside; here --grad-clip-norm 1 does.")
        return ["--optimizer", kind, "--grad-clip-norm", "1"]
    return ["--optimizer", kind]


def _loss_dist_impl(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if values[0] not in SAME_LOSS:
        raise ConfigError(f"{name} {values[0]}: expected one of {', '.join(SAME_LOSS)}.")
    log.info(f"{name}: no effect here; texts are gathered, with the same loss and gradients.")
    return []


def _aug_cfg(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    table = dict(_pair(name, value) for value in values if value)
    flags: list[str] = []
    if table.pop("use_timm", False):
        raise ConfigError(f"{name} use_timm: augmentations of timm are not here; leave it out.")
    scale = table.pop("scale", None)
    if scale is not None:
        flags += ["--aug-scale", *map(str, _numbers(name, "scale", scale, 2))]
    jitter, share = table.pop("color_jitter", None), table.pop("color_jitter_prob", None)
    if (jitter is None) != (share is None):
        raise ConfigError(f"{name}: color_jitter and color_jitter_prob go together; give both or neither.")
    if share:
        flags += [*_jitter_flags(name, jitter), "--aug-color-jitter-prob", str(share)]
    gray = table.pop("gray_scale_prob", None)
    if gray is not None:
        flags += ["--aug-grayscale", str(gray)]
    if table:
        key = next(iter(table))
        reason = "is timm's, whose augmentations are not here" if key in TIMM_KEYS else "is no key of open_clip's"
        raise ConfigError(f"{name} {key}: {reason}; leave it out.")
    return flags


def _pair(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{name} {text}: expected KEY=VALUE, such as scale=(0.5,1.0).")
    try:
        return key, ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        raise ConfigError(f"{name} {text}: {value!r} is neither a number nor numbers in parentheses.") from None


def _numbers(name: str, key: str, value: Any, count: int) -> tuple[float, ...]:
    good = isinstance(value, tuple | list) and len(value) == count
    if not good or not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        raise ConfigError(f"{name} {key}={value!r}: expected {count} numbers.")
    return tuple(map(float, value))


def _jitter_flags(name: str, value: Any) -> list[str]:
    brightness, contrast, saturation, hue = _numbers(name, "color_jitter", value, 4)
    if not brightness == contrast == saturation:
        raise ConfigError(f"{name} color_jitter={value!r}: brightness, contrast and saturation have one strength here.")
    return ["--aug-color-jitter", str(brightness), "--aug-hue", str(hue)]


def _fsdp(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    return ["--sharding", "stage2" if "--fsdp-no-reshard-after-forward" in given else "stage3"]


def _fsdp_no_reshard(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    if "--fsdp" not in given:
        raise ConfigError(f"{name} goes with --fsdp; add it.")
    return []  # --fsdp says it


def _fsdp_checkpoint(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    kinds = {"full": "file", "sharded": "folder"}
    if values[0] not in kinds:
        raise ConfigError(f"{name} {values[0]}: expected full or sharded; see --checkpoint-kind.")
    return ["--checkpoint-kind", kinds[values[0]]]


def _wandb(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    sinks = {sink.strip() for value in given.get("--report-to", ()) for sink in value.split(",")}
    projects = DASHBOARDS if name == "--wandb-project-name" else {"wandb", "all"}
    if sinks & projects:
        return [name, values[0]]
    log.info(f"{name}: no effect here; --report-to names no such dashboard.")
    return []


def _cache_dir(name: str, values: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    # Where the hub's library keeps downloads; it is imported when the first one is wanted.
    os.environ["HF_HUB_CACHE"] = values[0]
    log.info(f"{name}: weights of the Hugging Face hub are downloaded to {values[0]}.")
    return []


RULES: dict[str, Rule] = {
    "wandb": _wandb,
    "cache_dir": _cache_dir,
    "dataset_type": _dataset_type,
    "image_key": _image_key,
    "text_key": _text_key,
    "logs": _logs,
    "interpolation": _interpolation,
    "image_size": _image_size,
    "precision": _precision,
    "siglip": _siglip,
    "of_clip": _of_clip,
    "distill_model": _distill_model,
    "distill_pretrained": _distill_pretrained,
    "opt": _opt,
    "loss_dist_impl": _loss_dist_impl,
    "aug_cfg": _aug_cfg,
    "fsdp": _fsdp,
    "fsdp_no_reshard": _fsdp_no_reshard,
    "fsdp_checkpoint": _fsdp_checkpoint,
}
"""Name in the table -> rule."""
