"""Fetch the wheels of ``wheels.txt`` for a machine without a network, to be carried there.

    python benchmarks/gpu/gather.py FOLDER [--python 3.12] [--machine x86_64]

There: ``pip install --no-index --no-deps --target SITE FOLDER/*.whl``, then ``PYTHONPATH=SITE:src python benchmarks/gpu/run.py``.
Not a lock file: PyTorch and what comes with it are the machine's own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

GLIBC = ("2_28", "2_27", "2_24", "2_17")  # pip matches each tag exactly


def main() -> None:
    """Download every wheel; a package without one for that machine is an error of pip, which names it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--machine", default="x86_64")
    options = parser.parse_args()
    tags = [f"manylinux_{version}_{options.machine}" for version in GLIBC] + [f"manylinux2014_{options.machine}"]
    chosen = ["--python-version", options.python, "--implementation", "cp"]
    chosen += [word for tag in tags for word in ("--platform", tag)]
    names = Path(__file__).with_name("wheels.txt")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *chosen]
    subprocess.run([*command, "--dest", str(options.folder), "--requirement", str(names)], check=True)
    files = sorted(options.folder.glob("*.whl"))
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{len(files)} wheels, {size:.1f} MB in {options.folder}")


if __name__ == "__main__":
    main()
