"""What an evaluator returns: scores with their intervals, what chance would give, and how much was measured.

The shape of one entry of a run's ``results.json``. It knows neither models nor files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diptych.evaluate._intervals import Outcome


@dataclass(frozen=True)
class Result:
    """The result of one evaluation.

    ``metrics`` holds fractions in 0..1 and ranks (1 is best); ``chance`` holds, under the same names, what random features
    would give; ``count`` says how many of each thing were measured (``images``, ``texts``, ``classes``). ``intervals`` are
    95 % bootstrap intervals (low, high) of metrics; ``outcomes`` the answers behind them, for a paired test with another
    model (``paired``).
    """

    name: str
    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    count: Mapping[str, int]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict, kw_only=True)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    def entry(self, name: str = "") -> dict[str, Any]:
        """Return the plain mapping that ``results.json`` lists; ``name`` replaces the source's name."""
        return {
            "name": name or self.name,
            "metrics": dict(self.metrics),
            "chance": dict(self.chance),
            "count": dict(self.count),
            "intervals": {metric: list(ends) for metric, ends in self.intervals.items()},
        }
