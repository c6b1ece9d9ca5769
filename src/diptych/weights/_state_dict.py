"""Which tensors of a checkpoint are the model: the state dict, the prefix before its names, raw or averaged.

A checkpoint may hold several state dicts, and a trainer's names begin with the attribute that the model was. The longest prefix
under which a checkpoint format knows the names is taken off; what lies outside of it is listed. Of raw and averaged weights
(EMA, SWA) beside each other the raw ones are taken, and that is said: ``FILE#ema`` takes the others, ``FILE#NAME`` any.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles.read import Stored, read
from diptych.weights._adapter import base_of, is_adapter, merged
from diptych.weights._folder import weight_file
from diptych.weights._native import VERSION
from diptych.weights._recognize import are_ours, format_of
from diptych.weights._refused import refuse_what_is_no_model

ANCHOR = "token_embedding.weight"  # every format's names have it, behind whatever prefix
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|average|averaged|shadow|polyak)($|[._\d])", re.IGNORECASE)
RUN_STATE = frozenset({"weights", "architecture", "step_state", "config"})
OWN_PREFIX = "model."


@dataclass(frozen=True)
class Candidate:
    """A whole model in a checkpoint: the keys that lead to its state dict, its prefix, its tensors without it."""

    group: str
    prefix: str
    tensors: Mapping[str, Tensor]
    averaged: bool

    @property
    def name(self) -> str:
        """What a user writes after # to choose it."""
        return ".".join(part for part in (self.group, self.prefix.rstrip(".")) if part) or "raw"


@dataclass(frozen=True)
class Choice:
    """The file with its model's tensors only; ``prefix`` stood before them; ``remarks`` are lines to say."""

    stored: Stored
    prefix: str = ""
    remarks: tuple[str, ...] = ()


def read_model(path: Path, which: str = "") -> Choice:
    """The model's tensors of a weight file. ``which`` is "raw", "ema", or the name of a state dict; "" decides by itself.

    Raises WeightsError when there are several and nothing says which, and for what is no model.
    """
    if is_adapter(path):
        return _over_its_base(path, which)
    stored = read(path)
    if "diptych" in stored.metadata:
        _refuse_choice(path, which)
        return Choice(stored)
    if set(stored.root) >= RUN_STATE:
        _refuse_choice(path, which)
        return Choice(_of_our_run(stored))
    candidates = _candidates(stored)
    if not candidates:
        _refuse_choice(path, which)
        refuse_what_is_no_model(stored)
        return Choice(stored)
    chosen = _chosen(candidates, which, path)
    remarks = [*_passed_over(stored), *_left_alone(stored, candidates, chosen)]
    if len(candidates) > 1 and not which:
        others = ", ".join(item.name for item in candidates if item is not chosen)
        kind = "averaged (EMA)" if any(item.averaged for item in candidates if item is not chosen) else "other"
        remarks.append(
            f"{path}: holds {kind} weights too ({others}); the raw ones ({chosen.name}) are taken; {path}#ema takes the others."
        )
    elif chosen.averaged and not which:
        remarks.append(f"{path}: the weights are averaged ones (EMA), of {chosen.name}.")
    refuse_what_is_no_model(dataclasses.replace(stored, tensors=dict(chosen.tensors)))
    return Choice(dataclasses.replace(stored, tensors=dict(chosen.tensors)), chosen.prefix, tuple(remarks))


def _over_its_base(path: Path, which: str) -> Choice:
    """An adapter, merged into the base that its config names."""
    base = read_model(weight_file(base_of(path)).path, which)
    tensors = merged(path, read(path).tensors, base.stored.tensors)
    line = f"{path.parent}: a LoRA adapter (peft), merged into its base {base.stored.path}."
    return dataclasses.replace(
        base, stored=dataclasses.replace(base.stored, tensors=tensors), remarks=(line, *base.remarks)
    )


def _refuse_choice(path: Path, which: str) -> None:
    """Raise WeightsError for a choice where there is none."""
    if which not in ("", "raw"):
        raise WeightsError(f"{path}#{which}: this file holds one model only; give it without #{which}.")


def _of_our_run(stored: Stored) -> Stored:
    """A checkpoint of Diptych's training as its ``model.safetensors`` would be: what the objective adds is left out."""
    weights = stored.groups.get("weights", {})
    tensors = {name.removeprefix(OWN_PREFIX): item for name, item in weights.items() if name.startswith(OWN_PREFIX)}
    metadata = {"diptych": json.dumps({"layout": VERSION, "config": stored.root["architecture"]}, default=str)}
    return dataclasses.replace(stored, tensors=tensors, metadata=metadata)


def _candidates(stored: Stored) -> list[Candidate]:
    """Every whole model in the file, in its order; the tensors of one are not another's."""
    result: list[Candidate] = []
    for group, tensors in (stored.groups or {"": stored.tensors}).items():
        prefixes = _prefixes(stored, tensors)
        for prefix in prefixes:
            inner = [other for other in prefixes if other != prefix and other.startswith(prefix)]
            own = {
                name.removeprefix(prefix): item
                for name, item in tensors.items()
                if name.startswith(prefix) and not name.startswith(tuple(inner))
            }
            averaged = bool(AVERAGED.search(group) or AVERAGED.search(prefix)) or "n_averaged" in tensors
            result.append(Candidate(group, prefix, own, averaged))
    return result


def _prefixes(stored: Stored, tensors: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which the names are a known model's: of those that lead to one token embedding, the longest."""
    result: list[str] = []
    for anchor in (name for name in tensors if name.endswith(ANCHOR)):
        steps = [index + 1 for index, letter in enumerate(anchor.removesuffix(ANCHOR)) if letter == "."]
        for prefix in (anchor[:step] for step in (*reversed(steps), 0)):
            names = {name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)}
            if are_ours(names) or format_of(dataclasses.replace(stored, tensors=names)) is not None:
                result.append(prefix)
                break
    return list(dict.fromkeys(result))


def _chosen(candidates: list[Candidate], which: str, path: Path) -> Candidate:
    raw, averaged = ([item for item in candidates if item.averaged == kind] for kind in (False, True))
    if not which:
        fitting = raw or averaged
    elif which in ("raw", "ema"):
        fitting = averaged if which == "ema" else raw
    else:
        fitting = [item for item in candidates if which in (item.name, item.group, item.prefix.rstrip("."))]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(f"{path}#{item.name}" for item in candidates[:10])
    if not fitting:
        raise WeightsError(f"{path}#{which}: no such weights in this file; it holds: {names}.")
    raise WeightsError(f"{path}: holds {len(fitting)} models; say which: {names}.")


def _left_alone(stored: Stored, candidates: Iterable[Candidate], chosen: Candidate) -> list[str]:
    """A line on tensors of the chosen state dict that are of no model."""
    names = (stored.groups or {"": stored.tensors})[chosen.group]
    prefixes = tuple(item.prefix for item in candidates if item.group == chosen.group)
    rest = sorted(name for name in names if not name.startswith(prefixes))
    if not rest:
        return []
    return [
        f"{stored.path}: the model is under {chosen.prefix!r}; left alone beside it: {len(rest)} tensor{'s' * (len(rest) > 1)}, "
        f"{', '.join(rest[:10])}{' ...' * (len(rest) > 10)}."
    ]


def _passed_over(stored: Stored) -> list[str]:
    if not stored.passed_over:
        return []
    names = ", ".join(stored.passed_over[:10])
    return [f"{stored.path}: holds objects that are no weights ({names}), which were read past and not run."]
