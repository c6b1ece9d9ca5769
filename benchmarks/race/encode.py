"""C3 and C8: features of 256 captions and of 64 photos, ViT-B-32, against open_clip, transformers and sentence-transformers."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
import torch.nn.functional as F
from _clock import Contestant, alternate, captions, finish, folder, own_model, peer_model, row, serve, take_turns
from steps import MEAN, STD, pairs

from diptych.devices import get_device
from diptych.evaluate._encode import Encoder
from diptych.text import get_tokenizer

TEXTS, IMAGES = 256, 32


def transformers_texts(texts: list[str]) -> Any:
    """transformers' CLIPModel with the same weights, padded to the longest caption of the batch."""
    from transformers import CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(folder() / "hf").eval()
    tokenizer = CLIPTokenizerFast.from_pretrained(folder() / "hf")

    @torch.no_grad()
    def call() -> torch.Tensor:
        found = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    return call


def sentence_transformers_texts(texts: list[str]) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import CLIPModel

    model = SentenceTransformer(modules=[CLIPModel(str(folder() / "hf"))], device="cpu")
    return lambda: model.encode(texts, batch_size=TEXTS, show_progress_bar=False, convert_to_tensor=True)


def apart(one: torch.Tensor, two: torch.Tensor) -> str:
    one, two = (F.normalize(item.float(), dim=-1) for item in (one, two))
    cosine = float((one * two).sum(dim=-1).min())
    return f"max difference {float((one - two).abs().max()):.1e}, least cosine {cosine:.5f}"


def texts() -> list[dict[str, Any]]:
    words, peer = captions(TEXTS), peer_model().eval()
    from _peers import open_clip

    tokenizer = open_clip().get_tokenizer("ViT-B-32")
    encoder = Encoder(own_model(), get_tokenizer("bpe"), None, get_device("cpu"), batch_size=TEXTS)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return peer.encode_text(tokenizer(words))

    calls: dict[str, Any] = {"diptych": lambda: encoder.texts(words, lambda n: None), "open_clip": theirs}
    targets = {"open_clip": 6.5, "transformers, longest padding": 1.8, "sentence-transformers": 1.8}
    calls["transformers, longest padding"] = transformers_texts(words)
    calls["sentence-transformers"] = sentence_transformers_texts(words)
    seconds, found = alternate(calls, 2)
    what = f"encode_text, {TEXTS} captions, strings to features, fp32"
    return [
        row("C3", what, seconds, pair=("diptych", who), target=target, exact=apart(found["diptych"], found[who]))
        for who, target in targets.items()
    ]


def image_step(kind: str) -> Any:
    """One contestant of C8: features of the same pictures, which the first call also leaves in a file."""
    from diptych import weights

    photos, _ = pairs(IMAGES)
    pixels = (photos.float() / 255 - MEAN) / STD
    if kind.startswith("diptych"):
        get_device("cpu").prepare_process()  # as our own commands do
        precision = "bf16" if kind.endswith("bf16 weights") else "fp32"
        model = weights.load(folder() / "ours.safetensors", precision=precision)
    else:
        model = peer_model().eval()

    @torch.no_grad()
    def call() -> float:
        half = kind == "open_clip, amp_bf16"
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            found = model.encode_image(photos if kind.startswith("diptych") else pixels)
        kept = folder() / f"image {kind}.pt"
        if not kept.exists():
            torch.save(found, kept)
        return float(found.float().sum())

    return call


def images() -> list[dict[str, Any]]:
    kinds = ("diptych, bf16 weights", "open_clip, fp32", "open_clip, amp_bf16", "diptych, fp32")
    seconds = take_turns({kind: Contestant(__file__, kind) for kind in kinds}, 4, warm=1)
    found = {kind: torch.load(folder() / f"image {kind}.pt") for kind in kinds}
    what = f"encode_image, {IMAGES} images, ViT-B-32"

    def line(own: str, who: str, target: float) -> dict[str, Any]:
        return row("C8", what, seconds, pair=(own, who), target=target, exact=apart(found[own], found[who]))

    return [
        line("diptych, bf16 weights", "open_clip, fp32", 2.9),
        line("diptych, bf16 weights", "open_clip, amp_bf16", 1.15),
        line("diptych, fp32", "open_clip, fp32", 1.07),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(image_step(sys.argv[1]))
    else:
        finish(texts() + images())
