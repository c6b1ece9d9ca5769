"""Does a student learn more from a stronger teacher, or from the tokens of captions, than alone, at equal steps?

    python benchmarks/objectives_short.py FOLDER      (the project's own environment; no peer)

The demo's drawings, on two CPU cores: a teacher of 600 steps, then students of 120 steps, of one architecture, seeds 0 and 1,
batches of 64; scores are recalls of names on the unseen drawing style. A run that is finished in FOLDER is not repeated. Writes
benchmarks/results/objectives_short.json. No timing, and no claim about other data or towers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import diptych

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "objectives_short.json"
EMOJI = Path(diptych.__file__).parent / "assets" / "emoji"
COMMON = "--recipe emoji --device cpu --batch-size 64 --warmup 10 --save-every-steps 0 --val-every-steps 0 --log-every-n-steps 20"
SEEDS = (0, 1)


def arms(folder: Path) -> dict[str, str]:
    """The flags of every run by its folder's name, the teacher first."""
    distill = f"--objective distill --distill-model {folder / 'teacher'}"
    runs = {"teacher": "--max-steps 600"}
    for seed in SEEDS:
        runs[f"clip-{seed}"] = f"--max-steps 120 --seed {seed}"
        runs[f"distill-{seed}"] = f"--max-steps 120 --seed {seed} {distill}"
        runs[f"superclip-{seed}"] = f"--max-steps 120 --seed {seed} --objective superclip"
    return runs


def trained(folder: Path, name: str, flags: str) -> dict[str, float]:
    """The scores of a run, which is trained if it is not there."""
    if not (folder / name / "results.json").is_file():
        data = ["--train-data", str(EMOJI / "train-*.tar.gz"), "--val-data", str(EMOJI / "unseen_style-*.tar.gz")]
        command = [sys.executable, "-m", "diptych", "train", *data, *COMMON.split(), *flags.split()]
        subprocess.run([*command, "--output", str(folder / name)], check=True)
    scores: dict[str, float] = json.loads((folder / name / "results.json").read_text())[0]["metrics"]
    return scores


def main() -> None:
    folder = Path(sys.argv[1])
    results = {}
    for name, flags in arms(folder).items():
        scores = trained(folder, name, flags)
        results[name] = {key: round(100 * value, 3) for key, value in scores.items() if "_R@" in key or key == "r_mean"}
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(f"teacher: mean recall {results['teacher']['r_mean']:.2f} %")
    for seed in SEEDS:
        scores = [f"{arm} {results[f'{arm}-{seed}']['r_mean']:.2f} %" for arm in ("clip", "distill", "superclip")]
        print(f"seed {seed}: mean recall {', '.join(scores)}")


if __name__ == "__main__":
    main()
