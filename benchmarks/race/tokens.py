"""C6: 20,000 captions to ids, caches empty and filled, against open_clip's tokenizer and transformers' fast tokenizer."""

from __future__ import annotations

import time
from typing import Any

import torch
from _clock import alternate, captions, finish, folder, row

from diptych.text import get_tokenizer

COUNT = 20_000


def main() -> None:
    from _peers import open_clip
    from transformers import CLIPTokenizerFast

    texts = captions(COUNT)
    get_tokenizer("bpe")("load the vocabulary")
    theirs, fast = open_clip().tokenizer.SimpleTokenizer(), CLIPTokenizerFast.from_pretrained(folder() / "hf")
    ours = get_tokenizer("bpe")
    cold: dict[str, list[float]] = {}
    for name, call in (("diptych", ours), ("open_clip", theirs)):
        start = time.perf_counter()
        call(texts)
        cold[name] = [time.perf_counter() - start]
    for _ in range(2):  # new tokenizers each time, as in a new process
        fresh = {"diptych": get_tokenizer("bpe"), "open_clip": open_clip().tokenizer.SimpleTokenizer()}
        for name, tokenizer in fresh.items():
            start = time.perf_counter()
            tokenizer(texts)
            cold[name].append(time.perf_counter() - start)
    calls: dict[str, Any] = {
        "diptych": lambda: ours(texts),
        "open_clip": lambda: theirs(texts),
        "transformers, fast": lambda: fast(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ),
    }
    seconds, ids_of = alternate(calls, 3)
    differ = int((ids_of["diptych"] != ids_of["open_clip"]).any(dim=1).sum())
    ids = ids_of["transformers, fast"]["input_ids"]
    real = torch.arange(77) <= ids_of["diptych"].argmax(dim=1)[:, None]  # it pads with the end token
    other = int(((ids_of["diptych"] != ids) & real).any(dim=1).sum())
    what = f"tokenizer, {COUNT} captions"
    exact = f"{differ} rows differ"
    finish([
        row("C6", f"{what}, caches empty", cold, pair=("diptych", "open_clip"), target=15.0, exact=exact),
        row("C6", f"{what}, caches filled", seconds, pair=("diptych", "open_clip"), target=15.0, exact=exact),
        row("C6", f"{what}, caches filled", seconds, pair=("diptych", "transformers, fast"), target=10.0,
            exact=f"{other} rows differ"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
