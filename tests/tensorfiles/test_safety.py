"""Nothing in a weight file is executed, on any path; whatever is not a whole weight file is refused in one line."""

import io
import json
import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diptych import weights
from diptych.errors import WeightsError


class Attack:
    """A pickle of this runs a command that leaves a mark."""

    def __init__(self, mark, call=os.system):
        self.mark, self.call = mark, call

    def __reduce__(self):
        return (self.call, (f"touch {self.mark}" if self.call is os.system else f"open({str(self.mark)!r}, 'w')",))


# Python's own pickles are of protocol 4, at which torch warns before it refuses them.
protocol_4 = pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")
# torch deprecates the archives that OpenAI published; writing one for a test is the only use.
torchscript = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def refused(path, mark, message="refused, nothing was run|not a whole|neither"):
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(path)
    assert "\n" not in caught.value.line
    assert not mark.exists(), "the pickle ran"


@protocol_4
@pytest.mark.parametrize("call", [os.system, eval, exec])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.pth", "a.pdparams", "ckpt.pth.tar", "a.pickle"])
def test_a_bare_pickle_is_not_run(name, protocol, call, tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / name).write_bytes(pickle.dumps({"visual.proj": Attack(mark, call)}, protocol=protocol))
    refused(tmp_path / name, mark)


@pytest.mark.parametrize("name", ["a.pt", "open_clip_pytorch_model.bin"])
def test_a_torch_file_with_more_than_tensors_is_not_run(name, tmp_path):
    mark = tmp_path / "mark"
    for old in (False, True):
        values = {"state_dict": {"visual.proj": torch.zeros(1)}, "more": Attack(mark)}
        torch.save(values, tmp_path / name, _use_new_zipfile_serialization=not old)
        refused(tmp_path / name, mark)


def archive(path, data, extra=()):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ViT/constants.pkl", pickle.dumps(()))
        file.writestr("ViT/code/__torch__.py", "raise SystemExit")
        file.writestr("ViT/data.pkl", data)
        for name, content in extra:
            file.writestr(name, content)


@pytest.mark.parametrize("call", [os.system, eval])
def test_a_torchscript_archive_is_not_run(call, tmp_path):
    mark = tmp_path / "mark"
    archive(tmp_path / "a.pt", pickle.dumps(Attack(mark, call), protocol=2))
    refused(tmp_path / "a.pt", mark, "asks to import .*refused")


def test_a_torchscript_tensor_may_not_reach_beyond_its_storage(tmp_path):
    class Reach:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, (Stored(), 0, (1 << 40,), (1,), False, {}))

    class Stored:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(item, Stored) else None

    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(Reach())
    archive(tmp_path / "a.pt", buffer.getvalue(), [("ViT/data/0", b"\0" * 16)])
    refused(tmp_path / "a.pt", tmp_path / "mark", "reaches beyond its storage")


def test_paddles_lod_tensor_which_calls_eval_is_refused(tmp_path):
    mark = tmp_path / "mark"
    values = {"w": np.zeros(2, dtype=np.float32), "x": Attack(mark, eval)}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(values, protocol=4))
    refused(tmp_path / "a.pdparams", mark, "asks to import builtins.eval")


def test_arrays_of_objects_are_refused(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"w": np.array([Attack(mark)], dtype=object)}, protocol=4))
    refused(tmp_path / "a.pdparams", mark, "not a whole|asks to import")
    record = np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({"w": record}, protocol=4))
    refused(tmp_path / "a.pdparams", mark)


NDARRAY = b"cnumpy\nndarray\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
BYTES_DTYPE = b"cnumpy\ndtype\n(X\x02\0\0\0u1tR"


def empty_array():
    return RECONSTRUCT + b"(" + NDARRAY + b"(K\0tC\x01btR"


def state(letter, count):
    shape = b"(M" + count.to_bytes(2, "little") + b"t"
    return b"(K\x01" + shape + BYTES_DTYPE + b"\x89B" + count.to_bytes(4, "little") + letter * count + b"t"


ATTACKS = {
    # An array built a second time frees what another one still looks at.
    "built twice": b"\x80\x02}(X\1\0\0\0a" + empty_array() + state(b"A", 600) + b"b" + state(b"B", 600) + b"bu.",
    # An array over another's memory.
    "a view": b"\x80\x02}X\1\0\0\0vcnumpy.core.numeric\n_frombuffer\n(" + empty_array() + state(b"A", 600) + b"b"
    + BYTES_DTYPE + b"(M\x58\x02tX\1\0\0\0CtRs.",
    "never filled": b"\x80\x02}X\1\0\0\0a" + empty_array() + b"s.",
    "made of nothing": b"\x80\x02}X\1\0\0\0a" + NDARRAY + b"(M\0\x10X\2\0\0\0f8tRs.",
    "more numbers than bytes": b"\x80\x02}X\1\0\0\0a" + empty_array() + state(b"A", 9).replace(b"M\x09", b"M\x0a") + b"bs.",
    "a memo of gigabytes": b"\x80\x02Nr\0\0\0\x100}r\0\0\0\x200]X\1\0\0\0ah\5.",
    "a key a million deep": b"\x80\x02}(t" + b"\x85" * 1_000_000 + b"Ns.",
    "a key that doubles": b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns.",
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_attacks_the_reader_itself_is_refused(attack, tmp_path):
    (tmp_path / "a.pdparams").write_bytes(ATTACKS[attack])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "a.pdparams", tmp_path / "mark")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_the_arrays_of_these_attacks_are_read_when_they_are_whole(tmp_path):
    from diptych.tensorfiles._pickled_arrays import read_pdparams

    (tmp_path / "a.pdparams").write_bytes(b"\x80\x02}X\1\0\0\0a" + empty_array() + state(b"A", 600) + b"bs.")
    assert read_pdparams(tmp_path / "a.pdparams")["a"].tolist() == [65] * 600


def torch_file(path, data):
    torch.save({"a": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, data if name.endswith("/data.pkl") else content)


def test_a_torch_file_with_a_key_a_million_deep_is_refused_before_torch_hashes_it(tmp_path):
    torch_file(tmp_path / "a.pt", b"\x80\x02}(t" + b"\x85" * 1_000_000 + b"Ns.")
    refused(tmp_path / "a.pt", tmp_path / "mark", "a key that is no text or number")


def test_tensors_without_numbers_are_refused(tmp_path):
    for tensor in (torch.zeros(3, device="meta"), torch.eye(3).to_sparse()):
        torch.save({"visual.proj": tensor}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", tmp_path / "mark", "no plain tensor of numbers|not a whole")


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    archive(tmp_path / "a.pt", b"")
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ViT/constants.pkl", pickle.dumps(()))
        file.writestr("ViT/data.pkl", b"\0" * 50_000_000)
    refused(tmp_path / "a.pt", tmp_path / "mark", "would grow to 50,000,000 bytes")


def test_a_tree_of_modules_that_loops_ends(tmp_path):
    shell = b"c__torch__\nA\n)R"
    # a = A(); a.b = a; a.c = a: walked as a tree it has no end, and as many branches as there are atoms.
    data = b"\x80\x02" + shell + b"q\0}(X\1\0\0\0bh\0X\1\0\0\0ch\0ub."
    archive(tmp_path / "a.pt", data)
    refused(tmp_path / "a.pt", tmp_path / "mark", r"it begins with nothing")


def test_what_is_no_weight_file_says_so(tmp_path):
    cases = {
        "empty.pt": (b"", "the file is empty"),
        "page.safetensors": (b"<!DOCTYPE html><html>", "a web page"),
        "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        "text.pt": (b"hello there", "neither safetensors nor"),
        "huge.safetensors": (b"\xff" * 7 + b"\x7f{" + b" " * 90, "not a whole safetensors file"),
        "cut.safetensors": ((100).to_bytes(8, "little") + b"{}", "not a whole safetensors file"),
        "number.pdparams": (pickle.dumps(3), "a pickle of int"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, tmp_path / "mark", message)
    refused(tmp_path / "none.pt", tmp_path / "mark", "no such weight file")


def test_tensors_of_the_wrong_kind_say_so(tmp_path):
    from diptych.models import create_model

    weights.save(tmp_path / "a.safetensors", create_model("tiny-test"))
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["image.ln_pre.weight"] = tensors["image.ln_pre.weight"].to(torch.int32)
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    refused(tmp_path / "b.safetensors", tmp_path / "mark", r"image\.ln_pre\.weight is torch\.int32")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One small file of each container."""
    folder = tmp_path_factory.mktemp("good")
    save_file({"visual.proj": torch.randn(3, 4)}, folder / "a.safetensors", {"diptych": json.dumps({"layout": 1})})
    torch.save({"visual.proj": torch.randn(3, 4)}, folder / "a.pt")
    values = {"visual.proj": np.ones((3, 4), dtype=np.float32)}
    (folder / "a.pdparams").write_bytes(pickle.dumps(values, protocol=4))

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Holder()).save(str(folder / "b.pt"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@protocol_4
@torchscript
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pdparams", "b.pt"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_ends_in_one_line(name, good, tmp_path, data):
    content = bytearray(good[name])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(bytes(content))
    with pytest.raises(WeightsError) as caught:
        weights.load(tmp_path / name)
    assert "\n" not in caught.value.line
