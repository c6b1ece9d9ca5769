"""The contact sheet of a run: made of the very samples of the first step, in every new run, shown by the report."""

import re

import numpy as np
import pytest
from PIL import Image

from diptych.data import Loader, LoaderOptions, Position, build_prepare, open_source
from diptych.image import ViewOptions
from diptych.report import write_report
from diptych.text.bpe import Bpe
from diptych.train import contact_sheet as module
from diptych.train.contact_sheet import CELL, GAP, LINE, ROWS, masked_text, numbered, write_contact_sheet
from diptych.types import Wants

from .runs import run

MANY = Wants(images=("crop", "strong", "strong"), texts=("caption", "augmented"), masked=True)


def loader(pairs, wants, **options):
    prepare = build_prepare(wants, Bpe(77, 49_408), ViewOptions(32, scale=(0.5, 1.0)))
    return Loader(open_source(pairs), prepare, LoaderOptions(4, **options))


@pytest.fixture
def drawn(monkeypatch):
    """The rows and titles of sheets that were drawn."""
    calls = []
    before = module.draw_sheet

    def noted(rows, titles, font):
        calls.append((rows, titles))
        return before(rows, titles, font)

    monkeypatch.setattr(module, "draw_sheet", noted)
    return calls


def test_a_sheet_shows_the_samples_of_the_first_step(pairs, tmp_path, drawn):
    first = loader(pairs, MANY, micro_batches=2, seed=3)
    path = write_contact_sheet(tmp_path, first, MANY)
    ((rows, titles),) = drawn
    (batches, _) = next(first.steps())
    images = np.concatenate([batch.images.numpy() for batch in batches], axis=1)
    assert path == tmp_path / "views.png" and len(rows) == ROWS
    assert titles == ["image", "crop", "strong 1", "strong 2"]
    for number, row in enumerate(rows):
        assert row.images[0].shape == (8, 8, 3)  # the whole image
        for view in range(3):
            assert np.array_equal(row.images[1 + view], images[view, number].transpose(1, 2, 0))
        names, texts = zip(*row.texts, strict=True)
        assert names == ("caption", "masked", "augmented")
        record = first.source.record(int(batches[number // 4].indices[number % 4]))
        assert texts[0] == record.captions[0]
    height = 2 * GAP + LINE + ROWS * (CELL + 3 * GAP + 3 * LINE)
    with Image.open(path) as sheet:
        assert sheet.size == (GAP + 4 * (CELL + GAP), height)


def test_a_record_that_cannot_be_read_is_passed_over(pairs, tmp_path, drawn):
    first = loader(pairs, MANY)
    for request in first.first_requests()[:2]:
        first.source.record(request.record).image.write_bytes(b"nothing")
    assert write_contact_sheet(tmp_path, first, MANY) is not None
    assert len(drawn[0][0]) == 2 and not first.bad
    for request in first.first_requests():
        first.source.record(request.record).image.write_bytes(b"nothing")
    assert write_contact_sheet(tmp_path / "none", first, MANY) is None
    assert not (tmp_path / "none").exists()


def test_names_that_stand_twice_are_numbered():
    assert numbered(["crop", "strong", "strong"]) == ["crop", "strong 1", "strong 2"]
    assert numbered([]) == []


def test_masks_are_written_where_they_stand():
    tokenizer = Bpe(77, 49_408)
    ids = tokenizer.encode("a dog runs on grass").ids.copy()
    ids[[1, 4]] = 49_408
    assert masked_text(ids, tokenizer) == "[mask] dog runs [mask] grass"
    assert masked_text(ids[:1], tokenizer) == ""


def test_long_and_odd_captions_fit():
    lines = module._lines("caption: " + "word\n\u0007" * 300, 60)
    assert len(lines) == 3 and all(len(line) <= 64 for line in lines) and lines[-1].endswith(" ...")
    assert module._lines("x" * 500, 60)


def test_no_step_is_no_sheet(pairs, tmp_path):
    ended = loader(pairs, MANY, epochs=1, start=Position(1, 0))
    assert ended.first_requests() == []
    assert write_contact_sheet(tmp_path, ended, MANY) is None


def test_every_new_run_has_a_sheet_and_its_report_shows_it(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2", "--save-every-steps", "1")
    sheet = tmp_path / "a" / "views.png"
    with Image.open(sheet) as image:
        assert image.size[0] > 400
    page = write_report(tmp_path / "a").read_text()
    assert re.search(r'<section id="views">.*<img class="sheet" src="data:image/png;base64,iVBOR', page, re.DOTALL)
    assert '<a href="#views">What it learned from</a>' in page
    before = sheet.stat().st_mtime_ns
    run(pairs, tmp_path / "a", "--max-steps", "3", "--resume", "latest")
    assert sheet.stat().st_mtime_ns == before
    sheet.write_bytes(b"not a PNG")
    assert 'id="views"' not in write_report(tmp_path / "a").read_text()
    sheet.unlink()
    assert 'id="views"' not in write_report(tmp_path / "a").read_text()


def test_cached_features_have_no_views_to_show(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "1")
    flags = ("--lock-image", "--cache-features", "--pretrained", str(tmp_path / "a" / "model.safetensors"))
    run(pairs, tmp_path / "b", "--max-steps", "1", *flags)
    assert (tmp_path / "a" / "views.png").exists() and not (tmp_path / "b" / "views.png").exists()
