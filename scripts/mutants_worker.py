"""Run tests on a changed file in a copy of the tree, each time in a fork of one process that has torch imported.

A new Python process spends four seconds on importing torch, a fork none: that is what lets hundreds of mutants run in an
hour. The process imports the modules named by its arguments, never ``diptych``, so that a fork reads the changed file.
Requests are lines of JSON on standard input, ``{"path", "source", "tests", "limit"}`` (an empty path changes nothing);
answers are lines of JSON on standard output, ``{"code", "seconds", "output"}``, where the code is pytest's, negative for a
signal, null for a time-out.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPTIONS = ["-x", "-q", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line", "--no-header"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis was imported before pytest saw it


@contextlib.contextmanager
def changed(path: str, source: str) -> Iterator[None]:
    """The file ``path`` with another text, and with a time stamp that no stored bytecode has; restored afterwards."""
    if not path:
        yield
        return
    file = Path(path)
    original, stamp = file.read_bytes(), file.stat().st_mtime
    file.write_text(source, encoding="utf-8")
    os.utime(file, (stamp + 1000, stamp + 1000))
    try:
        yield
    finally:
        file.write_bytes(original)
        os.utime(file, (stamp, stamp))


def run(path: str, source: str, tests: list[str], limit: float) -> dict[str, Any]:
    """Run the tests with the file changed; ``limit`` seconds at most, then the whole process group is ended."""
    scratch = Path(tempfile.mkdtemp(prefix="mutant-"))
    started = time.monotonic()
    try:
        with changed(path, source):
            child = os.fork()
            if child == 0:
                _test(scratch, tests, keep_bytecode=not path)
            code = _wait(child, started + limit)
        output = (scratch / "output").read_text(encoding="utf-8", errors="replace")[-4000:]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(".hypothesis", ignore_errors=True)
    return {"code": code, "seconds": time.monotonic() - started, "output": output}


def _test(scratch: Path, tests: list[str], keep_bytecode: bool) -> None:
    code = 70
    try:
        os.setsid()
        if sys.platform == "linux":  # a worker that is killed takes its test along
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        handle = os.open(scratch / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
        if not keep_bytecode:  # a mutant's bytecode must not outlive it
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        import pytest

        code = int(pytest.main([*OPTIONS, "--hypothesis-profile=ci", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _wait(child: int, deadline: float) -> int | None:
    parent = os.getppid()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        late = time.monotonic() > deadline
        if done or late or os.getppid() != parent:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            if not done:
                os.waitpid(child, 0)
            if os.getppid() != parent:
                sys.exit(1)
            return os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.02)


def main() -> None:
    """Answer requests until standard input ends."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a fork must not inherit a pool of threads
    for name in ("_pytest.assertion.rewrite", "pytest", "hypothesis", "_hypothesis_pytestplugin", *sys.argv[1:]):
        importlib.import_module(name)
    sys.path.insert(0, os.getcwd())
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request["path"], request["source"], request["tests"], request["limit"])), flush=True)


if __name__ == "__main__":
    main()
