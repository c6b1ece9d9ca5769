"""Every code block of the README and the docs works: Python is executed, commands are run on tiny data or at least parsed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from diptych import config, weights
from diptych.commands import COMMANDS, main
from diptych.commands._open_clip_flags import translated
from diptych.data import SOURCES, open_source
from diptych.devices import get_device
from diptych.evaluate import EVALUATORS, Encoder
from diptych.objectives import OBJECTIVES
from diptych.train.config import tree_for
from tests.docs._blocks import BLOCKS, PAGES, ROOT, Block

PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == "sh"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Added to a command when it is run here, so that it takes a second; of a flag that stands twice the last one counts.
SMALL = {
    "train": "--model tiny-test --batch-size 4 --max-steps 2 --workers 0 --device cpu --warmup 1",
    "evaluate": "--workers 0 --device cpu",
    "report": "",
    "models": "",
    "profile": "",
    "data check": "",
    "data stats": "",
    "data index": "",
    "data shard": "",
}
SYSTEM = ("cd", "git", "source", "export")


def small(argv: list[str]) -> list[str] | None:
    """The flags that make a command small; None where it is parsed and not run."""
    name = " ".join(argv[1:3]) if argv[1] == "data" else argv[1]
    return SMALL[name].split() if name in SMALL else None


def parse(argv: list[str]) -> None:
    """Every flag and value of a ``diptych`` command goes through the command's real parser."""
    name, *flags = argv[1:]
    assert name in COMMANDS.names(), f"no command {name!r}"
    if name == "train":
        # The parser of a run opens recipes and resumed runs; only names are checked here, values where the command runs.
        objective = flags[flags.index("--objective") + 1] if "--objective" in flags else "clip"
        tree = tree_for("clip" if ":" in objective else objective)
        known = {"--" + leaf.replace("_", "-") for _, leaf in config.leaves(tree)} | {"--recipe", "--config"}
        flags = translated(flags, known)
        unknown = [
            flag for flag in flags if flag.startswith("--") and flag.split("=")[0].replace("--no-", "--") not in known
        ]
        assert not unknown, f"diptych train has no flag {unknown[0]}"
        return
    COMMANDS.get(name).read(name, flags)


def check(argv: list[str]) -> bool:
    """Check one command without running it; returns whether it is one of Diptych's own."""
    while "=" in argv[0]:
        argv = argv[1:]
    if argv[0] == "torchrun":
        argv = argv[argv.index("diptych") :] if "diptych" in argv else argv
    if argv[0] == "diptych":
        parse(argv)
        return True
    if argv[0] == "make":
        for target in (word for word in argv[1:] if "=" not in word and not word.startswith("-")):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
    elif argv[0] == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(argv))
        for extra in (name for group in extras for name in group.split(",")):
            assert extra in PROJECT["optional-dependencies"], f"no extra {extra!r}"
    elif argv[0] in ("python", "python3"):
        script = next(word for word in argv[1:] if not word.startswith("-"))
        assert argv[1] == "-m" or (ROOT / script).is_file(), f"no script {script}"
    else:
        assert argv[0] in SYSTEM, f"{argv[0]}: a program that the tests do not know; mark the block, or teach the tests"
    return False


def run(argv: list[str]) -> None:
    """Run a command of Diptych here and now, on the files of ``world``."""
    extra = small(argv)
    assert extra is not None
    if argv[1] == "train" and "--resume" not in argv and "--output" in argv:
        shutil.rmtree(argv[argv.index("--output") + 1], ignore_errors=True)
    assert main([*argv[1:], *extra]) == 0


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_known_and_their_flags_are_too(block):
    assert block.commands
    for argv in block.commands:
        check(argv)


def own_commands(block: Block) -> list[list[str]]:
    return [argv for argv in block.commands if argv[0] == "diptych" and small(argv) is not None]


RUN = [block for block in SHELL if not block.reason and own_commands(block)]


@pytest.mark.heavy
@pytest.mark.parametrize("block", RUN, ids=str)
def test_commands_run(block, world, capsys):
    for argv in own_commands(block):
        run(argv)


# One process, which imports torch once; each block has names of its own, and stops the rest when it fails.
PROGRAM = "import runpy, sys\nfor path in sys.argv[1:]:\n    runpy.run_path(path)\n    print('ran', path)\n"


@pytest.mark.heavy
def test_python_runs(world):
    blocks = [block for block in PYTHON if not block.reason]
    names = [f"{block.page.stem}_{block.line}.py" for block in blocks]
    for name, block in zip(names, blocks, strict=True):
        # Padded with empty lines, so that a traceback names the line of the page.
        (world / name).write_text("\n" * block.line + block.text, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ran ") == len(blocks)


@pytest.fixture
def own_registries(monkeypatch):
    """What a block registers is forgotten after the test."""
    for registry in (OBJECTIVES, SOURCES, EVALUATORS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def block_with(text: str) -> str:
    (block,) = [block for block in PYTHON if block.page.name == "extend.md" and text in block.text]
    return block.text


@pytest.mark.usefixtures("own_registries")
def test_the_objective_and_the_data_format_of_the_extend_page_train(world, monkeypatch):
    """Taken as module:Class, over micro-batches, from a file in that format."""
    (world / "margin_of_the_page.py").write_text(block_with("class Margin("), encoding="utf-8")
    (world / "lines_of_the_page.py").write_text(block_with("class Lines:"), encoding="utf-8")
    rows = [f"images/{number:02d}.png\ta square, number {number}" for number in range(12)]
    (world / "pairs.lines").write_text("\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(world)
    names = "--objective margin_of_the_page:Margin --margin 0.1 --dataset-type lines_of_the_page:Lines --accum-freq 2"
    small = "--model tiny-test --batch-size 3 --max-steps 2 --warmup 1 --workers 0 --device cpu"
    assert main(["train", "--train-data", "pairs.lines", "--output", "runs/c", *names.split(), *small.split()]) == 0
    rows = [json.loads(line) for line in (world / "runs" / "c" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "true_cosine"} <= set(rows[0])


@pytest.mark.usefixtures("own_registries")
def test_the_evaluator_of_the_extend_page_measures(world):
    names: dict[str, Any] = {}
    exec(compile(block_with("class Alignment("), "extend.md", "exec"), names)
    model = weights.load(world / "runs" / "a")
    tokenizer, transform = weights.tokenizer_of(model.config), weights.transforms(model.config)[1].transform
    encoder = Encoder(model, tokenizer, transform, get_device("cpu"))
    result = names["Alignment"]().run(encoder, open_source("photos.csv"), names["AlignmentOptions"](alignment_images=5))
    assert -1 <= result.metrics["cosine"] <= 1 and result.count == {"images": 5}


@pytest.mark.parametrize("block", [block for block in PYTHON if block.reason], ids=str)
def test_python_that_is_not_run_is_at_least_python(block):
    included = re.fullmatch(r'--8<-- "(.+)"\n', block.text)
    text = (ROOT / included[1]).read_text(encoding="utf-8") if included else block.text
    compile(text, str(block), "exec")
    if included:
        name = Path(included[1]).name
        tested = (ROOT / "tests" / "examples" / "test_examples.py").read_text(encoding="utf-8")
        assert f'("{name}",' in tested, f"{block} includes a script that no test runs"


def test_blocks_are_really_found_and_run():
    """A parser that finds nothing would make all of the above pass."""
    assert len({block.page for block in BLOCKS}) >= 8
    assert sum(len(own_commands(block)) for block in RUN) >= 12
    assert sum(argv[0] == "diptych" for block in SHELL for argv in block.commands) >= 20
    assert len([block for block in PYTHON if not block.reason]) >= 3
    assert all(len(block.reason) > 10 for block in BLOCKS if block.reason), "a reason says why"


def test_every_language_is_one_that_the_tests_know():
    assert {block.language for block in BLOCKS} <= {"python", "sh", "text", "toml", "json", "make"}


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)|!\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [one or other for one, other in LINK.findall(text)]
    lost = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not lost


def test_every_page_is_in_the_navigation_of_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert pages
    assert not [page for page in pages if f": {page}\n" not in nav]


# What programs need not call: the command line and what it runs, data that ships, readers behind ``weights``.
INTERNAL = {"assets", "recipes", "commands", "conformance", "tensorfiles", "config", "files"}


def test_every_package_of_the_library_has_a_page_in_the_api_reference():
    source = ROOT / "src" / "diptych"
    packages = {path.parent.name for path in source.glob("*/__init__.py")} | {
        path.stem for path in source.glob("[a-z]*.py")
    }
    documented = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        documented |= set(re.findall(r"^::: diptych\.?(\w*)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert packages - INTERNAL <= documented
    assert not documented & INTERNAL
