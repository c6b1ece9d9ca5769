"""From any layout to any other, with proof: what was written is read again and gives the same features.

The new folder takes its place only after both towers agreed on fixed inputs. The proof reads with the same tables that
wrote, so that a table wrong both ways would pass it: the tables themselves are held against the original libraries in the
tests and in ``benchmarks/parity``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError, OutputError, WeightsError
from diptych.files import write_text
from diptych.models import ModelConfig, TwoTower
from diptych.registry import did_you_mean
from diptych.weights import CHECKPOINT_FORMATS, WEIGHT_FILE, _native, load
from diptych.weights._catalog import vocabulary_at
from diptych.weights._format import CheckpointFormat
from diptych.weights._rename import to_theirs

SHORT = {"hf": "huggingface", "transformers": "huggingface", "open_clip": "openclip", "pdparams": "paddle"}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Parity:
    """How far the features of two models lie apart: of unit vectors, over ``inputs`` pictures and texts."""

    image_difference: float
    image_cosine: float
    text_difference: float
    text_cosine: float
    inputs: int

    @property
    def holds(self) -> bool:
        """Whether both towers agree to 1e-5."""
        return max(self.image_difference, self.text_difference) <= TOLERANCE


def layout_names() -> list[str]:
    """What ``--to`` may be."""
    return sorted({"diptych", "hf", *CHECKPOINT_FORMATS.names()} - {"huggingface"})


def convert(
    source: str | Path, to: str, folder: Path, *, model: str = "", precision: str = "file", allow: Iterable[str] = ()
) -> tuple[Path, Parity]:
    """Write the weights of ``source`` into the new ``folder`` in the layout ``to``; returns the weight file and the proof.

    ``precision`` "file" keeps the numbers as they are. Raises ConfigError for an unknown layout, WeightsError when the
    layout cannot hold this model or the proof fails (nothing is left then), OutputError when the folder is taken.
    """
    name = SHORT.get(to, to)
    if name != "diptych" and name not in CHECKPOINT_FORMATS.names():
        raise ConfigError(did_you_mean(to, layout_names(), "layout"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} already holds something; give a new folder.")
    before = load(source, model=model, precision=precision, allow=allow)  # type: ignore[arg-type]
    with _beside(folder) as new:
        written = _written(before, name, new)
        _carry_vocabulary(before.config, str(source), new)
        after = load(written)
        proof = parity(before, after)
        if not proof.holds:
            raise WeightsError(
                f"{folder}: not kept: read again, its features differ by {proof.image_difference:.2g} (images) and "
                f"{proof.text_difference:.2g} (texts) from those of {source}. Please report this."
            )
    return folder / written.name, proof


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder that becomes ``folder`` when all went well, and vanishes when not."""
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


def _written(model: TwoTower, name: str, folder: Path) -> Path:
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    if name == "diptych":
        _native.write(folder / WEIGHT_FILE, model.config, tensors, {})
        return folder / WEIGHT_FILE
    layout: CheckpointFormat = CHECKPOINT_FORMATS.get(name)()
    path = layout.write(folder, model.config, to_theirs(layout.rules(model.config), tensors))
    if name == "huggingface" and model.config.text.tokenizer == "bpe":
        _bpe_files(folder, model.config)
    return path


def _carry_vocabulary(config: ModelConfig, source: str, folder: Path) -> None:
    """SigLIP's words lie with the weights and travel with them."""
    if config.text.tokenizer == "bpe":
        return
    found = vocabulary_at(source)
    if found is not None:
        shutil.copyfile(found, folder / found.name)


def _bpe_files(folder: Path, config: ModelConfig) -> None:
    """CLIP's tokenizer in transformers' words, so that its processor opens the folder."""
    import json

    from diptych.text.bpe import END, START, vocabulary

    known = vocabulary()
    merges = sorted(known.ranks, key=known.ranks.__getitem__)
    write_text(folder / "vocab.json", json.dumps(dict(known.ids), ensure_ascii=False), "vocabulary")
    write_text(
        folder / "merges.txt", "#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges), "vocabulary"
    )
    about = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": config.text.context_length, "do_lower_case": True,
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
    }  # fmt: skip
    write_text(folder / "tokenizer_config.json", json.dumps(about, indent=2) + "\n", "config")


def probes(config: ModelConfig, count: int = 4) -> tuple[Tensor, Tensor]:
    """Fixed pictures uint8 [count, 3, H, W] and token ids [count, L]: noise and random words, the same on every machine."""
    chance = torch.Generator().manual_seed(7)
    side, text = config.vision.image_size, config.text
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=chance)
    ids = torch.randint(2, text.vocab_size - 3, (count, text.context_length), generator=chance)
    if text.family == "transformer":
        # OpenAI's ids, whatever follows them in the vocabulary: the end is the largest.
        end = 49407 if text.vocab_size >= 49408 else text.vocab_size - 1
        ids = ids.clamp(max=end - 1)
        for row in range(count):
            last = 2 + row * (text.context_length - 3) // max(1, count - 1)
            ids[row, last], ids[row, last + 1 :] = end, 0
    return images, ids


@torch.no_grad()
def parity(one: TwoTower, two: TwoTower) -> Parity:
    """Compare two models on fixed inputs, in fp32 whatever their numbers are."""
    images, ids = probes(one.config)
    pairs = []
    for inputs, name in ((images, "encode_image"), (ids, "encode_text")):
        features = [F.normalize(getattr(model.float().eval(), name)(inputs), dim=-1) for model in (one, two)]
        cosine = (features[0] * features[1]).sum(-1).min().item()
        pairs.append(((features[0] - features[1]).abs().max().item(), cosine))
    return Parity(*pairs[0], *pairs[1], inputs=len(images))
