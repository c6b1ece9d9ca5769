"""A tiny world in which the right answers are known: images of a color, captions that name it, a model that sees it.

The tokenizer, source and model are real objects with the package's interfaces; ``Model(blind_to)`` mistakes some images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from diptych.devices import get_device
from diptych.evaluate import Encoder
from diptych.text import Tokenized
from diptych.types import Record

COLORS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 30),
    "purple": (150, 30, 200), "cyan": (30, 210, 220), "orange": (240, 130, 20), "pink": (250, 140, 190),
    "black": (12, 10, 14), "white": (250, 252, 249),
}  # fmt: skip


def png(color: str, size: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(file, "PNG")
    return file.getvalue()


def record(color: str, *captions: str, key: str = "", group: str | None = None, label: int | None = None) -> Record:
    return Record(key or color, png(color), captions, label, group)


class Source:
    """Records in memory; ``classes`` as in a folder of class folders."""

    def __init__(self, records: list[Record], name: str = "colors", classes: Sequence[str] | None = None) -> None:
        self.records, self.name, self.classes = records, name, None if classes is None else tuple(classes)

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]


def all_colors(captions: int = 2) -> Source:
    patterns = ("a {}", "a wide and plain picture that shows only {} and no more", "{}", "very {} indeed")[:captions]
    return Source([record(name, *(pattern.format(name) for pattern in patterns)) for name in COLORS])


class Tokenizer:
    """Words to numbers, 0-padded."""

    def __init__(self) -> None:
        self.vocab: dict[str, int] = {name: number for number, name in enumerate(COLORS, start=1)}
        self.widths: list[int] = []  # of the padded batches

    def encode(self, text: str) -> Tokenized:
        ids = [self.vocab.setdefault(word, len(self.vocab) + 1) for word in text.lower().strip(".").split()]
        return Tokenized(np.array(ids, dtype=np.int64), 0, len(ids))

    def pad(self, ids: Sequence[np.ndarray], lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        assert list(lengths) == [len(item) for item in ids]
        padded = torch.zeros(len(ids), max(lengths), dtype=torch.int64)
        for row, item in zip(padded, ids, strict=True):
            row[: len(item)] = torch.from_numpy(item)
        self.widths.append(padded.shape[1])
        return padded, torch.tensor(lengths)


class Model(torch.nn.Module):
    """Features are colors, seen or named, so that a caption matches the image of its color best of all."""

    shares_prefixes = False

    def __init__(self, blind_to: tuple[str, ...] = ()) -> None:
        super().__init__()
        table = torch.zeros(500, 3)
        for number, (name, color) in enumerate(COLORS.items(), start=1):
            if name not in blind_to:
                table[number] = torch.tensor(color) / 255 - 0.5
        self.colors = torch.nn.Embedding.from_pretrained(table, padding_idx=0)
        self.frozen = torch.nn.Dropout(0.5).eval()
        self.batches: list[tuple[int, bool]] = []

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        self.batches.append((len(images), self.training))
        return images.float().mean(dim=(2, 3)) / 255 - 0.5

    def encode_text(self, tokens: torch.Tensor, lengths: torch.Tensor, prefix: None = None) -> torch.Tensor:
        assert prefix is None
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        return (self.colors(tokens) * real[..., None]).sum(dim=1)

    def full_state(self) -> dict[str, torch.Tensor]:
        return {
            f"model.{tower}.{name}": item for tower in ("image", "text") for name, item in self.state_dict().items()
        }


def transform(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)))).permute(2, 0, 1).contiguous()


def encoder(model=None, tokenizer=None, **options) -> Encoder:
    return Encoder(model or Model(), tokenizer or Tokenizer(), transform, get_device("cpu"), **options)
