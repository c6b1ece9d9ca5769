"""Masked tokens for masked-language-modeling losses, by BERT's recipe (Devlin et al. 2019, section 3.1).

Each token of a text is predicted with probability 15 %; of those, 80 % become the mask token, 10 % another token of the
vocabulary, and 10 % stay. Start, end, mask and padding are never predicted. No loss here, and no padding of batches.
"""

from __future__ import annotations

import numpy as np

from diptych.errors import ConfigError
from diptych.text._base import Tokenizer
from diptych.types import IGNORED, MaskedSample

PREDICTED = 0.15
MASKED = 0.8
RANDOM = 0.1


def mask_tokens(ids: np.ndarray, length: int, tokenizer: Tokenizer, rng: np.random.Generator) -> MaskedSample:
    """Mask ids int64 [L], of which the first ``length`` are real, all chance from ``rng``: the masked ids, and the targets.

    Targets are the original ids where a token is predicted, ``IGNORED`` elsewhere. Tokens are chosen independently, so a short
    text often has none: a loss of an empty mask is zero, and forcing a token would make short captions count for more than
    DeCLIP's do. Departure from its code: random ids are never special ones, which would move the position that the text tower
    pools. Raises ConfigError for a tokenizer without a mask token.
    """
    if tokenizer.mask_id is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name!r} has no mask token; take one that has, or an objective that masks nothing."
        )
    real = np.arange(len(ids)) < length
    marks = (tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id)
    candidates = np.flatnonzero(real & ~np.isin(ids, marks))
    tokens, targets = ids.astype(np.int64), np.full(len(ids), IGNORED, dtype=np.int64)
    predicted = candidates[rng.random(len(candidates)) < PREDICTED]
    targets[predicted] = ids[predicted]
    action = rng.random(len(predicted))
    tokens[predicted[action < MASKED]] = tokenizer.mask_id
    replaced = predicted[(action >= MASKED) & (action < MASKED + RANDOM)]
    tokens[replaced] = _random_tokens(len(replaced), tokenizer, rng)
    return MaskedSample(tokens, targets)


def _random_tokens(count: int, tokenizer: Tokenizer, rng: np.random.Generator) -> np.ndarray:
    """Uniform ids of the vocabulary without its special tokens, int64 [count]."""
    special = sorted(number for number in tokenizer.special_ids() if number < tokenizer.vocab_size)
    drawn = rng.integers(tokenizer.vocab_size - len(special), size=count)
    # The n-th ordinary id is n plus the special ids at or before it.
    for number in special:
        drawn += drawn >= number
    return drawn
