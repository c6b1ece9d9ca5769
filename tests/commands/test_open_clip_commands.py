"""Training commands as users of open_clip write them: what runs here after changing the program's name, and what is refused.

The kinds of command are those of its README (one process, shards, several processes, resuming, fine-tuning, distillation, ...)
and of the documents that Diptych was written for; the values are our own. Those that can be small run, on real files.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diptych import log, weights
from diptych.commands import COMMANDS, main
from diptych.models import create_model
from tests.data.world import COUNT, write_csv, write_webdataset

TINY = "--model tiny-test --batch-size 4 --workers 0 --device cpu --logs logs --name"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """pairs.csv, shards-{000..}.tar, class folders, and weights to begin with."""
    folder = tmp_path_factory.mktemp("commands")
    write_csv(folder)
    for name in ("crane", "drum"):
        (folder / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), "red" if name == "crane" else "navy").save(folder / "classes" / name / "1.png")
    weights.save(folder / "start" / "model.safetensors", create_model("tiny-test"))
    return folder, write_webdataset(folder)


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    """The files, in an empty working directory: CSV, SHARDS, CLASSES and START stand for them in commands."""
    folder, shards = template
    monkeypatch.chdir(tmp_path)
    return {
        "CSV": str(folder / "pairs.csv"),
        "SHARDS": shards,
        "CLASSES": str(folder / "classes"),
        "START": str(folder / "start"),
    }


def argv(command, world):
    for name, path in world.items():
        command = command.replace(name, path)
    return ["train", *shlex.split(command)]


def rows(name):
    return [row for row in log.read_rows(Path("logs", name, "metrics.jsonl")) if row["phase"] == "train"]


READ = {
    "one process, a list": (
        "--save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard --train-data='/d/train.csv' --val-data='/d/val.csv' "
        "--csv-img-key filepath --csv-caption-key title --imagenet-val=/d/imagenet/val/ --warmup 10000 --batch-size=128 "
        "--lr=1e-3 --wd=0.1 --epochs=30 --workers=8 --model RN50"
    ),
    "several processes, shards": (
        "--train-data '/d/cc/{0000..2175}.tar' --train-num-samples 10968539 --dataset-type webdataset --batch-size 320 "
        "--precision amp --workers 4 --imagenet-val /d/imagenet/validation/"
    ),
    "many nodes": (
        "--save-frequency 1 --report-to tensorboard --train-data='/d/laion/{00000..41455}.tar' --warmup 2000 --batch-size=256 "
        "--epochs=32 --workers=8 --model ViT-B-32 --name vanilla --seed 0 --local-loss --gather-with-grad"
    ),
    "sources with factors": (
        "--train-data '/d/a/{00..10}.tar::/d/b/{00..99}.tar' --train-data-upsampling-factors 0.5::2 --dataset-resampled "
        "--train-num-samples 5000000 --dataset-type webdataset --grad-checkpointing --torchcompile --ddp-static-graph"
    ),
    "half of the patches": "--train-data /d/a.csv --force-patch-dropout 0.5 --grad-clip-norm 1 --precision amp_bfloat16",
    "only the text tower": (
        "--train-data /d/a.csv --model ViT-B-16 --pretrained laion2b_s34b_b88k --lock-image --lock-image-unlocked-groups 3 "
        "--lock-image-freeze-bn-stats --val-num-samples 1000"
    ),
    "other pixels": (
        "--train-data /d/a.csv --image-mean 0.5 0.5 0.5 --image-std 0.5 0.5 0.5 --image-interpolation bicubic "
        "--image-resize-mode squash --force-image-size 224 --aug-cfg scale='(0.4, 1.0)' color_jitter='(0.32, 0.32, 0.32, 0.08)' "
        "color_jitter_prob=0.8 gray_scale_prob=0.2"
    ),
    "a rate that cools down": (
        "--train-data /d/a.csv --epochs 12 --lr-scheduler const-cooldown --epochs-cooldown 2 --lr-cooldown-end 1e-6 "
        "--lr-cooldown-power 0.5 --save-most-recent --delete-previous-checkpoint --wandb-project-name p --report-to wandb"
    ),
    "fine-tuning on Ascend": (
        "--train-data=/d/train.csv --val-data=/d/test.csv --csv-img-key img_key --csv-caption-key caption_key --csv-separator "
        ", --model ViT-B-32 --pretrained=/d/open_clip_pytorch_model.bin --batch-size=128 --epochs=20 --warmup 100 "
        "--lr=5e-5 --wd=0.1 "
        "--workers=8 --log-every-n-steps 1 --save-frequency 1 --zeroshot-frequency 1 --seed 0"
    ),
    "one process on Ascend": (
        "--model ViT-B-32 --save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard --train-data='traincoco.csv' "
        "--val-data='traincoco.csv' --imagenet-val='val' --pretrained open_clip_pytorch_model.bin --warmup 10000 "
        "--batch-size=128 --lr=1e-3 --wd=0.1 --epochs=8 --workers=8 --seed 0"
    ),
    "several processes on Ascend": (
        "--model ViT-B-32 --save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard --train-data='traincoco.csv' "
        "--val-data='traincoco.csv' --imagenet-val='val' --pretrained open_clip_pytorch_model.bin --warmup 10000 --batch-size=64 "
        "--lr=1e-3 --wd=0.1 --epochs=1 --workers=8 --seed 0 --dist-backend='hccl' --device npu"
    ),
    "pre-training on Ascend": (
        "--train_data='LAION/{00000..00003}.tar' --train_num_samples=200 --dataset-type webdataset --batch-size 320 --epochs 5 "
        "--warmup 1000 --precision amp --workers 8 --local-loss --gather-with-grad"
    ),
}


@pytest.mark.parametrize("command", READ.values(), ids=READ)
def test_public_commands_are_read_whole(command):
    options = COMMANDS.get("train").read("train", argv(command, {})[1:])
    assert options.data.train_data


def test_their_values_arrive():
    read = {name: COMMANDS.get("train").read("train", argv(command, {})[1:]) for name, command in READ.items()}
    one = read["one process, a list"]
    assert (one.data.batch_size, one.schedule.epochs, one.optimizer.lr, one.optimizer.wd) == (128, 30, 1e-3, 0.1)
    assert (one.schedule.warmup, one.model.model, one.output.report_to) == (10000.0, "RN50", "tensorboard")
    pixels = read["other pixels"]
    assert pixels.model.image_std == (0.5, 0.5, 0.5)
    assert (pixels.data.aug_scale, pixels.data.aug_hue, pixels.data.aug_color_jitter_prob) == ((0.4, 1.0), 0.08, 0.8)
    assert read["a rate that cools down"].output.keep_checkpoints == 1
    assert read["pre-training on Ascend"].data.train_num_samples == 200


REFUSED = {
    "--model coca_ViT-L-14 --coca-contrastive-loss-weight 0 --coca-caption-loss-weight 1": "there is no CoCa",
    "--use-bnb-linear SwitchBackLinearGlobal": "int8 layers are not here",
    "--horovod": "start the command with torchrun",
    "--remote-sync s3://b/p --remote-sync-protocol s3": "another program copies",
    "--opt timm/adopt": "expected adamw, or one of timm/adamw, timm/lamb, timm/sgd, timm/muon",
    "--model roberta-ViT-B-32 --lock-text --lock-text-unlocked-layers 10": "unknown architecture 'roberta-ViT-B-32'",
    "--use-naflex --naflex-seq-lens 128 256": "NaFlex models are not here",
    "--fsdp --fsdp-offload-cpu": "shards stay on their devices",
    "--model tiny-test --batch-size 4 --fsdp --fsdp-no-reshard-after-forward": "--sharding stage2 divides the model over",
    "--fsdp-no-reshard-after-forward": "goes with --fsdp",
    "--model tiny-test --batch-size 4 --use-bn-sync": "--sync-batchnorm: tiny-test has no batch normalization",
}


@pytest.mark.parametrize(("flags", "reason"), REFUSED.items())
def test_what_is_not_here_is_said_in_one_line(flags, reason, world, capsys):
    assert main(argv(f"--train-data CSV {flags}", world)) == 2
    error = capsys.readouterr().err.splitlines()
    assert reason in error[-1]
    assert error[-1].startswith("diptych: ")


def test_measuring_alone_has_a_command_of_its_own(world, capsys):
    assert main(argv("--val-data CSV --model tiny-test --pretrained START", world)) == 2
    assert "diptych evaluate" in capsys.readouterr().err


def test_a_list_with_validation_and_classes_runs(world):
    assert main(argv(
        "--save-frequency 1 --zeroshot-frequency 1 --train-data=CSV --val-data=CSV --csv-img-key filepath "
        "--csv-caption-key title "
        f"--csv-separator , --imagenet-val=CLASSES --imagenet-v2 CLASSES --warmup 10000 --lr=1e-3 --wd=0.1 "
        f"--epochs=1 --log-every-n-steps 1 {TINY} a",
        world,
    )) == 0  # fmt: skip
    assert len(rows("a")) == COUNT // 4
    results = json.loads(Path("logs/a/results.json").read_text())
    assert {entry["name"] for entry in results} == {"val", "zeroshot", "zeroshot-v2"}
    scores = {entry["name"]: entry["metrics"] for entry in results}
    assert scores["zeroshot-v2"] == scores["zeroshot"]


def test_shards_with_a_number_of_samples_run(world):
    flags = "--train-data 'SHARDS' --train-num-samples 8 --dataset-type webdataset --precision amp_bf16 --epochs 2"
    assert main(argv(f"{flags} --log-every-n 1 --local-loss --gather-with-grad {TINY} b", world)) == 0
    assert [row["step"] for row in rows("b")] == [1, 2, 3, 4]


def test_fine_tuning_with_a_locked_tower_leaves_it_as_it_was(world):
    flags = "--train-data CSV --pretrained START --lock-image --lr 1e-2 --warmup 0 --epochs 1 --save-most-recent"
    assert main(argv(f"{flags} {TINY} c", world)) == 0
    before, after = weights.load(world["START"]).state_dict(), weights.load("logs/c").state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"text", "logit_scale"}


def test_flags_that_change_the_model_and_the_rate_do_so(world):
    flags = (
        "--train-data CSV --image-mean 0.5 --image-std 0.25 --image-resize-mode squash --force-context-length 9 "
        "--force-quick-gelu "
        "--lr-scheduler const-cooldown --epochs-cooldown 1 --epochs 2 --warmup 0 --lr 1e-3 --lock-text "
        "--lock-text-unlocked-layers 1 "
        "--save-most-recent --save-frequency 0 --log-every-n-steps 1 --aug-cfg scale='(0.5, 1.0)' gray_scale_prob=0.2"
    )
    assert main(argv(f"{flags} {TINY} h", world)) == 0
    config = weights.load("logs/h").config
    assert (config.activation, config.text.context_length) == ("quickgelu", 9)
    assert (config.preprocess.mean, config.preprocess.resize_mode) == ((0.5, 0.5, 0.5), "squash")
    steps = COUNT // 4
    rates = [row["learning_rate"] for row in rows("h")]
    assert rates[: steps + 1] == [1e-3] * (steps + 1)
    assert rates[steps:] == pytest.approx([1e-3 * (1 - number / steps) for number in range(steps)])
    assert [path.name for path in sorted(Path("logs/h/checkpoints").iterdir())] == [
        f"step_{steps * epoch:08d}.pt" for epoch in (1, 2)
    ]


def test_the_sigmoid_loss_runs(world):
    flags = "--train-data CSV --siglip --loss-dist-impl gather --local-loss --epochs 1 --log-every-n-steps 1"
    assert main(argv(f"{flags} {TINY} d", world)) == 0
    assert all(row["logit_bias"] < -9 for row in rows("d"))


def test_a_run_is_resumed_by_its_name(world, capsys):
    command = f"--train-data CSV --resume latest --save-frequency 1 --log-every-n-steps 1 {TINY} e --epochs"
    assert main(argv(f"{command} 1", world)) == 0
    assert main(argv(f"{command} 2", world)) == 0
    steps = COUNT // 4
    assert f"at step {steps}" in capsys.readouterr().err
    assert [row["step"] for row in rows("e")] == list(range(1, 2 * steps + 1))


def test_a_checkpoint_of_theirs_is_for_pretrained(world, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"epoch": 3, "name": "x", "state_dict": {"visual.proj": torch.zeros(1)}, "optimizer": {}},
        "checkpoints/epoch_3.pt",
    )
    assert main(argv(f"--train-data CSV --resume checkpoints/epoch_3.pt {TINY} f", world)) == 2
    assert "--pretrained checkpoints/epoch_3.pt" in capsys.readouterr().err


@pytest.mark.heavy
def test_two_processes_run(world):
    # torchrun itself refuses --logs, open_clip's too: flags of its own begin so.
    tiny = TINY.replace("--logs logs --name", "--output logs/g")
    flags = "--train-data CSV --dist-backend gloo --local-loss --gather-with-grad --epochs 1 --log-every-n-steps 1"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "diptych"]
    subprocess.run([*launch, *argv(f"{flags} {tiny}", world)], check=True, capture_output=True, timeout=240)
    assert {row["processes"] for row in rows("g")} == {2}
    assert len(rows("g")) == COUNT // 8
