"""The global contrastive loss of FastCLIP (Wei et al. 2024, arXiv 2407.01445), after SogCLR (Yuan et al. 2022): small batches
stand for the whole data set, because every record has a running estimate of how much its negatives weigh.

For record i and either side, with s the logit scale and the mean over the step's pairs of other records:

    g_i = mean of exp(s (sim_ij - sim_ii));   u_i <- (1 - gamma) u_i + gamma g_i, and g_i the first time
    loss = mean(g_i^image / (u_i^image + eps) + g_i^text / (u_i^text + eps)) / stop_gradient(s)
           + rho / s + mean(log u_i^image + log u_i^text) / (2 s)

The gradient goes through g and s; the second line moves the scale only. gamma is 1 in the first epoch and falls as a cosine. v3
of the paper learns one temperature 1/s, v1 has a fixed one (``--temperature``); v0 and v2 are not here. Departures from the
reference implementation: logarithms of the estimates are stored, so that no exponential overflows; the learned number is log s,
not the temperature; pairs of one record in a step are no negatives, and the last of them sets the estimate; a fixed temperature
has no second line, and 1/s in the first, which is a constant factor. As there, the second line is halved and the first is not.
The similarities are held as one matrix, not in tiles. Validation is CLIP's loss, since the value of this one says little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from diptych.config import Count, NotNegative, Range
from diptych.distributed.gather import gather, rank_offset
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel, Objective, RunFacts
from diptych.objectives._repeats import CaptionedFeatures, RepeatOptions, classes_of, with_captions
from diptych.objectives._terms import Features, contrastive, full_precision, gathered, unit
from diptych.objectives._tiles import LOWEST
from diptych.types import Batch, Pairs, Terms

EPS = 1e-14
RHO = 6.5  # the paper's for CC3M; 8.5 for CC12M, 16 for LAION-400M
COLD = 0.03  # below this temperature the scale moves at a third of its rate


@dataclass(frozen=True)
class FastClipConfig(RepeatOptions):
    """Options of the global contrastive loss."""

    objective: str = "fastclip"
    """What is optimized: the name of an objective, or module:Class."""
    temperature: Literal["learned", "fixed"] = "learned"
    """The temperature 1/s: learned (v3 of the paper; give --scale-lr, a fifth of --lr there), or fixed (v1)."""
    initial_temperature: Annotated[float, Range(0.01, 1)] | None = None
    """The temperature at the start; without it, the model's own, 0.07 in CLIP's presets."""
    rho: NotNegative | None = None
    """Pull of a learned temperature downwards; without it 6.5, the paper's for CC3M (CC12M 8.5, LAION-400M 16)."""
    gamma: Annotated[float, Range(0.01, 1)] = 0.2
    """Weight of the newest value in the running estimates, once it has fallen from 1."""
    gamma_epochs: Count = 0
    """Epochs over which gamma falls; 0 takes half of the run."""


@OBJECTIVES.register("fastclip")
class FastClip(Objective):
    """The global contrastive loss as an objective.

    Buffers, the same in every process: ``log_u`` [2, N], logarithms of the estimates of N records for image and text, and
    ``seen`` bool [N], whether a record has one.
    """

    Config = FastClipConfig
    config: FastClipConfig
    equal_buffers = ("log_u", "seen")
    log_u: Tensor
    seen: Tensor

    def __init__(self, config: FastClipConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        if config.temperature == "fixed":
            if config.rho is not None:
                raise ConfigError(
                    f"--rho {config.rho:g} moves a learned temperature; leave it out with --temperature fixed."
                )
            model.logit_scale.requires_grad_(False)
        if config.initial_temperature is not None:
            with torch.no_grad():
                model.logit_scale.fill_(-math.log(config.initial_temperature))
        self._epochs = 0.0
        self._newest: tuple[Tensor, Tensor, Tensor] | None = None  # of the step's compare, until the step is taken
        self._allocate(0)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Both temperatures; repeated captions ignored."""
        return (
            Example(FastClipConfig(), "tiny-test"),
            Example(FastClipConfig(temperature="fixed", initial_temperature=0.05), "tiny-test"),
            Example(FastClipConfig(repeated_captions="ignored"), "tiny-test"),
        )

    def begin_run(self, facts: RunFacts) -> None:
        """Make room for an estimate per record. Raises ConfigError for data whose epochs are no passes over records."""
        if facts.resampled:
            raise ConfigError(
                "--objective fastclip follows every record over passes of the data, and --dataset-resampled makes none; "
                "leave it out, or take --objective clip."
            )
        self._epochs = facts.epochs
        self._allocate(facts.records)

    def _allocate(self, records: int) -> None:
        self.register_buffer("log_u", torch.zeros(2, records))
        self.register_buffer("seen", torch.zeros(records, dtype=torch.bool))

    def encode(self, batch: Batch, frozen: Any = None) -> Features | CaptionedFeatures:
        """Unit features [B, D] of the first image and text view, and the caption's ids where they are asked for."""
        features = Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))
        return with_captions(features, batch, self.config)

    def gamma(self, epoch: int) -> float:
        """The weight of the newest value in an epoch, counted from 0."""
        length = self.config.gamma_epochs or self._epochs / 2
        share = min(1.0, epoch / length) if length > 0 else float(epoch > 0)
        return self.config.gamma + (1 - self.config.gamma) * (1 + math.cos(math.pi * share)) / 2

    def compare(self, features: Features | CaptionedFeatures, pairs: Pairs) -> Terms:
        """``global``: the first line of the formula; ``temperature``: the second, where it is learned."""
        if not self.seen.numel():
            raise ConfigError(
                "fastclip has an estimate for every record of the data, and does not know how many there are; call "
                "begin_run(RunFacts(records, epochs)) before the first step."
            )
        scale = full_precision(self.model.logit_scale).exp()
        with torch.autocast(features.image.device.type, enabled=False):
            log_g, compared, won = self._log_means(features, pairs, scale)
            log_u = self._moved(log_g.detach(), compared, pairs)
            ratio = (log_g - torch.logaddexp(log_u, log_u.new_full((), math.log(EPS)))).exp()
            count = len(features.image)
            losses = {"global": torch.where(compared, ratio, 0).sum() / count / scale.detach().squeeze()}
            mean_log_u = torch.where(compared, log_u, 0).sum() / count
            if self.config.temperature == "learned":
                rho = RHO if self.config.rho is None else self.config.rho
                losses["temperature"] = ((rho + mean_log_u / 2) / scale).squeeze()
        self._newest = (log_u, compared, self.model.logit_scale.detach().clone())
        metrics = {"logit_scale": scale.detach(), "batch_accuracy": won, "mean_log_u": mean_log_u / 2}
        return Terms(losses, metrics)

    def _log_means(self, features: Features | CaptionedFeatures, pairs: Pairs, scale: Tensor) -> tuple[Tensor, ...]:
        """log g [2, B] of images and texts; bool [B], whether a pair has a negative (without one, log g is very low); and the
        share of images whose own caption is nearer than every negative.
        """
        everything = Features(*(gathered(item, self.group) for item in features[:2]))
        names, start = gather(pairs.indices, self.group), rank_offset(len(features.image), self.group)
        own = slice(start, start + len(features.image))
        left_out = names[own, None] == names
        classes = classes_of(features, self.group)
        if classes is not None:
            left_out = left_out | (classes[own, None] == classes)
        count = (~left_out).sum(dim=1)
        true = (features.image * features.text).sum(dim=1, keepdim=True)
        sides = [
            (scale * (rows @ columns.T - true)).masked_fill(left_out, LOWEST)
            for rows, columns in ((features.image, everything.text), (features.text, everything.image))
        ]
        won = (sides[0].detach().amax(dim=1) < 0).float().mean()
        log_sums = torch.stack([side.logsumexp(dim=1) for side in sides])
        return log_sums - count.clamp(min=1).to(true.dtype).log(), count > 0, won

    def _moved(self, log_g: Tensor, compared: Tensor, pairs: Pairs) -> Tensor:
        """log u [2, B] after this step; as it was for a pair without negatives."""
        before, gamma = self.log_u[:, pairs.indices].to(log_g.dtype), self.gamma(pairs.epoch)
        after = log_g
        if gamma < 1:
            mixed = torch.logaddexp(before + math.log1p(-gamma), log_g + math.log(gamma))
            after = torch.where(self.seen[pairs.indices], mixed, log_g)
        return torch.where(compared, after, before)

    def after_step(self, features: Features | CaptionedFeatures, pairs: Pairs) -> None:
        """Keep the estimates of the step's pairs, of all processes; the last where a record is there twice."""
        assert self._newest is not None  # compare comes before
        log_u, compared, scale = self._newest
        names, values, fresh = (gather(item, self.group) for item in (pairs.indices, log_u.T, compared))
        last = _last_of_each(names)
        # A record that is there twice is written twice, with equal values.
        self.log_u[:, names] = values[last].T.to(self.log_u.dtype)
        self.seen[names] = self.seen[names] | fresh[last]
        if self.config.temperature == "learned":
            slower = scale + (self.model.logit_scale - scale) / 3
            self.model.logit_scale.copy_(torch.where(scale.exp() > 1 / COLD, slower, self.model.logit_scale))
        self._newest = None

    def validation_terms(self, batch: Batch) -> Terms:
        """CLIP's ``contrastive`` loss of the batch, in nats; estimates are of training records, and stay out of it."""
        features = self.encode(batch)
        everything = Features(*(gathered(item, self.group) for item in features[:2]))
        scale, classes = full_precision(self.model.logit_scale).exp(), classes_of(features, self.group)
        offset = rank_offset(len(features.image), self.group)
        loss, correct = contrastive(features, everything, scale, offset, classes=classes)
        return Terms({"contrastive": loss}, {"logit_scale": scale.detach(), "batch_accuracy": correct})


def _last_of_each(names: Tensor) -> Tensor:
    """For each of N numbers, int64 [N], the last position that has the same one, int64 [N]. No value is read by the host."""
    ordered, positions = torch.sort(names, stable=True)
    ends = torch.ones_like(ordered, dtype=torch.bool)
    ends[:-1] = ordered[:-1] != ordered[1:]
    numbers = torch.arange(len(names), device=names.device)
    following = torch.where(ends, numbers, len(names)).flip(0).cummin(dim=0).values.flip(0)
    return torch.empty_like(positions).scatter_(0, positions, positions[following])
