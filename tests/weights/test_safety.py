"""Nothing in a weight file is executed, on any path; whatever is not a whole weight file is refused in one line."""

import io
import json
import os
import pickle
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


def refused(path, mark, message="refused, nothing was run|not a whole|neither"):
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(path)
    assert "\n" not in caught.value.line
    assert not mark.exists(), "the pickle ran"


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
