"""The results table: chance and how many times chance beside each score."""

from __future__ import annotations

import re

from diptych.report.read import RunFiles
from diptych.report.table import headline, results


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def run(metrics: dict, chance: dict) -> RunFiles:
    return RunFiles("x", results=({"name": "val", "metrics": metrics, "chance": chance, "count": {"images": 1000}},))


def test_scores_stand_with_chance_and_its_multiple():
    shown = text(results(run({"image_to_text_R@10": 0.5}, {"image_to_text_R@10": 0.004})))
    assert "50.0\u202f%" in shown.replace(" %", "\u202f%") and "chance 0.40" in shown and "125×" in shown
    assert "1\u202f000 images" in shown or "1 000 images" in shown


def test_a_rank_is_better_when_it_is_lower():
    shown = text(results(run({"text_to_image_mean_rank": 25.0}, {"text_to_image_mean_rank": 500.0})))
    assert "25" in shown and "chance 500" in shown and "20×" in shown


def test_what_is_hardly_better_than_chance_is_not_praised():
    assert 'class="times low">0.8×' in results(run({"top1": 0.008}, {"top1": 0.01}))
    assert 'class="times">2.0×' in results(run({"top1": 0.02}, {"top1": 0.01}))


def test_other_metrics_are_rows_of_their_own():
    shown = text(results(run({"top1": 0.25, "top5": 0.5}, {"top1": 0.01, "top5": 0.05})))
    assert "Top-1 accuracy" in shown and "25×" in shown and "10.0×" in shown


def test_scores_without_chance_say_nothing_of_it():
    assert "chance" not in results(run({"image_to_text_R@1": 0.2}, {}))
    assert "×" not in text(results(run({"image_to_text_R@1": 0.2}, {"image_to_text_R@1": 0.0})))


def test_the_headline_is_recall_at_ten_both_ways():
    shown = text(headline(run({"image_to_text_R@10": 0.5, "text_to_image_R@10": 0.25}, {"text_to_image_R@10": 0.01})))
    assert "25.0" in shown and "50.0" in shown and "25×" in shown
    assert headline(RunFiles("x")) == ""
