"""How many operators a training step dispatches, forward and backward, in each layout of texts, and open_clip's beside.

    python benchmarks/operators.py SHARED_DATA  (environment of the peers, see peers.txt)

A count says what an accelerator is asked to start, and does not depend on how busy a machine is, on the sizes of layers or of
the batch: so the towers are narrow, of the full depth, with the lengths of 64 real captions. CLIP's loss is in it, the
optimizer is not. Accelerators' forms are counted as they run elsewhere (``attention_as_elsewhere``); the kernel for unequal
lengths, which no CPU has, is a stand-in that computes nothing. Writes results/operators.json and the table of docs/race.md.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _peers import machine, open_clip
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.data import open_source
from diptych.models import _causal, _observed, attention_as_elsewhere, create_model, model_config
from diptych.objectives import OBJECTIVES, create_objective
from diptych.text import get_tokenizer, plan_buckets, plan_groups, plan_packed
from diptych.types import Batch

PAIRS, WIDTH, HEADS, PATCHES = 64, 64, 8, 2
MODELS = ("ViT-B-32", "ViT-L-14")
BUCKETS = (16, 32, 48, 77)
FORMS = ("groups", "buckets", "varlen")
ATTENTION = ("scaled_dot_product", "_varlen_attn")
ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "operators.json"
PAGE = ROOT / "docs" / "race.md"
BEGIN, END = "<!-- operators -->\n", "<!-- operators end -->"


class Dispatched(TorchDispatchMode):
    """Counts the operators that are dispatched inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))


def count(loss: Any, amp: bool) -> dict[str, int]:
    """Operators of the forward and backward pass of ``loss()``, and forward calls of attention; after a pass that warms up."""
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if amp else contextlib.nullcontext()
    with precision:
        value = loss()
    value.backward()
    with Dispatched() as mode:
        with precision:
            value = loss()
        attention = sum(number for name, number in mode.names.items() if any(part in name for part in ATTENTION))
        value.backward()
    return {"operators": sum(mode.names.values()), "attention": attention}


def stand_ins() -> None:
    """Kernels for unequal lengths on the CPU that have the right shapes, and compute nothing."""

    def forward(query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        return query.new_zeros(query.shape), query.new_zeros(query.shape[1::-1]), torch.zeros(2, dtype=torch.uint64)

    def backward(_: Tensor, *inputs: Any, **__: Any) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(item) for item in inputs[:3])

    varlen._varlen_attn.register_kernel("cpu", forward)
    varlen._varlen_attn_backward.register_kernel("cpu", backward)
    _causal.kernel_for = lambda query: varlen.varlen_attn  # type: ignore[attr-defined]


def ours(name: str, ids: Tensor, lengths: Tensor) -> dict[str, dict[str, int]]:
    """The counts of each form, in fp32 and with autocast to bf16."""
    full = model_config(name)
    vision = replace(full.vision, width=WIDTH, heads=HEADS, image_size=PATCHES * full.vision.patch_size)  # type: ignore[call-arg]
    config = replace(full, embed_dim=WIDTH, vision=vision, text=replace(full.text, width=WIDTH, heads=HEADS))
    objective = create_objective(OBJECTIVES.get("clip").Config(), create_model(config)).train()
    padded = next(size for size in BUCKETS if size >= ids.shape[1])
    ids = torch.nn.functional.pad(ids, (0, padded - ids.shape[1]))
    plans = {
        "groups": plan_groups(lengths, padded),
        "buckets": plan_buckets(lengths, padded),
        "varlen": plan_packed(lengths, padded, full.text.context_length),
    }
    images = torch.randint(0, 256, (1, PAIRS, 3, vision.image_size, vision.image_size), dtype=torch.uint8)
    numbers, keys = torch.arange(PAIRS), tuple(map(str, range(PAIRS)))
    counts = {}
    for form in FORMS:
        batch = Batch(images, ids[None], lengths[None], keys, numbers, numbers, numbers, plans=(plans[form],))

        def loss(batch: Batch = batch) -> Tensor:
            terms, _ = objective("terms", batch)
            return torch.stack(list(terms.losses.values())).sum()

        for amp in (False, True):
            elsewhere = contextlib.nullcontext() if form == "groups" else attention_as_elsewhere()
            with elsewhere:
                counts[f"{form}{' bf16' if amp else ''}"] = count(loss, amp)
    return counts


def theirs(name: str) -> dict[str, dict[str, int]]:
    """open_clip's, likewise."""
    library, full = open_clip(), model_config(name)
    side = PATCHES * full.vision.patch_size
    vision = {"layers": full.vision.layers, "width": WIDTH, "head_width": WIDTH // HEADS, "image_size": side}
    vision["patch_size"] = full.vision.patch_size
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": HEADS, "layers": full.text.layers}
    model = library.model.CLIP(WIDTH, vision, text).train()
    images, ids = torch.randn(PAIRS, 3, side, side), torch.randint(1, 49000, (PAIRS, 77))
    ids[:, 12] = 49407
    criterion = library.ClipLoss()

    def loss() -> Tensor:
        return criterion(*model(images, ids)[:3])

    return {f"open_clip{' bf16' if amp else ''}": count(loss, amp) for amp in (False, True)}


def table(result: dict[str, Any]) -> str:
    """The page's table."""
    lines = ["| step of | precision | open_clip | groups (CPU) | buckets | varlen |", "|---|---|---|---|---|---|"]
    for name in MODELS:
        rows = result["models"][name]
        for mark, precision in (("", "fp32"), (" bf16", "bf16")):
            peer = rows["open_clip" + mark]
            cells = [f"{peer['operators']:,}, {peer['attention']} calls"]
            for form in FORMS:
                own = rows[form + mark]
                ratio = own["operators"] / peer["operators"]
                cells.append(f"{own['operators']:,} ({ratio:.2f}), {own['attention']} calls")
            lines.append(f"| {name} | {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count, write the results, and put the table into the page."""
    _observed.is_in_torch_dispatch_mode = lambda: False  # type: ignore[attr-defined] # under a mode towers compute in full
    source = open_source(str(Path(sys.argv[1]) / "flickr8k" / "captions.jsonl"))
    tokenizer = get_tokenizer("bpe")
    texts = [source.record(number).captions[0] for number in range(PAIRS)]
    ids, lengths = tokenizer.pad([tokenizer.encode(text).ids for text in texts])
    stand_ins()
    result = {
        "pairs": PAIRS, "lengths": sorted(lengths.tolist()), "machine": machine("torch", "open_clip_torch"),
        "models": {name: {**theirs(name), **ours(name, ids, lengths)} for name in MODELS},
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + table(result) + END + after, encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
