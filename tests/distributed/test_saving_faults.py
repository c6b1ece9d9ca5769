"""Checkpoints on a disk that is really full, of two processes of which one is refused, of one that is killed while it writes."""

import signal
import subprocess
import sys

import pytest
import torch

from diptych.distributed import checkpoint
from diptych.distributed.process_group import all_gather_object, rank, world_from_environment
from diptych.distributed.saving import CheckpointWriter, SaveFailedError, SaveOptions
from diptych.errors import WeightsError

from ._processes import run_in_processes
from .test_saving import each_kind

FULL = """
import sys, torch
from pathlib import Path
from diptych.distributed.process_group import World
from diptych.distributed.saving import CheckpointWriter, SaveFailedError, SaveOptions
folder, kind, asynchronous, on_error = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True", sys.argv[4]
writer = CheckpointWriter(folder, World(), SaveOptions(kind, asynchronous, on_error))
writer.save(1, {"weights": {"a": torch.ones(1000)}})
try:
    writer.save(2, {"weights": {"a": torch.ones(1 << 20)}})
    writer.settle()
except SaveFailedError as error:
    print("stopped:", error.line)
writer.save(3, {"weights": {"a": torch.ones(1000)}})
writer.settle()
print("last:", writer.last)
"""


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize(("asynchronous", "on_error"), [(False, "stop"), (True, "stop"), (True, "warn")])
def test_a_full_disk(small_disk, kind, asynchronous, on_error):
    disk = small_disk(megabytes=1)
    command = [sys.executable, "-c", FULL, str(disk), kind, str(asynchronous), on_error]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = run.stdout if on_error == "stop" else run.stderr
    assert run.returncode == 0 and said.count("No space left on device") == 1, run
    assert run.stdout.splitlines()[-1] == "last: 3"
    assert checkpoint.steps(disk) == [1, 3] and len(list(disk.iterdir())) == 2
    assert float(checkpoint.load(checkpoint.path_of(disk, 1), ["weights"])["weights"]["a"].shape[0]) == 1000


def of_two(folder):
    """What two processes see of a disk that refuses the second one's part, of a damaged file, and of an end in between."""
    from diptych.distributed import checkpoint_folder

    world, lines = world_from_environment(), []
    writer = CheckpointWriter(folder, world, SaveOptions("folder", asynchronous=True))
    local = torch.full((2, 3), float(world.rank))

    def parts(_, main):
        return {"weights/a": checkpoint_folder.PartOfTensor(local, (2 * world.rank, 0), (4, 3))}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_folder, "own_parts", parts)
        writer.save(1, {"step": 1, "weights": {"a": torch.zeros(4, 3)}})
        local.fill_(9)
        writer.settle()
        save_file = checkpoint_folder.save_file

        def refused(values, path):
            if world.rank == 1:
                raise OSError(28, "No space left on device", str(path))
            save_file(values, path)

        patch.setattr(checkpoint_folder, "save_file", refused)
        writer.save(2, {"step": 2, "weights": {"a": torch.zeros(4, 3)}})
        try:
            writer.settle()
        except SaveFailedError as error:
            lines.append(error.line)
    names = sorted(path.name for path in folder.iterdir())
    first = checkpoint.load(folder / "step_00000001")["weights"]["a"].whole().tolist()
    all_gather_object(None)
    if rank() == 1:  # the file that the first process checks
        file = folder / "step_00000001" / "rank_00000.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
    all_gather_object(None)
    try:
        checkpoint.load(folder / "step_00000001")
    except WeightsError as error:
        lines.append(error.line)
    return lines, names, first


def test_processes_agree_on_what_was_written_and_read(tmp_path):
    results = run_in_processes(2, of_two, tmp_path)
    assert results[0] == results[1]
    (full, damaged), names, first = results[0]
    assert "No space left on device (rank 1)" in full and "rank_00000.safetensors has" in damaged
    assert names == ["step_00000001"] and first == [[0.0] * 3] * 2 + [[1.0] * 3] * 2


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_leaves_no_half_checkpoint(tmp_path):
    code = FULL.replace("torch.ones(1 << 20)", "torch.ones(1 << 26)")
    code = code.replace("writer.settle()", "print('pending', flush=True); import time; time.sleep(60)", 1)
    command = [sys.executable, "-c", code, str(tmp_path), "folder", "True", "stop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "pending\n"
        process.send_signal(signal.SIGKILL)
    path, _ = checkpoint.newest(tmp_path)
    assert path.name in ("step_00000001", "step_00000002")
