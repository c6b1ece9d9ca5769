"""open_clip's ``zero_shot_classifier``: class vectors from prompts, of any model that has ``encode_text``.

The plain recipe, one call of the model for each batch of classes. ``diptych.evaluate`` computes the same vectors faster, by
sharing the prompts' first tokens, for Diptych's own models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError
from diptych.open_clip._errors import InvalidError

__all__ = ["batched", "build_zero_shot_classifier", "build_zero_shot_classifier_legacy"]

Item = TypeVar("Item")
Template = Callable[[str], str] | str


def batched(iterable: Iterable[Item], n: int) -> Iterator[list[Item]]:
    """Lists of ``n`` items; the last may be shorter."""
    if n < 1:
        raise InvalidError(f"batches of {n} were asked for; expected at least 1.")
    items = iter(iterable)
    while batch := list(islice(items, n)):
        yield batch


def _checked(classnames: Sequence[str], templates: Sequence[Template]) -> tuple[list[str], list[Callable[[str], str]]]:
    for what, values in (("classnames", classnames), ("templates", templates)):
        # A string is a sequence too, of letters that would become classes.
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InvalidError(
                f"{what} {' '.join(repr(values).split())[:80]} were given; expected a list with at least one of them."
            )
    return list(classnames), [_as_function(template) for template in templates]


def _as_function(template: Template) -> Callable[[str], str]:
    if not isinstance(template, str):
        return template
    if "\0" not in template.format("\0"):
        raise InvalidError(
            f"the template {template!r} was given, which is the same for each class; write {{}} for the name."
        )
    return template.format


def _progress(items: Iterable[Item], use_tqdm: bool, **options: Any) -> Iterable[Item]:
    if not use_tqdm:
        return items
    try:
        import tqdm
    except ImportError as error:
        raise ConfigError("use_tqdm was given, which needs the package tqdm; install it: pip install tqdm") from error
    return tqdm.tqdm(items, **options)  # type: ignore[no-any-return]


@torch.no_grad()
def build_zero_shot_classifier(
    model: Any,
    tokenizer: Any,
    classnames: Sequence[str],
    templates: Sequence[Template],
    num_classes_per_batch: int | None = 10,
    device: str | torch.device = "cpu",
    use_tqdm: bool = False,
) -> Tensor:
    """Unit vectors [D, classes]: the mean of each class's prompts' unit features (Radford et al. 2021, section 3.1).

    Templates are strings with ``{}``, or functions of a name. All classes are one batch where ``num_classes_per_batch`` is None.
    Raises ConfigError when a list is empty or no list.
    """
    names, functions = _checked(classnames, templates)
    per_batch = num_classes_per_batch or len(names)
    batches = list(batched(names, per_batch))
    vectors = []
    for batch in _progress(batches, use_tqdm, unit_scale=per_batch):
        texts = [function(name) for name in batch for function in functions]
        features = model.encode_text(tokenizer(texts).to(device), normalize=True)
        means = features.reshape(len(batch), len(functions), -1).mean(dim=1)
        vectors.append((means / means.norm(dim=1, keepdim=True)).T)
    return torch.cat(vectors, dim=1)


@torch.no_grad()
def build_zero_shot_classifier_legacy(
    model: Any,
    tokenizer: Any,
    classnames: Sequence[str],
    templates: Sequence[Template],
    device: str | torch.device = "cpu",
    use_tqdm: bool = False,
) -> Tensor:
    """The same, one class at a time, of a model whose ``encode_text`` does not normalize."""
    names, functions = _checked(classnames, templates)
    vectors = []
    for name in _progress(names, use_tqdm):
        features = model.encode_text(tokenizer([function(name) for function in functions]).to(device))
        mean = F.normalize(features, dim=-1).mean(dim=0)
        vectors.append(mean / mean.norm())
    return torch.stack(vectors, dim=1).to(device)
