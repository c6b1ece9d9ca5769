"""Where the rows of a CSV begin: the same by arithmetic on its quotes as line by line, however the file is divided."""

import csv
import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych.data import _csv_rows, _line_index
from diptych.data._csv_rows import build
from diptych.data._csv_standard import Layout, by_quotes
from diptych.image import image_endings

PARTS = ["a.jpg", "x", ",", '"', '""', '","', "\n", "\r\n", '"\n"', " ", ".png,", "\ufeff", "\0", "ä"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)
FIELDS = st.lists(st.sampled_from(["a.jpg", "x", ",", '"', "\n", " "]), max_size=4).map("".join)


class Rows:
    """What ``build`` hands over, in memory."""

    def __init__(self):
        self.rows, self.metadata, self.names = [], {}, {"": 0}

    def append(self, bounds, codes=None):
        self.rows += bounds.tolist()

    def code(self, name):
        return self.names.setdefault(name, len(self.names))


def rows_of(path, layout, monkeypatch, *, chunk=1 << 24, by_line=False):
    with monkeypatch.context() as changed:
        changed.setattr(_line_index, "CHUNK", chunk)
        if by_line:
            changed.setattr(_csv_rows, "by_quotes", lambda *_: None)
        rows = Rows()
        build(path, rows, layout)
    return rows.rows


def written(rows, quoting, ending):
    file = io.StringIO(newline="")
    csv.writer(file, quoting=quoting, lineterminator=ending).writerows(rows)
    return file.getvalue()


TABLES = st.builds(
    written,
    st.lists(st.tuples(FIELDS, FIELDS), max_size=6),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n"]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("csv")


@settings(max_examples=300, deadline=None)
@example(text='\ufeff"\n"', width=1, chunk=7)
@given(text=TEXTS | TABLES, width=st.integers(1, 3), chunk=st.sampled_from([7, 20, 1 << 20]))
def test_quotes_give_the_rows_that_lines_give(folder, text, width, chunk):
    path, layout = folder / "x.csv", Layout(",", width, False, -1)
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        expected = rows_of(path, layout, patch, by_line=True)
        assert rows_of(path, layout, patch) == expected
        assert rows_of(path, layout, patch, chunk=chunk) == rows_of(path, layout, patch, chunk=chunk, by_line=True)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a.jpg", 'b ".png', "c"]), FIELDS.map("x{}y".format)), min_size=1, max_size=6
    )
)
def test_what_the_standard_writer_wrote_is_decided_by_its_quotes(rows):
    text = written(rows, csv.QUOTE_ALL, "\n").encode()
    ends = [position for position, byte in enumerate(text) if byte == ord("\n")]
    begins = [0, *(end + 1 for end in ends[:-1])]
    bounds = np.array([[begin, end - begin] for begin, end in zip(begins, ends, strict=True)])
    continued, decided = by_quotes(bounds, text, 0, Layout(",", 2, False, -1), lambda line: False)
    assert decided == len(bounds)
    assert (~continued).sum() == len(rows)


@pytest.mark.parametrize("ending", [*sorted(image_endings()), ".heic", ".HEIF", ".JPG"])
def test_a_row_with_any_picture_that_can_be_read_is_no_header(ending):
    assert _csv_rows.is_picture(f" folder/x{ending} ")
    assert not _csv_rows.is_header([f"x{ending}", "a dog"])
    assert not _csv_rows.is_picture(f"a dog{ending} runs")
