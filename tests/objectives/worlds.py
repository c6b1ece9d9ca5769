"""Batches out of nothing, small models, and the objectives that the contract tests run over."""

from dataclasses import replace

import torch

from diptych.models import create_model, model_config
from diptych.objectives import OBJECTIVES, RunFacts, create_objective
from diptych.types import IGNORED, Batch, MaskedTokens, Wants

EVERYTHING = "tests.objectives.everything:Everything"
"""An objective that uses all that the contract offers; not one of the product's."""

EXAMPLES = {
    f"{name.rpartition(':')[2].lower()}-{number}": example
    for name in (*OBJECTIVES.names(), EVERYTHING)
    for number, example in enumerate(OBJECTIVES.get(name).examples())
}
"""Every configuration that a registered objective offers, by a short name."""


def make_model(example, dtype=torch.float64, vocabulary=512):
    """The example's model with what its objective needs; with a small vocabulary, else that is most of it."""
    needs = OBJECTIVES.get(example.options.objective).model_needs(example.options)
    config = model_config(example.preset).with_needs(needs)
    torch.manual_seed(0)
    return create_model(replace(config, text=replace(config.text, vocab_size=vocabulary)), dtype=dtype)


def make_objective(example, dtype=torch.float64, vocabulary=512):
    """The example's objective around a small model; heads and buffers in the same type."""
    model = make_model(example, dtype, vocabulary)

    def load(name, model=""):
        config = model_config(model or name)
        torch.manual_seed(1)  # a teacher is another model than its student
        return create_model(replace(config, text=replace(config.text, vocab_size=vocabulary)), dtype=dtype).eval()

    objective = create_objective(example.options, model, load)
    objective.begin_run(RunFacts(records=64, epochs=8))
    if (teacher := objective.stored_companion()) is not None:
        objective.store(torch.randn(64, teacher.config.embed_dim, generator=torch.Generator().manual_seed(2)))
    return objective.to(dtype)


def make_batch(pairs=6, wants=None, seed=0, size=32, vocabulary=49408, pad=0):
    """A batch of ``pairs`` with captions of several lengths; the end token is the vocabulary's last."""
    wants = wants or Wants()
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(wants.images), pairs, 3, size, size), generator=generator, dtype=torch.uint8)
    lengths = torch.randint(3, 12, (len(wants.texts), pairs), generator=generator)
    tokens = torch.randint(1, vocabulary - 10, (len(wants.texts), pairs, 12), generator=generator)
    for view in range(len(wants.texts)):
        for row, length in enumerate(lengths[view].tolist()):
            tokens[view, row, length - 1] = vocabulary - 1
            tokens[view, row, length:] = pad
    keys = tuple(f"k{number}" for number in range(pairs))
    rows = torch.arange(pairs)
    batch = Batch(images, tokens, lengths, keys, rows, rows + 1000 * seed, rows)
    return batch._replace(masked=_masked(batch)) if wants.masked else batch


def batch_for(objective, pairs=6, seed=0, wants=None):
    """A batch as the objective's ``wants`` ask, for its model."""
    config = objective.model.config
    size, text = config.vision.image_size, config.text
    return make_batch(pairs, wants or objective.wants, seed, size, text.vocab_size, text.pad_id)


def _masked(batch):
    tokens, targets = batch.tokens[0].clone(), torch.full_like(batch.tokens[0], IGNORED)
    targets[:, 1] = tokens[:, 1]
    tokens[:, 1] = 7
    return MaskedTokens(tokens, targets)


def rows_of(batch, start, stop):
    """The pairs from start to stop, as a batch of their own, padded to its own longest caption."""
    own = batch.lengths[:, start:stop]
    longest = int(own.max())
    masked = batch.masked
    return batch._replace(
        images=batch.images[:, start:stop], tokens=batch.tokens[:, start:stop, :longest], lengths=own,
        keys=batch.keys[start:stop], groups=batch.groups[start:stop],
        indices=batch.indices[start:stop], seeds=batch.seeds[start:stop],
        labels=None if batch.labels is None else batch.labels[start:stop],
        masked=None if masked is None else MaskedTokens(*(item[start:stop, :longest] for item in masked)),
    )  # fmt: skip


def pieces_of(batch, count):
    """The batch in ``count`` equal micro-batches."""
    size = len(batch.keys) // count
    return [rows_of(batch, start, start + size) for start in range(0, len(batch.keys), size)]


def own_rows(batch, world):
    """This process's contiguous share of a batch."""
    share = len(batch.keys) // world.size
    return rows_of(batch, world.rank * share, (world.rank + 1) * share)


def without(example, **changes):
    """The example with other options."""
    return example._replace(options=replace(example.options, **changes))
