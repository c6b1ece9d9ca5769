"""``diptych convert``: weights of any checkpoint format into any other, with a proof that both give the same features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from diptych.commands import command


@dataclass(frozen=True)
class Options:
    """From where, to where."""

    source: Positional[str]
    """Weights: a file, a folder, or a name of the catalog."""
    output: Positional[Path]
    """New folder."""
    to: str = "diptych"
    """Checkpoint format: diptych, openclip, hf, openai, paddle, declip."""
    model: str = ""
    """Architecture, where the weights do not say it; at another image size the position table is resized."""
    precision: Literal["file", "fp32", "fp16", "bf16"] = "file"
    """Numbers of the new file; "file" leaves those of the source as they are."""
    allow: tuple[str, ...] = ()
    """Tensors that may be missing or left over, as patterns such as "visual.extra.*"."""
    json: bool = False
    """One JSON object instead of plain lines."""


@command("convert", example="diptych convert laion/CLIP-ViT-B-32 clip-hf --to hf")
def main(options: Options) -> int:
    """Write weights in another checkpoint format. The new folder appears only if, read again, it gives the same features."""
    import dataclasses
    import json

    from diptych.weights import convert

    path, proof = convert(
        options.source, options.to, options.output,
        model=options.model, precision=options.precision, allow=options.allow,
    )  # fmt: skip
    if options.json:
        print(json.dumps({"file": str(path), **dataclasses.asdict(proof)}))
        return 0
    print(f"wrote {path}")
    print(f"read again and compared on {proof.inputs} images and texts (unit features):")
    print(f"  images  max |difference| {proof.image_difference:.2e}  least cosine {proof.image_cosine:.7f}")
    print(f"  texts   max |difference| {proof.text_difference:.2e}  least cosine {proof.text_cosine:.7f}")
    return 0
