"""A checkpoint folder is read as a stranger's: whatever its manifest says, the answer is its tensors or one line."""

import copy
import hashlib
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diptych.errors import WeightsError
from diptych.tensorfiles import manifest
from diptych.tensorfiles.checkpoint_folder import CheckpointFolder, digest_of, is_checkpoint_folder, key_of
from diptych.tensorfiles.manifest import Entry, FileDigest, Manifest, Part, parsed, tiles, written

FILE, OTHER = "rank_00000.safetensors", "rank_00001.safetensors"


def write_folder(path):
    """A folder of two files; ``a`` is in four parts, as shards of a split layer are."""
    a, b = torch.arange(20.0).view(4, 5), torch.tensor(3, dtype=torch.int64)
    parts = {(0, 0): a[:3, :2], (3, 0): a[3:, :2], (0, 2): a[:3, 2:], (3, 2): a[3:, 2:]}
    first = {key_of("weights/a", key): item.contiguous() for key, item in list(parts.items())[:2]}
    second = {key_of("weights/a", key): item.contiguous() for key, item in list(parts.items())[2:]}
    path.mkdir(parents=True, exist_ok=True)
    save_file({**first, key_of("b", ()): b}, path / FILE)
    save_file(second, path / OTHER)
    listed = tuple(
        Part(FILE if offsets[1] == 0 else OTHER, offsets, tuple(item.shape)) for offsets, item in parts.items()
    )
    entries = {
        "weights/a": Entry(torch.float32, (4, 5), listed),
        "b": Entry(torch.int64, (), (Part(FILE, (), ()),)),
        "none": Entry(torch.bfloat16, (0, 7), ()),
    }
    tree = {"weights": {"a": {"$tensor": "weights/a"}}, "b": {"$tensor": "b"}, "lr": 1e-3, "list": [1, None, "x"]}
    files = {name: digest_of(path / name) for name in (FILE, OTHER)}
    (path / manifest.MANIFEST).write_bytes(written(Manifest(files, entries, tree)))
    return {"weights/a": a, "b": b, "none": torch.zeros(0, 7, dtype=torch.bfloat16)}


def test_parts_are_joined_and_the_tree_comes_back(tmp_path):
    tensors = write_folder(tmp_path / "c")
    folder = CheckpointFolder(tmp_path / "c")
    folder.check()
    for name, expected in tensors.items():
        assert torch.equal(folder.whole(name), expected) and folder.whole(name).dtype == expected.dtype
    tree = folder.tree(folder.whole)
    assert torch.equal(tree["weights"]["a"], tensors["weights/a"])
    assert (tree["lr"], tree["list"]) == (1e-3, [1, None, "x"])
    assert is_checkpoint_folder(tmp_path / "c") and not is_checkpoint_folder(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from([FILE, OTHER, manifest.MANIFEST]),
    share=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, which, share, bit):
    tensors = write_folder(tmp_path / "c")
    file = tmp_path / "c" / which
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    file.write_bytes(data)
    try:
        folder = CheckpointFolder(tmp_path / "c")
        folder.check()
    except WeightsError as error:
        assert "\n" not in str(error)
        return
    assert which == manifest.MANIFEST  # white space in it, or a digit of a digest that is not compared as text
    assert all(torch.equal(folder.whole(name), item) for name, item in tensors.items())


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_file_that_was_cut_off_is_refused(tmp_path, size):
    write_folder(tmp_path / "c")
    for name in (OTHER, manifest.MANIFEST):
        whole = (tmp_path / "c" / name).read_bytes()
        (tmp_path / "c" / name).write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="not a whole checkpoint"):
            CheckpointFolder(tmp_path / "c").check()
        (tmp_path / "c" / name).write_bytes(whole)
    (tmp_path / "c" / OTHER).unlink()
    with pytest.raises(WeightsError, match="No such file"):
        CheckpointFolder(tmp_path / "c").check()


def resealed(values):
    """A manifest with whatever values, and the digest that fits them: a crafted one."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "manifest": values}).encode()


CRAFTED = {
    "a path out of the folder": lambda m: m["files"].update({"../x.safetensors": m["files"][FILE]}),
    "an absolute path": lambda m: m["files"].update({"/etc/passwd": m["files"][FILE]}),
    "a part in no file": lambda m: m["tensors"]["b"]["parts"][0].__setitem__(0, "rank_00009.safetensors"),
    "an absurd shape": lambda m: m["tensors"]["b"].update(shape=[1 << 40, 1 << 40]),
    "an absurd empty shape": lambda m: m["tensors"]["none"].update(shape=[0, 1 << 62, 1 << 62]),
    "more than the file holds": lambda m: m["tensors"].update(
        c={"dtype": "float64", "shape": [1 << 40], "parts": [[FILE, [0], [1 << 40]]]}
    ),
    "a gap": lambda m: m["tensors"]["weights/a"]["parts"].pop(),
    "an overlap": lambda m: m["tensors"]["weights/a"]["parts"].append([FILE, [0, 0], [4, 5]]),
    "a part twice": lambda m: m["tensors"]["weights/a"]["parts"].append(m["tensors"]["weights/a"]["parts"][0]),
    "a negative offset": lambda m: m["tensors"]["weights/a"]["parts"][0].__setitem__(1, [-1, 0]),
    "a length that is none": lambda m: m["tensors"]["weights/a"]["parts"][0].__setitem__(2, [True, 2.0]),
    "an unknown type": lambda m: m["tensors"]["b"].update(dtype="object"),
    "an unknown tensor": lambda m: m["state"].update(x={"$tensor": "nobody"}),
    "a reference that is none": lambda m: m["state"].update(x={"$tensor": ["b"], "y": 1}),
    "another version": lambda m: m.update(version=2),
    "no files": lambda m: m.pop("files"),
}


@pytest.mark.parametrize("change", CRAFTED)
def test_a_crafted_manifest_is_refused_in_one_line(tmp_path, change):
    write_folder(tmp_path / "c")
    values = json.loads((tmp_path / "c" / manifest.MANIFEST).read_bytes())["manifest"]
    CRAFTED[change](values)
    (tmp_path / "c" / manifest.MANIFEST).write_bytes(resealed(values))
    with pytest.raises(WeightsError, match="not a whole checkpoint") as error:
        CheckpointFolder(tmp_path / "c")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"dtype": "float64"}, {"shape": [1], "parts": [[FILE, [0], [1]]]}])
def test_a_manifest_that_contradicts_its_file_is_refused(tmp_path, change):
    write_folder(tmp_path / "c")
    values = json.loads((tmp_path / "c" / manifest.MANIFEST).read_bytes())["manifest"]
    values["tensors"]["b"] |= change
    (tmp_path / "c" / manifest.MANIFEST).write_bytes(resealed(values))
    folder = CheckpointFolder(tmp_path / "c")
    with pytest.raises(WeightsError, match=r"b in rank_00000.safetensors is not as|cannot be read"):
        folder.whole("b")


def test_a_manifest_that_is_nested_without_end_is_refused():
    for text in (b"[" * 100_000, resealed_nested(200)):
        with pytest.raises(ValueError):
            parsed(text)


def resealed_nested(depth):
    tree = {}
    for _ in range(depth):
        tree = {"x": tree}
    return resealed({"version": 1, "files": {}, "tensors": {}, "state": tree})


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=6),
    st.lists(st.integers(-2, 6), max_size=3), st.sampled_from([FILE, "float64", "../" + FILE, {}, {"$tensor": "b"}]),
)  # fmt: skip


def positions(node, path=()):
    """The path of every value in a tree."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from positions(item, (*path, key))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_manifest_gives_its_tensors_or_one_line(tmp_path, data):
    if not (tmp_path / "c").exists():
        write_folder(tmp_path / "c")
        (tmp_path / "whole").write_bytes((tmp_path / "c" / manifest.MANIFEST).read_bytes())
    values = copy.deepcopy(json.loads((tmp_path / "whole").read_bytes())["manifest"])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(positions(values), key=repr)))
        node = values
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = data.draw(VALUES)
    (tmp_path / "c" / manifest.MANIFEST).write_bytes(resealed(values))
    try:
        folder = CheckpointFolder(tmp_path / "c")
        tree = folder.tree(folder.whole)
        for name, entry in folder.manifest.tensors.items():
            tensor = folder.whole(name)
            assert tuple(tensor.shape) == entry.shape and tensor.dtype == entry.dtype
        folder.check()
    except WeightsError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(tree, dict)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_grids_tile_and_nothing_else_does(data):
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    marks = [
        sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=3) if size > 1 else st.just(set())))
        for size in shape
    ]
    spans = [list(zip([0, *own], [*own, size], strict=True)) for own, size in zip(marks, shape, strict=True)]
    cells = [()]
    for axis in spans:
        cells = [(*cell, span) for cell in cells for span in axis]
    parts = [Part(FILE, tuple(a for a, _ in cell), tuple(b - a for a, b in cell)) for cell in cells]
    entry = Entry(torch.uint8, tuple(shape), tuple(data.draw(st.permutations(parts))))
    assert tiles(entry)
    lost = data.draw(st.integers(0, len(parts) - 1))
    assert not tiles(Entry(torch.uint8, tuple(shape), tuple(parts[:lost] + parts[lost + 1 :])))
    part = parts[lost]
    axis = data.draw(st.integers(0, len(shape) - 1))
    grown = Part(FILE, part.offsets, tuple(size + (number == axis) for number, size in enumerate(part.sizes)))
    assert not tiles(Entry(torch.uint8, tuple(shape), (*parts[:lost], grown, *parts[lost + 1 :])))


def test_plain_values_that_json_does_not_have_are_refused():
    with pytest.raises(TypeError):
        written(Manifest({}, {}, {"x": object()}))
    assert parsed(written(Manifest({FILE: FileDigest(3, "0" * 64)}, {}, {"x": float("inf")}))).state["x"] == float(
        "inf"
    )
