"""An objective that is not a number on one process alone, from the second epoch on: for ``--objective module:Class`` in tests."""

from diptych.distributed import process_group
from diptych.objectives.clip import Clip


class NaNOnOne(Clip):
    """CLIP whose loss on rank 1 is not a number from the second epoch on."""

    def compare(self, features, pairs):
        terms = super().compare(features, pairs)
        if pairs.epoch == 0 or process_group.rank() != 1:
            return terms
        return terms._replace(losses={name: item * float("nan") for name, item in terms.losses.items()})
