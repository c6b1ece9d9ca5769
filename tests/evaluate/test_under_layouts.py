"""Evaluation under every layout: the numbers of one process, exactly, with uneven ends and ties.

17 texts and 11 images in batches of 4 divide by nothing. Images that are equal in their bytes and captions that are equal in
their words tie, wherever they are encoded: the order of equals is by index, so a last bit that differs would be another rank.
"""

import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import parallelize
from diptych.evaluate import EVALUATORS, Encoder
from diptych.image import EvalTransform
from diptych.text import get_tokenizer
from tests.distributed._processes import run_in_processes
from tests.distributed.test_equal_layouts import FOUR, TWO
from tests.objectives.worlds import EXAMPLES, make_objective

from .colors import COLORS, Source, record

NAMES = ("red", "green", "red", "blue", "red", "cyan", "pink", "blue", "black", "white", "red")
CAPTIONS = ("{}", "a {} thing", "a wide and plain picture that shows only {} and no more")
WHOLE = ParallelOptions()


def tied():
    """11 images, of which seven are one of two; 17 captions, of which most have an equal."""
    counts = (2, 1, 1, 2, 2, 1, 2, 1, 2, 1, 2)
    records = [
        record(name, *(CAPTIONS[(number + extra) % 3].format(name) for extra in range(count)), key=str(number),
               label=list(COLORS).index(name), group=str(number))
        for number, (name, count) in enumerate(zip(NAMES, counts, strict=True))
    ]  # fmt: skip
    return Source(records, classes=list(COLORS))


def measured(example, options):
    """Metrics and the outcome of each query, of both evaluators that training runs and both protocols."""
    device, world = get_device("cpu"), process_group.world_from_environment()
    objective = make_objective(EXAMPLES[example], torch.float32, vocabulary=49408)
    layout = parallelize(objective, device, world, options)
    config = objective.model.config
    tokenizer = get_tokenizer("bpe", config.text.context_length)
    encoder = Encoder(
        layout, tokenizer, EvalTransform(config.vision.image_size), device, 4, shared=layout.size > 1, cache=False
    )
    results = {}
    for name, given in (
        ("retrieval", {"protocol": "grouped"}),
        ("retrieval", {"protocol": "paired"}),
        ("zeroshot", {"templates": "openai7"}),
    ):
        entry = EVALUATORS.get(name)()
        result = entry.run(encoder, tied(), entry.Options(**given))
        outcomes = {metric: outcome.right.tolist() for metric, outcome in result.outcomes.items()}
        results[name, *given.values()] = dict(result.metrics), dict(result.count), outcomes
    return results


def every_layout(layouts, examples):
    return {
        (layout, example): measured(example, options) for layout, options in layouts.items() for example in examples
    }


def check(processes, layouts, examples):
    expected = {example: measured(example, WHOLE) for example in examples}
    assert expected[examples[0]]["retrieval", "grouped"][1] == {"images": 11, "texts": 17}
    for rank in run_in_processes(processes, every_layout, layouts, examples, limit=1200):
        for (layout, example), results in rank.items():
            assert results == expected[example], (layout, example)


def test_two_processes_measure_what_one_does():
    check(2, {name: TWO[name] for name in ("stage3", "tensor")}, ("clip-0",))


@pytest.mark.slow
def test_two_processes_measure_what_one_does_under_every_layout():
    check(2, TWO, ("clip-0", "clip-2"))


@pytest.mark.slow
def test_four_processes_measure_what_one_does_under_every_layout():
    check(4, FOUR, ("clip-0",))
