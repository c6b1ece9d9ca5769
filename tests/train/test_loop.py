"""Whole runs on a small world: resumed equals uninterrupted bit by bit, and nothing is ever lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from diptych import log, weights
from diptych.commands import main
from diptych.distributed import checkpoint
from diptych.errors import ConfigError, RecordError, SourceError, WeightsError
from diptych.train.config import read
from diptych.train.loop import Clock, train
from tests.data.world import write_jsonl
from tests.evaluate.colors import png


@pytest.fixture
def pairs(tmp_path):
    return write_jsonl(tmp_path / "data")


def words(pairs, folder, *more):
    basic = [
        "--model",
        "tiny-test",
        "--train-data",
        pairs,
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    return [*basic, "--output", str(folder), "--lr", "1e-3", "--save-frequency", "0", "--log-every-n-steps", "1", *more]


def run(pairs, folder, *more):
    return train(read(words(pairs, folder, *more), program="diptych train"))


def tensors(folder):
    return weights.load(folder).state_dict()


def assert_identical(one, other):
    for name, item in tensors(one).items():
        assert torch.equal(item, tensors(other)[name]), name


def losses(folder):
    rows = log.read_rows(folder / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if row["phase"] == "train"]


@pytest.mark.parametrize("more", [[], ["--precision", "bf16"], ["--accum-freq", "2"]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(pairs, tmp_path, more):
    # 23 pairs in batches of 4 are 5 steps an epoch: stopping at 3 and at 8 is in the middle of two different epochs.
    run(pairs, tmp_path / "whole", "--max-steps", "11", *more)
    assert not run(pairs, tmp_path / "parts", "--max-steps", "11", "--stop-after", "3", *more).finished
    assert not run(pairs, tmp_path / "parts", "--resume", "latest", "--stop-after", "5", *more).finished
    assert run(pairs, tmp_path / "parts", "--resume", "latest", "--max-steps", "11", *more).finished
    assert_identical(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert [step for step, _ in losses(tmp_path / "parts")] == list(range(1, 12))


def test_a_run_may_resume_with_other_workers_and_from_a_path(pairs, tmp_path):
    run(pairs, tmp_path / "whole", "--max-steps", "7")
    run(pairs, tmp_path / "parts", "--max-steps", "7", "--stop-after", "3")
    path = checkpoint.path_of(tmp_path / "parts" / "checkpoints", 3)
    run(pairs, tmp_path / "parts", "--resume", str(path), "--workers", "2")
    assert_identical(tmp_path / "whole", tmp_path / "parts")


def test_resuming_needs_nothing_but_the_folder(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    outcome = train(read(["--output", str(tmp_path / "a"), "--resume", "latest"], program="diptych train"))
    assert (outcome.steps, outcome.total_steps) == (4, 4)


def test_a_lost_step_is_logged_once(pairs, tmp_path):
    run(
        pairs,
        tmp_path / "a",
        "--max-steps",
        "8",
        "--save-every-steps",
        "2",
        "--stop-after",
        "5",
        "--keep-checkpoints",
        "0",
    )
    os.unlink(checkpoint.path_of(tmp_path / "a" / "checkpoints", 5))
    run(pairs, tmp_path / "a", "--resume", "latest")
    assert [step for step, _ in losses(tmp_path / "a")] == list(range(1, 9))


def test_the_folder_holds_what_is_promised(pairs, tmp_path):
    run(
        pairs,
        tmp_path / "a",
        "--max-steps",
        "3",
        "--val-data",
        pairs,
        "--report-to",
        "tensorboard",
        "--save-every-steps",
        "2",
    )
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.toml", "metrics.jsonl", "checkpoints", "model.safetensors", "results.json", "tensorboard"} <= names
    assert checkpoint.steps(tmp_path / "a" / "checkpoints") == [2, 3]
    rows = log.read_rows(tmp_path / "a" / "metrics.jsonl")
    train_row = next(row for row in rows if row["phase"] == "train")
    expected = {
        "loss",
        "learning_rate",
        "logit_scale",
        "pairs_per_second",
        "data_wait",
        "gradient_norm",
        "epoch",
        "time",
    }
    assert expected <= set(train_row)
    eval_row = next(row for row in rows if row["phase"] == "eval")
    assert {"name", "loss", "image_to_text_R@1", "text_to_image_R@10"} <= set(eval_row)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results[0]["count"] == {"images": 23, "texts": 23}
    assert results[0]["chance"]["text_to_image_R@1"] == pytest.approx(1 / 23)


def test_a_small_model_learns_a_small_world(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "60", "--batch-size", "23", "--val-data", pairs, "--val-frequency", "0")
    assert losses(tmp_path / "a")[-1][1] < 0.7 * losses(tmp_path / "a")[0][1]


def test_a_changed_model_or_objective_is_refused(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    with pytest.raises(ConfigError, match="the model changed"):
        run(pairs, tmp_path / "a", "--resume", "latest", "--model", "tiny-test-resnet")
    with pytest.raises(ConfigError, match=r"the objective changed .local_loss: True in the checkpoint, False now"):
        run(pairs, tmp_path / "a", "--resume", "latest", "--no-local-loss")


def test_a_run_is_never_written_over(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2")
    before = (tmp_path / "a" / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        run(pairs, tmp_path / "a", "--max-steps", "3")
    assert (tmp_path / "a" / "config.toml").read_bytes() == before


def test_pretrained_weights_start_a_new_run(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2")
    run(pairs, tmp_path / "b", "--max-steps", "1", "--lr", "0", "--wd", "0", "--pretrained", str(tmp_path / "a"))
    assert_identical(tmp_path / "a", tmp_path / "b")


def test_ctrl_c_saves_and_the_run_goes_on(pairs, tmp_path):
    folder = tmp_path / "a"
    flags = words(pairs, folder, "--max-steps", "100000", "--workers", "1")
    process = subprocess.Popen([sys.executable, "-m", "diptych", "train", *flags], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while time.time() < deadline and not ((folder / "metrics.jsonl").exists() and len(losses(folder)) > 5):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "stopped and saved" in err
    assert "Traceback" not in err
    (step,) = checkpoint.steps(folder / "checkpoints")
    assert run(pairs, folder, "--resume", "latest", "--max-steps", str(step + 2)).finished


def test_a_finished_run_is_not_trained_on(pairs, tmp_path):
    folder = tmp_path / "a"
    run(pairs, folder, "--max-steps", "3")
    before = losses(folder)
    (folder / "model.safetensors").unlink()  # as when the disk was full at the very end
    assert run(pairs, folder, "--resume", "latest").steps == 3
    assert losses(folder) == before and (folder / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="3 steps were taken already, more than the 2"):
        run(pairs, folder, "--resume", "latest", "--max-steps", "2")
    assert checkpoint.steps(folder / "checkpoints") == [3]


def test_a_checkpoint_from_before_an_option_was_added_resumes(pairs, tmp_path):
    folder = tmp_path / "a"
    run(pairs, folder, "--max-steps", "4", "--stop-after", "2")
    path = checkpoint.path_of(folder / "checkpoints", 2)
    state = checkpoint.load(path)
    for new in ("norm_before", "pool"):  # came with CLIPA
        del state["architecture"]["vision"][new]
    torch.save(state, tmp_path / "old.pt")  # beside it: what was loaded is mapped from the file
    (tmp_path / "old.pt").replace(path)
    assert run(pairs, folder, "--resume", "latest").finished


def test_what_goes_wrong_in_validating_costs_no_step(pairs, tmp_path):
    data = write_jsonl(tmp_path / "val")
    image = tmp_path / "val" / "img" / "03.png"
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(RecordError, match=r"03\.png"):
        run(pairs, tmp_path / "a", "--max-steps", "3", "--val-data", data)
    assert checkpoint.steps(tmp_path / "a" / "checkpoints") == [3]


def test_prompts_that_cannot_be_read_are_told_before_the_first_step(pairs, tmp_path):
    (tmp_path / "classes" / "dog").mkdir(parents=True)
    (tmp_path / "classes" / "dog" / "a.png").write_bytes(png("red"))
    flags = ("--imagenet-val", str(tmp_path / "classes"), "--templates", str(tmp_path / "none.txt"), "--max-steps", "2")
    with pytest.raises(ConfigError, match=r"none\.txt"):
        run(pairs, tmp_path / "a", *flags)
    assert not (tmp_path / "a").exists()


def test_a_broken_checkpoint_names_the_one_before_it(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2", "--save-every-steps", "1")
    newest = checkpoint.path_of(tmp_path / "a" / "checkpoints", 2)
    for content in (newest.read_bytes()[:500], b""):
        newest.write_bytes(content)
        with pytest.raises(WeightsError, match=r"step_00000001\.pt") as caught:
            run(pairs, tmp_path / "a", "--resume", "latest")
        assert "\n" not in caught.value.line
    torch.save([1, 2], newest)
    with pytest.raises(WeightsError, match=r"not a checkpoint of a run.*step_00000001\.pt"):
        run(pairs, tmp_path / "a", "--resume", "latest")


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
        (["--resume", "latest"], ConfigError, "no checkpoint"),
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
    flags = words(pairs, tmp_path / "a", "--max-steps", "5", "--save-every-steps", "1", "--workers", workers)
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
        listed = [json.loads(line) for line in (tmp_path / policy / "bad_samples.jsonl").open()]
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


def test_two_processes_train_as_one(pairs, tmp_path):
    run(pairs, tmp_path / "one", "--max-steps", "5", "--val-data", pairs)
    flags = words(pairs, tmp_path / "two", "--max-steps", "5", "--batch-size", "2", "--val-data", pairs)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "0",
        "--standalone",
    ]
    subprocess.run(
        [*launch, "-m", "diptych", "train", *flags],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for (step, loss), (other_step, other) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert step == other_step
        assert other == pytest.approx(loss, rel=1e-4)
    for name, item in tensors(tmp_path / "one").items():
        assert torch.allclose(item, tensors(tmp_path / "two")[name], atol=2e-4), name


def test_the_clock_tells_waiting_from_working(monkeypatch):
    now = iter([10.0, 10.03, 10.04])  # asked for data, got it, stepped
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    clock.got_data()
    clock.stepped(8)
    figures = clock.read()
    assert figures["data_wait"] == pytest.approx(0.75)
    assert figures["pairs_per_second"] == pytest.approx(200)


def test_zeroshot_has_a_frequency_of_its_own_and_the_end_leaves_pictures(pairs, tmp_path):
    photos = tmp_path / "set" / "images"
    for place, name in enumerate(("red", "blue", "green", "pink", "cyan")):
        (photos / name).mkdir(parents=True)
        (photos / name / "1.png").write_bytes(png(name, (32 + place, 32)))
    (tmp_path / "set" / "templates.txt").write_text("a {}\n")
    (tmp_path / "set" / "labels.txt").write_text("blue\ncyan\ngreen\npink\nred\n")
    run(pairs, tmp_path / "a", "--val-data", pairs, "--imagenet-val", str(tmp_path / "set"), "--epochs", "4",
        "--zeroshot-frequency", "2", "--val-frequency", "3")  # fmt: skip
    rows = [row for row in log.read_rows(tmp_path / "a" / "metrics.jsonl") if row["phase"] == "eval"]
    epochs = {name: [round(row["epoch"]) for row in rows if row["name"] == name] for name in ("val", "zeroshot")}
    assert epochs == {"val": [3, 4], "zeroshot": [2, 4]}
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [entry["name"] for entry in results] == ["zeroshot", "val"]
    assert results[0]["count"]["templates"] == 1 and "top5" in results[0]["metrics"]
    titles = [part["title"] for part in json.loads((tmp_path / "a" / "gallery.json").read_text())]
    assert any(title.startswith("Images retrieved by caption") for title in titles)
