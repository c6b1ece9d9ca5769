"""The gallery: true marks, a mix of successes and failures, small images, the same every time."""

from __future__ import annotations

import base64
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diptych.evaluate._gallery import choose, data_uri
from diptych.evaluate.retrieval import Retrieval, RetrievalOptions, gallery
from diptych.types import Record
from tests.evaluate.colors import COLORS, Model, all_colors, encoder


def evaluated(**options):
    source = all_colors()
    return Retrieval().run(encoder(Model(**options)), source, RetrievalOptions()), source


def opened(address: str) -> Image.Image:
    scheme, _, data = address.partition(";base64,")
    assert scheme in ("data:image/webp", "data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_hits_are_marked_right_exactly_where_the_caption_names_the_color():
    by_text, by_image = gallery(*evaluated(blind_to=("pink",)), queries=20, hits=3)
    assert len(by_text["rows"]) == 20 and len(by_image["rows"]) == 10
    for row in by_text["rows"]:
        name = next(name for name in COLORS if name in row["query"]["text"])
        for hit in row["hits"]:
            assert hit["correct"] == (opened(hit["image"]).getpixel((0, 0)) == COLORS[name])
        assert row["rank"] == next((i for i, hit in enumerate(row["hits"], 1) if hit["correct"]), row["rank"])
        assert ("answer" in row) == (not any(hit["correct"] for hit in row["hits"]))
        if "answer" in row:
            assert name == "pink" and opened(row["answer"]["image"]).getpixel((0, 0)) == COLORS["pink"]
    for row in by_image["rows"]:
        color = opened(row["query"]["image"]).getpixel((0, 0))
        assert all(
            hit["correct"] == (COLORS[hit["text"].split()[-1]] == color)
            for hit in row["hits"]
            if "no" not in hit["text"]
        )


def test_the_gallery_is_plain_json_and_the_same_twice():
    result, source = evaluated()
    parts = gallery(result, source, queries=6, title="val")
    assert json.loads(json.dumps(parts)) == parts == gallery(result, source, queries=6, title="val")
    assert [len(part["rows"]) for part in parts] == [6, 3] and all("val" in part["title"] for part in parts)
    assert all(len(row["hits"]) == 8 for part in parts for row in part["rows"])


def test_an_image_that_went_bad_is_left_out():
    result, source = evaluated()
    source.records[0] = Record("red", b"nothing", ())
    rows = gallery(result, source, queries=20)[0]["rows"]
    assert any(hit["image"] is None for row in rows for hit in row["hits"])


@given(ranked=st.lists(st.integers(1, 30), max_size=60), count=st.integers(0, 16))
def test_the_mix_is_half_right_a_quarter_near_a_quarter_missed_where_there_are_enough(ranked, count):
    picked = choose(ranked, count, 8)
    assert len(picked) == len(set(picked)) == min(count, len(ranked))
    ranks = [ranked[query] for query in picked]
    assert ranks == sorted(ranks)
    sorts = [[rank == 1 for rank in ranked], [1 < rank <= 8 for rank in ranked], [rank > 8 for rank in ranked]]
    if all(sum(queries) >= count for queries in sorts):
        shown = [sum(queries[query] for query in picked) for queries in sorts]
        assert shown == [count - 2 * (count // 4), count // 4, count // 4]


@pytest.mark.parametrize("size", [(64, 64), (20, 96)])
def test_small_images_keep_every_pixel(size):
    image = Image.effect_noise(size, 90).convert("RGB")
    assert opened(data_uri(image, 96)).tobytes() == image.tobytes()


def test_large_images_become_small_and_light():
    address = data_uri(Image.effect_noise((640, 480), 40).convert("RGB"), 96)
    assert opened(address).size == (96, 72) and len(address) < 12_000
