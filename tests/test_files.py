"""What stood there before is whole, whatever happens while the new is written."""

import subprocess
import sys

import pytest

from diptych.errors import OutputError
from diptych.files import replacing, write_text


def test_the_new_text_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_and_no_litter(tmp_path):
    path = tmp_path / "b.txt"
    write_text(path, "one")
    with pytest.raises(ZeroDivisionError), replacing(path) as beside:
        beside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_the_old_is_whole(tmp_path):
    # A limit on the size of files makes the system refuse as a full disk does, for real.
    path = tmp_path / "b.txt"
    write_text(path, "one")
    code = (
        "import resource, signal, sys; from pathlib import Path; from diptych.files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(Path(sys.argv[1]), 'x' * 5000, 'thing')"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "OutputError: the thing" in run.stderr
    assert "is whole" in run.stderr
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_an_output_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match="could not be written"):
        write_text(blocked / "b.txt", "x")
