"""The options of views beside the crop's own, which are the data's (``DataOptions``), since open_clip has them.

Declarations only: what they come to, and which are refused, is ``view_options``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from diptych.config import Range, Share
from diptych.text import Thesaurus


@dataclass(frozen=True)
class ViewFlags:
    """How images and captions are changed on their way to the towers, beside the crop's own options."""

    train_view: Literal["crop", "strong"] = "crop"
    """Which view an objective of a single image view trains on: the crop, or the strong view of self-supervision."""
    strong_recipe: Literal["", "slip", "moco-v2"] = ""
    """Whose strengths the strong view has: SLIP's, or MoCo v2's as in DeCLIP; empty is slip; flags below change single ones."""
    strong_scale: tuple[float, float] | None = None
    """Share of the area that a strong view's crop keeps, least and most: 0.08 1 of slip, 0.2 1 of moco-v2."""
    strong_jitter: Share | None = None
    """Strength of its brightness, contrast and saturation: 0.4."""
    strong_hue: Annotated[float, Range(0, 0.5)] | None = None
    """Most that its hue is turned, in turns of the color circle: 0.1."""
    strong_jitter_prob: Share | None = None
    """Probability of --strong-jitter and --strong-hue: 0.8."""
    strong_grayscale: Share | None = None
    """Probability of dropping its colors: 0.2."""
    strong_blur: Share | None = None
    """Probability of blurring it: 0.5."""
    strong_blur_sigma: tuple[float, float] | None = None
    """Standard deviation of its blur in pixels, least and most: 0.1 2."""
    strong_flip: Share | None = None
    """Probability of mirroring it: 0.5."""
    strong_solarize: Share | None = None
    """Probability of inverting its values of at least 128, as BYOL does: 0."""
    synonyms: Thesaurus = "shipped"
    """Where augmented captions take synonyms: the shipped table of WordNet 3.0, or NLTK's corpus, which differs by machine."""
