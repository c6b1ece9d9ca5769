"""How a run lays out its texts: the form of the device or the one that is asked for, and the lengths that texts are padded to.

The lengths are chosen from those of the run's own captions, and written into its config, so that a resumed run keeps its shapes.
Where texts go by groups of equal length, as on a CPU, nothing is chosen and no caption is read.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from diptych import log
from diptych.data import Source
from diptych.devices import Device
from diptych.errors import ConfigError, RecordError
from diptych.models import TextConfig, text_layout
from diptych.text import Tokenizer, choose_buckets, parse_buckets
from diptych.train.config import TrainConfig
from diptych.train.pipeline import Pipeline
from diptych.types import TextForm

SAMPLED = 256  # records whose captions are measured
NEIGHBORS = 16  # so many of them stand together, since one shard is opened for them


def with_text_layout(
    config: TrainConfig, pipeline: Pipeline, text: TextConfig, device: Device, precision: str
) -> tuple[TrainConfig, Pipeline]:
    """The config with lengths for ``auto``, and the pipeline with its layout of texts; what was chosen is said in one line.

    Raises ConfigError and DeviceError for what cannot be.
    """
    asked, buckets = _asked(config), config.parallel.text_buckets
    form = device.text_layout(precision, asked)
    layout = text_layout(text, form, required=asked == "varlen")
    if layout is None or layout.form == "groups":
        flags = (("layout", config.parallel.text_layout), ("buckets", buckets))
        given = [flag for flag, value in flags if value not in ("auto", "groups")]
        if given and not config.output.resume:
            reason = (
                "this text tower computes every token of its context"
                if layout is None
                else "texts go by their own lengths"
            )
            log.warn(f"{', '.join(f'--text-{flag}' for flag in given)}: no effect, since {reason} here")
        return config, dataclasses.replace(pipeline, text_layout=layout)
    if buckets == "auto":
        lengths = caption_lengths(pipeline.train_source, pipeline.tokenizer)
        sizes = choose_buckets(lengths, config.pieces[0] * max(1, len(pipeline.wants.texts)), text.context_length)
        origin = f"chosen from the lengths of {len(lengths)} captions"
    else:
        sizes, origin = parse_buckets(buckets, text.context_length), "as given"
    joined = ",".join(map(str, sizes))
    how = "packed one after another for one kernel, ids padded to" if layout.form == "varlen" else "padded to"
    log.info(f"texts are {how} {joined} tokens ({origin})")
    parallel = dataclasses.replace(config.parallel, text_buckets=joined)
    layout = dataclasses.replace(layout, buckets=sizes)
    return dataclasses.replace(config, parallel=parallel), dataclasses.replace(pipeline, text_layout=layout)


def _asked(config: TrainConfig) -> TextForm | Literal["auto"]:
    """The form that is asked for; compiled blocks need one of few shapes. Raises ConfigError where another is given."""
    asked = config.parallel.text_layout
    if config.model.torchcompile and asked == "groups":
        raise ConfigError(
            "--text-layout groups has other shapes in every batch, for each of which --torchcompile would compile again; take "
            "buckets, or leave one of them out."
        )
    return "buckets" if config.model.torchcompile and asked == "auto" else asked


def caption_lengths(source: Source, tokenizer: Tokenizer) -> list[int]:
    """The numbers of ids of the captions of some records, spread over the source; the same in every process."""
    count = len(source)
    if count <= SAMPLED:
        numbers = list(range(count))
    else:
        runs = SAMPLED // NEIGHBORS
        numbers = [run * (count - NEIGHBORS) // (runs - 1) + near for run in range(runs) for near in range(NEIGHBORS)]
    lengths = []
    for number in numbers:
        try:
            captions = source.record(number).captions
        except RecordError:  # the loader names it when its turn comes
            continue
        lengths += [len(tokenizer.encode(caption).ids) for caption in captions]
    return lengths
