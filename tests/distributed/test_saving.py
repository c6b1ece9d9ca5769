"""When checkpoints are written: at once or while training goes on, and what follows when the disk refuses."""

import os
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.distributed import checkpoint, saving
from diptych.distributed.checkpoint_folder import separated
from diptych.distributed.process_group import World
from diptych.distributed.saving import CheckpointWriter, SaveFailedError, SaveOptions
from diptych.errors import WeightsError
from diptych.tensorfiles.manifest import Entry, FileDigest, Manifest, Part, parsed, written

KINDS = ("file", "folder")
each_kind = pytest.mark.parametrize("kind", KINDS)


def tree(step, value):
    return {"step": step, "weights": {"a": torch.full((5000,), float(value))}, "random_state": {"cpu": torch.ones(3)}}


def value_of(state):
    stored = state["weights"]["a"]
    return float((stored if isinstance(stored, torch.Tensor) else stored.whole())[17])


@pytest.fixture
def held(monkeypatch):
    """An event that writing waits for, and one that says that it waits."""
    release, waiting = threading.Event(), threading.Event()

    def hold(work):
        def wait(*arguments, **options):
            waiting.set()
            assert release.wait(60)
            return work(*arguments, **options)

        return wait

    monkeypatch.setattr(saving, "_write_file", hold(saving._write_file))
    monkeypatch.setattr(saving, "_write_folder", hold(saving._write_folder))
    yield release, waiting
    release.set()


@each_kind
def test_a_checkpoint_holds_the_state_as_it_was_when_it_was_asked_for(tmp_path, kind, held):
    release, waiting = held
    writer = CheckpointWriter(tmp_path, World(), SaveOptions(kind, asynchronous=True))
    state = tree(1, 1)
    writer.save(1, state)
    state["weights"]["a"].fill_(2)  # training goes on
    assert waiting.wait(60) and checkpoint.steps(tmp_path) == [] and writer.last is None
    release.set()
    writer.settle()
    assert writer.last == 1 and value_of(checkpoint.newest(tmp_path)[1]) == 1


@each_kind
def test_one_checkpoint_at_most_is_pending(tmp_path, kind, held):
    release, _ = held
    writer = CheckpointWriter(tmp_path, World(), SaveOptions(kind, asynchronous=True))
    writer.save(1, tree(1, 1))
    second = threading.Thread(target=lambda: writer.save(2, tree(2, 2)), daemon=True)
    second.start()
    second.join(0.3)
    assert second.is_alive()  # it waits for the first, whose copies it would write over
    release.set()
    second.join(60)
    writer.settle()
    assert [value_of(checkpoint.load(checkpoint.path_of(tmp_path, step))) for step in (1, 2)] == [1, 2]


@each_kind
def test_what_is_asked_to_wait_is_written_at_once(tmp_path, kind):
    writer = CheckpointWriter(tmp_path, World(), SaveOptions(kind, asynchronous=True))
    writer.save(1, tree(1, 1), wait=True)
    assert writer.last == 1 and checkpoint.steps(tmp_path) == [1]


@each_kind
def test_the_end_of_a_failed_run_waits_for_the_pending_checkpoint(tmp_path, kind, held):
    release, _ = held
    writer = CheckpointWriter(tmp_path, World(), SaveOptions(kind, asynchronous=True))
    writer.save(1, tree(1, 1))
    threading.Timer(0.2, release.set).start()
    writer.close()
    assert checkpoint.steps(tmp_path) == [1]


@each_kind
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_refusing_disk_stops_the_run_or_is_said(tmp_path, kind, asynchronous, capsys):
    def attempt(on_error):
        folder = tmp_path / on_error
        writer = CheckpointWriter(folder, World(), SaveOptions(kind, asynchronous, on_error))
        writer.save(1, tree(1, 1))
        writer.settle()
        blocker = folder / ".step_00000002.pt.tmp" if kind == "file" else folder / ".step_00000002.tmp"
        blocked = blocker.with_name(f".step_00000002.pt.{os.getpid()}.tmp") if kind == "file" else blocker
        blocked.mkdir() if kind == "file" else blocked.write_text("in the way")
        (blocked / "x").write_text("") if kind == "file" else None
        try:
            writer.save(2, tree(2, 2))
            while writer._pending is not None and writer._pending.is_alive():
                time.sleep(0.01)
            assert writer.failed is asynchronous
            writer.settle()
        finally:
            assert checkpoint.steps(folder) == [1] and writer.last == 1
        return writer

    os.environ.pop("RANK", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "remove_unfinished", lambda folder: None)  # else it would clear the way
        patch.setattr("diptych.distributed.checkpoint_folder.shutil.rmtree", lambda *a, **k: None)
        with pytest.raises(SaveFailedError, match="could not be written") as error:
            attempt("stop")
        assert error.value.on_every_rank and "\n" not in error.value.line
        attempt("warn")
    printed = capsys.readouterr().err
    assert printed.count("could not be written") == 1 and "--on-save-error warn" in printed


@each_kind
def test_a_fault_of_the_program_is_never_a_full_disk(tmp_path, kind):
    writer = CheckpointWriter(tmp_path, World(), SaveOptions(kind, on_error="warn"))
    with pytest.raises((TypeError, AttributeError)):
        writer.save(1, {**tree(1, 1), "config": lambda: None})
    assert checkpoint.steps(tmp_path) == []


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc. ", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.text("xyz", min_size=1, max_size=3), PLAIN, max_size=4), rows=st.integers(0, 3))
def test_any_tree_of_plain_values_and_tensors_comes_back(values, rows):
    tensor = torch.arange(rows * 2).view(rows, 2)
    plain, tensors = separated({"values": values, "tensors": [tensor, {"a b": (tensor, 1)}]})
    assert list(tensors) == ["tensors/0", "tensors/1/a b/0"]
    parts = (Part("rank_00000.safetensors", (0, 0), (rows, 2)),) if rows else ()
    entries = {name: Entry(torch.int64, (rows, 2), parts) for name in tensors}
    files = {"rank_00000.safetensors": FileDigest(1000, "0" * 64)}
    state = parsed(written(Manifest(files, entries, plain))).state
    assert state["values"] == values
    assert state["tensors"] == [{"$tensor": "tensors/0"}, {"a b": [{"$tensor": "tensors/1/a b/0"}, 1]}]


@pytest.mark.parametrize("key", [1, "a/b", "$tensor"])
def test_a_key_that_could_mean_something_else_is_refused(key):
    with pytest.raises(ValueError, match="texts without a slash"):
        separated({"weights": {key: torch.ones(1)}})


def test_kinds_stand_beside_each_other(tmp_path):
    for step, kind in enumerate(("file", "folder", "file", "folder"), 1):
        CheckpointWriter(tmp_path, World(), SaveOptions(kind, keep=3)).save(step, tree(step, step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003.pt", "step_00000004"]
    second = checkpoint.protect(tmp_path, 4)
    (aside,) = checkpoint.set_aside(tmp_path, 3)
    assert (second.name, aside.name) == ("finite_step_00000004", "aside_step_00000004")
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert [value_of(checkpoint.load(path)) for path in (second, aside)] == [4, 4]
    for kind, name in (("folder", "step_00000003"), ("file", "step_00000003.pt")):  # again, as the other kind
        CheckpointWriter(tmp_path, World(), SaveOptions(kind)).save(3, tree(3, 30))
        assert [path.name for path in tmp_path.glob("step_00000003*")] == [name]
        assert value_of(checkpoint.newest(tmp_path)[1]) == 30
    CheckpointWriter(tmp_path, World(), SaveOptions("folder")).save(2, tree(2, 20))  # over a folder of the same step
    assert value_of(checkpoint.load(checkpoint.path_of(tmp_path, 2))) == 20


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".step_00000001.tmp").mkdir(parents=True)
    (tmp_path / ".step_00000001.tmp" / "rank_00000.safetensors").write_bytes(b"half")
    (tmp_path / ".step_00000001.pt.77.tmp").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) is None
    CheckpointWriter(tmp_path, World(), SaveOptions("folder")).save(2, tree(2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_a_damaged_folder_is_passed_over_and_named_once(tmp_path, capsys):
    for step in (1, 2, 3):
        CheckpointWriter(tmp_path, World(), SaveOptions("folder")).save(step, tree(step, step))
    file = tmp_path / "step_00000003" / "rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    cut_off = tmp_path / "step_00000002" / "rank_00000.safetensors"
    cut_off.write_bytes(cut_off.read_bytes()[:-1])
    path, state = checkpoint.newest(tmp_path)
    assert path.name == "step_00000001" and value_of(state) == 1
    printed = capsys.readouterr().err
    assert (
        printed.count("step_00000003: not a whole") == 1 and "bytes of rank_00000.safetensors have changed" in printed
    )
    assert "has 20" in printed and "resuming from" in printed
    with pytest.raises(WeightsError, match=r"the one before it: --resume .*step_00000002"):
        checkpoint.load(tmp_path / "step_00000003")
