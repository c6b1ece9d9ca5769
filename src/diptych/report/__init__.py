"""A run's report: one self-contained HTML file and two drawings, from the files of the run's folder and nothing else.

``read`` takes the folder in, ``summary``, ``curves`` (drawn by ``chart``), ``table`` and ``grid`` make the parts, ``page`` puts
them together; ``png`` draws loss and recall as PNG files, ``compare`` lays several runs over each other. It may be written
while the run goes on, after a crash, or for a folder that holds results only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diptych.errors import OutputError
from diptych.files import StrPath, write_text
from diptych.report.compare import comparison
from diptych.report.page import page
from diptych.report.png import write_pngs
from diptych.report.read import RunFiles, read_run
from diptych.report.summary import HEADS, TITLES, Summary, columns, summary

__all__ = ["HEADS", "TITLES", "Summary", "columns", "read_run", "summary", "write_comparison", "write_report"]


def write_report(run_folder: StrPath) -> Path:
    """Make ``report.html``, ``loss.png`` and ``recall.png`` in the folder from what is there; return the page's path.

    Reads ``config.toml``, ``metrics.jsonl``, ``results.json``, ``gallery.json`` and ``views.png``; each may be absent or
    truncated. Raises OutputError when there is no such folder, or when a file cannot be written.
    """
    folder = Path(run_folder)
    run = _read(folder)
    path = folder / "report.html"
    _write(path, page(run))
    write_pngs(run, folder)
    return path


def write_comparison(run_folders: Sequence[StrPath], path: StrPath) -> Path:
    """Make one page of several runs at ``path``, and return it. Raises OutputError as ``write_report`` does."""
    _write(Path(path), comparison([_read(Path(folder)) for folder in run_folders]))
    return Path(path)


def _read(folder: Path) -> RunFiles:
    if not folder.is_dir():
        raise OutputError(f"no such run folder: {folder}; give the folder that a run wrote to.")
    return read_run(folder)


def _write(path: Path, text: str) -> None:
    # Half a surrogate pair is valid in JSON and nowhere else: a caption may hold one.
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"), "report")
