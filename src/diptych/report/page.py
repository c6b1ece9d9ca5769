"""The page of a run: header, results, gallery, curves, config, put into one HTML text with its style sheet inside.

No script, no font, no address of another machine: the file opens anywhere, also years later.
"""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from importlib import resources
from string import Template

from diptych import __version__
from diptych.report.curves import curves
from diptych.report.grid import galleries
from diptych.report.read import RunFiles, number
from diptych.report.scale import count, duration
from diptych.report.summary import summary, summary_table
from diptych.report.table import headline, results

END_OF_DATES = 32503680000.0  # the year 3000: a larger time is no time


def page(run: RunFiles) -> str:
    """Return the whole HTML text."""
    folder = resources.files("diptych.report")
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    sections = [
        _section(
            "results",
            "Results",
            "Every score with its 95 % interval and what random features would give.",
            results(run) + (summary_table([summary(run)]) if run.train else ""),
        ),
        _section(
            "gallery",
            "What it finds",
            "Best answers first, with their cosine similarity. Right ones are framed and ticked.",
            galleries(run),
        ),
        _section(
            "views",
            "What it learned from",
            "The first records of the run: each image, and the views of it and of its captions that were trained on.",
            f'<img class="sheet" src="{run.views}" alt="images, their views and captions">' if run.views else "",
        ),
        _section("curves", "How it learned", "Point at a curve to read its values.", _grid(curves(run))),
        _config(run),
    ]
    return template.substitute(
        title=escape(run.name),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        model=escape(str(run.option("model", "") or "")),
        facts=_facts(run),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in _notes(run)),
        headline=headline(run),
        contents=_contents(sections),
        sections="".join(sections) or '<p class="note">This folder holds no results yet.</p>',
        version=escape(__version__),
    )


def _contents(sections: list[str]) -> str:
    """Links to the parts of the page that there are, when there is more than one."""
    titles = (
        ("results", "Results"),
        ("gallery", "What it finds"),
        ("views", "What it learned from"),
        ("curves", "How it learned"),
        ("config", "Configuration"),
    )
    present = [item for item, section in zip(titles, sections, strict=True) if section]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in present)
    return f'<nav aria-label="Contents">{links}</nav>' if len(present) > 1 else ""


def _section(name: str, title: str, subtitle: str, body: str) -> str:
    if not body:
        return ""
    return f'<section id="{name}"><header><h2>{escape(title)}</h2><p>{escape(subtitle)}</p></header>{body}</section>'


def _grid(figures: str) -> str:
    return f'<div class="charts">{figures}</div>' if figures else ""


def _config(run: RunFiles) -> str:
    if not run.config_text.strip():
        return ""
    return (
        '<section id="config"><details><summary>Configuration<small>config.toml, as resolved for this run</small></summary>'
        f"<pre><code>{escape(run.config_text)}</code></pre></details></section>"
    )


def _facts(run: RunFiles) -> str:
    """The line of facts under the title: only those that the files know."""
    facts: list[tuple[str, str]] = []
    if run.pairs:
        facts.append(("pairs seen", count(run.pairs)))
    if run.steps:
        facts.append(("steps", count(run.steps)))
    epoch = max((number(row.get("epoch")) or 0.0 for row in run.train), default=0.0)
    if epoch:
        facts.append(("epochs", f"{epoch:.1f}"))
    if run.batch:
        facts.append(("batch", count(run.batch)))
    if run.seconds:
        facts.append(("duration", duration(run.seconds)))
    times = [number(row.get("time")) for row in (*run.train, *run.evaluations)]
    last = max((time for time in times if time is not None and 0 < time < END_OF_DATES), default=None)
    if last:
        facts.append(("last written", f"{datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M} UTC"))
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)


def _notes(run: RunFiles) -> list[str]:
    notes = list(run.notes)
    last = run.train[-1] if run.train else {}
    bad, truncated = number(last.get("bad_samples")), number(last.get("truncated_tokens"))
    if bad:
        notes.append(f"{count(bad)} samples could not be read and were replaced.")
    if truncated:
        captions = [
            (name.partition(" ")[2], value) for name, value in last.items() if name.startswith("truncated_captions ")
        ]
        by_source = ", ".join(f"{count(number(value) or 0)} captions of {name}" for name, value in captions)
        notes.append(
            f"{count(truncated)} tokens of long captions were truncated{': ' + by_source if by_source else ''}."
        )
    return notes
