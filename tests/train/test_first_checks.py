"""What is refused or said before the first step."""

import json

import pytest

from diptych.errors import ConfigError, DistributedError, SourceError
from tests.data.world import write_images
from tests.train.runs import run


def rewritten(folder, change):
    """A list of the images of the small world, each row changed by ``change(number, row)``."""
    rows = [{"image": name, "captions": [f"caption {number}"]} for number, name in enumerate(write_images(folder))]
    path = folder / "changed.jsonl"
    path.write_text("".join(json.dumps({**row, **change(number, row)}) + "\n" for number, row in enumerate(rows)))
    return str(path)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--batch-size 1", r"a step compares 1 pair \(--batch-size 1 x 1 process\)"),
        ("--lr 0", "--lr 0: the learning rate never leaves 0"),
        ("--lock-image --lock-text --pretrained {run}", "together leave nothing to train"),
        ("--train-num-samples 3", r"less than a step of 4 pairs"),
    ],
)
def test_a_run_that_cannot_learn_is_refused(pairs, tmp_path, flags, expected):
    if "{run}" in flags:
        run(pairs, tmp_path / "first", "--max-steps", "1")
    with pytest.raises(ConfigError, match=expected):
        run(pairs, tmp_path / "a", "--max-steps", "2", *flags.format(run=tmp_path / "first").split())
    assert not (tmp_path / "a" / "model.safetensors").exists()


def test_one_pair_per_micro_batch_is_enough_where_a_step_has_several(pairs, tmp_path):
    assert run(pairs, tmp_path / "a", "--max-steps", "1", "--batch-size", "1", "--accum-freq", "2").finished


def test_fewer_records_than_a_step_are_refused_with_the_product(pairs, tmp_path):
    with pytest.raises(
        SourceError, match=r"23 records do not fill one step of 32 pairs \(16 at a time x 2 micro-batches"
    ):
        run(pairs, tmp_path / "a", "--batch-size", "16", "--accum-freq", "2")


def test_a_step_that_is_filled_with_the_same_records_is_said(pairs, tmp_path, capsys):
    run(pairs, tmp_path / "a", "--max-steps", "1", "--batch-size", "32", "--last-batch", "pad")
    assert "holds each of the 23 records more than once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda number, row: {"image": "img/00.png"}, "all 23 records show the same image"),
        (lambda number, row: {"captions": ["photo"]}, "all 23 records have the same caption 'photo'"),
    ],
)
def test_data_with_nothing_to_distinguish_is_refused(tmp_path, change, expected):
    with pytest.raises(SourceError, match=expected):
        run(rewritten(tmp_path, change), tmp_path / "a", "--max-steps", "1")


def test_a_warm_up_longer_than_the_run_is_said(pairs, tmp_path, capsys):
    run(pairs, tmp_path / "a", "--max-steps", "2", "--warmup", "50")
    assert "--warmup 50 is longer than the run of 2 steps: the rate ends at 4e-05" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--train-data", "--val-data", "--imagenet-val"])
def test_a_source_without_a_usable_record_is_found_before_the_first_step(pairs, tmp_path, flag):
    folder = tmp_path / "other"
    listed = rewritten(folder, lambda number, row: {"image": f"nowhere/{number}.png", "label": number % 2})
    flags = ("--labels", str(folder / "names.txt")) if flag == "--imagenet-val" else ()
    (folder / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(
        SourceError, match=rf"{flag} changed.jsonl: none of the 16 records tried can be used \(16 x no such image"
    ):
        run(pairs, tmp_path / "a", "--max-steps", "1", flag, listed, *flags)
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_a_bad_first_record_is_no_fault_while_another_is_good(tmp_path):
    listed = rewritten(tmp_path, lambda number, row: {"image": "nowhere.png"} if number == 0 else {})
    assert run(listed, tmp_path / "a", "--max-steps", "1", "--val-data", listed).finished


def test_samples_of_an_epoch_set_the_clock_and_not_the_order(pairs, tmp_path, capsys):
    outcome = run(pairs, tmp_path / "a", "--epochs", "3", "--train-num-samples", "8")
    assert (outcome.steps, outcome.total_steps) == (6, 6)  # 3 epochs of 2 steps; the data alone would give 3 x 5
    assert "count 2 steps each; the 23 records are still read in whole passes" in capsys.readouterr().err
    run(pairs, tmp_path / "b", "--max-steps", "6")
    first, second = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in "ab")
    assert [json.loads(line)["loss"] for line in first if '"train"' in line][:2] == [
        json.loads(line)["loss"] for line in second if '"train"' in line
    ][:2]


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("glo", "did you mean 'gloo'|gloo"),
        ("nccl", "built without nccl"),
        ("cpu:gloo,cuda:nope", "nope"),
        ("undefined", "unknown"),
    ],
)
def test_a_backend_that_is_not_there_is_one_line_in_one_process(pairs, tmp_path, backend, expected):
    with pytest.raises(DistributedError, match=expected):
        run(pairs, tmp_path / "a", "--max-steps", "1", "--dist-backend", backend)
