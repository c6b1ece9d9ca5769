"""Code blocks of the README and the docs: where they stand, what they are written in, and whether they say that they are not run.

``<!-- not run: REASON -->`` before a block exempts it from running; its flags and its syntax are checked all the same.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
PAGES += sorted(ROOT.glob("src/diptych/recipes/*.md"))
SHELL = ("sh", "bash", "console", "shell")
PROGRAMS = ("diptych", "make", "pip", "python", "torchrun")


@dataclass(frozen=True)
class Block:
    """One fenced block. ``reason`` says why it is not run; empty where it is."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The argv of each line of a shell block, without prompts, comments and continued lines' backslashes."""
        text = re.sub(r"\\\n\s*", " ", self.text)
        lines = [line.removeprefix("$ ").strip() for line in text.splitlines()]
        argvs = [shlex.split(line, comments=True) for line in lines]
        return [argv for argv in argvs if argv]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order. Raises ValueError for a fence that does not end."""
    blocks, opened, reason = [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.match(r"^(\s*)```(\w*)\s*$", line)
        if opened is None:
            marker = re.match(r"^\s*<!-- not run: (.+) -->\s*$", line)
            if marker:
                reason = marker[1]
            elif fence:
                opened, indent, lines = (number, fence[2]), len(fence[1]), []
            elif line.strip():
                reason = ""
        elif fence and not fence[2]:
            blocks.append(Block(page, opened[0], _language(opened[1], lines), "\n".join(lines) + "\n", reason))
            opened, reason = None, ""
        else:
            lines.append(line[indent:])
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: a code block does not end")
    return blocks


def _language(named: str, lines: list[str]) -> str:
    """A block without a language is shell where a line of it begins with a program that we know, else text."""
    if named in SHELL:
        return "sh"
    if not named and any(line.removeprefix("$ ").split(" ")[0] in PROGRAMS for line in lines):
        return "sh"
    return named or "text"


BLOCKS = [block for page in PAGES if page.is_file() for block in blocks_of(page)]
