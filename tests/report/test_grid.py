"""The gallery: right answers are marked by more than color, icons stay sharp, only embedded images are shown."""

from __future__ import annotations

import re

from diptych.report.grid import galleries
from diptych.report.read import RunFiles
from tests.report.conftest import embedded_image, gallery


def html(parts: list[dict]) -> str:
    return galleries(RunFiles("x", gallery=tuple(parts)))


def test_right_answers_are_framed_and_ticked():
    shown = html(gallery())
    right = re.findall(r'<li class="right">.*?</li>', shown, flags=re.S)
    assert len(right) == 2 and all("✓" in item and "right</span>" in item for item in right)
    assert all("✓" not in item for item in re.findall(r'<li class="wrong">.*?</li>', shown, flags=re.S))
    assert "✓ rank 2" in shown and "✓ first" in shown


def test_a_missed_query_shows_its_rank_and_what_was_expected():
    shown = html(gallery())
    assert "✗ not among these" in shown and "rank 57" in shown and "expected" in shown


def test_icons_keep_their_pixels_and_photographs_are_scaled_down():
    def row(width, height):
        return {"rows": [{"query": {"text": "x"}, "hits": [{"image": embedded_image(width, height), "correct": True}]}]}

    icon, photo = html([row(64, 64)]), html([row(96, 48)])
    assert 'class="icon"' in icon and 'width="64" height="64"' in icon and "--cell:64px" in icon
    assert 'class="icon"' not in photo and 'width="84" height="42"' in photo and "--cell:84px" in photo


def test_what_is_no_embedded_image_is_not_loaded():
    for address in ("https://example.org/a.png", "data:image/svg+xml;base64,AAAA", "data:image/png;base64,AAAA", 7):
        shown = html([{"rows": [{"query": {"text": "x"}, "hits": [{"image": address, "correct": False}]}]}])
        assert "<img" not in shown and "not available" in shown


def test_an_empty_gallery_is_no_section():
    assert html([]) == "" and html([{"title": "x", "rows": []}]) == ""
