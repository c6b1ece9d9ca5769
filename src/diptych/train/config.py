"""The one frozen tree that describes a training run, and how a command line becomes it.

Each branch is declared by its owner; here they are put together. The objective's branch has the type of the chosen
objective's Config, so ``--help`` and recipes show that objective's options only. Order of authority, later wins:
defaults, recipe, the resumed run's own config.toml, flags.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych import config
from diptych.config import Count, NotNegative, Range, Share
from diptych.data import SourceOptions
from diptych.distributed.mesh import ParallelOptions
from diptych.errors import ConfigError
from diptych.objectives import OBJECTIVES, ObjectiveOptions
from diptych.train.model_options import ModelOptions
from diptych.train.optimizer import OptimizerOptions
from diptych.train.schedule import ScheduleOptions
from diptych.train.view_flags import ViewFlags

NEWEST = ("latest", "auto")
"""Values of --resume that mean the newest whole checkpoint of a folder, or a new run where there is none."""


@dataclass(frozen=True)
class DataOptions:
    """Which data, and how it is read."""

    train_data: str = ""
    """Training pairs: a .jsonl, .csv, .tsv, shards {000..099}.tar or a folder; A::B joins several."""
    train_split: str = ""
    """Split of the training file; empty takes its "train" split if it has splits."""
    val_data: str = ""
    """Pairs to validate on; may be the training file when it has splits."""
    val_image_root: str = ""
    """Folder that relative image paths of --val-data start from; empty takes --image-root."""
    val_split: str = ""
    """Split to validate on; empty takes "val", "validation", "dev" or "test", the first there is."""
    imagenet_val: str = ""
    """Images to classify during training: class folders, a list with labels, or a folder with images/ and labels.txt."""
    imagenet_v2: str = ""
    """A second set of images to classify (ImageNetV2), beside --imagenet-val, in any of its forms."""
    imagenet_image_root: str = ""
    """Folder that relative image paths of --imagenet-val and --imagenet-v2 start from; empty takes --image-root."""
    templates: str = ""
    """Prompts for --imagenet-val; empty takes the folder's templates.txt, or openai80."""
    labels: str = ""
    """Class names for --imagenet-val: imagenet or a text file; empty takes labels.txt, or the folders' names."""
    batch_size: int = 64
    """Pairs per process and step."""
    workers: int = 4
    """Loader processes per training process; 0 loads in the training process itself."""
    seed: int = 0
    """Seed of the weights, the order of the data and every random choice."""
    dataset_resampled: bool = False
    """Draw records with replacement, by size and factor of their source, in place of each once per epoch."""
    train_num_samples: Count = 0
    """Records that an epoch counts; 0 takes as many as there are."""
    train_data_upsampling_factors: str = ""
    """Factors of the sources joined by ::, themselves joined by ::, e.g. 2::1; with --dataset-resampled."""
    last_batch: typing.Literal["drop", "pad"] = "drop"
    """The batch at the end of an epoch that is not full: left out, or filled up from the epoch's beginning."""
    bad_samples: typing.Literal["skip", "replace", "raise"] = "skip"
    """An unreadable image or empty caption: the next record stands in, or a random one, or the run stops. All are listed."""
    bad_samples_max: Share = 0.05
    """Share of bad samples above which the run stops."""
    bad_samples_strict: bool = False
    """An image that is damaged and can be decoded all the same is a bad sample too."""
    captions: typing.Literal["random", "first", "all"] = "random"
    """Which of an image's captions are trained on: a random one each time, always the first, or all, a pair each."""
    caption_weights: str = ""
    """Draw among the texts under several keys of a record, e.g. caption=0.3,blip_caption=0.7."""
    bad_captions: typing.Literal["", "cjk"] = ""
    """Captions that are bad samples, beside empty ones: cjk, those with a Chinese character, as DeCLIP's data has it."""
    resize_kernel: typing.Literal["exact", "fast"] = "exact"
    """Resizing of training images: to Pillow's own gray levels, or by torch's form of the kernel, fast without numba too."""
    aug_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the image's area that a random crop keeps, least and most."""
    aug_flip: Share = 0.0
    """Probability of mirroring a training image."""
    aug_color_jitter: Share = 0.0
    """Strength of random brightness, contrast and saturation; 0 for none."""
    aug_hue: typing.Annotated[float, Range(0, 0.5)] = 0.0
    """Most that the hue is turned at random, in turns of the color circle; 0 for none."""
    aug_color_jitter_prob: Share = 1.0
    """Probability of --aug-color-jitter and --aug-hue for a training image."""
    aug_grayscale: Share = 0.0
    """Probability of dropping a training image's colors."""
    aug_blur: Share = 0.0
    """Probability of blurring a training image, by a Gaussian of 0.1 to 2 pixels."""
    aug_auto: typing.Literal["", "imagenet"] = ""
    """Change every training image by AutoAugment's policy: imagenet, 25 pairs of operations; empty for none."""


@dataclass(frozen=True)
class EvaluateOptions:
    """When the model is measured."""

    val_frequency: Count = 1
    """Epochs between validations; 0 for none but the last."""
    val_every_steps: Count = 0
    """Steps between validations; overrides --val-frequency."""
    zeroshot_frequency: Count = 2
    """Epochs between zero-shot evaluations on --imagenet-val."""
    protocol: typing.Literal["grouped", "paired"] = "grouped"
    """Retrieval: any true caption of the image counts (COCO, Flickr), or row by row as open_clip does."""
    captions_per_image: Count = 0
    """Only the first so many captions of a validation image (5 for COCO papers); 0 takes all."""
    clean_names: bool = False
    """Words of --imagenet-val's class names as files spell them: AnnualCrop is "annual crop"."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written, where and when."""

    output: str = ""
    """Folder of the run; empty makes one under --logs."""
    logs: str = "runs"
    """Folder of runs, used when --output is empty."""
    name: str = ""
    """Name of the run under --logs; empty takes the date and the model."""
    save_frequency: Count = 1
    """Epochs between checkpoints."""
    save_most_recent: bool = False
    """A checkpoint after every epoch, whatever --save-frequency and --save-every-steps say."""
    save_every_steps: Count = 0
    """Steps between checkpoints; overrides --save-frequency."""
    save_every_minutes: NotNegative = 0.0
    """Minutes after which a checkpoint is written too, whatever else asks for one; 0 for none. SIGUSR1 asks for one at once."""
    keep_checkpoints: Count = 3
    """How many checkpoints to keep, newest first; 0 keeps all."""
    checkpoint_kind: typing.Literal["auto", "file", "folder"] = "auto"
    """A file that one process writes, or a folder of every process's part; auto: a folder where shards or layers are split."""
    async_save: bool = False
    """Write checkpoints while training goes on, from a copy in the host's memory; the step waits for the copy only."""
    on_save_error: typing.Literal["stop", "warn"] = "stop"
    """When a checkpoint cannot be written (a full disk): end the run, or say it in one line and go on without it."""
    resume: str = ""
    """Continue the newest checkpoint of --output (latest, or auto), else start there; or continue that of a path."""
    stop_after: Count = 0
    """Stop and save after this many steps of this sitting, as an interrupt would; 0 runs to the end."""
    log_every_n_steps: int = 10
    """Steps between rows of the metric log."""
    report_to: str = ""
    """More metric sinks beside metrics.jsonl: tensorboard, wandb, trackio, swanlab, joined by commas; or all."""
    wandb_project_name: str = ""
    """Project of wandb, trackio and swanlab; empty is diptych."""
    wandb_notes: str = ""
    """Notes of the run at wandb."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    views: ViewFlags = field(default_factory=ViewFlags)
    source: SourceOptions = field(default_factory=SourceOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    accum_freq: typing.Annotated[int, Range(1)] = 1
    """Micro-batches per step: features are cached, so the loss sees --accum-freq x --batch-size pairs at once."""
    micro_batch: Count | typing.Literal["auto"] = 0
    """Pairs encoded at once, a divisor of --batch-size: the same step in less memory; 0 for all, auto for the most that fit."""
    memory_budget: str = ""
    """With --micro-batch auto: memory of a process, such as 8GB; empty takes what is free (of a CPU's 80 %, shared)."""

    @property
    def pieces(self) -> tuple[int, int]:
        """Pairs of a micro-batch, and how many of them a step has on each process. Raises ConfigError."""
        size, micro = self.data.batch_size, self.micro_batch
        if isinstance(micro, str):
            raise ConfigError("--micro-batch auto is known once the model is built; give a number.")
        if micro and size % micro:
            raise ConfigError(
                f"--micro-batch {micro}: --batch-size {size} is no multiple of it; expected a divisor of {size}."
            )
        return (micro, size // micro * self.accum_freq) if micro else (size, self.accum_freq)


def tree_for(objective: str) -> type[TrainConfig]:
    """The tree's type for one objective: the branch ``objective`` has that objective's options.

    Made when it is asked for, since objectives are known by name only: the command line and recipes read options from the type's
    fields, so that ``--help`` shows the chosen objective's own and an option of another is an unknown flag.
    """
    chosen = OBJECTIVES.get(objective).Config
    default = field(default_factory=lambda: chosen(objective=objective))
    tree = dataclasses.make_dataclass(
        "TrainConfig", [("objective", chosen, default)], bases=(TrainConfig,), frozen=True
    )
    tree.__module__, tree.__doc__ = TrainConfig.__module__, TrainConfig.__doc__
    return tree


def build(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A config from nested mappings, such as a recipe's. Raises ConfigError."""
    return config.from_dict(tree_for(_objective_of(values)), values, where)


def with_texts(tree: Any) -> Any:
    """The same options, each path among them as text, which is how a run's config.toml and every comparison have it."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(tree):
        value = getattr(tree, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = with_texts(value)
        elif isinstance(value, os.PathLike):
            changes[item.name] = os.fspath(value)
    return dataclasses.replace(tree, **changes) if changes else tree


def _objective_of(values: Mapping[str, Any]) -> str:
    table = values.get("objective", {})
    return (
        table.get("objective", ObjectiveOptions.objective) if isinstance(table, Mapping) else ObjectiveOptions.objective
    )


def read(argv: Sequence[str], *, program: str, description: str = "") -> TrainConfig:
    """A config from a command line; ``--recipe`` and ``--resume`` bring the values that flags then change."""
    values, where, flags = _start(argv)
    tree = tree_for(_objective_of(values))
    default = config.from_dict(tree, values, where)
    return config.parse(tree, flags, program=program, description=description, default=default)


def known_flags(argv: Sequence[str]) -> set[str]:
    """The flags that this command line may have: of its objective, of those that open_clip's flags choose, of every command."""
    names = {_objective_of(_start(argv)[0]), "siglip", "distill"}
    return {"--recipe", "--help"}.union(*(config.flags(tree_for(name)) for name in names))


def _start(argv: Sequence[str]) -> tuple[dict[str, Any], str, list[str]]:
    """The values of the recipe and of the resumed run, the objective among them; where they stand; the other arguments."""
    recipe, flags = _take(argv, "--recipe")
    values, where = saved_values(_take(flags, "--resume")[0], _take(flags, "--output")[0])
    if recipe:
        path = config.find_recipe(recipe)
        values, where = {**config.read_toml(path), **values}, str(path)
    objective = _take(flags, "--objective")[0] or _objective_of(values)
    if objective != _objective_of(values):
        values = {**values, "objective": {"objective": objective}}
    return values, where, flags


def saved_values(resume: str, output: str) -> tuple[dict[str, Any], str]:
    """The resolved config of the run that ``--resume`` continues, and where it stands; nothing without one."""
    folder = Path(resume).parent.parent if resume and resume not in NEWEST else Path(output)
    saved = folder / "config.toml"
    if not resume or not (resume not in NEWEST or output) or not saved.is_file():
        return {}, "defaults"
    values = config.read_toml(saved)
    # What belongs to one sitting is not inherited by the next.
    for once in ("resume", "stop_after"):
        values.get("output", {}).pop(once, None)
    return values, str(saved)


def _take(argv: Sequence[str], flag: str) -> tuple[str, list[str]]:
    """The value of one flag (empty if absent) and the other arguments."""
    value, rest, arguments = "", [], iter(argv)
    for argument in arguments:
        if argument == flag:
            value = next(arguments, "")
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return value, rest
