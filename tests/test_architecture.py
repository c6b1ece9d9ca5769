"""The rules of the house, held by reading its source: layers, words, sizes, names. See docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "diptych"
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = [
    {"types", "errors", "registry", "config", "log", "files"},
    {"devices", "text", "image", "tensorfiles"},
    {"data", "models", "distributed"},
    {"objectives", "weights", "evaluate", "store"},
    {"train", "report", "profile", "datatools", "conformance", "serve"},
    {"commands", "migrate", "open_clip"},
]
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
OPEN_FOLDERS = {"devices", "text", "data", "models", "objectives", "weights", "evaluate", "migrate", "commands"}
FORBIDDEN = {"torchvision", "timm", "open_clip"}


def room_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return part.removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, whole dotted names; ``from diptych import x`` gives ``diptych.x``."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"diptych.{alias.name}" for alias in node.names] if node.module == "diptych" else [node.module]
    return found


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_every_room_has_a_layer():
    rooms = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set(LAYER_OF), f"no layer for {rooms - set(LAYER_OF)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down_or_stay_in_their_folder(path):
    own = room_of(path)
    if own in ("__init__", "__main__"):
        return
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] != "diptych" or len(parts) < 2 or parts[1] not in LAYER_OF or parts[1] == own:
            continue
        both_ground = LAYER_OF[own] == LAYER_OF[parts[1]] == 0
        assert both_ground or LAYER_OF[parts[1]] < LAYER_OF[own], f"{own} (layer {LAYER_OF[own]}) imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_entries_of_an_open_folder_do_not_import_each_other(path):
    parts = path.relative_to(SOURCE).parts
    if parts[0] not in OPEN_FOLDERS or len(parts) < 2 or parts[-1].startswith("_"):
        return
    # Towers are built from towers' shared layers only through the folder's own door.
    for module in imports_of(path):
        words = module.split(".")
        if words[:2] == ["diptych", parts[0]] and len(words) > 2:
            assert words[2].startswith("_"), f"{name(path)} imports the entry {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_accelerators_are_named_only_in_the_devices_room(path):
    if room_of(path) == "devices":
        return
    words = re.findall(r"\b(cuda|npu|sdaa|mps|xpu)\b", path.read_text(encoding="utf-8").lower())
    assert not words, f"{name(path)} names {set(words)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_vendor_library_is_imported(path):
    assert not FORBIDDEN & {module.split(".")[0] for module in imports_of(path)}


def test_models_hold_no_collective():
    for path in (SOURCE / "models").glob("*.py"):
        assert not any(module.startswith("torch.distributed") for module in imports_of(path)), name(path)


def test_the_training_loop_names_no_loss_device_format_or_scheme():
    text = (SOURCE / "train" / "loop.py").read_text(encoding="utf-8")
    known = {path.stem for folder in ("objectives", "devices", "data") for path in (SOURCE / folder).glob("[a-z]*.py")}
    known -= {"folder"}  # also an ordinary word: the folder of a run
    code = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    assert not {word for word in known if re.search(rf"\b{word}\b", code)}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_open_with_a_paragraph_and_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), "a file says first what it is, and what it is not"
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_are_short_and_take_few_parameters(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"
            positional = [*node.args.posonlyargs, *node.args.args]
            taken = len([item for item in positional if item.arg not in ("self", "cls", "context")])
            assert taken <= 7, f"{node.name} takes {taken} positional parameters"


def test_no_file_is_called_after_nothing():
    vague = re.compile(r"^(utils?|helpers?|common|misc|legacy.*|.*v2)$")
    assert not [name(path) for path in FILES if vague.match(path.stem)]


def test_no_absolute_path_or_registry_address():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(/work/|/root/|/home/|/tmp/|files\.pythonhosted|pypi\.org|index-url)", text), name(path)


def test_the_public_door_is_sorted_and_opens():
    import diptych

    assert diptych.__all__ == sorted(diptych.__all__)
    for public in diptych.__all__:
        assert getattr(diptych, public).__doc__, public


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, diptych; print(sorted({'torch', 'PIL', 'numpy', 'tyro'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("folder", sorted(OPEN_FOLDERS - {"migrate", "commands"}))
def test_every_entry_has_a_test_file(folder):
    tests = Path(__file__).parent / folder
    entries = [path.stem for path in (SOURCE / folder).glob("*.py") if not path.stem.startswith("_")]
    written = "".join(path.stem for path in tests.glob("test_*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in tests.glob("*.py"))
    missing = [
        entry
        for entry in entries
        if entry not in written and f"{folder}.{entry}" not in text and f'"{entry}"' not in text
    ]
    assert not missing, f"no test mentions {missing}"
