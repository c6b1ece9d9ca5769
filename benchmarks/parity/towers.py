"""Features of open_clip's own models against ours, on its random weights, file to file: the table of exactness.

    python benchmarks/parity/towers.py [FOLDER FOR TEMPORARY FILES]      (environment: benchmarks/peers.txt)

Each model is made by open_clip, saved as its users save it (state dict and open_clip_config.json), opened by diptych.load, and
run on the same images and texts. Writes benchmarks/results/parity.json and docs/parity.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _peers import machine, open_clip

from diptych import weights
from diptych.text import get_tokenizer
from diptych.weights._convert import convert

ROOT = Path(__file__).resolve().parents[2]
MODELS = [
    "ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-H-14", "RN50", "RN50x4", "RN101", "ViT-B-16-SigLIP",
    "ViT-B-32-SigLIP2-256", "ViT-L-14-CLIPA",
]  # fmt: skip


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Biases, norms and running statistics away from 0 and 1, so that a tensor at the wrong position shows."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, item in [*model.named_parameters(), *model.named_buffers()]:
            if item.is_floating_point() and item.ndim == 1 and "logit" not in name:
                noise = torch.randn(item.shape, generator=chance) * 0.1
                item.add_(noise.abs() if "running_var" in name else noise)
    return model.eval()


@torch.no_grad()
def compared(name: str, folder: Path) -> dict[str, object]:
    """One row of the table."""
    peer = open_clip()
    theirs = shaken(peer.create_model(name, pretrained=None))
    torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": peer.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    side, ids = theirs.visual.image_size, tokens(theirs)
    side = side[0] if isinstance(side, tuple) else side
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected = [
        item / item.norm(dim=-1, keepdim=True) for item in (theirs.encode_image(pixels), theirs.encode_text(ids))
    ]
    del theirs
    ours = weights.load(folder)
    actual = [ours.encode_image(pixels, normalize=True), ours.encode_text(ids, normalize=True)]
    row: dict[str, object] = {"model": name, "read as": ours.config.name, "activation": ours.config.activation}
    for tower, a, b in zip(("image", "text"), expected, actual, strict=True):
        row[f"{tower} max |difference|"] = (a - b).abs().max().item()
        row[f"{tower} least cosine"] = (a * b).sum(-1).min().item()
    del ours
    row["open_clip opens ours"] = written_back(peer, name, folder, (pixels, ids), expected)
    return row


def written_back(peer, name: str, folder: Path, inputs, expected) -> float:
    """The largest difference when open_clip loads what diptych convert wrote."""
    convert(folder, "openclip", folder / "back")
    again = peer.create_model(name, pretrained=str(folder / "back" / "open_clip_model.safetensors")).eval()
    actual = [again.encode_image(inputs[0], normalize=True), again.encode_text(inputs[1], normalize=True)]
    return max((a - b).abs().max().item() for a, b in zip(expected, actual, strict=True))


def tokens(model) -> torch.Tensor:
    """Texts of several lengths, or random ids for a tokenizer whose vocabulary is not at hand."""
    if getattr(model, "context_length", 77) == 77:
        return get_tokenizer("bpe")(
            ["a dog", "two children run through tall grass " * 12, "a photo of the number 7", "", "x"]
        )
    length = model.positional_embedding.shape[0] if hasattr(model, "positional_embedding") else 64
    return torch.randint(2, 30_000, (3, length), generator=torch.Generator().manual_seed(2))


def table(rows: list[dict[str, object]]) -> str:
    """Markdown."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"{value:.1e}" if isinstance(value, float) and value < 0.5 else str(value)[:11] if isinstance(value, float)
                 else str(value) for value in row.values()]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] == ["--page"]:  # from what was measured last
        result = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text(encoding="utf-8"))
        write(result["rows"], result)
        return
    base = sys.argv[1] if len(sys.argv) > 1 else None
    rows = []
    for name in MODELS:
        with tempfile.TemporaryDirectory(dir=base) as folder:
            rows.append(compared(name, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    result = {"rows": rows, "machine": machine("torch", "open_clip_torch", "timm", "safetensors")}
    write(rows, result)


def write(rows: list[dict[str, object]], result: dict[str, object]) -> None:
    """The raw results and the page."""
    (ROOT / "benchmarks" / "results" / "parity.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = [
        "# Parity with open_clip", "",
        "Written by `benchmarks/parity/towers.py`: open_clip's own models with random weights, saved as its users save them, "
        "opened by `diptych.load`; unit features of the same images and texts, fp32. The last column is the other way round: "
        "open_clip opens what `diptych convert --to openclip` wrote from them.", "",
        table(rows), "", f"Versions: {json.dumps(result['machine']['versions'])}.", "", *drop_in_section(),
    ]  # fmt: skip
    (ROOT / "docs" / "parity.md").write_text("\n".join(page), encoding="utf-8")


def drop_in_section() -> list[str]:
    """What ``drop_in.py`` measured last."""
    result = json.loads((ROOT / "benchmarks" / "results" / "drop_in.json").read_text(encoding="utf-8"))
    rows = [{key: f"{value:.2f}x" if "speed" in key else value for key, value in row.items()} for row in result["rows"]]
    return [
        "## The package open_clip", "",
        "Written by `benchmarks/parity/drop_in.py`: the same weights in `diptych.open_clip` and in open_clip; unit features, "
        f"fp32, and how much faster the same call is here (load at the end: {result['machine']['load_average'][0]:.1f}).", "",
        table(rows), "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
