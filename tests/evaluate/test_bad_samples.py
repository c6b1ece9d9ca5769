"""What cannot be read leaves an evaluation, is counted and named; above the limit, or if asked, it stops the evaluation."""

import io

import numpy as np
import pytest
from PIL import Image

from diptych.devices import get_device
from diptych.errors import RecordError, SourceError
from diptych.evaluate import EVALUATORS, Encoder, ProbeData
from diptych.image import EvalTransform, decode
from diptych.models import create_model
from diptych.text import get_tokenizer
from diptych.types import Record


def jpeg(number, size=48):
    noise = np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def damaged(number):
    """A JPEG of which libjpeg decodes everything, with a warning."""
    whole = jpeg(number)
    for start in range(len(whole) // 3, len(whole) - 60, 17):
        data = whole[:start] + bytes(40) + whole[start + 40 :]
        try:
            if decode(data).damage:
                return data
        except RecordError:
            continue
    raise AssertionError("no damage was seen")


class World:
    """Twelve images of three classes, one of them broken: ``break_it(number)`` gives its bytes."""

    name, classes = "world", ("red thing", "green thing", "blue thing")

    def __init__(self, broken=b"not an image", which=4, count=12):
        self.broken, self.which, self.count = broken, which, count

    def __len__(self):
        return self.count

    def record(self, index):
        image = self.broken if index == self.which else jpeg(index)
        return Record(f"k{index}", image, (f"caption number {index}",), label=index % 3)


@pytest.fixture(scope="module")
def model():
    return create_model("tiny-test").eval()


def encoder(model, **options):
    transform = EvalTransform(model.config.vision.image_size)
    return Encoder(model, get_tokenizer("bpe"), transform, get_device("cpu"), 5, cache=False, **options)


def run(name, model, source, **options):
    entry = EVALUATORS.get(name)
    data = ProbeData(World(which=-1), source) if entry.data == "probe" else source
    return entry().run(encoder(model, **options), data, entry.Options())


NAMES = ["retrieval", "zeroshot", "linear_probe", "knn"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_image_stops_it_or_leaves_it(name, model, capsys):
    with pytest.raises(RecordError, match="k4"):
        run(name, model, World())
    result = run(name, model, World(), bad_samples="skip", bad_limit=0.2)
    assert (result.count["images"], result.count["bad images"]) == (11, 1)
    assert "1 of 12 images are bad and left out of the scores; the first is k4: not an image" in capsys.readouterr().err
    with pytest.raises(
        SourceError, match=r"1 of 12 images are bad, more than --bad-samples-max 5.00%; the first is k4"
    ):
        run(name, model, World(), bad_samples="skip")


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_a_source_without_it(name, model):
    class Without(World):
        def record(self, index):
            return super().record(index + (index >= self.which))

    expected = run(name, model, Without(count=11))
    result = run(name, model, World(), bad_samples="skip", bad_limit=0.2)
    assert dict(result.metrics) == dict(expected.metrics)
    assert "bad images" not in expected.count


def test_predictions_name_the_images_that_were_scored(model):
    result = run("zeroshot", model, World(), bad_samples="skip", bad_limit=0.2)
    rows = list(EVALUATORS.get("zeroshot")().predictions(result, World()))
    assert [row["image"] for row in rows] == [f"k{number}" for number in range(12) if number != 4]
    assert [row["label"] for row in rows] == [number % 3 for number in range(12) if number != 4]


def test_captions_leave_with_their_image(model):
    result = run("retrieval", model, World(), bad_samples="skip", bad_limit=0.2)
    assert result.count["texts"] == 11 and "caption number 4" not in result.captioned.captions


def test_damaged_data_is_used_and_said_or_is_bad_when_strict(model, capsys):
    pytest.importorskip("simplejpeg", reason="without it libjpeg's warnings are not seen")
    source = World(broken=damaged(4))
    assert run("zeroshot", model, source, bad_samples="skip").count["images"] == 12
    assert "1 of 12 images have damaged data and are used all the same (first k4" in capsys.readouterr().err
    with pytest.raises(RecordError, match="k4: damaged JPEG data"):
        run("zeroshot", model, source, strict=True)


def test_one_class_cannot_be_classified(model):
    class One(World):
        classes = ("val",)

        def record(self, index):
            return Record(f"k{index}", jpeg(index), label=0)

    with pytest.raises(Exception, match="one class, 'val'"):
        run("zeroshot", model, One(which=-1))


def test_two_names_of_one_class_are_refused_where_names_count(model):
    class Twice(World):
        classes = None

        def record(self, index):
            name = "crane" if index == 3 else ("ant", "bee", "cat")[index % 3]
            return Record(f"k{index}", jpeg(index), label=index % 3, extra={"label_name": name})

    with pytest.raises(SourceError, match="the class 0 is named 'ant', and 'crane' in k3"):
        run("zeroshot", model, Twice(which=-1))
    assert run("knn", model, Twice(which=-1)).count["images"] == 12  # a probe reads numbers only


def test_every_picture_of_the_fast_way_is_that_of_pillow():
    for number in range(3):
        whole = jpeg(number)
        assert not decode(whole).damage
        assert np.array_equal(decode(whole).pixels, np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))
