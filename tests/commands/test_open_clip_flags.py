"""Every training flag of open_clip is taken, mapped, or refused in one line; none is unknown, and none is ignored in silence."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych import config
from diptych.commands import COMMANDS, main
from diptych.commands._open_clip_flags import open_clip_flags, translated
from diptych.commands._open_clip_rules import RULES
from diptych.errors import ConfigError
from diptych.train.config import known_flags, tree_for

ROOT = Path(__file__).parents[2]
LIST = [
    line.split()
    for line in (ROOT / "tests" / "open_clip_flags.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
OWN = known_flags([])
REFUSED = [entry for entry in open_clip_flags().values() if entry.status == "refused"]


def ours(text):
    return translated(text.split(), OWN)


def read(text):
    return COMMANDS.get("train").read("train", text.split())


def test_the_table_is_the_list_of_open_clips_flags():
    spelled = {
        (name, entry.values, entry.only or "both")
        for entry in open_clip_flags().values()
        for name in (entry.name, *entry.aliases)
    }
    assert spelled == {tuple(row) for row in LIST}
    assert len(open_clip_flags()) == 142


def test_the_list_has_every_flag_of_the_release():
    spec = importlib.util.find_spec("open_clip_train.params") if importlib.util.find_spec("open_clip_train") else None
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is not installed")
    calls = [
        node
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    added = [node for node in calls if getattr(node.func, "attr", "") == "add_argument"]
    rows = set()
    for node in added:
        words = {item.arg: item.value for item in node.keywords}
        action = getattr(words.get("action"), "value", None)
        kind = "switch" if action in ("store_true", "store_false") else "many" if "nargs" in words else "one"
        rows |= {(argument.value, kind) for argument in node.args}
    assert rows == {(name, kind) for name, kind, where in LIST if where != "main"}


def test_what_is_the_same_is_a_flag_of_ours_and_every_reason_is_given():
    flags = set(config.flags(tree_for("clip"))) | {"--debug"}  # which main takes before a command sees it
    for entry in open_clip_flags().values():
        if entry.status == "same":
            assert entry.name in flags, entry.name
        else:
            assert entry.note, entry.name
            assert not entry.note.endswith("."), entry.name
        assert (entry.status == "mapped") == bool(entry.rule or entry.becomes), entry.name
        assert not entry.rule or entry.rule in RULES, entry.name
    assert set(RULES) == {entry.rule for entry in open_clip_flags().values() if entry.rule}


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry.name)
def test_what_cannot_be_honored_is_one_line_and_exit_code_2(entry, capsys):
    value = [] if entry.values == "switch" else ["other"]
    assert main(["train", "--train-data", "x.csv", entry.name, *value]) == 2
    error = capsys.readouterr().err
    assert error == f"diptych: {' '.join([entry.name, *value])}: {entry.note}.\n"


@pytest.mark.parametrize("entry", open_clip_flags().values(), ids=lambda entry: entry.name)
def test_a_default_that_is_spelled_out_breaks_no_command(entry):
    for value in (entry.default, *entry.harmless):
        if value is not None:
            result = translated([entry.name, value], OWN)
            if entry.status != "mapped":
                assert result == ([entry.name, value] if entry.status == "same" else []), entry.name


@pytest.mark.parametrize(
    "entry",
    [entry for entry in open_clip_flags().values() if entry.status == "no effect"],
    ids=lambda entry: entry.name,
)
def test_what_has_no_effect_says_so_in_one_line(entry, capsys):
    value = [] if entry.values == "switch" else ["7"]
    assert translated([entry.name, *value, "--lr", "1"], OWN) == ["--lr", "1"]
    assert capsys.readouterr().err == f"{entry.name}: no effect here; {entry.note}.\n"


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ("--delete-previous-checkpoint", "--keep-checkpoints 1"),
        ("--siglip", "--objective siglip"),
        ("--siglip --local-loss --gather-with-grad", "--objective siglip"),
        ("--local-loss --gather-with-grad", "--local-loss --gather-with-grad"),
        ("--skip-scheduler --warmup 9 --lr-scheduler cosine", "--lr-scheduler const --warmup 0"),
        ("--log-every-n-steps 100 --log-metric-every-n-steps 5", "--log-every-n-steps 5"),
        ("--visual-layer-decay 0.9", "--image-layer-decay 0.9"),
        ("--visual_layer_decay=0.9", "--image-layer-decay=0.9"),
        ("--force-image-size 96 96", "--force-image-size 96"),
        ("--image-key png", "--csv-img-key png"),
        ("--json-text-key caption_long --text-key txt", "--csv-caption-key caption_long"),
        ("--text-key cap.txt", "--csv-caption-key cap.txt"),
        ("--aug-cfg scale=(0.4,1.0)", "--aug-scale 0.4 1.0"),
        (
            "--aug-cfg scale=(0.4,1) color_jitter=(0.32,0.32,0.32,0.08) color_jitter_prob=0.8 gray_scale_prob=0.2",
            "--aug-scale 0.4 1.0 --aug-color-jitter 0.32 --aug-hue 0.08 --aug-color-jitter-prob 0.8 --aug-grayscale 0.2",
        ),
        ("--aug-cfg", ""),
        ("--opt-kwargs --lr 1", "--lr 1"),
        ("--loss-dist-impl gather", ""),
        ("--wandb-notes x --report-to wandb", "--wandb-notes x --report-to wandb"),
        ("--wandb-notes x --report-to tensorboard", "--report-to tensorboard"),
        ("--wandb-project-name x --report-to=trackio", "--wandb-project-name x --report-to=trackio"),
        ("--batch_si 7", "--batch-size 7"),
        ("--batch-s=7", "--batch-size=7"),
        ("--precision amp_bf16", "--precision amp_bf16"),
        ("--logs ./logs/ --dataset-type auto", "--logs ./logs/ --dataset-type auto"),
        ("--image-key jpg;png;jpeg;webp --text-key txt", ""),
        ("--log-metric-every-n-steps 10 --log-every-n-steps 100", "--log-every-n-steps 10"),
        (
            "--distill-model RN50 --distill-pretrained openai",
            "--objective distill --distill-kind relation --distill-model RN50 --distill-pretrained openai",
        ),
        ("--objective distill --distill-model a/run", "--objective distill --distill-model a/run"),
        (
            "--distill-kind feature --distill-model a/run",
            "--distill-kind feature --objective distill --distill-model a/run",
        ),
        (
            "--local-loss --gather-with-grad --distill-model RN50",
            "--objective distill --distill-kind relation --distill-model RN50",
        ),
        ("--local-loss --objective superclip", "--objective superclip"),
        ("--remote-sync None --distill-model None --opt adamw --dist-url env://", ""),
    ],
)
def test_what_a_flag_becomes(theirs, expected):
    assert ours(theirs) == expected.split()


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ("--train-d x", "may be any of --train-data, --train-data-upsampling-factors; write one in full"),
        ("--use-bnb-lineal", "unknown flag '--use-bnb-lineal'. Did you mean '--use-bnb-linear'?"),
        ("--pure", None),
        ("--precision pure_fp16", "give pure_bf16, or fp16"),
        ("--force-image-size 96 64", "images are squares"),
        ("--image-interpolation random", "give bicubic or bilinear"),
        ("--dataset-type synthetic", "diptych profile --measure"),
        ("--dataset-type webdataset-audio", "no audio towers"),
        ("--image-key jpg;gif", "expected one name"),
        ("--text-key cap --csv-caption-key b", "leave one of them out"),
        ("--siglip --objective clip", "leave one of them out"),
        ("--logs None", "a run always leaves a folder"),
        ("--loss-dist-impl other", "expected one of bidir"),
        ("--horovod x", "expected no value"),
        ("--opt", "expected one value"),
        ("--opt adamw --opt timm/lion", "expected adamw, or one of timm/adamw, timm/lamb"),
        ("--opt timm/lamb --optimizer sgd", "leave one of them out"),
        ("--aug-cfg use_timm=True", "augmentations of timm"),
        ("--aug-cfg re_prob=0.2", "re_prob: is timm's"),
        ("--aug-cfg scales=(1,1)", "is no key of open_clip's"),
        ("--aug-cfg scale=1", "expected 2 numbers"),
        ("--aug-cfg scale", "expected KEY=VALUE"),
        ("--aug-cfg scale=(", "neither a number"),
        ("--aug-cfg color_jitter=0.3", "go together"),
        ("--aug-cfg color_jitter=(1,2,3,0) color_jitter_prob=1", "have one strength"),
    ],
)
def test_what_is_refused_by_its_value(theirs, message):
    if message is None:
        assert ours(theirs) == theirs.split()  # unknown here and there: our own parser says so
        return
    with pytest.raises(ConfigError) as error:
        ours(theirs)
    assert message in error.value.line
    assert "\n" not in error.value.line


def test_downloads_go_where_the_flag_says(monkeypatch, capsys):
    import os

    monkeypatch.setenv("HF_HUB_CACHE", "before")
    assert ours("--cache-dir there") == []
    assert os.environ["HF_HUB_CACHE"] == "there"
    assert "downloaded to there" in capsys.readouterr().err


NAMES = [name for name, _, _ in LIST]


@given(st.sampled_from(NAMES), st.data())
def test_a_beginning_is_the_only_flag_that_begins_so_or_an_error(name, data):
    beginning = name[: data.draw(st.integers(4, len(name)))]
    theirs = {
        entry.name
        for entry in open_clip_flags().values()
        for word in (entry.name, *entry.aliases)
        if word.startswith(beginning)
    }
    try:
        result = translated([beginning, "1"], {"--lr"} if beginning != "--lr" else set())
    except ConfigError as error:
        assert "\n" not in error.line
    else:
        exact = beginning in NAMES
        assert exact or len(theirs) == 1, (beginning, result)


@given(st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=6), st.just("0.5"))))
def test_any_command_line_is_translated_or_refused_in_one_line(argv):
    try:
        result = translated(argv, OWN)
    except ConfigError as error:
        assert "\n" not in error.line.replace("\\n", "") or any("\n" in word for word in argv)
    else:
        assert all(isinstance(word, str) for word in result)


def test_the_config_is_that_of_our_own_flags():
    theirs = read(
        "--siglip --skip-scheduler --aug-cfg scale=(0.5,1.0) --lock-image --lock-image-unl 2 --train-data x.csv --wd 0.1"
    )
    own = read(
        "--objective siglip --lr-scheduler const --warmup 0 --aug-scale 0.5 1.0 --lock-image --lock-image-unlocked-groups 2 "
        "--train-data x.csv --wd 0.1"
    )
    assert config.to_dict(theirs) == config.to_dict(own)


def test_the_page_is_what_the_script_writes():
    script = ROOT / "scripts" / "open_clip_flags.py"
    result = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
