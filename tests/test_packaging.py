"""What pip installs: extras cover every optional import, pins agree with ranges, and every data file is declared."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
RUN_TIME = {"fast", "logs", "plots", "hub", "parquet", "remote", "siglip"}
# Import name -> package, where they differ.
PACKAGE_OF = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# Plug-ins of accelerators come with their vendor's torch; modelscope only where DIPTYCH_MODELSCOPE asks for it.
PLUGINS = {"torch_npu", "torch_sdaa", "intel_extension_for_pytorch", "sdaa", "modelscope"}
# What open_clip's own interface takes from a program that has it: tokenizers of transformers, taggers, progress bars.
PLUGINS |= {"transformers", "nltk", "tqdm"}


def normalized(requirement: str) -> str:
    """The package's name as indexes write it, without range, extras and markers."""
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def packages(extra: str) -> set[str]:
    """All packages of an extra, with those of the extras that it names."""
    names = set()
    for requirement in EXTRAS[extra]:
        if normalized(requirement) == "diptych":
            inner = re.search(r"\[(.*)\]", requirement)
            assert inner is not None
            names |= set().union(*(packages(name.strip()) for name in inner[1].split(",")))
        else:
            names.add(normalized(requirement))
    return names


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normalized(line): line.split("==")[1] for line in lines if line and not line.startswith("#")}


CORE = {normalized(requirement) for requirement in PROJECT["project"]["dependencies"]}


def third_party_imports() -> set[str]:
    """The packages that src imports, at the top of files or inside functions."""
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    own = {"diptych", "_typeshed", *sys.stdlib_module_names}  # _typeshed: for type checkers only
    return {PACKAGE_OF.get(name, name.lower()) for name in names - own} - PLUGINS


def test_the_extra_all_is_what_commands_need_at_run_time_and_nothing_else():
    assert packages("all") == set().union(*(packages(name) for name in RUN_TIME))
    assert not packages("all") & (packages("dashboards") | packages("docs") | {"pytest", "ray", "onnx", "torch"})


def test_every_import_of_the_package_is_installed_by_core_or_by_all():
    imported = third_party_imports()
    assert {"torch", "numpy", "numba", "pyarrow", "matplotlib"} <= imported
    assert imported <= CORE | packages("all")


def test_every_direct_dependency_has_a_pin_and_every_pin_lies_in_its_range():
    version = pytest.importorskip("packaging.requirements")
    pinned = pins()
    requirements = [*PROJECT["project"]["dependencies"], *(item for extra in EXTRAS.values() for item in extra)]
    for text in requirements:
        requirement = version.Requirement(text)
        if requirement.name == "diptych":
            continue
        assert normalized(text) in pinned, f"{text} has no line in constraints.txt"
        assert pinned[normalized(text)] in requirement.specifier, f"constraints.txt pins {text} out of its range"


def test_every_data_file_of_the_package_is_declared():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["diptych"]
    folder = ROOT / "src" / "diptych"
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert files
    left_out = [
        str(path) for path in files if not any(fnmatch(path.name, pattern.split("/")[-1]) for pattern in patterns)
    ]
    assert not left_out
    unused = [pattern for pattern in patterns if not any(fnmatch(path.name, pattern.split("/")[-1]) for path in files)]
    assert not unused


def test_the_version_is_written_twice_and_is_the_same():
    source = (ROOT / "src" / "diptych" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PROJECT["project"]["version"]}"' in source
