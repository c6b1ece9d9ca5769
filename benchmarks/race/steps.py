"""C1, C2 and C10: a training step of ViT-B-32 on Flickr8k captions, open_clip's own loss and optimizer against ours.

Our side prepares its process as ``diptych train`` does. "both with it": open_clip under the same setting of fp32 products, which
its users can make by hand. C10 is a step with a locked image tower (LiT) from the second epoch on: open_clip runs the tower
again, we have its features.

Small learning rate, so that rounding does not grow into another run within the few steps whose losses are compared.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from _clock import Contestant, captions, finish, own_model, peer_model, row, selected, serve, take_turns

from diptych.conformance.training import training_step
from diptych.devices import get_device
from diptych.text import get_tokenizer
from diptych.types import Batch

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
LR, WARM = 1e-6, 2  # and rounds that are not counted
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def pairs(size: int) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8, generator=generator), captions(size)


def ours(size: int, precision: str, locked: bool = False) -> Any:
    images, texts = pairs(size)
    tokenizer = get_tokenizer("bpe")
    tokens, lengths = tokenizer.pad([tokenizer.encode(text).ids for text in texts])
    keys, rows = tuple(map(str, range(size))), torch.arange(size)
    batch = Batch(images[None], tokens[None], lengths[None], keys, rows, rows, rows)
    device = get_device("cpu")
    device.prepare_process()  # as diptych train does
    model = own_model().lock(image=locked)
    if locked:  # as after the first pass of --lock-image --cache-features
        with torch.no_grad(), device.autocast(precision):
            batch = batch._replace(image_features=model.encode_image(images).float(), images=images[None, :, :, :0, :0])
    step = training_step(model, device, precision, learning_rate=LR)
    return lambda: float(step([batch]).loss)


def theirs(size: int, precision: str, flags: str, locked: bool = False) -> Any:
    """open_clip's step; ``flags``: "default", "fused" for its fused AdamW, "prepared" for our setting of the process."""
    from _peers import open_clip

    if flags == "prepared":
        get_device("cpu").prepare_process()
    model, images, texts = peer_model().train(), *pairs(size)
    loss, tokens = open_clip().ClipLoss(), open_clip().get_tokenizer("ViT-B-32")(texts)
    pixels = (images.float() / 255 - MEAN) / STD
    if locked:
        model.lock_image_tower()
    named = {name: item for name, item in model.named_parameters() if item.requires_grad}
    fixed = {name for name, item in named.items() if item.ndim < 2 or "bn" in name or "ln" in name or "bias" in name}
    groups = [
        {"params": [named[name] for name in named if name in fixed], "weight_decay": 0.0},
        {"params": [named[name] for name in named if name not in fixed], "weight_decay": 0.2},
    ]
    fused = {"fused": True} if flags == "fused" else {}
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6, **fused)

    def step() -> float:
        optimizer.zero_grad()
        half = precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            image, text, scale = model(pixels, tokens)
            total = loss(image, text, scale)
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return float(total)

    return step


def race(name: str, size: int, precision: str, targets: dict[str, float], rounds: int) -> list[dict[str, Any]]:
    """Each contestant in a process of its own, as its users run it, and they take turns: one steps while the others sleep."""
    lit = "-lit" if name == "C10" else ""
    kinds = {
        "diptych": "ours" + lit, "open_clip": "default" + lit, "open_clip, fused AdamW": "fused" + lit,
        "open_clip, both with it": "prepared" + lit,
    }  # fmt: skip
    runners = {
        who: Contestant(__file__, kind, str(size), precision)
        for who, kind in kinds.items()
        if who == "diptych" or who in targets
    }
    seconds = take_turns(runners, rounds, WARM)
    losses = {who: runner.values for who, runner in runners.items()}
    first = abs(losses["diptych"][0] - losses["open_clip"][0]) / losses["open_clip"][0]
    far = max(abs(a - b) / abs(b) for a, b in zip(losses["diptych"], losses["open_clip"], strict=True))
    exact = f"loss differs by {first:.1e} at the first step, by at most {far:.1e} in {rounds + WARM} steps"
    what = f"train step{', image tower locked, epoch 2 on' if lit else ''}, batch {size}, {precision}"
    return [
        row(name, what, seconds, pair=("diptych", who), target=target, exact=exact, losses=losses)
        for who, target in targets.items()
    ]


def main() -> None:
    if len(sys.argv) > 1:
        kind, size, precision = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        kind, _, lit = kind.partition("-")
        serve(ours(size, precision, bool(lit)) if kind == "ours" else theirs(size, precision, kind, bool(lit)))
        return
    races = {
        "C1": [
            ("C1", 16, "bf16", {"open_clip": 2.4, "open_clip, fused AdamW": 1.6}, 4),
            ("C1", 32, "bf16", {"open_clip": 1.8}, 2),
        ],
        "C2": [("C2", 16, "fp32", {"open_clip": 2.7, "open_clip, both with it": 1.7}, 4)],
        "C10": [("C10", 32, "bf16", {"open_clip": 7.0}, 3)],
    }
    finish([row for name, each in races.items() if selected(name) for arguments in each for row in race(*arguments)])


if __name__ == "__main__":
    main()
