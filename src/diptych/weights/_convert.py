"""From any checkpoint format to any other, with proof: the written file is read again and gives the same features.

The new folder appears only after both towers agreed on fixed inputs. The proof reads with the same rules that wrote, so that a
rule wrong both ways would pass it: the rules themselves are held against the original libraries in the tests and in
``benchmarks/parity``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych import log
from diptych.errors import ConfigError, OutputError, WeightsError
from diptych.files import StrPath
from diptych.models import CLIP_VOCABULARY, ModelConfig, TwoTower
from diptych.registry import did_you_mean
from diptych.weights._assemble import TOKEN_TABLE
from diptych.weights._base import CHECKPOINT_FORMATS
from diptych.weights._load import Precision, load
from diptych.weights._locate import vocabulary_file
from diptych.weights._native import WEIGHT_FILE, save
from diptych.weights._rename import to_theirs
from diptych.weights._vocabulary import copy_vocabulary

ALIASES = {"hf": "huggingface", "transformers": "huggingface", "open_clip": "openclip", "pdparams": "paddle"}
TOLERANCE = 1e-5
CLIP_END = 49407


@dataclass(frozen=True)
class Parity:
    """How much the features of two models differ: of unit vectors, over ``inputs`` images and texts."""

    image_difference: float
    image_cosine: float
    text_difference: float
    text_cosine: float
    inputs: int

    @property
    def holds(self) -> bool:
        """Whether both towers agree to 1e-5."""
        return max(self.image_difference, self.text_difference) <= TOLERANCE


def format_names() -> list[str]:
    """The values of ``--to``."""
    return sorted({"diptych", "hf", *CHECKPOINT_FORMATS.names()} - {"huggingface"})


def convert(
    source: StrPath,
    to: str,
    folder: StrPath,
    *,
    model: str = "",
    precision: Precision = "file",
    allow: Iterable[str] = (),
) -> tuple[Path, Parity]:
    """Write the weights of ``source`` into the new ``folder`` in the format ``to``; returns the weight file and the proof.

    ``model``, ``precision`` and ``allow`` are those of ``load``. Raises ConfigError for an unknown format, WeightsError when
    the format cannot hold this model or the proof fails (nothing is left then), OutputError when the folder is taken.
    """
    name, folder = ALIASES.get(to, to), Path(folder)
    if name != "diptych" and name not in CHECKPOINT_FORMATS.names():
        raise ConfigError(did_you_mean(to, format_names(), "checkpoint format"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} already holds something; give a new folder.")
    before = load(source, model=model, precision=precision, allow=allow)
    with _appearing(folder) as new:
        written = _write(before, name, new)
        if before.config.text.tokenizer != "bpe":
            copy_vocabulary(vocabulary_file(source), new)
        after = load(written)
        proof = parity(before, after)
        if not proof.holds:
            raise WeightsError(
                f"{folder}: not written: read again, its features differ by {proof.image_difference:.2g} (images) and "
                f"{proof.text_difference:.2g} (texts) from those of {source}. Please report this."
            )
    return folder / written.name, proof


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder that is renamed to ``folder`` when all went well, and removed when not."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        new.mkdir(parents=True)
        yield new
        if folder.is_dir():
            folder.rmdir()
        new.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(model: TwoTower, name: str, folder: Path) -> Path:
    if name == "diptych":
        save(folder / WEIGHT_FILE, model)
        return folder / WEIGHT_FILE
    checkpoint_format = CHECKPOINT_FORMATS.get(name)()
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    config = model.config
    if config.text.mask_id is not None and name != "declip":
        config = _without_mask(config, tensors, name)
    return checkpoint_format.write(folder, config, to_theirs(checkpoint_format.rules(config), tensors))


def _without_mask(config: ModelConfig, tensors: dict[str, Tensor], name: str) -> ModelConfig:
    """The config with CLIP's own vocabulary, and ``tensors`` without the row of the mask token, which only training uses."""
    log.info(
        f"{config.name}: the row of its mask token, the vocabulary's last, is left out: {name} has CLIP's {CLIP_VOCABULARY:,}."
    )
    tensors[TOKEN_TABLE] = tensors[TOKEN_TABLE][:CLIP_VOCABULARY]
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=CLIP_VOCABULARY))


def probe_inputs(config: ModelConfig, count: int = 4) -> tuple[Tensor, Tensor]:
    """Fixed images uint8 [count, 3, H, W] and token ids int64 [count, L]: noise, the same on every machine."""
    generator = torch.Generator().manual_seed(7)
    side, text = config.vision.image_size, config.text
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    ids = torch.randint(2, text.vocab_size - 3, (count, text.context_length), generator=generator)
    if text.family == "transformer":
        # OpenAI's ids, whatever follows them in the vocabulary: the end is the largest.
        end = CLIP_END if text.vocab_size > CLIP_END else text.vocab_size - 1
        if text.end_id is None:
            ids = ids.clamp(max=end - 1)
        else:  # a vocabulary of the model's own, whose end may be any id
            end = text.end_id
            ids = torch.where(ids == end, (end + 1) % text.vocab_size, ids)
        for row in range(count):
            last = 2 + row * (text.context_length - 3) // max(1, count - 1)
            ids[row, last], ids[row, last + 1 :] = end, 0
    return images, ids


@torch.no_grad()
def parity(first: TwoTower, second: TwoTower) -> Parity:
    """Compare two models on fixed inputs, in fp32 whatever their dtypes; both are converted to it."""
    images, ids = probe_inputs(first.config)
    models = [model.float().eval() for model in (first, second)]
    image = _agreement(*(model.encode_image(images) for model in models))
    text = _agreement(*(model.encode_text(ids) for model in models))
    return Parity(*image, *text, inputs=len(images))


def _agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """The largest difference and the least cosine of features [B, D], after normalization."""
    first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    return (first - second).abs().max().item(), (first * second).sum(-1).min().item()
