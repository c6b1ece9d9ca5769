"""The drawing and the table of docs/scale.md from what benchmarks/scaling.py measured; measures nothing.

    python benchmarks/scaling_page.py [FILE]

Writes docs/scaling.png, and the lines of docs/scale.md between the marks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scaling import LAYOUTS, PROCESSES, RESULT, ROOT

PAGE, PICTURE = ROOT / "docs" / "scale.md", ROOT / "docs" / "scaling.png"
BEGIN, END = (
    "<!-- result: python benchmarks/scaling.py && python benchmarks/scaling_page.py -->",
    "<!-- end of result -->",
)


def draw(result: dict[str, Any]) -> None:
    """Four panels: seconds of a step, megabytes of a process, bytes of a step, seconds of a collective by its bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flat
    for axes, key, title, unit in zip(
        panels,
        ("seconds", "megabytes", "bytes"),
        ("Seconds of a step", "Memory of a process at most", "Bytes that a process hands over in a step"),
        ("s", "MB", "MB"),
        strict=False,
    ):
        for layout in LAYOUTS:
            points = [item for item in result["steps"] if item["layout"] == layout]
            scale = 1e6 if key == "bytes" else 1
            axes.plot(
                [item["processes"] for item in points], [item[key] / scale for item in points], "o-", label=layout
            )
        axes.set(title=title, xlabel="processes", ylabel=unit, xticks=PROCESSES, ylim=(0, None))
    axes = figure.axes[3]
    for processes in sorted({item["processes"] for item in result["collectives"]}):
        for name in ("all_reduce", "all_gather", "reduce_scatter"):
            points = [
                item for item in result["collectives"] if (item["collective"], item["processes"]) == (name, processes)
            ]
            label = f"{name}, {processes} processes"
            axes.plot(
                [item["bytes"] for item in points],
                [item["seconds"] for item in points],
                "o-",
                markersize=3,
                label=label,
            )
    axes.set(title="Seconds of a collective by its bytes", xlabel="bytes", ylabel="s", xscale="log", yscale="log")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize="small")
    figure.suptitle(f"{result['preset']}, {result['batch_size']} pairs a process, gloo on {result['cores']} cores")
    figure.savefig(PICTURE)


def table(result: dict[str, Any]) -> list[str]:
    """Lines of the page: the drawing, what was measured where, and a row for each point."""
    ratio = (
        "fewer cores than processes, so times show how cores are shared"
        if result["cores"] < max(PROCESSES)
        else "a core each"
    )
    lines = [
        "![Step time, memory and communication by processes; seconds of collectives by bytes](scaling.png)",
        "",
        f"{result['preset']}, {result['batch_size']} pairs a process, fp32, {result['backend']} on {result['cores']} cores of "
        f"one machine ({ratio}); median of {result['rounds']} steps.",
        "",
        "| layout | processes | pairs a step | seconds a step | memory of a process at most | handed over a step |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item['layout']} | {item['processes']} | {item['pairs']} | {item['seconds']:.3g} | {item['megabytes']:.0f} MB "
        f"| {item['bytes'] / 1e6:.1f} MB |"
        for item in result["steps"]
    ]
    return lines


def main() -> None:
    """Draw, and replace the lines between the marks."""
    result = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT).read_text())
    draw(result)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([before + BEGIN, *table(result), END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
