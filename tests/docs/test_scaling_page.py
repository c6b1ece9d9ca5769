"""What docs/scale.md says of its curves is what was measured."""

import json

from tests.docs._blocks import ROOT

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())


def test_two_replicas_take_so_many_times_as_long_as_one():
    points = {(item["layout"], item["processes"]): item for item in MEASURED["steps"]}
    ratio = points["replicas", 2]["seconds"] / points["replicas", 1]["seconds"]
    assert f"two replicas take {ratio:.2f} times as" in PAGE
    for (layout, processes), item in points.items():
        if layout.startswith("stage"):  # "shards cost time here and save no memory"
            assert item["seconds"] > points["replicas", processes]["seconds"]
            assert item["megabytes"] > points["replicas", processes]["megabytes"]
