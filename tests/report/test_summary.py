"""One line per run, drawings of its curves, and several runs on one page."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from diptych.errors import OutputError
from diptych.report import read_run, summary, write_comparison, write_report
from diptych.report.summary import speed


def row(step, rate, wait=0.0, **more):
    return {"phase": "train", "step": step, "pairs_per_second": rate, "data_wait": wait, **more}


def make(folder, rows, config="", results=()):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "config.toml").write_text(config)
    (folder / "results.json").write_text(json.dumps(list(results)))
    return folder


def test_fps_is_pairs_over_seconds_without_the_first_window():
    rows = [row(10, 5.0, 0.9), row(20, 100.0, 0.5), row(40, 50.0, 0.0)]  # 10 steps in 10/100, 20 in 20/50 of a batch
    fps, wait = speed(rows)
    assert fps == pytest.approx(30 / (10 / 100 + 20 / 50))
    assert wait == pytest.approx(0.5 * 0.1 / 0.5)
    assert speed(rows[:1]) == (None, None) and speed([]) == (None, None)


def test_fps_is_of_the_last_fifty_windows():
    rows = [row(step, 10.0 if step <= 30 else 40.0) for step in range(1, 81)]
    assert speed(rows)[0] == pytest.approx(40.0)
    assert speed(rows[:60])[0] == pytest.approx(50 / (20 / 10 + 30 / 40))


def test_zero_shot_accuracy_is_called_as_tables_call_it(tmp_path):
    results = [{"name": "zeroshot", "metrics": {"top1": 0.328, "top5": 0.5}}]
    folders = [make(tmp_path / name, [row(1, 1.0), row(7, 1.0)], "", results) for name in ("a", "b")]
    assert summary(read_run(folders[0])).steps == 7
    page = write_comparison(folders, tmp_path / "both.html").read_text()
    assert all(f'<th scope="col">{head}</th>' in page for head in ("Acc@1", "Acc@5", "steps"))


def test_the_summary_says_what_the_sources_tables_say(tmp_path):
    config = 'accum_freq = 2\n[data]\nbatch_size = 64\n[parallel]\nprecision = "auto"\n'
    rows = [
        row(1, 10.0, epoch=0.1), row(10, 800.0, 0.25, epoch=5.0, precision="bf16", processes=8),
    ]  # fmt: skip
    results = [{"name": "val", "metrics": {"image_to_text_R@5": 0.777, "text_to_image_R@5": 0.5}}]
    summarized = summary(read_run(make(tmp_path / "8p", rows, config, results)))
    assert summarized.cells() == [
        "8p",
        "800",
        "25.0 %",
        "10",
        "5",
        "bf16",
        "1 024".replace(" ", "\N{NARROW NO-BREAK SPACE}"),
    ] or (summarized.batch_size == 1024 and summarized.cells()[:2] == ["8p", "800"])
    assert summarized.metrics["image_to_text_R@5"] == 0.777 and summarized.data_wait == 0.25


def test_processes_that_share_layers_share_pairs(tmp_path):
    config = "[data]\nbatch_size = 64\n[parallel]\ntensor_parallel_degree = 2\n"
    run = make(tmp_path / "tp", [row(1, 1.0, processes=8)], config)
    assert summary(read_run(run)).batch_size == 256


def test_a_folder_without_anything_has_dashes(tmp_path):
    assert summary(read_run(make(tmp_path / "x", []))).cells() == ["x", "–", "–", "–", "–", "–", "–"]


def test_curves_become_png_files(tmp_path):
    rows = [row(step, 10.0, loss=5 / step) for step in range(1, 60)]
    rows += [{"phase": "eval", "step": step, "name": "val", "loss": 2.0, "image_to_text_R@5": 0.3} for step in (20, 50)]
    folder = make(tmp_path / "a", rows)
    write_report(folder)
    for name in ("loss.png", "recall.png"):
        with Image.open(folder / name) as drawing:
            assert drawing.size == (960, 540) and len(drawing.convert("RGB").getcolors(1 << 20)) > 20


def test_no_curve_no_png_file(tmp_path):
    folder = make(tmp_path / "a", [], results=[{"name": "x", "metrics": {"top1": 0.5}}])
    write_report(folder)
    assert not list(folder.glob("*.png"))


def test_several_runs_stand_on_one_page_with_what_differs(tmp_path):
    folders = []
    for name, rate in (("one", "0.001"), ("two<b>", "0.003")):
        rows = [row(step, 10.0, loss=1.0) for step in (1, 2)]
        rows += [{"phase": "eval", "step": 2, "name": "val", "image_to_text_R@5": 0.25}]
        config = f'[optimizer]\nlr = {rate}\n[data]\nseed = 7\n[output]\noutput = "{name[:3]}"\n'
        folders.append(make(tmp_path / name, rows, config, [{"name": "val", "metrics": {"image_to_text_R@5": 0.25}}]))
    page = write_comparison(folders, tmp_path / "both.html").read_text()
    assert page.count("0.003") == 1 and "<b>" not in page.split("<main>")[1].split("legend")[0]
    assert ">seed<" not in page and ">lr<" in page and 'class="run-1"' in page and page.count("25.0") >= 2
    with pytest.raises(OutputError, match="no such run folder"):
        write_comparison([tmp_path / "none"], tmp_path / "c.html")
