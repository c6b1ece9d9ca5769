"""The table of operators in docs/race.md is what was counted, and accelerators' forms keep under the bar."""

import json

from tests.docs._blocks import ROOT

COUNTED = json.loads((ROOT / "benchmarks" / "results" / "operators.json").read_text())["models"]
PAGE = (ROOT / "docs" / "race.md").read_text(encoding="utf-8")
LAYERS = {"ViT-B-32": 12 + 12, "ViT-L-14": 24 + 12}


def test_the_page_has_the_numbers_that_were_counted():
    for name, rows in COUNTED.items():
        for mark, precision in (("", "fp32"), (" bf16", "bf16")):
            (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} | {precision} |")]
            peer = rows["open_clip" + mark]
            assert f"{peer['operators']:,}, {peer['attention']} calls" in line
            for form in ("groups", "buckets", "varlen"):
                own = rows[form + mark]
                ratio = own["operators"] / peer["operators"]
                assert f"{own['operators']:,} ({ratio:.2f}), {own['attention']} calls" in line


def test_accelerators_forms_dispatch_at_most_nine_tenths_of_open_clips_and_attend_once_a_layer():
    assert set(COUNTED) == set(LAYERS)
    for name, rows in COUNTED.items():
        for mark in ("", " bf16"):
            for form in ("buckets", "varlen"):
                assert rows[form + mark]["operators"] <= 0.9 * rows["open_clip" + mark]["operators"]
                assert rows[form + mark]["attention"] == LAYERS[name]
