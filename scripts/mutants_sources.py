"""Mutants of a source file: one small wrong change each, made by mutmut's operators.

mutmut's own runner is not used, because it wraps every function of a package in a switch (which torch's tracing, pickling
of classes and signatures then see), skips decorated functions, knows no fixed sample and no test files of a module's own.
Its operators (``mutmut.mutation.mutators``: numbers, operators, comparisons, keywords, removed and emptied arguments,
assignments, strings, branches) are applied here to the syntax tree one by one. Not changed, since no test of behavior can
or should see it: annotations, decorators, docstrings, what ``raise`` says, ``__all__``, blocks for type checking.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from mutmut.mutation.mutators import mutation_operators, operator_string

UNTOUCHED = (cst.Annotation, cst.Decorator, cst.Raise, cst.Import, cst.ImportFrom)
UNTOUCHED_CALLS = {"len", "isinstance", "cast", "TypeVar"}


@dataclass(frozen=True)
class Mutant:
    """One wrong version of a file; ``before`` and ``after`` are the changed lines, without indentation."""

    path: str
    line: int
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """Where it is and what it does, on one line."""
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


class SourceFile:
    """A file and the changes that can be made to it; ``functions`` limits them to functions of these names."""

    def __init__(self, root: Path, path: str, functions: Sequence[str] = ()) -> None:
        self.path = path
        self.source = (root / path).read_text(encoding="utf-8")
        self._module = cst.parse_module(self.source)
        collector = _Collector(functions)
        self._module.visit(collector)
        self._changes = collector.changes

    def __len__(self) -> int:
        return len(self._changes)

    def mutant(self, number: int) -> Mutant | None:
        """The mutant of one change; None where the result is the same text or not Python."""
        changed = self._module.deep_replace(*self._changes[number])
        assert isinstance(changed, cst.Module)
        if changed.code == self.source:
            return None
        try:
            compile(changed.code, self.path, "exec", dont_inherit=True)
        except SyntaxError:
            return None
        return Mutant(self.path, *_difference(self.source, changed.code), changed.code)


class _Collector(cst.CSTVisitor):
    def __init__(self, functions: Sequence[str]) -> None:
        super().__init__()
        self.changes: list[tuple[cst.CSTNode, cst.CSTNode]] = []
        self._functions = functions
        self._inside: list[str] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, UNTOUCHED) or _without_behavior(node):
            return False
        if isinstance(node, cst.FunctionDef):
            self._inside.append(node.name.value)
        if self._functions and not set(self._functions) & set(self._inside):
            return True
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                changed = list(operator(node))
                # Of a string one change is enough; upper and lower case only weigh it three times.
                self.changes += [(node, other) for other in (changed[:1] if operator is operator_string else changed)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef):
            self._inside.pop()


def _without_behavior(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name):
        return node.func.value in UNTOUCHED_CALLS
    if isinstance(node, cst.Expr):
        return isinstance(node.value, cst.SimpleString | cst.ConcatenatedString)
    if isinstance(node, cst.If):
        return "TYPE_CHECKING" in cst.Module([]).code_for_node(node.test)
    if isinstance(node, cst.Assign):
        return any(isinstance(item.target, cst.Name) and item.target.value == "__all__" for item in node.targets)
    # A default is evaluated when the file is read: only plain ones can be changed and leave a module that can be imported.
    plain = (cst.Name, cst.BaseNumber, cst.BaseString)
    return isinstance(node, cst.Param) and node.default is not None and not isinstance(node.default, plain)


def _difference(source: str, code: str) -> tuple[int, str, str]:
    old, new = source.splitlines(), code.splitlines()
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    _, begin, end, new_begin, new_end = next(item for item in matcher.get_opcodes() if item[0] != "equal")
    return begin + 1, " ".join(" ".join(old[begin:end]).split()), " ".join(" ".join(new[new_begin:new_end]).split())
