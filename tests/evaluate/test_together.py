"""Evaluation with the real layers below it: files on disk, the BPE tokenizer, the package's transform and a small model."""

from __future__ import annotations

import json

import pytest
import torch

from diptych.data import open_source
from diptych.devices import get_device
from diptych.evaluate import EVALUATORS, Encoder
from diptych.image import EvalTransform
from diptych.models import create_model
from diptych.report import write_report
from diptych.text import get_tokenizer
from tests.evaluate.colors import COLORS, png


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model = create_model("tiny-test")
    tokenizer = get_tokenizer("bpe", model.config.text.context_length)
    return model, tokenizer, EvalTransform(model.config.vision.image_size), get_device("cpu")


def evaluate(name, parts, source, *, options=None, **encode):
    evaluator = EVALUATORS.get(name)()
    return evaluator.run(Encoder(*parts, **encode), source, options or evaluator.Options())


@pytest.fixture
def pairs(tmp_path):
    lines = []
    for name in COLORS:
        (tmp_path / f"{name}.png").write_bytes(png(name))
        lines.append(
            {"image": f"{name}.png", "captions": [f"a {name} square", f"there is nothing here but {name} paint"]}
        )
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_source(str(tmp_path / "pairs.jsonl"))


def test_retrieval_features_are_those_of_the_model_alone(parts, pairs):
    model, tokenizer, *_ = parts
    result = evaluate("retrieval", parts, pairs, batch_size=3, workers=1)
    assert result.count == {"images": 10, "texts": 20}
    with torch.no_grad():
        alone = torch.cat([model.eval().encode_text(tokenizer(caption)) for caption in result.captioned.captions])
    assert torch.allclose(result.text_features, alone, atol=1e-5)


def test_a_result_and_its_gallery_make_a_report(parts, pairs, tmp_path):
    result = evaluate("retrieval", parts, pairs)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps([result.entry("val")]))
    (folder / "gallery.json").write_text(json.dumps(EVALUATORS.get("retrieval")().images(result, pairs, "val")))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "10 images · 20 texts" in page and page.count("<article") == 18 and page.count("data:image/") > 80


def test_zeroshot_reads_class_folders(parts, tmp_path):
    for name in list(COLORS)[:6]:
        (tmp_path / f"plain_{name}").mkdir()
        (tmp_path / f"plain_{name}" / "1.png").write_bytes(png(name))
    options = EVALUATORS.get("zeroshot").Options(templates="simple")
    result = evaluate("zeroshot", parts, open_source(str(tmp_path)), options=options)
    assert result.count == {"images": 6, "classes": 6, "templates": 1}
    assert result.classes[0] == "plain blue" and 0 <= result.metrics["top1"] <= result.metrics["top5"] <= 1
