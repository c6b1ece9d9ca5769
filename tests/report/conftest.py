"""A small run folder as training leaves it: real file formats, made-up numbers."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image

CONFIG = """accum_freq = 2
[model]
model = "ViT-Ti-16"
[data]
batch_size = 32
train_data = "pairs.jsonl"
"""


def embedded_image(width: int = 64, height: int = 64, color: str = "teal") -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def train_row(step: int) -> dict:
    return {
        "phase": "train", "step": step, "epoch": step / 50, "time": 1000.0 + step, "loss": 4.2 - step / 50,
        "learning_rate": 1e-4 * step / 100, "logit_scale": 14.3 + step / 10, "pairs_per_second": 500.0, "data_wait": 0.03,
        "gradient_norm": 1.0 + math.sin(step), "batch_accuracy": step / 200,
        "truncated_tokens": 7, "truncated_captions 0/pairs.jsonl": 3,
        "bad_samples": 2,
    }  # fmt: skip


def eval_row(step: int) -> dict:
    recalls = {f"{way}_R@{k}": step / 1000 * k / 10 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    return {
        "phase": "eval",
        "step": step,
        "epoch": step / 50,
        "time": 1000.5 + step,
        "name": "val",
        "loss": 3.0,
        **recalls,
    }


RESULTS = [
    {
        "name": "val",
        "metrics": {
            "image_to_text_R@1": 0.1, "image_to_text_R@5": 0.3, "image_to_text_R@10": 0.5, "image_to_text_mean_rank": 20.0,
            "image_to_text_median_rank": 11.0, "text_to_image_R@1": 0.08, "text_to_image_R@5": 0.2,
            "text_to_image_R@10": 0.4, "text_to_image_mean_rank": 25.5, "text_to_image_median_rank": 14.0, "r_mean": 0.26,
        },
        "chance": {"image_to_text_R@10": 0.05, "text_to_image_R@10": 0.01, "image_to_text_mean_rank": 100.0},
        "count": {"images": 1000, "texts": 5000},
    }
]  # fmt: skip


def gallery() -> list[dict]:
    hits = [
        {"text": None, "image": embedded_image(), "correct": place == 1, "score": 0.5 - place / 10}
        for place in range(3)
    ]
    missed = [{**hit, "correct": False} for hit in hits]
    texts = [{"text": f"caption {place}", "image": None, "correct": place == 0, "score": 0.1} for place in range(3)]
    return [
        {
            "title": "Images found by caption",
            "rows": [
                {"query": {"text": "a teal square"}, "rank": 2, "hits": hits},
                {"query": {"text": "a lost square"}, "rank": 57, "hits": missed, "answer": {"image": embedded_image()}},
            ],
        },
        {
            "title": "Captions found by image",
            "rows": [{"query": {"image": embedded_image()}, "rank": 1, "hits": texts}],
        },
    ]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "first run"
    folder.mkdir()
    rows = [train_row(step) for step in range(1, 101)] + [eval_row(step) for step in (50, 100)]
    (folder / "config.toml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "gallery.json").write_text(json.dumps(gallery()))
    return folder
