"""``diptych models``: the architectures with their sizes, the published weights, and what is in a weight file.

Sizes are counted on the meta device without using memory; nothing is fetched.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tyro.conf import Positional

from diptych.commands import command

if TYPE_CHECKING:  # a second to import, and --help needs none of it
    from torch import nn


@dataclass(frozen=True)
class Options:
    """What to list."""

    inspect: Positional[tuple[str, ...]] = ()
    """"inspect FILE": show what a weight file, a folder or local-dir:FOLDER holds."""
    pretrained: bool = False
    """List published weights instead of architectures."""

    match: str = "*"
    """Only names like this, e.g. "ViT-L*"."""
    json: bool = False
    """One JSON list instead of a table."""


@command("models", example='diptych models --match "ViT-L*"')
def main(options: Options) -> int:
    """List architectures with their sizes (millions of parameters), published weights, or what is in a weight file."""
    from diptych.errors import ConfigError
    from diptych.models import list_models
    from diptych.registry import did_you_mean

    if options.inspect:
        return _inspect(options)
    if options.pretrained:
        return _pretrained(options)
    names = [name for name in list_models() if fnmatch.fnmatch(name.lower(), options.match.lower())]
    if not names:
        raise ConfigError(did_you_mean(options.match, list_models(), "architecture"))
    rows = [_row(name) for name in names]
    if options.json:
        print(json.dumps(rows))
    else:
        _print_table(rows)
    return 0


def _inspect(options: Options) -> int:
    from diptych.errors import ConfigError
    from diptych.weights import inspect_file

    if options.inspect[0] != "inspect" or len(options.inspect) != 2:
        raise ConfigError(f"{' '.join(options.inspect)!r} was given; expected: diptych models inspect FILE")
    facts = inspect_file(options.inspect[1])
    if options.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    return 0


def _pretrained(options: Options) -> int:
    from diptych.errors import ConfigError
    from diptych.registry import did_you_mean
    from diptych.weights import catalog

    rows: list[dict[str, str | float]] = [
        {
            "weights": name,
            "architecture": entry.architecture,
            "repository": entry.repo,
            "ImageNet": entry.imagenet_top1 or "",
            "mean": f"{entry.preprocess.mean[0]:.3g}",
            "resize": entry.preprocess.resize_mode,
            "licence": entry.license,
        }
        for name, entry in catalog().items()
        if fnmatch.fnmatch(name.lower(), options.match.lower())
    ]
    if not rows:
        raise ConfigError(did_you_mean(options.match, catalog(), "name of the catalog"))
    print(json.dumps(rows)) if options.json else _print_table(rows)
    return 0


def _row(name: str) -> dict[str, str | float]:
    from diptych.models import create_model

    model = create_model(name, device="meta")
    config = model.config
    return {
        "model": name,
        "image_size": config.vision.image_size,
        "image_width": config.vision.width,
        "text_width": config.text.width,
        "embed_dim": config.embed_dim,
        "activation": config.activation,
        "parameters": _count(model),
        "image_parameters": _count(model.image),
        "text_parameters": _count(model.text),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _print_table(rows: list[dict[str, str | float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in rows[0]:
        table.add_column(
            name.replace("_", " ").replace("parameters", "M"),
            justify="right" if isinstance(rows[0][name], int | float) else "left",
        )
    for row in rows:
        cells = [
            f"{value / 1e6:.2f}" if "parameters" in name and isinstance(value, int) else str(value)
            for name, value in row.items()
        ]
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
