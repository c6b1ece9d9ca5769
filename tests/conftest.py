"""One thread per test process, since those of several would wait for each other; a cache of their own; a disk to fill."""

import atexit
import os
import shutil
import subprocess
import tempfile

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
# A resumed or demo run must not find what another test, or the user, unpacked.
os.environ.pop("RANK", None)
os.environ.pop("WORLD_SIZE", None)
os.environ["DIPTYCH_CACHE"] = tempfile.mkdtemp(prefix="diptych-tests-")
atexit.register(shutil.rmtree, os.environ["DIPTYCH_CACHE"], ignore_errors=True)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of so many megabytes, which can really be full, and return its folder; skips where that is not allowed."""
    mounted = []

    def mount(megabytes):
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)
