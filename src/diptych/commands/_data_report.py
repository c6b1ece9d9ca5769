"""What ``diptych data`` found, in plain words: what is wrong, how much of it, which ones, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FEW = 5


def told(action: str, found: dict[str, Any]) -> str:
    """The words for a result of an action."""
    words = {"check": _check, "stats": _stats, "shard": _shard, "index": _index, "split": _split, "bench": _bench}
    return "\n".join(words[action](found))


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(1, whole):.2%})"


def _check(found: dict[str, Any]) -> list[str]:
    records = found["records"]
    lines = [
        f"{records:,} records, {found['pictures']:,} pictures, {found['captions']:,} captions; {found['usable']:,} usable"
    ]
    pictures = found["pictures"]
    lines += _problem(found["unreadable"], records, "cannot be read", "every picture can be read", ": ".join)
    lines += _problem(
        found["empty_captions"], records, "have no caption, or an empty one", "every record has a caption"
    )
    lines += _problem(found["tiny"], records, "are tiny (short side below 32 pixels)", "no picture is tiny")
    lines += _problem(
        found["same_bytes"],
        pictures,
        "pictures are there twice, byte for byte",
        "no picture is there twice",
        " = ".join,
    )
    lines += _problem(found["nearly_the_same"], pictures, "pairs of pictures look the same", "", _pair)
    if "in_both" in found:
        other = found["against"]
        lines += _problem(
            found["in_both"],
            pictures,
            f"pictures also stand in {other} (leakage)",
            f"no picture also stands in {other}",
            _pair,
        )
    return lines + _texts(found)


def _pair(pair: Any) -> str:
    return f"{pair[0]} ~ {pair[1]}"


def _problem(items: list[Any], whole: int, what: str, fine: str, show: Callable[[Any], str] = str) -> list[str]:
    if not items:
        return [f"ok      {fine}"] if fine else []
    lines = [f"look    {_share(len(items), whole)} {what}:"] + [f"          {show(item)}" for item in items[:FEW]]
    return lines + ([f"          and {len(items) - FEW:,} more"] if len(items) > FEW else [])


def _texts(found: dict[str, Any]) -> list[str]:
    lines = []
    if found["tokens"]:
        tokens = found["tokens"]
        lines.append(
            f"texts   {tokens['mean']:.1f} tokens on average, half below {tokens['p50']:.0f}, 99 % below {tokens['p99']:.0f}, "
            f"longest {tokens['max']}"
        )
    cut = (
        f"{_share(found['truncated'], found['captions'])} are longer than {found['context_length']} tokens and are cut"
    )
    lines.append(("look    " if found["truncated"] > found["captions"] / 100 else "ok      ") + cut)
    if found["scripts"]:
        lines.append(
            "script  "
            + ", ".join(f"{name} {_share(count, found['captions'])}" for name, count in found["scripts"].items())
        )
    often = [pair for pair in found["repeated_captions"] if pair[1] > max(2, found["captions"] / 200)]
    if often:
        lines.append(
            "look    some captions come very often: "
            + "; ".join(f"{text!r} {count} times" for text, count in often[:FEW])
        )
    return lines


def _stats(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['records']:,} records, {found['captions']:,} captions ({found['captions_per_record']:.2f} each)"]
    if found["without_caption"]:
        lines.append(f"look    {_share(found['without_caption'], found['records'])} have no caption")
    if found["splits"]:
        lines.append("splits  " + ", ".join(f"{name} {count:,}" for name, count in found["splits"].items()))
    return lines + _texts(found)


def _shard(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['samples']:,} samples in {found['shards']:,} shards: {found['folder']}"]
    if found["left_out"]:
        count, listed = len(found["left_out"]), f"{found['folder']}/left_out.jsonl"
        lines.append(f"look    {count:,} records cannot be read and are left out; see {listed}")
    last = f"{found['shards'] - 1:05d}"
    return [*lines, f"train with: --train-data '{found['folder']}/{{00000..{last}}}.{found['format']}'"]


def _index(found: dict[str, Any]) -> list[str]:
    opened = f"opening again took {found['opens_in_seconds']:.3f} s"
    return [f"{found['records']:,} records; the index lies in {found['cache']}; {opened}"]


def _split(found: dict[str, Any]) -> list[str]:
    rows = ", ".join(f"{part} {count:,}" for part, count in found["rows"].items())
    return [f"rows: {rows}", *found["files"]]


def _bench(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['records']:,} records; per second and process:"]
    lines += [f"  {name:<28} {value:>9,.0f}" for name, value in found["per_second"].items()]
    lines += ["loader, pairs per second:"]
    lines += [f"  {workers} workers{'':<18} {value:>9,.0f}" for workers, value in found["loader"].items()]
    return [*lines, f"bound by {found['bound_by']}; use --workers {found['workers']}"]
