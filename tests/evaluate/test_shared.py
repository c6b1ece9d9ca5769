"""Several processes that share an evaluation: they measure what a single process does, in equal calls, and fail together."""

import os

import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.gather import gather_rows
from diptych.errors import ConfigError, DataError, SourceError
from diptych.evaluate import EVALUATORS, Encoder, build_classifier, image_features
from diptych.image import EvalTransform
from diptych.models import create_model
from diptych.text import get_tokenizer
from diptych.types import Record
from tests.distributed._processes import run_in_processes

from .colors import COLORS, Source, png, record

PROCESSES = 3


def source(broken: int | None = None) -> Source:
    records = [
        record(name, *(f"{name} " * (1 + index % 4), f"only {name}")[: 1 + index % 2], label=index)
        for index, name in enumerate(COLORS)
    ]
    if broken is not None:
        records[broken] = Record("broken.png", png("red")[:40], ("a red",), 0)
    return Source(records, classes=list(COLORS))


def encoder(**options) -> Encoder:
    torch.manual_seed(0)
    model = create_model("tiny-test")
    tokenizer = get_tokenizer("bpe", model.config.text.context_length)
    return Encoder(model, tokenizer, EvalTransform(model.config.vision.image_size), get_device("cpu"), **options)


def scores(evaluator: str, shared: bool, **options):
    entry = EVALUATORS.get(evaluator)()
    calls = []
    result = entry.run(
        encoder(shared=shared, batch_size=2, cache=False),
        source(),
        entry.Options(**options),
        lambda *call: calls.append(call),
    )
    features = result.image_features if evaluator == "retrieval" else result.scores
    return dict(result.metrics), features.tolist(), calls[-1]


@pytest.mark.parametrize(("evaluator", "options"), [("retrieval", {}), ("zeroshot", {"templates": "openai7"})])
def test_sharing_changes_nothing(evaluator, options):
    metrics, features, progress = scores(evaluator, False, **options)
    for shared in run_in_processes(PROCESSES, _scores, evaluator, options):
        assert shared[0] == metrics
        assert torch.allclose(torch.tensor(shared[1]), torch.tensor(features), atol=1e-6)
        assert shared[2] == progress and progress[0] == progress[1]


def _scores(evaluator, options):
    return scores(evaluator, True, **options)


@pytest.mark.parametrize("count", [1, 17, 16])
def test_every_process_makes_equal_calls_and_padding_is_dropped(count):
    """17 texts at batch 4 in 2 processes: 9 and 8 of them, hence 3 and 2 calls if nobody padded."""
    plain, _ = _calls(count, False)
    first, second = run_in_processes(2, _calls, count, True)
    assert first[1] == second[1]
    assert first[1]["texts"] == [4, 4, 1] if count == 17 else first[1]["texts"]
    for rows in (first[0], second[0]):
        for ours, alone in zip(rows, plain, strict=True):
            assert torch.allclose(torch.tensor(ours), torch.tensor(alone), atol=1e-5)


def _calls(count, shared):
    """Features of images, texts and a classifier, and the rows of every forward call."""
    ours = encoder(shared=shared, batch_size=4, cache=False)
    calls: dict[str, list[int]] = {"images": [], "texts": []}
    ours.model.image.register_forward_hook(lambda module, inputs, output: calls["images"].append(len(inputs[0])))
    ours.model.text.register_forward_hook(lambda module, inputs, output: calls["texts"].append(len(inputs[0])))
    names = [f"{name} {'very ' * (index % 7)}thing" for index, name in enumerate([*COLORS, *COLORS][:count])]
    records = Source([record(list(COLORS)[index % 10], key=str(index)) for index in range(count)])
    with ours.evaluating():
        texts = ours.texts(names, lambda done: None)
        seen = list(calls["texts"])
        images = ours.images(records, range(count), lambda done: None)
        vectors = build_classifier(ours, names, ["a {}", "the {} of it"], lambda done: None)
    classifier = calls["texts"][len(seen) :]
    return [texts.tolist(), images.tolist(), vectors.tolist()], {
        "texts": seen, "images": calls["images"], "classifier": classifier,
    }  # fmt: skip


def test_a_classifier_of_many_pieces_takes_equal_calls_too(monkeypatch):
    """Class names of very different lengths: pieces are cut by the mean over all classes, not over a process's own."""
    first, second = run_in_processes(2, _pieces)
    assert first == second and len(first) > 8


def _pieces():
    from diptych.evaluate import _classifier

    _classifier.TOKENS_AT_ONCE = 24
    ours = encoder(shared=True, cache=False)
    calls: list[int] = []
    ours.model.text.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    names = [("very " * 9 if index % 2 else "") + f"thing {index}" for index in range(21)]
    build_classifier(ours, names, ["a {}", "the {} of it"], lambda done: None)
    return calls


def test_an_unreadable_image_stops_every_process_with_its_name():
    """Though it lies in an early batch of one process, and each call may be a collective."""
    first, second = run_in_processes(2, _fails, 2)
    assert first == second and first[0] == "RecordError" and "broken.png" in first[1]
    assert first[2:] == (0, 1)  # no call after the agreement, and the group still works


def _fails(broken):
    ours = encoder(shared=True, batch_size=2)
    calls: list[int] = []
    ours.model.image.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    try:
        entry = EVALUATORS.get("retrieval")()
        entry.run(ours, source(broken), entry.Options())
    except DataError as error:
        return type(error).__name__, error.line, len(calls), process_group.first_not_none(1)
    return None


def test_a_source_that_fails_on_a_rank_fails_on_all():
    assert run_in_processes(2, _source_fails) == ["shard 7 is gone"] * 2


def _source_fails():
    class Failing(Source):
        def record(self, index):
            if process_group.rank() == 1 and index == 5:
                raise SourceError("shard 7 is gone")
            return super().record(index)

    try:
        encoder(shared=True, batch_size=2).images(Failing(source().records), range(10), lambda done: None)
    except SourceError as error:
        return error.line
    return None


def test_unreadable_images_that_are_accepted_cost_no_call():
    """A whole batch of them is encoded blank: a process that left the call out would leave the others waiting."""
    first, second = run_in_processes(2, _accepts)
    assert first[0] == second[0] == [2, 2, 2]  # the last one filled up
    assert first[1] == second[1] == [0, 2, 4]
    assert sorted(first[2] + second[2]) == ["broken0", "broken2", "broken4"]


def _accepts():
    records = source().records
    for index in (0, 2, 4):
        records[index] = Record(f"broken{index}", b"nothing")
    ours = encoder(shared=True, batch_size=2)
    calls: list[int] = []
    ours.model.image.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    errors: list[str] = []
    features = ours.images(Source(records), range(9), lambda done: None, lambda error: errors.append(error.key))
    return calls, features[:, 0].isnan().nonzero()[:, 0].tolist(), errors


def test_cached_features_are_used_only_when_all_have_them(tmp_path):
    first, second, third = run_in_processes(PROCESSES, _cached, str(tmp_path))
    assert torch.allclose(torch.tensor(first[0]), torch.tensor(second[0]))
    assert [counts[1:] for counts in (first, second, third)] == [(12, 12, 0)] * PROCESSES


def _cached(folder):
    os.environ["DIPTYCH_CACHE"] = f"{folder}/{process_group.rank()}"  # as on machines without a common disk
    ours = encoder(batch_size=4, shared=True)
    ours.model.eval()
    calls: list[int] = []
    decoded = [0, 0, 0]
    transformed = EvalTransform.__call__

    def counted(self, image):
        calls.append(1)
        return transformed(self, image)

    EvalTransform.__call__ = counted
    for turn in range(3):
        # The first time nobody has them; then only rank 0, which writes for its machine; then all.
        os.environ["LOCAL_RANK"] = "0" if turn else str(process_group.rank())
        calls.clear()
        features = image_features(ours, source(), range(10), lambda done: None)
        decoded[turn] = int(gather_rows(torch.tensor([len(calls)])).sum())
    return features.tolist(), *decoded


def test_rows_of_differing_number_come_in_rank_order():
    assert run_in_processes(PROCESSES, _rows) == [[[1.0], [2.0], [2.0]]] * PROCESSES


def _rows():
    rank = process_group.rank()
    return gather_rows(torch.full((rank, 1), float(rank))).tolist()


def test_a_sharded_model_must_be_encoded_together():
    assert (
        run_in_processes(2, _alone)
        == ["this model is sharded over processes, which must encode together: give shared=True."] * 2
    )


def _alone():
    class Sharded:
        collective, group = True, None

    try:
        Encoder(Sharded(), None, None, get_device("cpu"))
    except ConfigError as error:
        return error.line
    return None
