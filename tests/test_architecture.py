"""The rules of the source, held by reading it: layers, cycles, sizes, open folders. See docs/architecture.md.

Names and words are checked by test_names.py, the public interface by test_public_interface.py.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests._source import (
    FILES,
    MODULES,
    ROOT,
    SOURCE,
    TEST_FILES,
    TESTS,
    cycles,
    imports_of,
    package_of,
    parsed,
    relative,
)

LAYERS = [
    {"types", "errors", "registry", "config", "log", "files"},
    {"devices", "text", "image", "tensorfiles"},
    {"data", "models", "distributed"},
    {"objectives", "weights", "evaluate", "store"},
    {"train", "report", "profile", "datatools", "serve"},
    {"conformance", "plan"},
    {"commands", "migrate", "open_clip"},
]
LAYER_OF = {package: number for number, packages in enumerate(LAYERS) for package in packages}
ENTRY_POINTS = {"__init__", "__main__"}
# Folders that list themselves, see diptych.registry; the value is where their registry stands.
OPEN_FOLDERS = {
    "devices": "DEVICES",
    "text": "TOKENIZERS",
    "data": "SOURCES",
    "models": "TOWERS",
    "objectives": "OBJECTIVES",
    "weights": "CHECKPOINT_FORMATS",
    "evaluate": "EVALUATORS",
    "commands": "COMMANDS",
    "migrate": "SYSTEMS",
}
# Its signatures and the names of its modules are open_clip's, which this package exists to have.
DROP_IN = "open_clip"
FORBIDDEN = {"torchvision", "timm", "open_clip"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 300, 60, 7

each_file = pytest.mark.parametrize("path", FILES, ids=relative)
each_file_and_test = pytest.mark.parametrize("path", FILES + TEST_FILES, ids=relative)


def test_every_package_has_a_layer():
    packages = {package_of(path) for path in FILES} - ENTRY_POINTS
    assert packages <= set(LAYER_OF), f"no layer for {packages - set(LAYER_OF)}"


@each_file
def test_imports_point_down_or_stay_in_their_package(path):
    own = package_of(path)
    if own in ENTRY_POINTS:
        return
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] != "diptych" or len(parts) < 2 or parts[1] == own:
            continue
        other = LAYER_OF[parts[1]]
        both_ground = LAYER_OF[own] == other == 0
        assert both_ground or other < LAYER_OF[own], f"{own} (layer {LAYER_OF[own]}) imports {module} (layer {other})"


def test_no_import_cycle_between_modules():
    graph = {module: sorted(set(imports_of(path)) & set(MODULES) - {module}) for module, path in MODULES.items()}
    assert not cycles(graph)


def test_the_cycle_finder_finds_cycles():
    assert cycles({"a": ["b"], "b": ["c"], "c": []}) == []
    assert cycles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    assert sorted(cycles({"a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["c"]})) == [["a", "b"], ["c", "d"]]


@each_file
def test_no_private_import_across_packages(path):
    own = package_of(path)
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("diptych"):
            continue
        parts = (node.module or "").split(".")
        if parts[1:2] == [own]:
            continue
        private = [part for part in (*parts[1:], *(alias.name for alias in node.names)) if re.match(r"_[^_]", part)]
        assert not private, f"{relative(path)}:{node.lineno} imports {private} of {node.module}"


@each_file
def test_entries_of_an_open_folder_do_not_import_each_other(path):
    parts = path.relative_to(SOURCE).parts
    if parts[0] not in OPEN_FOLDERS or len(parts) < 2 or parts[-1].startswith("_"):
        return
    # Towers are built from towers' shared layers only through the package's own interface.
    for module in imports_of(path):
        names = module.split(".")
        if names[:2] == ["diptych", parts[0]] and len(names) > 2:
            assert names[2].startswith("_"), f"{relative(path)} imports the entry {module}"


@each_file
def test_accelerators_are_named_only_in_devices(path):
    if package_of(path) == "devices":
        return
    names = re.findall(r"\b(cuda|npu|sdaa|mps|xpu)\b", path.read_text(encoding="utf-8").lower())
    assert not names, f"{relative(path)} names {set(names)}"


@each_file
def test_no_vendor_library_is_imported(path):
    assert not FORBIDDEN & {module.split(".")[0] for module in imports_of(path)}


def test_models_hold_no_collective():
    for path in (SOURCE / "models").glob("*.py"):
        assert not any(module.startswith("torch.distributed") for module in imports_of(path)), relative(path)


def test_the_training_loop_names_no_loss_device_format_or_scheme():
    text = (SOURCE / "train" / "loop.py").read_text(encoding="utf-8")
    known = {path.stem for folder in ("objectives", "devices", "data") for path in (SOURCE / folder).glob("[a-z]*.py")}
    known -= {"folder"}  # also an ordinary word: the folder of a run
    code = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    assert not {word for word in known if re.search(rf"\b{word}\b", code)}


@pytest.mark.parametrize("path", [path for path in FILES + TEST_FILES if path.stat().st_size], ids=relative)
def test_files_open_with_a_paragraph_and_stay_short(path):
    assert (ast.get_docstring(parsed(path)) or "").strip(), "a file says first what it is, and what it is not"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines"


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """All parameters: positional, keyword-only, ``*args`` and ``**kwargs``; not ``self``, ``cls`` and autograd's ``ctx``."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    named = named[1:] if named and named[0].arg in ("self", "cls", "ctx") else named
    return len([*named, *arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))])


def test_every_parameter_is_counted():
    source = "def f(self, a, /, b, *args, c, d=1, **kwargs): ..."
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert parameters_of(function) == 6


@each_file_and_test
def test_functions_are_short_and_take_few_parameters(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            of_open_clip = SOURCE / DROP_IN in path.parents
            first = node.body[0].lineno if of_open_clip else node.lineno
            lines = (node.end_lineno or node.lineno) - first + 1
            assert lines <= MOST_FUNCTION_LINES, f"{relative(path)}: {node.name} has {lines} lines"
            count = parameters_of(node)
            assert count <= MOST_PARAMETERS or of_open_clip, f"{relative(path)}: {node.name} takes {count} parameters"


def test_no_file_has_an_empty_name():
    vague = re.compile(r"^(utils?|helpers?|common|misc|legacy.*|.*v2)$")
    assert not [relative(path) for path in FILES if vague.match(path.stem) and package_of(path) != DROP_IN]


def test_no_absolute_path_or_registry_address():
    # In pieces, so that this file names none of them.
    address = re.compile(r"/(wor[k]|roo[t]|hom[e]|tm[p])/|pythonhoste[d]|pyp[i]\.org|index-ur[l]")
    for path in FILES:
        match = address.search(path.read_text(encoding="utf-8"))
        assert not match, f"{relative(path)}: {match}"


def entries_of(folder: str) -> list[str]:
    return sorted(path.stem for path in (SOURCE / folder).glob("*.py") if not path.stem.startswith("_"))


def ids_by_test(collected: str) -> dict[str, set[str]]:
    """Test function -> the parts of its collected ids: ``tests/a/test_b.py::test_c[x-1]`` gives {"x", "1"}."""
    ids: dict[str, set[str]] = {}
    for test, parameters in re.findall(r"^(tests/\S+?::[\w:]+)\[(.+)\]$", collected, flags=re.MULTILINE):
        ids.setdefault(test, set()).update(parameters.split("-"))
    return ids


@pytest.fixture(scope="module")
def collected():
    """What pytest itself collects in the open folders' tests: a name that is only written there counts for nothing."""
    folders = [f"tests/{folder}" for folder in OPEN_FOLDERS if (TESTS / folder).is_dir()]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    result = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return ids_by_test(result.stdout)


@pytest.mark.heavy
@pytest.mark.parametrize("folder", [folder for folder in OPEN_FOLDERS if (SOURCE / folder).is_dir()])
def test_a_contract_test_runs_over_every_entry_of_an_open_folder(folder, collected):
    entries = set(entries_of(folder))
    counts = {test: len(entries & ids) for test, ids in collected.items() if test.startswith(f"tests/{folder}/")}
    best = max(counts, key=counts.__getitem__, default="")
    missing = entries - collected.get(best, set())
    assert not missing, f"tests/{folder} has no test parametrized over all entries; {best} lacks {sorted(missing)}"


def test_an_id_must_be_a_whole_parameter():
    lines = "tests/a/test_b.py::test_c[siglip_text-0]\ntests/a/test_b.py::test_c[vit-1]\ntests/a/test_b.py::test_d"
    assert ids_by_test(lines) == {"tests/a/test_b.py::test_c": {"siglip_text", "vit", "0", "1"}}


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=relative)
def test_a_registry_is_where_the_table_says(path: Path):
    text = path.read_text(encoding="utf-8")
    folder = package_of(path)
    registries = re.findall(r"^([A-Z_]+): Registry\[", text, flags=re.MULTILINE)
    if registries:
        assert OPEN_FOLDERS.get(folder) in registries, f"{folder} has the registry {registries}"
