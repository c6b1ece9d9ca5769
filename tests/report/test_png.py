"""The curves as PNG files: drawn from the metric log, and left out in one line where matplotlib is absent."""

import importlib.util

from PIL import Image

from diptych.report import write_report


def test_loss_and_recall_are_drawn_beside_the_page(run_folder):
    write_report(run_folder)
    for name in ("loss.png", "recall.png"):
        with Image.open(run_folder / name) as drawing:
            assert drawing.size == (960, 540)
            assert len(drawing.convert("RGB").getcolors(1 << 20)) > 20, "a blank page has one color"


def test_without_matplotlib_the_page_is_written_and_one_line_says_what_is_missing(run_folder, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert write_report(run_folder).is_file()
    assert not list(run_folder.glob("*.png"))
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "pip install 'diptych[plots]'" in warning
