"""Your own loss, in one file outside of Diptych: CLIP's contrastive loss with smoothed targets.

    python examples/own_loss.py --model tiny-test --train-data photos --epochs 1 --output runs/smoothed

or, with this folder on PYTHONPATH, ``diptych train --objective own_loss:Smoothed ...``. Options of ``Config`` become flags
(``--smoothing``). A loss that stays belongs in ``src/diptych/objectives/``, where its contract tests find it.
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.commands import main
from diptych.distributed.gather import gather_with_gradient, rank_offset
from diptych.objectives import Objective, ObjectiveOptions
from diptych.types import Batch, Pairs, Terms, Wants


@dataclass(frozen=True)
class SmoothedConfig(ObjectiveOptions):
    """Options of the smoothed loss."""

    smoothing: float = 0.1
    """Share of the target that is spread over all pairs of the batch; 0 is CLIP's loss."""


class Features(NamedTuple):
    """Unit features, [B, D] each."""

    image: Tensor
    text: Tensor


class Smoothed(Objective):
    """Cross-entropy over the similarities of the global batch, with label smoothing."""

    Config = SmoothedConfig
    wants = Wants(images=("crop",), texts=("caption",))
    config: SmoothedConfig

    def encode(self, batch: Batch, frozen: object | None = None) -> Features:
        """Pair by pair, so that it may run in micro-batches; no pair looks at another one."""
        image, text = self.encode_images(batch).pooled, self.encode_texts(batch).pooled
        return Features(F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1))

    def compare(self, features: Features, pairs: Pairs) -> Terms:
        """The whole batch: this process's rows against the columns of all processes."""
        scale = self.model.logit_scale.exp()
        columns = Features(*(gather_with_gradient(item, self.group) for item in features))
        count = len(features.image)
        target = torch.arange(count, device=scale.device) + rank_offset(count, self.group)
        smoothing = self.config.smoothing
        by_image = F.cross_entropy(scale * features.image @ columns.text.T, target, label_smoothing=smoothing)
        by_text = F.cross_entropy(scale * features.text @ columns.image.T, target, label_smoothing=smoothing)
        return Terms({"smoothed": (by_image + by_text) / 2}, {"logit_scale": scale.detach()})


if __name__ == "__main__":
    sys.exit(main(["train", "--objective", "own_loss:Smoothed", *sys.argv[1:]]))
