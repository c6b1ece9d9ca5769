"""A run's report: one self-contained HTML file, made from the files of the run's folder and nothing else.

``read`` takes the folder in, ``curves`` (drawn by ``chart``), ``table`` and ``grid`` make the parts, ``page`` puts them
together. It may be made while the run goes on, after a crash, or for a folder that holds results only.
"""

from __future__ import annotations

from pathlib import Path

from diptych.errors import OutputError
from diptych.files import write_text
from diptych.report.page import page
from diptych.report.read import read_run

__all__ = ["write_report"]


def write_report(run_folder: Path) -> Path:
    """Make ``report.html`` in the folder from what is there, and return its path.

    Reads ``config.toml``, ``metrics.jsonl``, ``results.json`` and ``gallery.json``; each may be absent or cut short.
    Raises OutputError when there is no such folder, or when the page cannot be written.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise OutputError(f"no such run folder: {folder}; give the folder that a run wrote to.")
    path = folder / "report.html"
    # Half a surrogate pair is valid in JSON and nowhere else: a caption may hold one.
    text = page(read_run(folder)).encode("utf-8", "replace").decode("utf-8")
    write_text(path, text, "report")
    return path
