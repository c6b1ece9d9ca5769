"""Which layout a plan takes, the command that it prints, and what it refuses, with what would fit."""

import dataclasses
import json

import pytest

from diptych.commands import main
from diptych.commands.train import parse
from diptych.distributed.mesh import Degrees
from diptych.errors import ConfigError
from diptych.plan import Request, describe, plan
from diptych.plan.layouts import Planner
from diptych.profile import count
from diptych.train.sizes import at_least, human, parse_memory

TINY = Request("tiny-test", 4, 10**9, 256, precision="fp32", caption_tokens=12)


def enough_for(pairs):
    """The same devices with memory for so many pairs at a time, as replicas."""
    needed = Planner(TINY).memory("none", Degrees(4), pairs).total
    return dataclasses.replace(TINY, memory=int(needed / 0.9) + 2)


def test_replicas_are_taken_where_they_fit():
    planned = plan(TINY)
    choice = planned.choice
    assert (choice.sharding, choice.degrees, choice.pairs, choice.micro_batch) == ("none", Degrees(4), 64, 64)
    assert [item.sharding for item in planned.others] == ["stage1", "stage2", "stage3"]
    assert choice.memory.total <= TINY.usable


@pytest.mark.slow
def test_less_memory_gives_smaller_pieces_then_shards():
    request = enough_for(32)
    pieces = plan(request)
    assert pieces.choice.sharding == "none" and pieces.choice.micro_batch == 32
    assert pieces.choice.memory.total <= request.usable
    assert pieces.choice.micro_batches * pieces.choice.micro_batch == pieces.choice.pairs


def test_the_largest_micro_batch_is_taken():
    planner = Planner(enough_for(16))
    choice = planner.fitted("none", Degrees(4))
    following = choice.micro_batch * 2
    assert planner.memory("none", Degrees(4), following).total > planner.request.usable


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(
        ConfigError, match=r"nothing fits into 10 MB less 10% .* what would fit: .*--memory [\d.]+MB"
    ) as error:
        plan(dataclasses.replace(TINY, memory=10**7))
    needed = parse_memory(str(error.value).partition("--memory ")[2].split()[0].rstrip("."))
    plan(dataclasses.replace(TINY, memory=needed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 30}, "--batch-size 30 is the global batch here, which 4 processes .* give 28 or 32"),
        ({"batch_size": 2}, "fewer pairs than --devices 4"),
        ({"devices": 12}, "expected a multiple of 8"),
        ({"tensor": 3}, "4 processes are no whole number of groups of 3"),
        ({"tensor": 4}, "--tensor-parallel-degree 4: the image tower's attention has 2 heads"),
        ({"sharding": "stage3", "shards": 3}, "no whole number of groups of 3"),
        ({"micro_batch": 5}, "each process has 64 pairs, no multiple of it"),
        ({"devices": 1, "sharding": "stage2"}, "there is one"),
        ({"model": "ViT-L-15"}, "Did you mean"),
    ],
)
def test_layouts_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize("changes", [{}, {"sharding": "stage3"}, {"tensor": 2}, {"micro_batch": 8}, {"devices": 1}])
def test_the_printed_command_is_one_of_ours_with_the_number_of_a_process(changes):
    planned = plan(dataclasses.replace(TINY, **changes))
    launcher, _, flags = planned.command.partition(" train ")
    config = parse(flags.split())
    choice = planned.choice
    assert config.data.batch_size * choice.degrees.data == TINY.batch_size
    assert config.pieces == (choice.micro_batch, choice.micro_batches)
    assert config.parallel.sharding == choice.sharding
    assert launcher == ("diptych" if planned.request.devices == 1 else "torchrun --nproc_per_node 4 -m diptych")


def test_parameters_are_those_of_the_profile():
    planned = plan(TINY)
    assert planned.choice.memory.parameters / 4e6 == pytest.approx(count("tiny-test").mparams, abs=0.005)


def test_the_command_prints_a_table_and_json(capsys):
    argv = [
        "plan",
        "--model",
        "tiny-test",
        "--devices",
        "4",
        "--memory",
        "1GB",
        "--batch-size",
        "256",
        "--caption-tokens",
        "12",
    ]
    argv += ["--samples", "1000000", "--peak-flops", "1e12", "--efficiency", "0.5", "--objective", "siglip"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "global batch 256 = 4 x 64 pairs" in text and "days" in text and "an estimate" in text
    assert main([*argv, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    parts = {name: size for name, size in table["memory"].items() if name not in ("total", "usable")}
    assert table["memory"]["total"] == sum(parts.values()) and table["pairs_per_process"] == 64
    assert table["days"] == pytest.approx(table["seconds_per_step"] * 1_000_000 / 256 / 86_400)
    assert {"send", "all-reduce"} <= {item["kind"] for item in table["collectives"]}


def test_a_time_is_measured_where_it_is_asked_for(capsys):
    argv = [
        "plan",
        "--model",
        "tiny-test",
        "--devices",
        "2",
        "--memory",
        "1GB",
        "--batch-size",
        "8",
        "--precision",
        "fp32",
        "--device",
        "cpu",
    ]
    assert main([*argv, "--measure", "--json", "--caption-tokens", "6"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["seconds_per_step"] > 0 and "20 steps of 4 pairs in one process on cpu" in table["estimated_from"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--samples 5", "--samples goes with --peak-flops or --measure"),
        ("--measure-pairs 5", "--measure-pairs goes with --measure"),
        ("--efficiency 0.5", "--efficiency goes with --peak-flops"),
        ("--measure --peak-flops 1e12", "choose one"),
        ("--sharding-parallel-degree 2", "goes with --sharding"),
        ("--precision half", "precision"),
        ("--objective distill", "--objective distill"),
    ],
)
def test_options_that_would_do_nothing_are_refused(flags, message, capsys):
    argv = ["plan", "--model", "tiny-test", "--devices", "2", "--memory", "1GB", "--batch-size", "8"]
    assert main([*argv, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_sizes_are_read_and_written():
    assert [parse_memory(text) for text in ("80GB", "1.5 gib", "7")] == [80 * 10**9, 3 << 29, 7]
    assert [human(size) for size in (80 * 10**9, 1234, 12)] == ["80 GB", "1.23 kB", "12 B"]
    assert [at_least(size) for size in (51_610_000_000, 1230, 999_999)] == ["51.7GB", "1.23kB", "1MB"]
    for text in ("", "80 apples", "0GB", "-1GB"):
        with pytest.raises(ConfigError, match="expected a number with a unit"):
            parse_memory(text)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (("none", Degrees()), "one copy (1 device)"),
        (("stage3", Degrees(2, 4, 2)), "2 replicas of stage3 over 4, layers split over 2 (16 devices)"),
    ],
)
def test_layouts_are_described(layout, text):
    assert describe(*layout) == text


@pytest.mark.slow
def test_the_plan_of_a_large_model():
    planned = plan(Request("ViT-L-14", 64, 80 * 10**9, 32768))
    assert planned.choice.pairs == 512 and planned.choice.memory.parameters == 4 * 427_616_513
