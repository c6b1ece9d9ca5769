"""Texts beside pictures, of any value and encoding, in tars, folders and LAION's lines: records, or errors of the data."""

import base64
import io
import json
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data import SourceOptions, open_source
from diptych.errors import DataError, RecordError

from .test_fuzz_json import KEYS, VALUES
from .world import add, image_bytes

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.one_of(
    st.dictionaries(KEYS, VALUES, max_size=5).map(json.dumps),
    VALUES.map(json.dumps),
    st.text(max_size=12),
).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=12)
MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(["0", "1", "a/2", "v1.3"]), st.sampled_from(["txt", "json", "cls", "caption", "png"]), TEXTS
    ),
    max_size=8,
    unique_by=lambda member: member[:2],
)
OPTIONS = st.builds(SourceOptions, csv_caption_key=st.sampled_from(["", "json", "caption", "a.b"]))


@pytest.fixture
def folder(tmp_path_factory, own_cache, said):
    return tmp_path_factory.mktemp("beside")


def read_all(spec, options):
    try:
        source = open_source(str(spec), options=options)
    except DataError as error:
        assert "\n" not in error.line
        return
    for index in range(len(source)):
        try:
            record = source.record(index)
        except RecordError as error:
            assert "\n" not in error.line
            continue
        assert all(isinstance(caption, str) for caption in record.captions)
        assert record.label is None or type(record.label) is int


@FUZZ
@given(members=MEMBERS, options=OPTIONS)
def test_any_texts_in_a_tar(folder, members, options):
    with tarfile.open(folder / "x.tar", "w") as tar:
        for key, ending, text in [*members, ("0", "png", b""), ("1", "png", b"")]:
            add(tar, f"{key}.{ending}", image_bytes(1) if ending == "png" else text)
    read_all(folder / "x.tar", options)


@FUZZ
@given(members=MEMBERS, options=OPTIONS, number=st.integers(0, 1 << 60))
def test_any_texts_in_a_folder(folder, members, options, number):
    root = folder / str(number)
    for key, ending, text in [*members, ("0", "png", b"")]:
        path = root / f"{key}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(1) if ending == "png" else text)
    read_all(root, options)


@FUZZ
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    image=st.binary(max_size=8) | st.just(base64.b64encode(image_bytes(1))),
)
def test_any_texts_in_laions_lines(folder, texts, image):
    file = io.BytesIO()
    for text in texts:
        file.write(b"\t".join([b"0", b"url", text, b"x", b"y", image, b"more"]) + b"\n")
    (folder / "part-00000").write_bytes(file.getvalue())
    read_all(folder / "part-00000", SourceOptions())


@FUZZ
@given(
    lines=st.lists(
        st.binary(max_size=10) | st.sampled_from([b"a.jpg#0\tone", b"a.jpg#0", b"#\t", b"\t\t"]), min_size=1, max_size=6
    )
)
def test_any_lines_of_a_token_file(folder, lines):
    (folder / "x.token").write_bytes(b"\n".join(lines))
    read_all(folder / "x.token", SourceOptions())
