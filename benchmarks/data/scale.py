"""Opening very large lists and shards: seconds and memory, the first time and the second.

    python benchmarks/data/scale.py FOLDER [ROWS]       (no peer; needs some 2 GB in FOLDER; default 10,000,000 rows)

Memory is the growth of the process's peak from before the opening to after a thousand random records have been read. Shards: ten
tars of 10,000 samples (a 3 KB image, a text), their headers read against the time to read the same files whole with cat.
Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _peers import machine

RESULT = Path(__file__).resolve().parents[1] / "results" / "scale.json"
OPEN = """
import random, sys, time
from diptych.data import open_source, SourceOptions
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
before, start = peak(), time.perf_counter()
source = open_source(sys.argv[1])
opened = time.perf_counter() - start
rng = random.Random(0)
for _ in range(1000):
    source.record(rng.randrange(len(source)))
print(len(source), opened, peak() - before)
"""


def opened(spec: str, cache: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", OPEN, spec], capture_output=True, text=True, check=True,
                          env={**os.environ, "DIPTYCH_CACHE": str(cache)})  # fmt: skip
    count, seconds, memory = done.stdout.split()
    return {"records": int(count), "seconds": float(seconds), "extra_megabytes": float(memory) / 1e6}


def write_lists(folder: Path, rows: int) -> dict[str, Path]:
    files = {"csv": folder / "pairs.csv", "jsonl": folder / "pairs.jsonl"}
    with files["csv"].open("w") as table, files["jsonl"].open("w") as lines:
        table.write("filepath,title\n")
        for first in range(0, rows, 100_000):
            span = range(first, min(first + 100_000, rows))
            table.writelines(f'images/{number:09d}.jpg,"a photo, number {number}, of a dog"\n' for number in span)
            rows_of = ({"image": f"images/{number:09d}.jpg", "caption": f"a photo, number {number}"} for number in span)
            lines.writelines(json.dumps(row) + "\n" for row in rows_of)
    return files


def write_shards(folder: Path) -> str:
    image = os.urandom(3000)
    for shard in range(10):
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as tar:
            for number in range(10_000):
                for ending, data in (("jpg", image), ("txt", b"a photo")):
                    member = tarfile.TarInfo(f"{shard:02d}{number:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / "{00..09}.tar")


def seconds_of(command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, shell=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000_000
    result: dict[str, object] = {"benchmark": "opening large lists and shards", "rows": rows}
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as name:
        folder = Path(name)
        for kind, path in write_lists(folder, rows).items():
            result[kind] = {
                "bytes": path.stat().st_size,
                "first": opened(str(path), folder / "cache"),
                "second": opened(str(path), folder / "cache"),
            }
            print(kind, json.dumps(result[kind]), flush=True)
            path.unlink()
        spec = write_shards(folder)
        result["tar"] = {
            "bytes": sum(path.stat().st_size for path in folder.glob("*.tar")),
            "reading_whole_seconds": seconds_of(f"cat {folder}/*.tar > /dev/null"),
            "first": opened(spec, folder / "cache"),
            "second": opened(spec, folder / "cache"),
        }
        print("tar", json.dumps(result["tar"]))
    result["machine"] = machine("numpy", "torch")
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
