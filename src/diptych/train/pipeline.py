"""From the config's data options to sources, transforms and loaders: where wants meet sources, once, at build.

Chooses the split when a file has splits and none was named. Reads nothing itself; see the data room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diptych import log
from diptych.data import CaptionPerRecord, Loader, LoaderOptions, Mixture, Position, Prepare, Source, SourceOptions, open_source
from diptych.devices import Device
from diptych.distributed.process_group import World
from diptych.errors import ConfigError, SourceError
from diptych.evaluate import class_folder, class_names, load_templates
from diptych.image import EvalTransform, TrainTransform
from diptych.models import ModelConfig
from diptych.text import Tokenizer
from diptych.train.config import TrainConfig
from diptych.types import Wants

VALIDATION_SPLITS = ("val", "validation", "valid", "dev", "test")


@dataclass(frozen=True)
class Pipeline:
    """The data of a run: sources, and how records become samples."""

    config: TrainConfig
    wants: Wants
    tokenizer: Tokenizer
    train_transform: TrainTransform
    eval_transform: EvalTransform
    train_source: Source
    val_source: Source | None
    zeroshot_source: Source | None
    zeroshot_options: dict[str, Any]

    def loader(self, start: Position, world: World, device: Device) -> Loader:
        """The training batches, from a position on, for ever."""
        data = self.config.data
        prepare = Prepare(
            self.train_transform, self.tokenizer, self.wants, True,
            captions="first" if data.captions == "first" else "random", weights=caption_weights(data.caption_weights),
        )  # fmt: skip
        return Loader(
            self.train_source, prepare, LoaderOptions(batch_size=data.batch_size, workers=data.workers, seed=data.seed,
            rank=world.rank, ranks=world.size, start=start, shuffle=True, drop_last=True,
            pin_memory=device.abilities.pin_memory, bad_samples=data.bad_samples, bad_limit=data.bad_samples_max,
            pad_last=data.last_batch == "pad", mixture=self._mixture())
        )  # fmt: skip

    def _mixture(self) -> Mixture | None:
        data = self.config.data
        if not data.dataset_resampled:
            if data.train_data_upsampling_factors or data.train_num_samples:
                raise ConfigError(
                    "--train-data-upsampling-factors and --train-num-samples go with --dataset-resampled; add it."
                )
            return None
        parts = getattr(self.train_source, "sources", [self.train_source])
        try:
            factors = [float(word) for word in data.train_data_upsampling_factors.split("::") if word]
        except ValueError as error:
            raise ConfigError(
                f"--train-data-upsampling-factors {data.train_data_upsampling_factors!r}: {error}."
            ) from error
        return Mixture([len(part) for part in parts], factors, data.train_num_samples)

    def validation_loader(self, world: World) -> Loader:
        """One ordered pass over the validation data, first captions, eval pixels; each rank its rows of each batch."""
        if self.val_source is None:
            raise ConfigError("there is no --val-data to validate on.")
        prepare = Prepare(self.eval_transform, self.tokenizer, self.wants, training=False)
        size = min(self.config.data.batch_size, len(self.val_source) // world.size)
        if size < 1:
            raise SourceError(
                f"{self.val_source.name}: {len(self.val_source)} records to validate on, fewer than the {world.size} processes; "
                "give more, or leave --val-data out."
            )
        return Loader(
            self.val_source, prepare, LoaderOptions(batch_size=size, workers=min(1, self.config.data.workers), seed=0,
            rank=world.rank, ranks=world.size, shuffle=False, drop_last=True, epochs=1)
        )  # fmt: skip


def build_pipeline(config: TrainConfig, model: ModelConfig, wants: Wants, tokenizer: Tokenizer) -> Pipeline:
    """Open the sources and build the transforms that the model's preprocessing asks for."""
    data, size, look = config.data, model.vision.image_size, model.preprocess
    if not data.train_data:
        raise ConfigError("--train-data is missing: give a .jsonl, .csv, .tsv, shards {000..099}.tar or a folder.")
    train = TrainTransform(
        size, scale=data.aug_scale, interpolation=look.interpolation, flip=data.aug_flip,
        color_jitter=data.aug_color_jitter, grayscale=data.aug_grayscale, kernel=data.resize_kernel,
    )  # fmt: skip
    source = opened(data.train_data, data.train_split, ("train",), config.source)
    if data.captions == "all":
        if data.dataset_resampled:
            raise ConfigError("--captions all shows each caption once an epoch, --dataset-resampled draws: choose one.")
        source = CaptionPerRecord(source)
    if len(source) < data.batch_size and data.last_batch == "drop" and not data.train_num_samples:
        raise SourceError(
            f"{data.train_data}: {len(source)} records are fewer than --batch-size {data.batch_size}; lower it."
        )
    folder = class_folder(data.imagenet_val) if data.imagenet_val else None
    named = open_source(folder.pictures, options=config.source) if folder else None
    texts: dict[str, Any] = {}
    if folder is not None and named is not None:
        texts = {"templates": data.templates or folder.templates or "openai80", "labels": data.labels or folder.labels}
        load_templates(texts["templates"])  # what is wrong with them is said before the first step, not after the last
        if texts["labels"]:
            class_names(named.classes, texts["labels"], named.name)
    return Pipeline(
        config, wants, tokenizer, train,
        EvalTransform(size, look.resize_mode, look.interpolation, look.resize_to), source,
        opened(data.val_data, data.val_split, VALIDATION_SPLITS, config.source) if data.val_data else None,
        named, texts,
    )  # fmt: skip


def caption_weights(text: str) -> tuple[tuple[str, float], ...]:
    """``caption=0.3,blip_caption=0.7`` as pairs. Raises ConfigError."""
    pairs = [word.partition("=") for word in text.split(",") if word]
    try:
        found = tuple((key.strip(), float(value)) for key, _, value in pairs)
    except ValueError as error:
        raise ConfigError(f"--caption-weights {text!r}: expected KEY=NUMBER,KEY=NUMBER.") from error
    if found and (not all(0 <= weight < math.inf for _, weight in found) or not any(weight for _, weight in found)):
        raise ConfigError(f"--caption-weights {text!r}: expected finite numbers of at least 0, one of them above it.")
    return found


def opened(spec: str, split: str, preferred: tuple[str, ...], options: SourceOptions) -> Source:
    """Open a source; where it has several splits and none was named, take the first preferred one and say so."""
    source = open_source(spec, split=split, options=options)
    splits = source.splits()
    if split or len(splits) < 2:
        return source
    chosen = next((name for name in preferred if name in splits), None)
    if chosen is None:
        flag = "--train-split" if "train" in preferred else "--val-split"
        raise ConfigError(f"{spec} has the splits {', '.join(sorted(splits))}; name one with {flag}.")
    log.info(f"{spec}: taking the split {chosen!r} ({splits[chosen]} of {len(source)} records)")
    return open_source(spec, split=chosen, options=options)
