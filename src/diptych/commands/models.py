"""``diptych models``: the architectures, with their sizes, counted on the meta device without using memory."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass

from diptych.commands import command


@dataclass(frozen=True)
class Options:
    """What to list."""

    match: str = "*"
    """Only names like this, e.g. "ViT-L*"."""
    json: bool = False
    """One JSON list instead of a table."""


@command("models", example='diptych models --match "ViT-L*"')
def main(options: Options) -> int:
    """List the architectures with image size, widths, activation and parameters (millions: all, image tower, text tower)."""
    from diptych.errors import ConfigError
    from diptych.models import list_models
    from diptych.registry import did_you_mean

    names = [name for name in list_models() if fnmatch.fnmatch(name.lower(), options.match.lower())]
    if not names:
        raise ConfigError(did_you_mean(options.match, list_models(), "architecture"))
    rows = [_row(name) for name in names]
    if options.json:
        print(json.dumps(rows))
    else:
        _print_table(rows)
    return 0


def _row(name: str) -> dict[str, object]:
    from diptych.models import create_model

    model = create_model(name, device="meta")

    def count(module: object) -> int:
        return sum(item.numel() for item in module.parameters())  # type: ignore[attr-defined]

    config = model.config
    return {
        "model": name,
        "image_size": config.vision.image_size,
        "image_width": config.vision.width,
        "text_width": config.text.width,
        "embed_dim": config.embed_dim,
        "activation": config.activation,
        "parameters": count(model),
        "image_parameters": count(model.image),
        "text_parameters": count(model.text),
    }


def _print_table(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in rows[0]:
        table.add_column(
            name.replace("_", " ").replace("parameters", "M"),
            justify="left" if name in ("model", "activation") else "right",
        )
    for row in rows:
        cells = [f"{value / 1e6:.2f}" if "parameters" in name else str(value) for name, value in row.items()]  # type: ignore[operator]
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
