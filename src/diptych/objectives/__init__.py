"""What is optimized: one loss per file, each in two halves, ``encode`` and ``compare``.

``_base`` holds the contract, ``_terms`` the formulas that losses share, ``_heads`` the heads that look across pairs; an entry
imports no other entry. Objectives know no data source and no optimizer; what they need from the data they say in ``wants``.
"""

from __future__ import annotations

from diptych.models import TwoTower
from diptych.objectives._base import Example, LoadModel, Objective, ObjectiveOptions, RunFacts
from diptych.objectives._parts import differentiable, pairs_of, text_of, view_seeds
from diptych.objectives._terms import MATRIX_LIMIT
from diptych.objectives._tiles import STORED, TILE
from diptych.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry(__name__, "objective")


def create_objective(options: ObjectiveOptions, model: TwoTower, load: LoadModel | None = None) -> Objective:
    """Build the objective that ``options`` names and configures around a ``TwoTower``.

    ``load`` loads a companion's model, for objectives that have one. Raises ConfigError for an unknown name.
    """
    return OBJECTIVES.get(options.objective)(options, model, load)


__all__ = [
    "MATRIX_LIMIT",
    "OBJECTIVES",
    "STORED",
    "TILE",
    "Example",
    "LoadModel",
    "Objective",
    "ObjectiveOptions",
    "RunFacts",
    "create_objective",
    "differentiable",
    "pairs_of",
    "text_of",
    "view_seeds",
]
