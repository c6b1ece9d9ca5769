"""Captions per second: our tokenizer against open_clip's, A/B in one process, ids compared one by one.

    python benchmarks/tokenizer.py CAPTIONS.jsonl [results.json]      (environment: benchmarks/peers.txt)

CAPTIONS.jsonl has lines with "captions": [...]; the first 20,000 are used. Cold: fresh tokenizers, whose word caches are
empty (vocabularies are loaded before the clock starts). Warm: the same captions again, best of five.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from _peers import machine, open_clip

from diptych.text import get_tokenizer

COUNT, ROUNDS = 20_000, 5


def seconds(call, *arguments):
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def main(path: str, output: str | None) -> None:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    captions = [text for line in lines for text in json.loads(line)["captions"]][:COUNT]
    theirs, ours = open_clip().tokenizer.SimpleTokenizer(), get_tokenizer("bpe")
    get_tokenizer("bpe")("load the vocabulary")
    our_cold, our_ids = seconds(ours, captions)
    their_cold, their_ids = seconds(theirs, captions)
    rounds = [(seconds(ours, captions)[0], seconds(theirs, captions)[0]) for _ in range(ROUNDS)]
    our_warm, their_warm = (min(seconds) for seconds in zip(*rounds, strict=True))
    result = {
        "benchmark": "tokenizer, captions per second",
        "captions": len(captions),
        "rows_that_differ": int((our_ids != their_ids).any(dim=1).sum()),
        "cold": {
            "ours": len(captions) / our_cold,
            "open_clip": len(captions) / their_cold,
            "ratio": their_cold / our_cold,
        },
        "warm": {
            "ours": len(captions) / our_warm,
            "open_clip": len(captions) / their_warm,
            "ratio": their_warm / our_warm,
        },
        "warm_rounds_seconds": rounds,
        "machine": machine("torch", "open_clip_torch", "regex", "ftfy"),
    }
    print(json.dumps(result, indent=1))
    if output:
        Path(output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: tokenizer.py CAPTIONS.jsonl [results.json]")
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None)
