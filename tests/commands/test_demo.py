"""``diptych demo``: its recall curve ends at its headline, because training and the end measure by the same protocol."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from diptych import log
from diptych.commands import demo
from diptych.train.loop import train


@pytest.fixture
def emoji(tmp_path, monkeypatch):
    """A few emoji of each split, in shards as the demo has them."""
    for split, count in (("train", 48), ("unseen_style", 30), ("held_out_names", 12)):
        shard = sorted(demo.EMOJI.glob(f"{split}-*.tar.gz"))[0]
        with tarfile.open(shard) as whole, tarfile.open(tmp_path / f"{split}-000000.tar.gz", "w:gz") as part:
            for member in whole.getmembers()[: 2 * count]:
                part.addfile(member, io.BytesIO(whole.extractfile(member).read()))
    monkeypatch.setattr(demo, "EMOJI", tmp_path)
    return tmp_path


def test_the_recall_curve_ends_at_the_headline(emoji, tmp_path):
    flags = "--batch-size 16 --max-steps 4 --val-every-steps 2 --workers 0 --save-every-steps 0"
    config = demo.run_config(tmp_path / "run", "cpu", flags)
    outcome = train(config)
    assert outcome.finished
    curve = [row for row in log.read_rows(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "eval"]
    unseen_style, unseen_names = demo.evaluate_splits(tmp_path / "run", config)
    assert [row["step"] for row in curve] == [2, 4] and unseen_style["count"] == {"images": 30, "texts": 30}
    for name, value in unseen_style["metrics"].items():
        assert curve[-1][name] == pytest.approx(value, abs=1e-9), name
    assert unseen_names["count"] == {"images": 12, "texts": 12}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [entry["name"] for entry in results] == list(demo.SPLITS.values())
    titles = [part["title"] for part in json.loads((tmp_path / "run" / "gallery.json").read_text())]
    assert len(titles) == 4 and titles[0].endswith("unseen drawing style")
