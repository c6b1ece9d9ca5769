"""C9: a checkpoint on disk to a ready model, and a fresh process that imports and tokenizes one string."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from _clock import MODEL, alternate, finish, folder, row

PEER = """
import sys
sys.path.insert(0, {benchmarks!r})
from _peers import open_clip
print(open_clip().get_tokenizer("ViT-B-32")("a photo of a dog").sum())
"""
OURS = """
import diptych
print(diptych.get_tokenizer("ViT-B-32")("a photo of a dog").sum())
"""


def process(program: str) -> Any:
    return lambda: subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def main() -> None:
    from _peers import open_clip

    from diptych import weights

    file = folder() / "clip" / "open_clip_model.safetensors"
    peer = open_clip()
    calls: dict[str, Any] = {
        "diptych": lambda: weights.load(folder() / "clip"),
        "open_clip": lambda: peer.create_model(MODEL, pretrained=str(file)),
    }
    pair = ("diptych", "open_clip")
    seconds, built = alternate(calls, 3)
    counts = {name: sum(item.numel() for item in model.parameters()) for name, model in built.items()}
    same = "equal parameter counts" if len(set(counts.values())) == 1 else "PARAMETER COUNTS DIFFER"
    rows = [row("C9", f"{MODEL} from safetensors to a ready model", seconds, pair=pair, target=20.0, exact=same)]
    program = PEER.format(benchmarks=str(Path(__file__).resolve().parents[1]))
    seconds, said = alternate({"diptych": process(OURS), "open_clip": process(program)}, 3)
    same = "equal ids" if said["diptych"] == said["open_clip"] else "IDS DIFFER"
    rows.append(row("C9", "fresh process: import, tokenize one string", seconds, pair=pair, target=2.5, exact=same))
    finish(rows)


if __name__ == "__main__":
    main()
