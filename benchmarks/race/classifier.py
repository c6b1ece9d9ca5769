"""C4: the zero-shot classifier of 20 ImageNet classes from OpenAI's 80 templates, strings to vectors."""

from __future__ import annotations

import time
from typing import Any

import torch
from _clock import alternate, finish, own_model, peer_model, row

from diptych.devices import get_device
from diptych.evaluate import Encoder, build_classifier, load_templates
from diptych.evaluate._prompts import class_set
from diptych.text import get_tokenizer

CLASSES = 20


def main() -> None:
    from _peers import open_clip

    peer, model, tokenizer = peer_model().eval(), own_model().eval(), open_clip().get_tokenizer("ViT-B-32")
    names, templates = list(class_set("imagenet").values())[:CLASSES], load_templates("openai80")

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        build = open_clip().build_zero_shot_classifier
        return build(model=peer, tokenizer=tokenizer, classnames=names, templates=templates).T

    def ours(precision: str) -> Any:
        encoder = Encoder(model, get_tokenizer("bpe"), None, get_device("cpu"), precision=precision, cache=False)
        return lambda: build_classifier(encoder, names, templates, lambda n: None)

    own = {f"diptych, {precision}": ours(precision) for precision in ("fp32", "bf16")}
    # The peer takes minutes: once, after a smaller warm-up than ours get, which changes nothing at that length.
    seconds, vectors = alternate(own, 3)
    start = time.perf_counter()
    vectors["open_clip"] = theirs()
    seconds["open_clip"] = [time.perf_counter() - start]
    what = f"zero-shot classifier, {CLASSES} classes x 80 templates"
    rows = []
    for name, target in (("diptych, fp32", 20.0), ("diptych, bf16", 35.0)):
        far = float((vectors[name] - vectors["open_clip"]).abs().max())
        cosine = float((vectors[name] * vectors["open_clip"]).sum(dim=-1).min())
        exact = f"max difference {far:.1e}, least cosine {cosine:.5f}"
        rows.append(row("C4", what, seconds, pair=(name, "open_clip"), target=target, exact=exact))
    finish(rows)


if __name__ == "__main__":
    main()
