"""Several processes that share an evaluation find what one alone finds, and fail together."""

import os

import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.gather import gather_rows
from diptych.errors import RecordError
from diptych.evaluate import EVALUATORS, Encoder, image_features
from diptych.image import EvalTransform
from diptych.models import create_model
from diptych.text import get_tokenizer
from diptych.types import Record
from tests.distributed._processes import run_in_processes

from .colours import COLOURS, Source, png, record

PROCESSES = 3


def source(broken: int | None = None) -> Source:
    records = [
        record(name, *(f"{name} " * (1 + place % 4), f"only {name}")[: 1 + place % 2], label=place)
        for place, name in enumerate(COLOURS)
    ]
    if broken is not None:
        records[broken] = Record("broken.png", png("red")[:40], ("a red",), 0)
    return Source(records, classes=list(COLOURS))


def parts():
    torch.manual_seed(0)
    model = create_model("tiny-test")
    size = model.config.vision.image_size
    return model, get_tokenizer("bpe", model.config.text.context_length), EvalTransform(size), get_device("cpu")


def scores(evaluator: str, shared: bool, **options):
    model, tokenizer, transform, device = parts()
    told = []
    found = EVALUATORS.get(evaluator)(
        model, source(), tokenizer, transform, device, shared=shared, batch_size=2,
        progress=lambda done, total: told.append((done, total)), **options,
    )  # fmt: skip
    features = found.image_features if evaluator == "retrieval" else found.scores
    return dict(found.metrics), features.tolist(), told[-1]


@pytest.mark.parametrize(
    ("evaluator", "options"), [("retrieval", {}), ("zeroshot", {"templates": "openai7", "keep_classifier": False})]
)
def test_sharing_changes_nothing(evaluator, options):
    metrics, features, told = scores(evaluator, False, **options)
    for found in run_in_processes(PROCESSES, _scores, evaluator, options):
        assert found[0] == metrics
        assert torch.allclose(torch.tensor(found[1]), torch.tensor(features), atol=1e-6)
        assert found[2] == told and told[0] == told[1]


def _scores(evaluator, options):
    return scores(evaluator, True, **options)


def test_one_unreadable_picture_stops_every_process_with_its_name():
    assert run_in_processes(PROCESSES, _fails) == [("broken.png", 1)] * PROCESSES


def _fails():
    model, tokenizer, transform, device = parts()
    try:
        EVALUATORS.get("retrieval")(model, source(broken=4), tokenizer, transform, device, shared=True)
    except RecordError as error:
        return error.key, process_group.first_not_none(1)  # and the group still works
    return None


def test_kept_features_are_used_only_when_all_have_them(tmp_path):
    first, second, third = run_in_processes(PROCESSES, _kept, str(tmp_path))
    assert torch.allclose(torch.tensor(first[0]), torch.tensor(second[0]))
    assert [found[1:] for found in (first, second, third)] == [(10, 10, 0)] * PROCESSES


def _kept(folder):
    os.environ["DIPTYCH_CACHE"] = f"{folder}/{process_group.rank()}"  # as on machines without a common disk
    model, tokenizer, transform, device = parts()
    encoder = Encoder(model.eval(), tokenizer, transform, device, batch_size=4, shared=True)
    calls: list[int] = []
    seen = [0, 0, 0]
    transformed = EvalTransform.__call__

    def counted(self, image):
        calls.append(1)
        return transformed(self, image)

    EvalTransform.__call__ = counted
    for turn in range(3):
        # The first time nobody has them; then only rank 0, which writes for its machine; then all.
        os.environ["LOCAL_RANK"] = "0" if turn else str(process_group.rank())
        calls.clear()
        features = image_features(encoder, source(), range(10), lambda done: None)
        seen[turn] = int(gather_rows(torch.tensor([len(calls)])).sum())
    return features.tolist(), *seen


def test_rows_of_differing_number_come_in_rank_order():
    assert run_in_processes(PROCESSES, _rows) == [[[1.0], [2.0], [2.0]]] * PROCESSES


def _rows():
    rank = process_group.rank()
    return gather_rows(torch.full((rank, 1), float(rank))).tolist()
