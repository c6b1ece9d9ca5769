"""The whole page: self-contained, complete, safe, and never beaten by a broken folder."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.errors import OutputError
from diptych.report import write_report

FILES = ("config.toml", "metrics.jsonl", "results.json", "gallery.json")
VOID = {"meta", "img", "path", "circle", "line", "rect", "polyline", "link", "br"}


class Tree(HTMLParser):
    """Collects tags and attributes, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


def self_contained(text: str) -> Tree:
    tree = Tree(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(tree.tags)
    for _, name, value in tree.attributes:
        assert not name.startswith("on"), name
        if name in {"src", "href", "srcset", "action", "xlink:href", "data", "poster"}:
            assert value.startswith(("data:image/", "#")), value
    assert not re.search(r"@import|url\(|https?://|javascript:", re.sub(r"<pre>.*</pre>", "", text, flags=re.S))
    return tree


def test_a_full_run_gives_every_part_of_the_page(run_folder):
    path = write_report(run_folder)
    tree = self_contained(path.read_text(encoding="utf-8"))
    assert path == run_folder / "report.html"
    for words in ("first run", "ViT-Ti-16", "pairs seen", "6\u202f400", "Results", "What it finds", "How it learned"):
        assert words in tree.text
    for curve in ("Loss", "Learning rate", "Logit scale", "Throughput", "Waiting for data", "Gradient norm"):
        assert f"<h3>{curve}</h3>" in path.read_text(encoding="utf-8")
    assert "Captions found by image · val" in tree.text and "chance R@10: 5.0" in tree.text
    assert "ln 64 = 4.16" in tree.text  # 32 pairs x 2 micro-batches
    assert (
        "2 samples could not be read" in tree.text
        and "7 tokens of long captions were truncated: 3 captions of 0/pairs.jsonl" in tree.text
    )
    assert tree.tags.count("details") == 1 and 'train_data = "pairs.jsonl"' in tree.text


def test_the_page_is_the_same_twice(run_folder):
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


@pytest.mark.parametrize("absent", FILES)
def test_each_file_may_be_absent(run_folder, absent):
    (run_folder / absent).unlink()
    self_contained(write_report(run_folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("present", FILES)
def test_each_file_may_be_the_only_one(run_folder, present):
    for name in FILES:
        if name != present:
            (run_folder / name).unlink()
    self_contained(write_report(run_folder).read_text(encoding="utf-8"))


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    assert "holds no results yet" in self_contained(write_report(tmp_path).read_text(encoding="utf-8")).text


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(OutputError, match="no such run folder"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize("name", FILES)
def test_files_cut_anywhere_still_give_a_page(run_folder, name):
    whole = (run_folder / name).read_bytes()
    for share in (0.02, 0.4, 0.97):
        (run_folder / name).write_bytes(whole[: int(len(whole) * share)])
        self_contained(write_report(run_folder).read_text(encoding="utf-8"))


def test_a_truncated_last_line_keeps_the_rows_before_it(run_folder):
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "step": 10')
    assert "100" in Tree(write_report(run_folder).read_text(encoding="utf-8")).text


def test_cut_results_are_named_on_the_page(run_folder):
    (run_folder / "results.json").write_text('[{"name": "val", "metr')
    assert "results.json is incomplete" in write_report(run_folder).read_text(encoding="utf-8")


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def test_foreign_text_is_never_markup(run_folder):
    part = {
        "title": EVIL,
        "rows": [
            {"query": {"text": EVIL}, "hits": [{"text": EVIL, "image": None, "correct": False, "score": 0.1}]},
            {"query": {"image": "javascript:alert(1)"}, "hits": [{"image": "data:text/html,<script>", "text": EVIL}]},
            {"query": {"image": 'data:image/png;base64,AAAA" onload="x'}, "hits": [], "answer": {"text": EVIL}},
            {"query": {"image": "https://example.org/x.png"}, "hits": []},
        ],
    }
    (run_folder / "gallery.json").write_text(json.dumps([part]))
    result = {"name": EVIL, "metrics": {EVIL: 0.5, "r_mean": 0.1}, "chance": {EVIL: 0.1}, "count": {EVIL: 3}}
    (run_folder / "results.json").write_text(json.dumps([result]))
    (run_folder / "config.toml").write_text("[model]\nmodel = " + json.dumps(EVIL) + "\n")
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"phase": "eval", "step": 3, "name": EVIL, "loss": 1.0, "top1": 0.5}) + "\n")
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "<script" not in text
    tree = self_contained(text)
    assert EVIL in tree.text  # shown, as text


def test_half_a_surrogate_pair_does_not_stop_the_page(run_folder):
    (run_folder / "gallery.json").write_text('[{"title": "broken \\ud83d", "rows": [{"query": {"text": "x"}}]}]')
    assert "broken ?" in write_report(run_folder).read_text(encoding="utf-8")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**6)
    | st.sampled_from([10**400, -(10**18), 1e29])
    | st.floats()
    | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "metrics", "chance", "count", "title", "rows", "query", "hits", "text", "image", "rank"]
            )
            | st.sampled_from(
                ["phase", "step", "time", "loss", "epoch", "image_to_text_R@10", "top1", "correct", "score"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(results=JSON, gallery=JSON, rows=st.lists(JSON, max_size=4), phase=st.sampled_from(["train", "eval"]))
def test_any_json_gives_a_page(tmp_path: Path, results, gallery, rows, phase):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "gallery.json").write_text(json.dumps(gallery))
    lines = [json.dumps({"phase": phase, **row} if isinstance(row, dict) else row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    self_contained(write_report(tmp_path).read_text(encoding="utf-8"))
