"""Which members of a tar are one sample: endings, keys with dots, order, hidden ones, and what is left out with its reason."""

import collections
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import SourceOptions, open_source
from diptych.errors import RecordError, SourceError

from .world import add


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def shard(path, *members, **texts):
    """A tar of names; the content of each says its name, unless it is given: ``**{"a.json": b"..."}``."""
    with tarfile.open(path, "w") as tar:
        for name in members:
            add(tar, name, texts.get(name, f"of {name}".encode()))
    return str(path)


def pairs(source):
    return [(source.record(i).image.decode(), source.record(i).captions) for i in range(len(source))]


def reasons(source):
    return {item.reason: (item.count, item.bad) for item in source.left_out}


@pytest.mark.parametrize("key", ["photo.2024.01.02", "v1.10", "10.1000.182", "a.b/c.d", "x.jpg.orig", "IMG 0001 (1)"])
def test_keys_may_hold_dots(tmp_path, key):
    names = [f"{key}{n}.{ending}" for n in range(3) for ending in ("jpg", "txt")]
    source = open_source(shard(tmp_path / "x.tar", *names))
    assert pairs(source) == [(f"of {key}{n}.jpg", (f"of {key}{n}.txt",)) for n in range(3)]
    assert source.left_out == ()


def test_a_picture_never_gets_the_text_of_another_key(tmp_path, capsys):
    source = open_source(shard(tmp_path / "x.tar", "v1.1.jpg", "v1.1.txt", "v1.2.jpg", "v1.3.txt"))
    assert pairs(source) == [("of v1.1.jpg", ("of v1.1.txt",))]
    assert [(item.count, item.example, item.bad) for item in source.left_out] == [
        (1, "x.tar/v1.2.jpg", True),
        (1, "x.tar/v1.3.txt", True),
    ]
    shown = capsys.readouterr().err
    assert "1 x a picture without a text of the same name (x.tar/v1.2.jpg)" in shown and shown.count("\n") == 1


def test_a_longer_ending_counts_only_where_a_flag_names_it(tmp_path):
    names = ["1.seg.png", "1.jpg", "1.txt", "1.blip.txt"]
    spec = shard(tmp_path / "x.tar", *names)
    assert pairs(open_source(spec)) == [("of 1.jpg", ("of 1.txt",))]
    assert not any(item.bad for item in open_source(spec).left_out) and len(open_source(spec).left_out) == 2
    asked = open_source(spec, options=SourceOptions(csv_img_key="seg.png", csv_caption_key="blip.txt"))
    assert pairs(asked) == [("of 1.seg.png", ("of 1.blip.txt",))]
    lonely = shard(tmp_path / "y.tar", "1.a.jpg", "1.txt")
    with pytest.raises(SourceError, match=r"no record .* 1 x a picture with a longer ending .*--csv-img-key"):
        open_source(lonely)
    assert pairs(open_source(lonely, options=SourceOptions(csv_img_key="a.jpg"))) == [("of 1.a.jpg", ("of 1.txt",))]


def test_several_pictures_of_one_key_are_left_out_or_chosen_by_a_flag(tmp_path):
    spec = shard(tmp_path / "x.tar", "1.jpg", "1.png", "1.txt", "2.jpg", "2.txt")
    source = open_source(spec)
    assert pairs(source) == [("of 2.jpg", ("of 2.txt",))]
    assert list(reasons(source).values()) == [(1, True)]
    both = open_source(spec, options=SourceOptions(csv_img_key="jpg"))
    assert [image for image, _ in pairs(both)] == ["of 1.jpg", "of 2.jpg"]
    with pytest.raises(SourceError, match="two texts of one kind"):
        open_source(shard(tmp_path / "y.tar", "1.jpg", "1.txt", "1.TXT"))


def test_hidden_members_are_passed_over_and_counted(tmp_path, capsys):
    hidden = ["._1.jpg", "./._1.txt", "__MACOSX/1.jpg", ".DS_Store", "a/.b/1.jpg"]
    source = open_source(shard(tmp_path / "x.tar", *hidden, "./1.jpg", "./1.txt"))
    assert pairs(source) == [("of ./1.jpg", ("of ./1.txt",))]
    assert source.record(0).key == "x.tar/1"
    assert reasons(source) == {"hidden members": (5, False)}
    assert "warning" not in capsys.readouterr().err


def test_members_may_stand_in_any_order_and_samples_keep_that_of_their_first(tmp_path):
    names = ["b.txt", "a.jpg", "c.JPEG", "a.txt", "c.Txt", "b.jpg", "d/a.webp", "d/a.json"]
    source = open_source(shard(tmp_path / "x.tar", *names, **{"d/a.json": b'{"caption": "deep"}'}))
    assert [captions[0] for _, captions in pairs(source)] == ["of b.txt", "of a.txt", "of c.Txt", "deep"]
    assert [image for image, _ in pairs(source)] == ["of b.jpg", "of a.jpg", "of c.JPEG", "of d/a.webp"]


def test_a_key_that_comes_again_whole_is_a_sample_of_its_own(tmp_path, capsys):
    whole = ["a.jpg", "a.txt", "b.jpg", "b.txt"]
    assert len(open_source(shard(tmp_path / "x.tar", *whole, "a.txt", "a.jpg"))) == 3
    assert "1 keys come twice" in capsys.readouterr().err
    apart = open_source(shard(tmp_path / "y.tar", *whole, "a.jpg"))  # a newer picture was appended: of which text?
    assert [captions for _, captions in pairs(apart)] == [("of b.txt",)]


@pytest.mark.parametrize(
    "flag, expected",
    [("", ("new",)), ("txt", ("new",)), ("json", ("old",)), ("caption", ("old",)), ("title", ("IMG 1",))],
)
def test_txt_wins_over_json_and_a_flag_chooses(tmp_path, flag, expected, capsys):
    about = json.dumps({"caption": "old", "title": "IMG 1", "label": 3.0}).encode()
    spec = shard(tmp_path / "x.tar", "1.jpg", "1.json", "1.txt", **{"1.json": about, "1.txt": b"new\n"})
    record = open_source(spec, options=SourceOptions(csv_caption_key=flag)).record(0)
    assert (record.captions, record.label) == (expected, 3)
    assert record.extra["txt"] == ["new"] and record.extra["caption"] == "old"
    assert ("differ: of x.tar/1, .txt says 'new' and .json 'old'" in capsys.readouterr().err) == (flag == "")


def test_a_caption_key_that_no_json_has_is_an_error_that_lists_some(tmp_path):
    about = json.dumps({f"key{n}": "a" for n in range(30)}).encode()
    spec = shard(tmp_path / "x.tar", "1.jpg", "1.json", **{"1.json": about})
    with pytest.raises(SourceError, match=r"no key 'blip' .*; keys seen: (key\d+, ){9}key9\.$"):
        open_source(spec, options=SourceOptions(csv_caption_key="blip"))
    with pytest.raises(SourceError, match=r"no \.txt beside a picture"):
        open_source(spec, options=SourceOptions(csv_caption_key="txt"))


def test_lines_of_a_txt_are_captions_and_odd_texts_are_bad_samples(tmp_path, capsys):
    contents = {"1.txt": b"one\r\n\n two ", "2.txt": "caf\xe9".encode("latin-1"), "3.txt": "größe".encode("utf-16")}
    contents |= {"4.json": b'{"caption": {"en": "x"}}', "5.json": b"{", "6.json": b'["a b", "c d"]'}
    names = [name for n in range(1, 7) for name in (f"{n}.jpg", next(key for key in contents if key[0] == str(n)))]
    source = open_source(shard(tmp_path / "x.tar", *names, **contents))
    assert [source.record(i).captions for i in (0, 2, 5)] == [("one", "two"), ("größe",), ("a b", "c d")]
    assert "each line of a .txt is taken for a caption (2 in x.tar/1.txt)" in capsys.readouterr().err
    for index, reason in (
        (1, r"x.tar/2.txt: not UTF-8"),
        (3, r"x.tar/4: its 'caption' in its .json is an object"),
        (4, "not valid"),
    ):
        with pytest.raises(RecordError, match=reason):
            source.record(index)


def test_labels_are_numbers_however_written_or_names(tmp_path):
    labels = {"1.cls": b"3", "2.cls": b" 3.0\n", "3.cls": b"10"}
    names = [name for n in (1, 2, 3) for name in (f"{n}.webp", f"{n}.cls")]
    source = open_source(shard(tmp_path / "x.tar", *names, **labels))
    assert [source.record(i).label for i in range(3)] == [3, 3, 10] and source.classes is None
    named = open_source(shard(tmp_path / "y.tar", *names, **{"1.cls": b"dog", "2.cls": b"cat\n", "3.cls": b"dog"}))
    assert named.classes == ("cat", "dog") and [named.record(i).label for i in range(3)] == [1, 0, 1]
    with pytest.raises(SourceError, match="some labels are names and some are numbers"):
        open_source(shard(tmp_path / "z.tar", *names, **{"1.cls": b"dog", "2.cls": b"2", "3.cls": b"dog"}))


stems = st.text(st.sampled_from("ab1.-"), min_size=1, max_size=5).filter(lambda text: text[0] != ".")
endings = st.sampled_from(["jpg", "JPG", "png", "seg.png", "txt", "json", "blip.txt", "npy"])
names = st.builds("{}{}{}.{}".format, st.sampled_from(["", "./", "d/", "._"]), st.just(""), stems, endings)


@settings(max_examples=150, deadline=None)
@given(st.lists(names, min_size=1, max_size=12))
def test_of_any_members_the_right_pairs_come_out_or_something_is_said(tmp_path_factory, members):
    contents = {}
    for name in members:
        stem = name.removeprefix("./").rpartition(".")[0]
        contents[name] = json.dumps({"caption": stem}).encode() if name.endswith("json") else stem.encode()
    visible = [name.removeprefix("./") for name in members if not name.startswith("._")]
    kinds = collections.defaultdict(list)
    for name in visible:
        stem, _, ending = name.rpartition(".")
        if ending != "npy":
            kinds[stem].append({"JPG": "picture", "jpg": "picture", "png": "picture"}.get(ending, ending))
    whole = {stem for stem, own in kinds.items() if "picture" in own and len(set(own)) == len(own) > 1}
    spec = shard(tmp_path_factory.mktemp("fuzz") / "x.tar", *members, **contents)
    try:
        source = open_source(spec)
    except SourceError as error:
        assert not whole and "\n" not in str(error)
        return
    got = [(source.record(i).image.decode(), source.record(i).captions) for i in range(len(source))]
    assert all(captions == (image,) for image, captions in got)
    assert whole <= {image for image, _ in got}
    used = sum(len(kinds[image]) // max(1, kinds[image].count("picture")) for image, _ in got)
    assert used == len(members) or source.left_out
