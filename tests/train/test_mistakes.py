"""Mistakes of users, bad data and failing disks: one line, early, and nothing is lost."""

import json
import subprocess
import sys

import pytest
import torch

from diptych import log
from diptych.commands import main
from diptych.distributed import checkpoint
from diptych.errors import ConfigError, RecordError, SourceError, WeightsError
from tests.data.world import write_jsonl
from tests.evaluate.colors import png

from .runs import argv, run


def test_what_goes_wrong_in_validating_costs_no_step(pairs, tmp_path):
    data = write_jsonl(tmp_path / "val")
    image = tmp_path / "val" / "img" / "03.png"
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(RecordError, match=r"03\.png"):
        run(pairs, tmp_path / "a", "--max-steps", "3", "--val-data", data, "--bad-samples", "raise")
    assert checkpoint.steps(tmp_path / "a" / "checkpoints") == [3]


def test_a_bad_image_leaves_the_scores_of_a_validation(pairs, tmp_path, capsys):
    data = write_jsonl(tmp_path / "val")
    (tmp_path / "val" / "img" / "03.png").write_bytes(b"nothing")
    assert run(pairs, tmp_path / "a", "--max-steps", "1", "--val-data", data, "--bad-samples-max", "0.1").finished
    assert "1 of 23 images are bad and left out of the scores; the first is img/03.png" in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "a" / "results.json").read_text())
    assert entry["count"]["images"] == 22 and entry["count"]["bad images"] == 1


def test_prompts_that_cannot_be_read_are_told_before_the_first_step(pairs, tmp_path):
    (tmp_path / "classes" / "dog").mkdir(parents=True)
    (tmp_path / "classes" / "dog" / "a.png").write_bytes(png("red"))
    flags = ("--imagenet-val", str(tmp_path / "classes"), "--templates", str(tmp_path / "none.txt"), "--max-steps", "2")
    with pytest.raises(ConfigError, match=r"none\.txt"):
        run(pairs, tmp_path / "a", *flags)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--dataset-resampled", "--train-num-samples", "16"], "--dataset-resampled makes none; leave it out"),
        (["--temperature", "fixed", "--rho", "8"], "--rho 8 moves a learned temperature"),
        (["--temperature", "fixed", "--scale-lr", "1e-4"], "--scale-lr is for a logit scale that is locked"),
        (["--gamma", "2"], "--gamma 2.0: expected a number of from 0.01 to 1"),
    ],
)
def test_what_fastclip_cannot_use_is_refused_before_the_first_step(pairs, tmp_path, flags, line):
    with pytest.raises(ConfigError, match=line) as caught:
        run(pairs, tmp_path / "a", "--objective", "fastclip", "--max-steps", "2", *flags)
    assert "\n" not in str(caught.value)


def test_a_broken_checkpoint_names_the_one_before_it(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2", "--save-every-steps", "1")
    newest = checkpoint.path_of(tmp_path / "a" / "checkpoints", 2)
    for content in (newest.read_bytes()[:500], b""):
        newest.write_bytes(content)
        with pytest.raises(WeightsError, match=r"step_00000001\.pt") as caught:
            run(pairs, tmp_path / "a", "--resume", str(newest))
        assert "\n" not in caught.value.line
    torch.save([1, 2], newest)
    with pytest.raises(WeightsError, match=r"not a checkpoint of a run.*step_00000001\.pt"):
        run(pairs, tmp_path / "a", "--resume", str(newest))


def test_what_a_killed_process_left_is_cleared_by_the_next_checkpoint(pairs, tmp_path):
    left = tmp_path / "a" / "checkpoints" / ".step_00000007.pt.123.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    run(pairs, tmp_path / "a", "--max-steps", "1")
    assert [path.name for path in left.parent.iterdir()] == ["step_00000001.pt"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr", "nan"), ("--lr", "-1"), ("--wd", "inf"), ("--warmup", "nan"), ("--max-steps", "-1"),
        ("--train-num-samples", "-5"), ("--aug-flip", "1.5"), ("--aug-scale", "0", "0"), ("--aug-scale", "nan", "1"),
        ("--caption-weights", "caption=nan"), ("--dataset-resampled", "--train-data-upsampling-factors", "nan"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_told_with_what_was_expected(pairs, tmp_path, flags):
    flag = next(word for word in reversed(flags) if word.startswith("--"))
    with pytest.raises(ConfigError, match=f"{flag}.*expected"):
        run(pairs, tmp_path / "a", *flags)
    assert not (tmp_path / "a" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "error", "expected"),
    [
        (["--model", "tiny-tset"], ConfigError, "Did you mean 'tiny-test'"),
        (["--train-data", "none.jsonl"], SourceError, "no such file"),
        (["--batch-size", "24"], SourceError, "fewer than --batch-size 24; lower it"),
        (["--objective", "clpi"], ConfigError, "Did you mean 'clip'"),
        (["--precision", "fp8"], ConfigError, "unknown precision 'fp8'"),
        (["--accum-freq", "0"], ConfigError, "--accum-freq 0"),
        (["--resume", "none.pt"], ConfigError, "no such checkpoint file"),
        (["--pretrained", "none"], WeightsError, "none: no such weight file"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(pairs, tmp_path, flags, error, expected):
    with pytest.raises(error, match=expected) as caught:
        run(pairs, tmp_path / "a", *flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a" / "model.safetensors").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_truncated_image_names_itself_and_the_last_checkpoint_stands(pairs, tmp_path, workers, capsys):
    flags = argv(pairs, tmp_path / "a", "--max-steps", "5", "--save-every-steps", "1", "--workers", workers)
    flags += ["--bad-samples", "raise"]
    # Which record comes fourth is known: break that one.
    from diptych.data import open_source
    from diptych.data._order import permute

    record = open_source(pairs).record(int(permute(torch.arange(13, 14).numpy(), 23, 0, 0)[0]))
    record.image.write_bytes(record.image.read_bytes()[:50])
    assert main(["train", *flags]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("diptych: ")
    assert record.image.name in err
    assert checkpoint.steps(tmp_path / "a" / "checkpoints")[-1] == 3


def test_a_bad_record_can_be_replaced(pairs, tmp_path):
    image = tmp_path / "data" / "img" / "03.png"
    image.write_bytes(b"")
    with pytest.raises(RecordError):
        run(pairs, tmp_path / "a", "--max-steps", "5", "--batch-size", "23", "--bad-samples", "raise")
    for policy in ("replace", "skip"):
        run(pairs, tmp_path / policy, "--max-steps", "5", "--batch-size", "23", "--bad-samples", policy)
        assert log.read_rows(tmp_path / policy / "metrics.jsonl")[-1]["bad_samples"] >= 5
        lines = (tmp_path / policy / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
        listed = [json.loads(line) for line in lines]
        assert {row["key"].partition("#")[0] for row in listed} == {"img/03.png"}
        assert listed[0]["reason"] == "the image file is empty (0 bytes)"


def test_options_of_the_data_are_checked_and_used(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "7", "--batch-size", "9", "--last-batch", "pad")
    assert log.read_rows(tmp_path / "a" / "metrics.jsonl")[-1]["epoch"] == pytest.approx(2 + 9 / 23, abs=0.01)
    run(
        f"{pairs}::{pairs}",
        tmp_path / "b",
        "--max-steps",
        "2",
        "--dataset-resampled",
        "--train-data-upsampling-factors",
        "2::1",
    )
    run(pairs, tmp_path / "c", "--max-steps", "2", "--captions", "all")
    run(pairs, tmp_path / "d", "--max-steps", "2", "--caption-weights", "captions=1")
    for flags, message in (
        (["--train-data-upsampling-factors", "2"], "add it"),
        (["--dataset-resampled", "--train-data-upsampling-factors", "2::3"], "2 factors for 1 sources"),
        (["--dataset-resampled", "--train-data-upsampling-factors", "x"], "'x'"),
        (["--dataset-resampled", "--captions", "all"], "choose one"),
        (["--caption-weights", "a=b"], "KEY=NUMBER"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(pairs, tmp_path / "e", "--max-steps", "1", *flags)


@pytest.mark.heavy
def test_a_full_disk_at_checkpoint_time_keeps_the_previous_one(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "6", "--stop-after", "2")
    (step,) = checkpoint.steps(tmp_path / "a" / "checkpoints")
    # A limit on the size of files refuses the write as a full disk does.
    code = (
        "import resource, signal, sys; from diptych.commands import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    flags = ["train", "--output", str(tmp_path / "a"), "--resume", "latest", "--save-every-steps", "1"]
    result = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "checkpoint" in result.stderr
    assert "could not be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == [f"step_{step:08d}.pt"]
    assert checkpoint.load(checkpoint.path_of(tmp_path / "a" / "checkpoints", step))["step"] == step
