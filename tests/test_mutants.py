"""``make mutants`` on a toy project: what it changes, what it calls killed, and that it leaves the tree as it was."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("mutmut", reason="mutmut belongs to the extra 'test'")
SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import mutants  # noqa: E402
from mutants_sources import SourceFile  # noqa: E402

TOY = '''"""Not changed."""
from __future__ import annotations


def area(width: int, height: int = 1) -> int:
    """Neither is this."""
    if width < 0:
        raise ValueError("nor this")
    return width * height


def spin(count: int) -> int:
    steps = 0
    while steps < count:
        steps += 1
    return steps
'''
GOOD_TESTS = """
import pytest
from toy import area, spin

def test_area():
    assert area(3, 4) == 12 and area(5) == 5 and area(0, 3) == 0
    with pytest.raises(ValueError):
        area(-1)

def test_spin():
    assert spin(3) == 3 and spin(0) == 0
"""
REASON = """
[[survivor]]
file = "src/toy.py"
before = "return width * height"
after = "return width / height"
reason = "division by one"
"""


@pytest.fixture
def project(tmp_path):
    """Write a toy project and return a function that runs the tool on it."""

    def build(tests=GOOD_TESTS, reasons="", limit=None, functions="[]"):
        for folder in ("src", "tests", "scripts"):
            (tmp_path / folder).mkdir()
        (tmp_path / "src" / "toy.py").write_text(TOY)
        (tmp_path / "tests" / "test_toy.py").write_text(tests)
        table = (
            f'[[module]]\nname = "toy"\nfiles = ["src/*.py"]\ntests = ["tests/test_*.py"]\nfunctions = {functions}\n'
        )
        (tmp_path / "scripts" / "mutants.toml").write_text(table)
        (tmp_path / "scripts" / "mutants_reasons.toml").write_text(reasons)
        return tmp_path

    return build


def run(root, *argv):
    code = mutants.main([*argv, "--workers", "1", "--least-limit", "8"], root)
    output = root / "build" / "mutants.md"
    return code, output.read_text() if output.exists() else ""


@pytest.mark.slow
def test_every_mutant_of_a_tested_function_is_killed_and_the_tree_is_as_before(project):
    root = project()
    code, text = run(root, "--all", "--least", "1")
    assert code == 0, text
    assert "100.0 %" in text
    assert (root / "src" / "toy.py").read_text() == TOY


def test_a_survivor_is_listed_with_its_reason_and_fails_the_run(project):
    weak = "from toy import area\ndef test_area():\n    assert area(3, 1) == 3"
    root = project(tests=weak, reasons=REASON, functions='["area"]')
    code, text = run(root, "--all")
    assert code == 1
    assert "src/toy.py:9 (division by one)\n    - return width * height\n    + return width / height" in text
    assert "src/toy.py:7 (NO REASON: write a test)\n    - if width < 0:\n    + if width <= 0:" in text


@pytest.mark.slow
def test_a_hanging_mutant_counts_as_killed_and_is_listed(project, tmp_path_factory):
    root = project(functions='["spin"]')
    source = SourceFile(root, "src/toy.py", ["spin"])
    hanging = next(
        item
        for item in map(source.mutant, range(len(source)))
        if item and item.after == "steps = 1" and "+=" in item.before
    )
    module = mutants.modules(root)[0]
    worker = mutants.Worker(root, tmp_path_factory.mktemp("worker"))
    try:
        answer = worker.run(module.tests, 5.0, hanging)
        assert worker.run(module.tests, 60.0)["code"] == 0  # the file is restored
    finally:
        worker.close()
    assert answer["code"] is None
    text, rate = mutants.report([mutants.Outcome(hanging, mutants.verdict(answer), answer["seconds"])], [])
    assert rate == 1.0
    assert "(1 by time-out)" in text
    assert "timed out after 5 s: src/toy.py" in text


@pytest.mark.parametrize("broken", ["def test(): assert False", "x = 1"])
def test_tests_that_fail_unchanged_or_are_none_are_an_error(project, capsys, broken):
    assert run(project(tests=broken), "--all") == (2, "")
    assert "the unchanged tests fail" in capsys.readouterr().err


def test_a_pattern_without_files_is_an_error(project, capsys):
    root = project()
    (root / "tests" / "test_toy.py").unlink()
    assert run(root)[0] == 2
    assert "no file matches tests/test_*.py" in capsys.readouterr().err


def test_messages_annotations_and_docstrings_are_not_changed(project):
    source = SourceFile(project(), "src/toy.py")
    made = [item for item in map(source.mutant, range(len(source))) if item]
    assert len(made) >= 10
    for mutant in made:
        assert "ValueError" not in mutant.before
        assert mutant.before.startswith(("if", "return", "steps", "while", "def area"))
        assert mutant.source.splitlines()[: mutant.line - 1] == TOY.splitlines()[: mutant.line - 1]


def test_the_draw_depends_on_the_seed_only():
    chosen = [row for row in mutants.modules(mutants.ROOT) if row.name == "schedule"]
    first, second, other = (mutants.sample(mutants.ROOT, chosen, 10, seed) for seed in (0, 0, 1))
    assert first == second != other
    assert len({mutant.source for _, mutant in first}) == 10


def test_reasons_are_of_files_that_exist():
    import tomllib

    rows = tomllib.loads((SCRIPTS / "mutants_reasons.toml").read_text()).get("survivor", [])
    for row in rows:
        assert row["before"] in " ".join((mutants.ROOT / row["file"]).read_text().split()), row
