"""Options of views: what they come to, that they reach the pixels and captions of a run, and what cannot be is one line."""

import json

import numpy as np
import pytest

from diptych.commands import main
from diptych.data import Loader, open_source
from diptych.errors import ConfigError
from diptych.image import STRONG_RECIPES, StrongOptions
from diptych.train.config import read
from diptych.train.view_flags import ViewFlags
from diptych.train.view_options import strong_options, training_wants
from diptych.types import Record, Wants
from tests.data.world import write_images

from .runs import argv, run

SLIP = Wants(images=("crop", "strong", "strong"))


@pytest.fixture
def batches(monkeypatch):
    """What the loaders of a run prepare with."""
    made = []
    before = Loader.__init__

    def noted(self, source, prepare, options):
        made.append((prepare, options))
        before(self, source, prepare, options)

    monkeypatch.setattr(Loader, "__init__", noted)
    return made


def test_without_flags_nothing_changes():
    for wants in (Wants(), SLIP, Wants(images=("strong", "strong"), texts=("caption", "augmented"), masked=True)):
        assert training_wants(wants, ViewFlags(), "x") == wants
    assert strong_options(ViewFlags()) == StrongOptions() == STRONG_RECIPES["slip"]


def test_the_base_view_is_replaced_where_it_is_the_only_one():
    strong = ViewFlags(train_view="strong", strong_recipe="moco-v2")
    assert training_wants(Wants(), strong, "clip") == Wants(images=("strong",))
    assert training_wants(Wants(texts=("caption", "augmented")), strong, "x").texts == ("caption", "augmented")


def test_single_strengths_change_a_recipe():
    flags = ViewFlags(
        strong_recipe="moco-v2", strong_jitter=0.8, strong_hue=0.2, strong_jitter_prob=0.7, strong_grayscale=0.1,
        strong_blur=0.6, strong_blur_sigma=(0.2, 1.0), strong_flip=0.0, strong_solarize=0.3,
    )  # fmt: skip
    assert strong_options(flags) == StrongOptions(
        scale=(0.2, 1.0), jitter=0.8, hue=0.2, jitter_p=0.7, grayscale_p=0.1, blur_p=0.6, sigma=(0.2, 1.0), flip_p=0.0,
        solarize_p=0.3,
    )  # fmt: skip
    assert strong_options(ViewFlags(strong_scale=(0.3, 0.9))).scale == (0.3, 0.9)


@pytest.mark.parametrize(
    ("flags", "wants", "line"),
    [
        (
            {"train_view": "strong"},
            SLIP,
            r"--train-view strong: --objective slip has image views of its own \(crop, strong",
        ),
        (
            {"strong_blur": 0.1},
            Wants(),
            "--strong-blur: no view of --objective slip is strong.*add --train-view strong",
        ),
        ({"strong_recipe": "slip"}, Wants(), "--strong-recipe: no view"),
        ({"synonyms": "nltk"}, Wants(), "--synonyms nltk: --objective slip augments no captions"),
    ],
)
def test_flags_that_no_view_uses_are_refused(flags, wants, line):
    with pytest.raises(ConfigError, match=line) as caught:
        training_wants(wants, ViewFlags(**flags), "slip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            {"strong_blur": 0.0, "strong_blur_sigma": (0.1, 1.0)},
            "--strong-blur-sigma goes with a --strong-blur above 0",
        ),
        ({"strong_jitter": 0.0, "strong_hue": 0.0, "strong_jitter_prob": 0.5}, "--strong-jitter-prob goes with"),
        ({"strong_jitter_prob": 0.0, "strong_hue": 0.1}, "go with a --strong-jitter-prob above 0"),
        ({"strong_scale": (0.0, 1.0)}, "--strong-scale 0 1: expected"),
    ],
)
def test_strengths_that_contradict_each_other_are_refused(flags, line):
    with pytest.raises(ConfigError, match=line):
        strong_options(ViewFlags(**flags))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--strong-blur", "1.5"], "--strong-blur 1.5: expected a number of from 0 to 1"),
        (["--strong-hue", "0.6"], "--strong-hue 0.6: expected"),
        (["--strong-recipe", "simclr"], "strong-recipe"),
        (["--aug-auto", "cifar"], "aug-auto"),
        (["--strong-scale", "0.2"], "strong-scale"),
    ],
)
def test_flags_out_of_range_are_refused(flags, line):
    with pytest.raises(ConfigError, match=line) as caught:
        read(["--train-view", "strong", *flags], program="diptych train")
    assert "\n" not in str(caught.value)


def test_a_run_trains_on_the_view_that_was_asked_for(pairs, tmp_path, batches):
    flags = ("--max-steps", "2", "--train-view", "strong", "--strong-recipe", "moco-v2", "--strong-flip", "1")
    assert run(pairs, tmp_path / "a", *flags).finished
    ((view, stream),) = batches[-1][0].image_views
    assert (view.scale, view.flip_p, view.size) == ((0.2, 1.0), 1.0, 32)
    record = open_source(pairs).record(0)
    from diptych.image import decode_pixels

    expected = view(decode_pixels(record.image), stream.generator(5))
    assert np.array_equal(batches[-1][0](record, 5).images[0], expected)
    config = (tmp_path / "a" / "config.toml").read_text()
    assert "[views]" in config and 'strong_recipe = "moco-v2"' in config
    # A resumed run keeps them without a flag.
    assert main(["train", "--output", str(tmp_path / "a"), "--resume", "latest", "--max-steps", "3"]) == 0
    assert batches[-1][0].image_views[0][0] == view


def test_options_of_the_crop_reach_it(pairs, tmp_path, batches):
    run(pairs, tmp_path / "a", "--max-steps", "1", "--aug-auto", "imagenet", "--aug-blur", "0.25")
    ((view, _),) = batches[-1][0].image_views
    assert (view.auto, view.blur) == ("imagenet", 0.25)


def test_options_of_the_crop_without_a_crop_are_said(pairs, tmp_path, capsys):
    run(
        pairs,
        tmp_path / "a",
        "--max-steps",
        "1",
        "--train-view",
        "strong",
        "--aug-flip",
        "0.5",
        "--aug-auto",
        "imagenet",
    )
    assert "--aug-flip, --aug-auto: of the view crop, which this run does not use" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [("--strong-blur", "0.5"), ("--synonyms", "nltk"), ("--train-view", "strong", "--strong-scale", "0", "1")]
)
def test_what_no_view_uses_is_refused_before_the_folder_exists(pairs, tmp_path, flags):
    with pytest.raises(ConfigError):
        run(pairs, tmp_path / "a", "--max-steps", "1", *flags)
    assert not (tmp_path / "a").exists()


def test_captions_with_chinese_characters_are_replaced_and_listed(tmp_path):
    names = write_images(tmp_path)
    rows = [
        {"image": name, "caption": "\u72d7" if number == 5 else f"image number {number}"}
        for number, name in enumerate(names)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ("--max-steps", "5", "--bad-captions", "cjk", "--bad-samples", "replace", "--bad-samples-max", "0.2")
    assert run(str(tmp_path / "pairs.jsonl"), tmp_path / "a", *flags).finished
    (row,) = [json.loads(line) for line in (tmp_path / "a" / "bad_samples.jsonl").read_text().splitlines()]
    assert row["reason"] == "the caption has Chinese characters" and row["key"].startswith("img/05.png")


class Second:
    """A source of captions to look at."""

    name = "own"

    def __init__(self, *counts):
        self.counts = counts

    def __len__(self):
        return len(self.counts)

    def record(self, index):
        return Record(f"r{index}", b"", tuple(f"caption {number}" for number in range(self.counts[index])))


def test_an_objective_of_two_captions_on_data_with_one_is_an_error_at_once(pairs, tmp_path, monkeypatch):
    from diptych.objectives.clip import Clip

    monkeypatch.setattr(Clip, "wants", Wants(texts=("caption", "another")))
    with pytest.raises(ConfigError, match="23 of 23 records looked at have a single caption") as caught:
        run(pairs, tmp_path / "a", "--max-steps", "1")
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="--captions first trains on one caption"):
        run(pairs, tmp_path / "a", "--max-steps", "1", "--captions", "first")


def test_a_few_records_with_one_caption_are_bad_samples_and_no_fault():
    from diptych.data import CaptionChoice
    from diptych.train.first_checks import check_other_captions

    check_other_captions(Second(*[5] * 99, 1), CaptionChoice(), limit=0.05)
    with pytest.raises(ConfigError, match=r"6 of 100 records.*\(the first: r94\)"):
        check_other_captions(Second(*[5] * 94, *[1] * 6), CaptionChoice(), limit=0.05)


def test_the_flags_parse():
    tree = read([*argv("x.jsonl", "y"), "--strong-blur-sigma", "0.2", "1.5"], program="diptych train")
    assert tree.views.strong_blur_sigma == (0.2, 1.5) and tree.views.strong_scale is None
