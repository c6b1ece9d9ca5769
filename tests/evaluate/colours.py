"""A tiny world in which the right answers are known: pictures of one colour, captions that name it, a model that sees it.

The tokenizer, source and model are real objects with the house's interfaces; ``Model(error)`` mistakes some pictures.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from diptych.types import Record

COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 30),
    "purple": (150, 30, 200), "cyan": (30, 210, 220), "orange": (240, 130, 20), "pink": (250, 140, 190),
    "black": (12, 10, 14), "white": (250, 252, 249),
}  # fmt: skip


def png(colour: str, size: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def record(colour: str, *captions: str, key: str = "", group: str | None = None, label: int | None = None) -> Record:
    return Record(key or colour, png(colour), captions, label, group)


class Source:
    """Records in memory; ``classes`` only where given, as in a folder of class folders."""

    def __init__(self, records: list[Record], name: str = "colours", classes: list[str] | None = None) -> None:
        self.records, self.name = records, name
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]


def all_colours(captions: int = 2) -> Source:
    words = ("a {}", "a wide and plain picture that shows only {} and no more", "{}", "very {} indeed")[:captions]
    return Source([record(name, *(word.format(name) for word in words)) for name in COLOURS])


class Tokenized(NamedTuple):
    ids: np.ndarray
    cut: int


class Tokenizer:
    """Words to numbers, 0-padded."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {name: place for place, name in enumerate(COLOURS, start=1)}
        self.seen: list[int] = []  # padded widths of the batches

    def encode(self, text: str) -> Tokenized:
        ids = [self.words.setdefault(word, len(self.words) + 1) for word in text.lower().strip(".").split()]
        return Tokenized(np.array(ids, dtype=np.int64), 0)

    def pad(self, ids: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(item) for item in ids])
        padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.int64)
        for row, item in zip(padded, ids, strict=True):
            row[: len(item)] = torch.from_numpy(item)
        self.seen.append(padded.shape[1])
        return padded, lengths


class Model(torch.nn.Module):
    """Features are colours, seen or named, so that a caption matches the picture of its colour best of all."""

    def __init__(self, blind_to: tuple[str, ...] = ()) -> None:
        super().__init__()
        table = torch.zeros(500, 3)
        for place, (name, colour) in enumerate(COLOURS.items(), start=1):
            if name not in blind_to:
                table[place] = torch.tensor(colour) / 255 - 0.5
        self.colours = torch.nn.Embedding.from_pretrained(table, padding_idx=0)
        self.frozen = torch.nn.Dropout(0.5).eval()
        self.batches: list[tuple[int, bool]] = []

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        self.batches.append((len(images), self.training))
        return images.float().mean(dim=(2, 3)) / 255 - 0.5

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.colours(tokens).sum(dim=1)


def transform(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)))).permute(2, 0, 1).contiguous()
