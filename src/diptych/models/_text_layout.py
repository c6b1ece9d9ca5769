"""Which layout of texts an architecture takes, given the form that its device prefers; no device is known here.

A text tower that computes every token anyway (``TextTower.takes_plans`` False) takes none. Not the making of plans, which is
``diptych.text``'s.
"""

from __future__ import annotations

from diptych.errors import ConfigError
from diptych.models._base import TOWERS
from diptych.models._config import TextConfig
from diptych.text import TextForm, TextLayout, default_buckets

HEAD_STEP, WIDEST_HEAD = 8, 256  # of the kernel for sequences of unequal length


def text_layout(
    config: TextConfig, form: TextForm, buckets: tuple[int, ...] = (), *, required: bool = False
) -> TextLayout | None:
    """The layout of an architecture's texts in a form; None where its tower takes none.

    ``buckets`` as of ``TextLayout``, empty for the usual ones. Where the kernel of ``varlen`` does not take the tower's heads,
    buckets stand in, or ConfigError is raised where the form is ``required``.
    """
    if not getattr(TOWERS.get(config.family), "takes_plans", False):
        return None
    head = config.width // config.heads
    if form == "varlen" and (head % HEAD_STEP or head > WIDEST_HEAD):
        if required:
            raise ConfigError(
                f"--text-layout varlen: the text tower's heads are {head} wide, and the kernel takes multiples of {HEAD_STEP} up"
                f" to {WIDEST_HEAD}; choose buckets."
            )
        form = "buckets"
    sizes = () if form == "groups" else buckets or default_buckets(config.context_length)
    return TextLayout(form, config.context_length, sizes, config.vocab_size)
