"""Names and prose use the field's words: a reader who knows PyTorch can search for them.

Identifiers come from the syntax tree; prose is docstrings, comments, messages and the documentation outside of code. One
table says what not to write, so a report names the file, the line and the word.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests._source import FILES, ROOT, parsed, relative

# Whole identifiers that name nothing: the reader wants the noun.
VAGUE = {"found", "one", "made", "kept", "here", "place", "places", "look", "looks", "about", "words", "cut", "cuts"}
# Words that are wrong in any part of an identifier, and what to write instead.
PARTS = {
    "found": "the noun",
    "told": "reported",
    "tell": "report, update",
    "tells": "reports",
    "kept": "cached, saved",
    "look": "preprocess, inspect",
    "looks": "requests",
    "place": "index, position, device",
    "places": "indices, positions",
    "words": "argv, vocab, message",
    "anew": "from scratch",
    "mend": "fix",
    "house": "package",
    "room": "package",
    "rooms": "packages",
    "twin": "reference",
    "cut": "truncated",
    "cuts": "truncation",
    "pictures": "images",
    "ledger": "log",
    "about": "metadata",
}
PROSE = re.compile(
    r"\b(the house|of the house|rooms|(a|the|each|every|own|other|this|that) room|twins?|mend(s|ed|ing)?|anew|tells?|told|"
    r"the words|ledgers?|floors)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(
    r"\b(\w*(normal|initial|optim|token|quant|serial|parallel|synchron|recogn|summar|organ|standard|memor|minim|maxim|"
    r"general|regular|visual|random|material|categor|author|util|emphas|real)is(e|ed|es|er|ers|ing|ation|ations)"
    r"|\w*(colour|behaviour|favour|neighbour|honour)\w*|licences?|grey\w*|centred?|labelled|labelling|modelling|"
    r"cancelled|travelled|fulfil|catalogues?|artefacts?|programmes?)\b",
    re.IGNORECASE,
)
# Names of open_clip, which the package of that name has as they are.
OTHERS_NAMES = re.compile(r"[nN]eighbour_?[eE]xchange\w*")
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    if path.name != "NOTICE.md"
)
SOURCES = [*FILES, *sorted((ROOT / "examples").rglob("*.py"))]


def identifiers(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, name) of every name that a file gives: definitions, parameters, assigned variables and attributes."""
    names: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.attr))
        elif isinstance(node, ast.alias) and node.asname:
            names.append((node.lineno, node.asname))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.append((node.lineno, node.name))
    return names


def parts_of(identifier: str) -> list[str]:
    """The words of an identifier: ``_maskTold`` and ``mask_told`` give mask, told."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", identifier)
    return [part for part in spaced.lower().split("_") if part]


def wrong_identifiers(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, complaint) of every identifier that uses a word of the tables, or British spelling."""
    wrong = []
    for line, name in identifiers(tree):
        parts = parts_of(name)
        bad = [part for part in parts if part in PARTS]
        if name.strip("_").lower() in VAGUE:
            wrong.append((line, f"{name}: name the thing"))
        elif bad:
            wrong.append((line, f"{name}: {PARTS[bad[0]]}"))
        elif BRITISH.search(" ".join(parts)):
            wrong.append((line, f"{name}: American spelling"))
    return wrong


def wrong_prose(text: str, first_line: int = 1) -> list[tuple[int, str]]:
    """(line, word) of every word that prose should not use."""
    return [
        (number, match.group(0))
        for number, line in enumerate(text.split("\n"), start=first_line)
        for pattern in (PROSE, BRITISH)
        for match in pattern.finditer(line)
    ]


def prose_of(text: str) -> list[tuple[int, str]]:
    """(line, text) of comments and of strings that hold a space: docstrings, messages, help; not keys and names."""
    prose = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        sentence = token.type == tokenize.STRING or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1)
        if token.type == tokenize.COMMENT or (sentence and " " in token.string.strip()):
            prose.append((token.start[0], re.sub(r"``.*?``", _blank, token.string, flags=re.DOTALL)))
    return prose


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group(0))


def documentation(text: str) -> str:
    """Markdown without its code, addresses and quotations of old names; line numbers stay."""
    for pattern in (r"```.*?```", r"`[^`\n]*`", r"<!--.*?-->", r"\]\([^)\n]*\)", r"https?://\S+"):
        text = re.sub(pattern, _blank, text, flags=re.DOTALL)
    return text


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_identifiers_are_the_fields_words(path: Path):
    wrong = wrong_identifiers(parsed(path))
    if path.parent.name == "open_clip":
        wrong = [(line, complaint) for line, complaint in wrong if not OTHERS_NAMES.match(complaint)]
    assert not wrong, "\n" + "\n".join(f"{relative(path)}:{line}: {complaint}" for line, complaint in wrong)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_prose_in_the_source_is_plain_and_american(path: Path):
    text = path.read_text(encoding="utf-8")
    wrong = [item for line, prose in prose_of(text) for item in wrong_prose(prose, line)]
    assert not wrong, "\n" + "\n".join(f"{relative(path)}:{line}: {word}" for line, word in wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_prose_in_the_documentation_is_plain_and_american(path: Path):
    wrong = wrong_prose(documentation(path.read_text(encoding="utf-8")))
    assert not wrong, "\n" + "\n".join(f"{relative(path)}:{line}: {word}" for line, word in wrong)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("x = 1\nfound = x", 2),
        ("def tell(): ...", 1),
        ("class RoomKeeper: ...", 1),
        ("def f(words): ...", 1),
        ("for place in (): ...", 1),
        ("self.kept_rows = 1", 1),
        ("normalised = 2", 1),
        ("import a as look", 1),
        ("try: ...\nexcept E as one: ...", 2),
    ],
)
def test_the_guard_sees_a_wrong_identifier(code, line):
    assert [number for number, _ in wrong_identifiers(ast.parse(code))] == [line]


def test_the_guard_passes_ordinary_names():
    code = "one_line = first_not_none = wordsmith = roomy = 1\ndef f(position, records, executed): ...\nnp.found"
    assert not wrong_identifiers(ast.parse(code))


def test_the_guard_reads_prose_and_no_keys():
    code = (
        '"""Mend it.\n\nThe house."""\nx = d["twin"]  # told twice\ny = "`` told ``"\nraise E("its colour is grey")\n'
    )
    wrong = [item for line, prose in prose_of(code) for item in wrong_prose(prose, line)]
    assert wrong == [(1, "Mend"), (3, "The house"), (4, "told"), (6, "colour"), (6, "grey")]
    assert wrong_prose(documentation("See `told`\n```\nmend\n```\nmend")) == [(5, "mend")]
