"""How parameters move: their groups, with open_clip's decay rule, rates by tower and by depth, for any of the optimizers.

The rule: parameters of one dimension or none (biases, norms, scales) do not decay; everything else decays. A group of parameters
carries its own peak learning rate (``peak_lr``) and weight decay. The algorithms themselves are in ``algorithms.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from diptych import weights
from diptych.config import NotNegative, Share
from diptych.devices import Device
from diptych.distributed.layout import is_sharded
from diptych.errors import ConfigError
from diptych.models import Tower, TwoTower
from diptych.train.algorithms import ALGORITHMS, AlgorithmOptions, check_algorithm
from diptych.train.average import check_average
from diptych.train.muon import HIDDEN, hidden_matrices

SCALE = "model.logit_scale"


@dataclass(frozen=True)
class OptimizerOptions(AlgorithmOptions):
    """How parameters move."""

    lr: NotNegative = 5e-4
    """Peak learning rate."""
    wd: NotNegative = 0.2
    """Weight decay of matrices, kernels and embeddings."""
    wd_exclude: tuple[str, ...] = ()
    """Patterns of parameters without weight decay, by our names or open_clip's: '*.bias' 'visual.proj'; vectors never have it."""
    visual_lr: NotNegative | None = None
    """Peak learning rate of the image tower; without it, --lr."""
    text_lr: NotNegative | None = None
    """Peak learning rate of the text tower; without it, --lr."""
    visual_wd: NotNegative | None = None
    """Weight decay of the image tower; without it, --wd."""
    text_wd: NotNegative | None = None
    """Weight decay of the text tower; without it, --wd."""
    scale_lr: NotNegative | None = None
    """Peak learning rate of the logit scale; without it, --lr."""
    image_layer_decay: Share = 1.0
    """Factor on the learning rate from each block of the image tower to the one below it (BEiT); 1 for none."""
    text_layer_decay: Share = 1.0
    """Factor on the learning rate from each block of the text tower to the one below it; 1 for none."""
    grad_clip_norm: NotNegative = 0.0
    """Clip the global gradient norm to this; 0 leaves it alone."""
    on_nonfinite: str = "stop"
    """A loss or gradient that is not finite: stop, or skip:N to leave out up to N such steps of the run."""
    ema: Share = 0.0
    """Decay of a moving average of the weights, such as 0.999: evaluated and saved beside them; 0 for none."""
    ema_warmup: bool = False
    """Let the decay of --ema grow: in update n it is (1 + n) / (10 + n), at most --ema."""
    scale_range: tuple[float, ...] = ()
    """Least and most of the logarithm of the logit scale, after every step, e.g. 3 6; none takes the objective's own range."""


@dataclass(frozen=True)
class _TowerRule:
    """Options of one tower, whose parameters' names begin with ``prefix``; None where the general option counts."""

    prefix: str
    tower: Tower
    lr: float | None
    wd: float | None
    layer_decay: float
    flags: tuple[str, str, str]

    @property
    def given(self) -> list[str]:
        """The flags of the options that say something."""
        given = (self.lr is not None, self.wd is not None, self.layer_decay != 1)
        return [flag for flag, is_given in zip(self.flags, given, strict=True) if is_given]


def check_options(options: OptimizerOptions) -> None:
    """Raise ConfigError for options that cannot be, whatever the model is."""
    check_algorithm(options)
    check_average(options.ema, options.ema_warmup)
    ends = options.scale_range
    if ends and (len(ends) != 2 or ends[0] > ends[1]):
        raise ConfigError(
            f"--scale-range {' '.join(map(str, ends))}: expected two numbers, the least and the most of the scale's logarithm."
        )


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to the parameter."""
    return parameter.ndim > 1


def depths(tower: Tower) -> dict[str, int]:
    """The depth of every parameter of a tower by name: 0 before its blocks, 1 to n in them, n + 1 after them (BEiT's count)."""
    block_of = {id(item): number for number, block in enumerate(tower.blocks(), 1) for item in block.parameters()}
    last, result, inside = len(tower.blocks()) + 1, {}, False
    for name, parameter in tower.named_parameters():
        number = block_of.get(id(parameter))
        inside = inside or number is not None
        result[name] = number if number is not None else last if inside else 0
    return result


def create_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], model: TwoTower, options: OptimizerOptions, device: Device
) -> torch.optim.Optimizer:
    """The chosen optimizer over ``named`` trained parameters (of an objective that holds ``model`` as ``model``).

    Groups have the key ``peak_lr``, from which the schedule makes ``lr``. Raises ConfigError when nothing is trained, and for
    options that do not fit what is.
    """
    check_options(options)
    named = list(named)
    if not named:
        raise ConfigError("every parameter is locked; leave something to train.")
    rates, excluded = _all_rates(named, model, options), _excluded(named, model, options.wd_exclude)
    # By name: the optimizer may move fp32 copies in place of the model's own parameters.
    matrices = hidden_matrices(model) if options.optimizer == "muon" else set()
    hidden = {f"model.{name}" for name, item in model.named_parameters() if id(item) in matrices}
    if any(name in hidden and is_sharded(item) for name, item in named):
        raise ConfigError(
            "--optimizer muon takes products of whole matrices in bf16, whose sums over parts would depend on the layout; take "
            "lamb or adamw, or leave --sharding and --tensor-parallel-degree out."
        )
    groups: dict[tuple[float, float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        lr, wd = rates.get(name, (options.lr, options.wd))
        wd = wd if decays(parameter) and name not in excluded else 0.0
        # Kernels over many tensors do not mix sharded and whole ones.
        groups.setdefault((lr, wd, name in hidden, is_sharded(parameter)), []).append(parameter)
    own_key = {HIDDEN} if options.optimizer == "muon" else set()
    described = [
        {"params": items, "lr": lr, "peak_lr": lr, "weight_decay": wd, **dict.fromkeys(own_key, is_hidden)}
        for (lr, wd, is_hidden, _), items in groups.items()
    ]
    return ALGORITHMS[options.optimizer].create(described, options, device, model.config.vision.family == "resnet")


def _all_rates(
    named: Iterable[tuple[str, nn.Parameter]], model: TwoTower, options: OptimizerOptions
) -> dict[str, tuple[float, float]]:
    """Peak rate and decay by name, where they are not the general ones. Raises ConfigError for options of what is locked."""
    names, rules = {name for name, _ in named}, _rules(model, options)
    for rule in rules:
        if rule.given and not any(name.startswith(rule.prefix) for name in names):
            raise ConfigError(f"{rule.given[0]} is for a tower that is locked; leave it out, or train the tower.")
    rates = _rates(rules, options)
    for flag, value in (("--scale-lr", options.scale_lr), ("--scale-range", options.scale_range or None)):
        if value is not None and SCALE not in names:
            raise ConfigError(f"{flag} is for a logit scale that is locked; leave it out, or train the scale.")
    if options.scale_lr is not None:
        rates[SCALE] = (options.scale_lr, options.wd)
    return rates


def _excluded(named: Iterable[tuple[str, nn.Parameter]], model: TwoTower, patterns: Iterable[str]) -> set[str]:
    """The names that a pattern matches, in our spelling or open_clip's. Raises ConfigError for a pattern that matches none."""
    patterns = tuple(patterns)
    if not patterns:
        return set()
    theirs = weights.open_clip_names(model.config)
    spellings = {
        name: (name, name.removeprefix("model."), *theirs.get(name.removeprefix("model."), ())) for name, _ in named
    }
    excluded = set[str]()
    for pattern in patterns:
        matching = {name for name, spelled in spellings.items() if any(fnmatchcase(each, pattern) for each in spelled)}
        if not matching:
            raise ConfigError(f"--wd-exclude {pattern!r}: no trained parameter has such a name.")
        excluded |= matching
    return excluded


def _rules(model: TwoTower, options: OptimizerOptions) -> tuple[_TowerRule, _TowerRule]:
    return (
        _TowerRule(
            "model.image.", model.image, options.visual_lr, options.visual_wd, options.image_layer_decay,
            ("--visual-lr", "--visual-wd", "--image-layer-decay"),
        ),
        _TowerRule(
            "model.text.", model.text, options.text_lr, options.text_wd, options.text_layer_decay,
            ("--text-lr", "--text-wd", "--text-layer-decay"),
        ),
    )  # fmt: skip


def _rates(rules: Iterable[_TowerRule], options: OptimizerOptions) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay of the towers' parameters by name."""
    rates = {}
    for rule in rules:
        lr, wd = options.lr if rule.lr is None else rule.lr, options.wd if rule.wd is None else rule.wd
        top = len(rule.tower.blocks()) + 1
        for name, depth in depths(rule.tower).items():
            rates[rule.prefix + name] = (lr * rule.layer_decay ** (top - depth), wd)
    return rates
