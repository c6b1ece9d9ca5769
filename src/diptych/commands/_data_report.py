"""The results of ``diptych data`` as text: what is wrong, how much of it, which records, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FEW = 5


def render(action: str, result: dict[str, Any]) -> str:
    """The lines of an action's result."""
    renderers = {"check": _check, "stats": _stats, "shard": _shard, "index": _index, "split": _split, "bench": _bench}
    return "\n".join(renderers[action](result))


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(1, whole):.2%})"


def _check(result: dict[str, Any]) -> list[str]:
    records = result["records"]
    lines = [
        f"{records:,} records, {result['pictures']:,} images, {result['captions']:,} captions; {result['usable']:,} usable"
    ]
    images = result["pictures"]
    lines += _problem(result["unreadable"], records, "cannot be read", "every image can be read", ": ".join)
    lines += _problem(
        result["empty_captions"], records, "have no caption, or an empty one", "every record has a caption"
    )
    lines += _problem(result["tiny"], records, "are tiny (short side below 32 pixels)", "no image is tiny")
    lines += _problem(
        result["same_bytes"],
        images,
        "images occur twice, byte for byte",
        "no image occurs twice",
        " = ".join,
    )
    lines += _problem(result["nearly_the_same"], images, "pairs of images look the same", "", _pair)
    if "in_both" in result:
        other = result["against"]
        lines += _problem(
            result["in_both"],
            images,
            f"images are also in {other} (leakage)",
            f"no image is also in {other}",
            _pair,
        )
    return lines + _texts(result)


def _pair(pair: Any) -> str:
    return f"{pair[0]} ~ {pair[1]}"


def _problem(items: list[Any], whole: int, what: str, fine: str, show: Callable[[Any], str] = str) -> list[str]:
    if not items:
        return [f"ok      {fine}"] if fine else []
    # Pairs may be more than there are images: then only their number says something.
    count = _share(len(items), whole) if len(items) <= whole else f"{len(items):,}"
    lines = [f"check   {count} {what}:"] + [f"          {show(item)}" for item in items[:FEW]]
    return lines + ([f"          and {len(items) - FEW:,} more"] if len(items) > FEW else [])


def _texts(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["tokens"]:
        tokens = result["tokens"]
        lines.append(
            f"texts   {tokens['mean']:.1f} tokens on average, half below {tokens['p50']:.0f}, 99 % below {tokens['p99']:.0f}, "
            f"longest {tokens['max']}"
        )
    share, limit = _share(result["truncated"], result["captions"]), result["context_length"]
    truncated = f"{share} are longer than {limit} tokens and are truncated"
    lines.append(("check   " if result["truncated"] > result["captions"] / 100 else "ok      ") + truncated)
    if result["scripts"]:
        lines.append(
            "script  "
            + ", ".join(f"{name} {_share(count, result['captions'])}" for name, count in result["scripts"].items())
        )
    often = [pair for pair in result["repeated_captions"] if pair[1] > max(2, result["captions"] / 200)]
    if often:
        lines.append(
            "check   some captions occur very often: "
            + "; ".join(f"{text!r} {count} times" for text, count in often[:FEW])
        )
    return lines


def _stats(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['records']:,} records, {result['captions']:,} captions ({result['captions_per_record']:.2f} each)"
    ]
    if result["without_caption"]:
        lines.append(f"check   {_share(result['without_caption'], result['records'])} have no caption")
    if result["splits"]:
        lines.append("splits  " + ", ".join(f"{name} {count:,}" for name, count in result["splits"].items()))
    return lines + _texts(result)


def _shard(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['samples']:,} samples in {result['shards']:,} shards: {result['folder']}"]
    if result["left_out"]:
        count, listed = len(result["left_out"]), f"{result['folder']}/left_out.jsonl"
        lines.append(f"check   {count:,} records cannot be read and are left out; see {listed}")
    last = f"{result['shards'] - 1:05d}"
    return [*lines, f"train with: --train-data '{result['folder']}/{{00000..{last}}}.{result['format']}'"]


def _index(result: dict[str, Any]) -> list[str]:
    opened = f"opening again took {result['opens_in_seconds']:.3f} s"
    return [f"{result['records']:,} records; the index is in {result['cache']}; {opened}"]


def _split(result: dict[str, Any]) -> list[str]:
    rows = ", ".join(f"{part} {count:,}" for part, count in result["rows"].items())
    return [f"rows: {rows}", *result["files"]]


def _bench(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['records']:,} records; per second and process:"]
    lines += [f"  {name:<28} {value:>9,.0f}" for name, value in result["per_second"].items()]
    lines += ["loader, pairs per second:"]
    lines += [f"  {workers} workers{'':<18} {value:>9,.0f}" for workers, value in result["loader"].items()]
    return [*lines, f"bound by {result['bound_by']}; use --workers {result['workers']}"]
