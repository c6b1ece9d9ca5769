"""C3 and C8: features of 256 captions and of 32 photos, ViT-B-32, against open_clip, transformers and sentence-transformers."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
import torch.nn.functional as F
from _clock import Contestant, alternate, busy, captions, finish, folder, own_model, peer_model, row, serve, take_turns
from steps import MEAN, STD, pairs

from diptych.devices import get_device
from diptych.evaluate import Encoder
from diptych.text import get_tokenizer

TEXTS, IMAGES = 256, 32
BUSY, AT_LOAD = 2, 2.4  # other processes, and the lowest ratio that was seen beside others


def transformers_texts(texts: list[str]) -> Any:
    """transformers' CLIPModel with the same weights, padded to the longest caption of the batch."""
    from transformers import CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(folder() / "hf").eval()
    tokenizer = CLIPTokenizerFast.from_pretrained(folder() / "hf")

    @torch.no_grad()
    def call() -> torch.Tensor:
        features = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
        return features if isinstance(features, torch.Tensor) else features.pooler_output

    return call


def sentence_transformers_texts(texts: list[str]) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import CLIPModel

    model = SentenceTransformer(modules=[CLIPModel(str(folder() / "hf"))], device="cpu")
    return lambda: model.encode(texts, batch_size=TEXTS, show_progress_bar=False, convert_to_tensor=True)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    ours, theirs = (F.normalize(features.float(), dim=-1) for features in (ours, theirs))
    cosine = float((ours * theirs).sum(dim=-1).min())
    return f"max difference {float((ours - theirs).abs().max()):.1e}, least cosine {cosine:.5f}"


def texts() -> list[dict[str, Any]]:
    strings, peer = captions(TEXTS), peer_model().eval()
    from _peers import open_clip

    tokenizer = open_clip().get_tokenizer("ViT-B-32")
    encoder = Encoder(own_model(), get_tokenizer("bpe"), None, get_device("cpu"), batch_size=TEXTS, cache=False)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return peer.encode_text(tokenizer(strings))

    calls: dict[str, Any] = {"diptych": lambda: encoder.texts(strings, lambda n: None), "open_clip": theirs}
    targets = {"open_clip": 6.5, "transformers, longest padding": 1.8, "sentence-transformers": 1.8}
    calls["transformers, longest padding"] = transformers_texts(strings)
    calls["sentence-transformers"] = sentence_transformers_texts(strings)
    seconds, features = alternate(calls, 2)
    what = f"encode_text, {TEXTS} captions, strings to features, fp32"
    exact = {who: difference(features["diptych"], features[who]) for who in targets}
    rows = [row("C3", what, seconds, pair=("diptych", who), target=at, exact=exact[who]) for who, at in targets.items()]
    pair = ("diptych", "open_clip")
    with busy(BUSY):
        loaded, _ = alternate({who: calls[who] for who in pair}, 2)
    what = f"{what}, beside {BUSY} busy processes"
    return [*rows, row("C3", what, loaded, pair=pair, target=AT_LOAD, exact=exact["open_clip"])]


def image_step(kind: str) -> Any:
    """One contestant of C8: features of the same images, which the first call also writes to a file."""
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
            features = model.encode_image(photos if kind.startswith("diptych") else pixels)
        path = folder() / f"image {kind}.pt"
        if not path.exists():
            torch.save(features, path)
        return float(features.float().sum())

    return call


def images() -> list[dict[str, Any]]:
    kinds = ("diptych, bf16 weights", "open_clip, fp32", "open_clip, amp_bf16", "diptych, fp32")
    seconds = take_turns({kind: Contestant(__file__, kind) for kind in kinds}, 4, warm=1)
    features = {kind: torch.load(folder() / f"image {kind}.pt") for kind in kinds}
    what = f"encode_image, {IMAGES} images, ViT-B-32"

    def line(own: str, who: str, target: float) -> dict[str, Any]:
        return row("C8", what, seconds, pair=(own, who), target=target, exact=difference(features[own], features[who]))

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
