"""From the data options of a run to sources, views and loaders: where wants meet sources, once, when the run is built.

Knows the branches of the config that say which data and how it is read, and nothing of the rest. Reads no record itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diptych.data import (
    TRAIN_SPLITS,
    VALIDATION_SPLITS,
    CaptionPerRecord,
    Loader,
    LoaderOptions,
    Mixture,
    Opened,
    Position,
    Source,
    SourceOptions,
    build_prepare,
    check_left_out,
    check_options,
    check_roots,
    known_data,
    open_split,
    with_root,
)
from diptych.devices import Device
from diptych.distributed.process_group import World
from diptych.errors import ConfigError, SourceError
from diptych.evaluate import LabeledImages, open_labeled
from diptych.image import EvalTransform, TrainTransform, ViewOptions
from diptych.models import ModelConfig
from diptych.text import TextLayout, TextViewOptions, Tokenizer
from diptych.train.config import DataOptions
from diptych.train.view_flags import ViewFlags
from diptych.train.view_options import say_unused, text_view_options, view_options
from diptych.types import Wants


@dataclass(frozen=True)
class Pipeline:
    """The data of a run: sources, and how records become samples.

    ``wants`` of training and ``validation_wants`` of validation; ``views`` and ``texts`` the options that image and
    text views are made with. ``text_layout`` plans the texts of batches, None where the model takes no plan.
    """

    data: DataOptions
    wants: Wants
    validation_wants: Wants
    tokenizer: Tokenizer
    views: ViewOptions
    texts: TextViewOptions
    train_source: Source
    val_source: Source | None
    labeled_source: LabeledImages | None
    labeled_v2_source: LabeledImages | None = None
    text_layout: TextLayout | None = None

    @property
    def train_transform(self) -> TrainTransform:
        """The training crop."""
        return self.views.train_transform

    @property
    def eval_transform(self) -> EvalTransform:
        """The fixed preprocessing of evaluation."""
        return self.views.eval_transform

    def loader(self, start: Position, world: World, device: Device, pieces: tuple[int, int] | None = None) -> Loader:
        """The training steps of this rank, from a position on, without end; ``Loader.steps`` gives them.

        ``pieces``: pairs of a micro-batch, and their number in a step; None is one of --batch-size.
        """
        size, count = pieces or (self.data.batch_size, 1)
        data = self.data
        prepare = build_prepare(
            self.wants, self.tokenizer, self.views,
            captions="first" if data.captions == "first" else "random", weights=caption_weights(data.caption_weights),
            strict=data.bad_samples_strict, texts=self.texts,
        )  # fmt: skip
        options = LoaderOptions(
            size, count, data.workers, data.seed, world.rank, world.size, start,
            pad_last=data.last_batch == "pad", pin_memory=device.abilities.pin_memory, bad_samples=data.bad_samples,
            bad_limit=data.bad_samples_max, mixture=self._mixture(), text_layout=self.text_layout,
        )  # fmt: skip
        return Loader(self.train_source, prepare, options)

    def _mixture(self) -> Mixture | None:
        data = self.data
        if not data.dataset_resampled:
            if data.train_data_upsampling_factors:
                raise ConfigError("--train-data-upsampling-factors goes with --dataset-resampled; add it.")
            return None
        parts = getattr(self.train_source, "sources", [self.train_source])
        try:
            factors = [float(factor) for factor in data.train_data_upsampling_factors.split("::") if factor]
        except ValueError as error:
            raise ConfigError(
                f"--train-data-upsampling-factors {data.train_data_upsampling_factors!r}: {error}."
            ) from error
        return Mixture([len(part) for part in parts], factors, data.train_num_samples)

    def validation_loader(self, world: World, device: Device | None = None) -> Loader:
        """A single ordered pass over the validation data, first captions; each rank its rows of each batch."""
        if self.val_source is None:
            raise ConfigError("there is no --val-data to validate on.")
        size = min(self.data.batch_size, len(self.val_source) // world.size)
        if size < 1:
            raise SourceError(
                f"{self.val_source.name}: {len(self.val_source)} records to validate on, fewer than the {world.size} processes; "
                "give more, or leave --val-data out."
            )
        options = LoaderOptions(
            size, workers=min(1, self.data.workers), rank=world.rank, ranks=world.size, shuffle=False, epochs=1,
            pin_memory=device is not None and device.abilities.pin_memory,
            bad_samples=self.data.bad_samples, bad_limit=self.data.bad_samples_max, text_layout=self.text_layout,
        )  # fmt: skip
        strict = self.data.bad_samples_strict
        prepare = build_prepare(self.validation_wants, self.tokenizer, self.views, captions="first", strict=strict)
        return Loader(self.val_source, prepare, options)


def build_pipeline(
    data: DataOptions,
    source: SourceOptions,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    views: ViewFlags,
    wants: Wants,
    validation_wants: Wants,
) -> Pipeline:
    """Open the sources, and check the views that are wanted. Raises ConfigError and SourceError before the first step."""
    if not data.train_data:
        alone = " To measure a model and train nothing: diptych evaluate." if data.val_data or data.imagenet_val else ""
        raise ConfigError(f"--train-data is missing: give one of {known_data()}.{alone}")
    check_roots(data)
    images, texts = view_options(data, views, model), text_view_options(data, views)
    say_unused(data, wants)
    for wanted in (wants, validation_wants):
        # Unknown views and masks without a mask token are errors now.
        build_prepare(wanted, tokenizer, images, texts=texts)
    all_opened: list[Opened] = []
    labeled, second = (_labeled(path, data, source, all_opened) for path in (data.imagenet_val, data.imagenet_v2))
    validation = None
    if data.val_data:
        options = with_root(source, data.val_image_root)
        validation = open_split(data.val_data, data.val_split, VALIDATION_SPLITS, options, "--val-split")
        all_opened.append(Opened(validation, options, "--val-image-root"))
    train = _train_source(data, source)
    all_opened.insert(0, Opened(train, source))  # the first one's flag is named
    check_options(all_opened)
    for opened in all_opened:
        check_left_out(opened.source, data.bad_samples_max)
    return Pipeline(data, wants, validation_wants, tokenizer, images, texts, train, validation, labeled, second)


def _labeled(path: str, data: DataOptions, source: SourceOptions, all_opened: list[Opened]) -> LabeledImages | None:
    """Labeled images, None where none are named; what is wrong with their prompts and class names is said now."""
    if not path:
        return None
    options = with_root(source, data.imagenet_image_root)
    labeled = open_labeled(path, options, labels=data.labels, templates=data.templates)
    all_opened.append(Opened(labeled.source, options, "--imagenet-image-root"))
    return labeled


def _train_source(data: DataOptions, options: SourceOptions) -> Source:
    source = open_split(data.train_data, data.train_split, TRAIN_SPLITS, options, "--train-split")
    if data.captions == "all":
        if data.dataset_resampled:
            raise ConfigError("--captions all shows each caption once an epoch, --dataset-resampled draws: choose one.")
        source = CaptionPerRecord(source)
    if len(source) < data.batch_size and data.last_batch == "drop" and not data.dataset_resampled:
        raise SourceError(
            f"{data.train_data}: {len(source)} records are fewer than --batch-size {data.batch_size}; lower it."
        )
    return source


def caption_weights(text: str) -> tuple[tuple[str, float], ...]:
    """``caption=0.3,blip_caption=0.7`` as pairs. Raises ConfigError."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    try:
        weights = tuple((key.strip(), float(value)) for key, _, value in pairs)
    except ValueError as error:
        raise ConfigError(f"--caption-weights {text!r}: expected KEY=NUMBER,KEY=NUMBER.") from error
    if weights and (not all(0 <= weight < math.inf for _, weight in weights) or not any(w for _, w in weights)):
        raise ConfigError(f"--caption-weights {text!r}: expected finite numbers of at least 0, one of them above it.")
    return weights
