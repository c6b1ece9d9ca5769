"""``make mutants``: do the tests notice? Small wrong changes of the core, each run against the test files of its own module.

    python scripts/mutants.py                        # 300 of all, drawn with a fixed seed; exit code 1 under 90 % killed
    python scripts/mutants.py --module order --all   # every mutant of one module

A mutant is killed by a failing test, a crash or a time-out (listed apart); the others survive and are listed with their
difference and, where scripts/mutants_reasons.toml has one, a reason. A survivor with a reason still counts as a survivor.
The work is done in copies of the tree in a temporary folder: the working tree is never changed. See mutants_sources.py
for what is changed, mutants_worker.py for how it is run, mutants.toml for the modules. Needs ``pip install mutmut``.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutants_sources import Mutant, SourceFile

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(__file__).resolve().parent
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
FAILED_TESTS = 1  # pytest's exit codes
NOTHING_COLLECTED, USAGE_ERROR, INTERNAL_ERROR = 5, 4, 3


@dataclass(frozen=True)
class Module:
    """One row of mutants.toml, with its patterns resolved."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed, timed out (which counts as killed) or survived."""

    mutant: Mutant
    verdict: str
    seconds: float


class MutantsError(Exception):
    """The tool cannot do its work: exit code 2."""


def read_table(root: Path) -> dict[str, Any]:
    """What scripts/mutants.toml says."""
    return tomllib.loads((root / "scripts" / "mutants.toml").read_text(encoding="utf-8"))


def modules(root: Path) -> list[Module]:
    """Read scripts/mutants.toml; raises MutantsError for a pattern that matches nothing."""

    def resolved(patterns: list[str]) -> tuple[str, ...]:
        paths: dict[str, None] = {}
        for pattern in patterns:
            matches = sorted(str(path.relative_to(root)) for path in root.glob(pattern))
            if not matches:
                raise MutantsError(f"mutants.toml: no file matches {pattern}")
            paths |= dict.fromkeys(matches)
        return tuple(paths)

    rows = read_table(root)["module"]
    return [
        Module(row["name"], resolved(row["files"]), resolved(row["tests"]), tuple(row.get("functions", ())))
        for row in rows
    ]


def sample(root: Path, chosen: list[Module], count: int, seed: int) -> list[tuple[Module, Mutant]]:
    """``count`` mutants (0: all) drawn over all of the modules' changes with a fixed seed, no two of them the same text."""
    sources = [(module, SourceFile(root, path, module.functions)) for module in chosen for path in module.files]
    numbered = [(module, source, number) for module, source in sources for number in range(len(source))]
    if count:
        random.Random(seed).shuffle(numbered)
    drawn: dict[tuple[str, str], tuple[Module, Mutant]] = {}
    for module, source, number in numbered:
        mutant = source.mutant(number)
        if mutant is not None:
            drawn.setdefault((mutant.path, mutant.source), (module, mutant))
        if count and len(drawn) == count:
            break
    return list(drawn.values())


class Worker:
    """One copy of the tree and one warm process in it."""

    def __init__(self, root: Path, folder: Path) -> None:
        tree = folder / "tree"
        shutil.copytree(root, tree, ignore=NOT_COPIED)
        if (root.parent / "shared").exists():
            (folder / "shared").symlink_to((root.parent / "shared").resolve())
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", str(tree / "src")], check=False
        )  # once, not per mutant
        (folder / "tmp").mkdir()
        environment = os.environ | {
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}",
            "OMP_NUM_THREADS": "1",
        }
        self._errors = (folder / "errors").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / "mutants_worker.py"), *read_table(root).get("warm", [])],
            cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def run(self, tests: tuple[str, ...], limit: float, mutant: Mutant | None = None) -> dict[str, Any]:
        """The worker's answer, see mutants_worker.py."""
        assert self._process.stdin and self._process.stdout
        path, source = (mutant.path, mutant.source) if mutant else ("", "")
        self._process.stdin.write(json.dumps({"path": path, "source": source, "tests": tests, "limit": limit}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise MutantsError(f"a worker ended: {self._errors.read()[-2000:]}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:  # waits, and closes its pipes
            self._errors.close()


def baseline(worker: Worker, chosen: list[Module]) -> dict[str, float]:
    """Seconds that each module's tests take when nothing is changed; they must pass, or every mutant would seem killed."""
    seconds = {}
    for module in chosen:
        answer = worker.run(module.tests, limit=900)
        if answer["code"] != 0:
            raise MutantsError(f"{module.name}: the unchanged tests fail (code {answer['code']}):\n{answer['output']}")
        seconds[module.name] = answer["seconds"]
        print(f"{module.name}: tests pass unchanged in {answer['seconds']:.1f} s", flush=True)
    return seconds


def verdict(answer: dict[str, Any]) -> str:
    """What an answer means; raises MutantsError where pytest did not run the tests at all."""
    code = answer["code"]
    if code in (NOTHING_COLLECTED, USAGE_ERROR, INTERNAL_ERROR):
        raise MutantsError(f"pytest ended with code {code}:\n{answer['output']}")
    if code is None:
        return "timed out"
    return "survived" if code == 0 else "killed"


def run(root: Path, drawn: list[tuple[Module, Mutant]], count_workers: int, least_limit: float) -> list[Outcome]:
    """Run every mutant, each for at most five times the unchanged tests' time, or ``least_limit`` seconds where that is more.

    Raises MutantsError when the unchanged tests fail.
    """
    used = list({module.name: module for module, _ in drawn}.values())
    outcomes: list[Outcome] = []
    failures: list[BaseException] = []
    waiting: queue.SimpleQueue[tuple[Module, Mutant]] = queue.SimpleQueue()
    for item in drawn:
        waiting.put(item)

    def work(worker: Worker) -> None:
        try:
            while not failures:
                module, mutant = waiting.get_nowait()
                answer = worker.run(module.tests, max(least_limit, 5 * seconds[module.name]), mutant)
                outcomes.append(Outcome(mutant, verdict(answer), answer["seconds"]))
                print(f"{len(outcomes)}/{len(drawn)} {outcomes[-1].verdict:9} {mutant.name}"[:170], flush=True)
        except queue.Empty:
            return
        except BaseException as error:
            failures.append(error)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        workers = []
        try:
            workers = [Worker(root, Path(folder) / str(number)) for number in range(count_workers)]
            seconds = baseline(workers[0], used)
            threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for worker in workers:
                worker.close()
    if failures:
        raise failures[0]
    order = {id(mutant): number for number, (_, mutant) in enumerate(drawn)}
    return sorted(outcomes, key=lambda outcome: order[id(outcome.mutant)])


def report(outcomes: list[Outcome], reasons: list[dict[str, str]]) -> tuple[str, float]:
    """The list of survivors and time-outs as Markdown, and the share of mutants that were killed."""
    known = {(row["file"], row["before"], row["after"]): row["reason"] for row in reasons}
    killed = [outcome for outcome in outcomes if outcome.verdict != "survived"]
    rate = len(killed) / max(len(outcomes), 1)
    late = [outcome for outcome in killed if outcome.verdict == "timed out"]
    lines = [f"# {len(killed)} of {len(outcomes)} mutants killed: {100 * rate:.1f} % ({len(late)} by time-out)"]
    lines += [f"- timed out after {outcome.seconds:.0f} s: {outcome.mutant.name}" for outcome in late]
    for outcome in outcomes:
        mutant = outcome.mutant
        if outcome.verdict == "survived":
            reason = known.get((mutant.path, mutant.before, mutant.after), "NO REASON: write a test")
            lines += ["", f"{mutant.path}:{mutant.line} ({reason})", f"    - {mutant.before}", f"    + {mutant.after}"]
    return "\n".join(lines) + "\n", rate


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit code 0: enough mutants killed; 1: too few; 2: the tool could not work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="mutants drawn over all modules")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--all", action="store_true", help="every mutant (hours)")
    parser.add_argument("--module", action="append", default=[], help="only this row of mutants.toml; may be repeated")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument(
        "--least-limit", type=float, default=30.0, help="seconds that any mutant gets: a slow test does not hang"
    )
    parser.add_argument("--least", type=float, default=0.9, help="share that must be killed")
    parser.add_argument("--output", type=Path, default=root / "build" / "mutants.md", help="list of survivors")
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        every = modules(root)
        unknown = set(options.module) - {module.name for module in every}
        if unknown:
            raise MutantsError(f"unknown module {sorted(unknown)}; known: {[module.name for module in every]}")
        chosen = [module for module in every if not options.module or module.name in options.module]
        drawn = sample(root, chosen, 0 if options.all else options.count, options.seed)
        outcomes = run(root, drawn, options.workers, options.least_limit)
    except MutantsError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    rows = tomllib.loads((root / "scripts" / "mutants_reasons.toml").read_text(encoding="utf-8")).get("survivor", [])
    text, rate = report(outcomes, rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{(time.monotonic() - started) / 60:.1f} minutes; written to {options.output}")
    return 0 if rate >= options.least else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and copies go too
    sys.exit(main())
