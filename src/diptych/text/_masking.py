"""Masked tokens for masked-language-modeling losses, by BERT's recipe (Devlin et al. 2019, section 3.1).

Of the tokens of a text 15 % are predicted; of those, 80 % become the mask token, 10 % another token of the vocabulary, and
10 % stay. The start and end tokens and padding are never predicted. No loss here, and no padding of batches.
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

    Targets are the original ids where a token is predicted, ``IGNORED`` elsewhere. At least one token is predicted, unless the
    text has none but its start and end. Raises ConfigError for a tokenizer without a mask token.
    """
    if tokenizer.mask_id is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name!r} has no mask token; take one that has, or an objective that masks nothing."
        )
    real = np.arange(len(ids)) < length
    candidates = np.flatnonzero(real & (ids != tokenizer.start_id) & (ids != tokenizer.end_id))
    tokens, targets = ids.astype(np.int64), np.full(len(ids), IGNORED, dtype=np.int64)
    if not len(candidates):
        return MaskedSample(tokens, targets)
    predicted = candidates[rng.random(len(candidates)) < PREDICTED]
    if not len(predicted):
        predicted = rng.choice(candidates, 1)
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
