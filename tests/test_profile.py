"""Counts equal the field's published ones to two decimals; measuring runs."""

import csv
import json

import pytest

from diptych.commands import main
from diptych.devices import get_device
from diptych.models import list_models
from diptych.profile import COLUMNS, count, matrix_speed, measure

# SOURCES.md 4.5: gflops of open_clip's model_profile.csv.
GFLOPS = {
    "ViT-B-32": 14.78, "ViT-B-32-256": 17.46, "ViT-B-16": 41.09, "ViT-L-14": 175.33, "ViT-H-14": 381.68, "ViT-g-14": 581.15,
    "ViT-bigG-14": 1065.36, "ViT-H-14-378-quickgelu": 1054.05, "ViT-L-14-336": 395.22, "RN50": 18.18, "RN101": 25.5,
    "RN50x4": 51.82, "RN50x16": 162.69, "RN50x64": 552.65,
}  # fmt: skip


@pytest.mark.parametrize("name", GFLOPS)
def test_operations_are_the_published_ones(name):
    assert count(name).gflops == pytest.approx(GFLOPS[name], abs=0.0051)


@pytest.mark.heavy
def test_the_row_of_the_source_to_the_letter(tmp_path, capsys):
    path = tmp_path / "out.csv"
    assert main(["profile", "--model", "ViT-L-14", "--results-file", str(path)]) == 0
    header, row = path.read_text().splitlines()
    assert (
        header
        == "model,image_size,image_width,text_width,embed_dim,mparams,image_mparams,text_mparams,gflops,image_gflops,text_gflops"
    )
    assert row == "ViT-L-14,224,1024,768,768,427.62,303.97,123.65,175.33,162.03,13.3"
    assert "175.33" in capsys.readouterr().out


def test_the_parts_are_the_whole():
    for name in ("ViT-B-32", "RN50", "ViT-B-16-SigLIP"):
        row = count(name)
        assert row.gflops == pytest.approx(row.image_gflops + row.text_gflops, abs=0.011)
        assert row.mparams == pytest.approx(row.image_mparams + row.text_mparams, abs=0.011)


def test_several_models_are_sorted_by_operations(tmp_path):
    path = tmp_path / "out.csv"
    assert main(["profile", "--model", "ViT-B-16,ViT-B-32,RN50", "--results-file", str(path)]) == 0
    with path.open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["ViT-B-32", "RN50", "ViT-B-16"]


@pytest.mark.slow
def test_all_models_are_counted(tmp_path):
    path = tmp_path / "out.csv"
    assert main(["profile", "--model", "all", "--results-file", str(path)]) == 0
    with path.open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == set(list_models())


@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-resnet", "tiny-test-siglip"])
def test_measuring_runs_each_part(name, capsys):
    rows = measure(name, get_device("cpu"), batch_size=2, rounds=1)
    assert [row.part for row in rows] == ["image", "text", "training step"]
    assert all(row.seconds > 0 and row.per_second == pytest.approx(2 / row.seconds) for row in rows)
    assert all(0 < row.share_of_peak < 2 for row in rows)
    assert main(["profile", "--model", name, "--measure", "--batch-size", "2", "--device", "cpu", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["measured"]) == 3


def test_an_unknown_model_is_one_line_and_columns_are_the_fields(capsys):
    assert main(["profile", "--model", "ViT-L14"]) == 2
    assert "Did you mean 'ViT-L-14'" in capsys.readouterr().err
    assert COLUMNS[0] == "model"
    assert matrix_speed(get_device("cpu"), "fp32") > 1e8
