"""The contract of an evaluator: its options, the data it measures on, its scores, and what a report shows of them.

An evaluator is a file of this folder. Nothing else names it: the command line makes flags of its ``Options``, and
``diptych evaluate`` and training runs choose evaluators by the ``data`` that they have. It loads no weights and opens no data.
"""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Literal, TypeVar

from diptych.evaluate._encode import Encoder, Progress
from diptych.evaluate._result import Result
from diptych.registry import Registry

DataKind = Literal["pairs", "labeled", "probe"]
"""``pairs``: images with captions (``Records``). ``labeled``: images with classes (``Records``, or ``LabeledImages`` with class
names and prompts beside them). ``probe``: labeled images to fit on and to test on (``ProbeData``)."""

DataT = TypeVar("DataT")
OptionsT = TypeVar("OptionsT")
ResultT = TypeVar("ResultT", bound=Result)


class Evaluator(ABC, Generic[DataT, OptionsT, ResultT]):
    """One way to measure a model. It has no state: everything comes through ``run``.

    ``Options`` is a frozen dataclass whose fields have defaults and become flags of ``diptych evaluate``; a training run sets
    those that its own options have under the same name. ``data`` says what it measures on. ``title`` distinguishes its results
    from those of other evaluators on the same data. ``training_name`` names its results in a training run, which measures it each
    time its data is due; empty: training leaves it out.
    """

    Options: ClassVar[type]
    data: ClassVar[DataKind]
    title: ClassVar[str] = ""
    training_name: ClassVar[str] = ""

    @abstractmethod
    def run(self, encoder: Encoder, source: DataT, options: OptionsT, progress: Progress | None = None) -> ResultT:
        """Measure the encoder's model on a source. ``progress(done, total)`` counts images and texts.

        The model is measured in evaluation mode, and every module gets its mode back. Raises SourceError or RecordError for
        data that cannot be used, ConfigError for options that do not fit.
        """

    def images(self, result: ResultT, source: DataT, title: str | None = None) -> list[dict[str, Any]]:
        """Parts of ``gallery.json`` that the report draws; ``title`` replaces the source's name. Nothing by default."""
        return []

    def predictions(self, result: ResultT, source: DataT) -> Iterator[dict[str, Any]]:
        """One mapping per line of ``predictions.jsonl``. Nothing by default."""
        return iter(())


AnyEvaluator = type[Evaluator[Any, Any, Any]]
EVALUATORS: Registry[AnyEvaluator] = Registry("diptych.evaluate", "evaluator")


def evaluators() -> dict[str, AnyEvaluator]:
    """Every evaluator by name, in the order of results: by the kind of its data, then by title."""
    kinds = typing.get_args(DataKind)
    entries = {name: EVALUATORS.get(name) for name in EVALUATORS.names()}
    return dict(sorted(entries.items(), key=lambda entry: (kinds.index(entry[1].data), entry[1].title)))


def options_from(evaluator: AnyEvaluator, options: Any) -> Any:
    """The evaluator's options, of which those that the dataclass ``options`` has under the same name are taken from it."""
    given = {item.name for item in dataclasses.fields(options)}
    shared = [item.name for item in dataclasses.fields(evaluator.Options) if item.name in given]
    return evaluator.Options(**{name: getattr(options, name) for name in shared})
