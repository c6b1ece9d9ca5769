"""DeCLIP (Li et al. 2022, "Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image Pre-training Paradigm"):
four losses from each pair. x_1 and x_2 are strong views of the image, t the caption with tokens masked, t' a second text.

    loss = 0.4 contrastive + 0.2 simsiam + 0.2 mlm + 0.2 nearest
    contrastive = mean of CLIP's loss over (x_1, t), (x_2, t), (x_1, t'), (x_2, t')
    simsiam     = - mean(cos(q(f(x_1)), sg f(x_2)) + cos(q(f(x_2)), sg f(x_1))) / 2
    mlm         = mean over predicted tokens of the cross-entropy of a linear layer on the text tower's states
    nearest     = mean over x_1, x_2 and t, t' of CE(x -> NN(t)), image to text only

f and q are MLPs on the embedding before it has unit length (three layers 1,024 wide; 512 and 1,024), with batch normalization,
the last one of f without weights, as in SimSiam's paper. NN(t) is the entry of a queue of past text features that is nearest to t
by cosine, of unit length and without gradient; CE is the cross-entropy of an image among the neighbors of all pairs, with CLIP's
scale. Neighbors are searched in the queue as it was before the step; then t' of all pairs is enqueued, then t. The tower is
causal: a masked token is predicted from what is left of it. With ``--nn-topk`` above 1 the loss is the mean over neighbors.
``--declip-views image`` has no t'.

Departures from the reference implementation: the queue holds the texts of all processes, is in checkpoints, and the same at any
number of processes (there, one queue a process, lost on resume); a push that passes its end is stored whole; batch normalization
over all processes; masked tokens are averaged over all processes, and a step without any costs 0, where the quotient there is not
a number; special tokens are no random replacements; the logarithm of the scale lies in [3, ln 100] after each step, and not
before the first (there in [3, 6], while the scale that is used stops at 100). The optional losses that the published
configurations leave off (SimSiam of texts, ConVIRT, weights that change over training) are not here. ``--compat`` brings back:
batch normalization of each process by itself, masked tokens averaged by process, and a queue that loses what passes its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from diptych.objectives import OBJECTIVES, Example
from diptych.objectives._declip import DeclipOptions, DeclipTerms


@dataclass(frozen=True)
class DeclipConfig(DeclipOptions):
    """Options of DeCLIP."""

    objective: str = "declip"
    """What is optimized: the name of an objective, or module:Class."""


@OBJECTIVES.register("declip")
class Declip(DeclipTerms):
    """Contrastive over views, SimSiam, masked tokens, and nearest neighbors of texts."""

    Config = DeclipConfig

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """A ViT whose queue wraps, a ResNet, one text view with several neighbors, every norm; the contrastive loss alone."""
        small = DeclipConfig(queue_size=40, simsiam_width=24, simsiam_bottleneck=12)
        return (
            Example(small, "tiny-test"),
            Example(replace(small, ssl_norm="layer", queue_size=31), "tiny-test-resnet"),
            Example(replace(small, declip_views="image", nn_topk=3, ssl_norm="none"), "tiny-test"),
            Example(DeclipConfig(nn_weight=0.0, simsiam_weight=0.0, mlm_weight=0.0), "tiny-test"),
        )
