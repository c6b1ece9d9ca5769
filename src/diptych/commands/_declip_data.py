"""What the section ``data`` of DeCLIP's configurations becomes: lists, folders of images, views, test sets.

Their lists are JSON Lines with ``filename`` and ``caption``, or ``label`` and ``label_name``, which our sources read as they are.
No file is opened.
"""

from __future__ import annotations

from typing import Any

from diptych.commands._yaml_keys import Keys

STRONG = ("MOCOV2", "SIMCLR", "SIMSIAM")
VIEWS = ("STANDARD_SLIP", "SLIP", *STRONG)
TWO_VIEWS = ("declip", "defilip")
TEST_SETS = ("--imagenet-val", "--imagenet-v2")
ELSEWHERE = ("type", "read_from", "use_dali", "batch_size", "num_workers", "pin_memory", "input_size", "test_resize")


def train_data(keys: Keys) -> None:
    """``data`` but for its test sets."""
    keys.only("data.type", ("clip",), "expected clip")
    keys.only("data.read_from", ("fs",), "images are read from files; give fs")
    keys.drop("data.use_dali", "theirs ignores it too")
    keys.drop("data.pin_memory", "the device decides it")
    for key, flag in (("batch_size", "--batch-size"), ("num_workers", "--workers")):
        value = keys.whole(f"data.{key}")
        if value is not None:
            keys.flag(flag, value)
    size, resize = keys.whole("data.input_size") or 224, keys.whole("data.test_resize") or 256
    if size != 224:
        keys.flag("--force-image-size", size)
    if (size, resize) != (224, 256):
        keys.flag("--image-resize-to", resize)
    section = "data.train"
    _lists(keys, section)
    keys.flags += ["--captions", "first", "--bad-captions", "cjk", "--bad-samples", "replace"]
    keys.drop(f"{section}.image_reader", "every decoder gives Pillow's pixels")
    keys.drop(f"{section}.sampler", "each record comes once an epoch, in an order of its own")
    for key in ("fseek", "use_ranked", "offset_file_prefix"):
        keys.drop(f"{section}.{key}", "lists of any length are read through an index")
    _views(keys, section)


def _lists(keys: Keys, section: str) -> None:
    lists = _listed(keys.take(f"{section}.meta_file"))
    roots = _listed(keys.take(f"{section}.root_dir"))
    if not lists:
        raise keys.error(f"{section}.meta_file", "it is missing; give the list of pairs")
    if len(roots) not in (0, 1, len(lists)):
        raise keys.error(f"{section}.root_dir", f"expected one folder, or {len(lists)}, one for each meta_file")
    if len(set(roots)) > 1:
        raise keys.error(
            f"{section}.root_dir",
            "all lists start from one folder here; give the folder above them, and names from there",
        )
    keys.flag("--train-data", "::".join(lists))
    if roots:
        keys.flag("--image-root", roots[0])


def _views(keys: Keys, section: str) -> None:
    objective = str(keys.take("model.type", "")).partition("_")[0]
    kind = str(keys.take(f"{section}.transforms.type", "STANDARD_SLIP"))
    if kind not in VIEWS:
        raise keys.error(f"{section}.transforms.type", f"expected one of {', '.join(VIEWS)}")
    fitting = {"clip": ("STANDARD_SLIP", *STRONG), "slip": ("SLIP",)}.get(objective, STRONG)
    if kind not in fitting:
        raise keys.error(f"{section}.transforms.type", f"{objective} has the views of {', '.join(fitting)}")
    if kind in ("STANDARD_SLIP", "SLIP"):
        keys.flag("--aug-scale", 0.5, 1.0)
    if kind in STRONG and objective == "clip":
        keys.flag("--train-view", "strong")
    if kind != "STANDARD_SLIP":
        keys.flag("--strong-recipe", "moco-v2")
    both, images = (keys.take(f"{section}.{name}") for name in ("image_text_two_view", "only_image_two_view"))
    if objective in TWO_VIEWS and (both or images):
        keys.flag("--declip-views", "both" if both else "image")
    for name, value in (("image_text_two_view", both), ("only_image_two_view", images)):
        if value and objective not in TWO_VIEWS:
            keys.drop(f"{section}.{name}", "the objective decides its views here")


def tests(keys: Keys) -> None:
    """``data.test``: up to two sets of labeled images."""
    number = 0
    while keys.has(f"data.test.{number}"):
        section = f"data.test.{number}"
        if number == len(TEST_SETS):
            raise keys.error(
                section, "a run classifies at most two sets of images; measure others with diptych evaluate"
            )
        _test(keys, section, TEST_SETS[number], first=number == 0)
        number += 1


def _test(keys: Keys, section: str, flag: str, first: bool) -> None:
    for key in ELSEWHERE:
        keys.drop(f"{section}.{key}", "images are classified with the settings of training")
    inner = f"{section}.test"
    lists, roots = _listed(keys.take(f"{inner}.meta_file")), _listed(keys.take(f"{inner}.root_dir"))
    if len(lists) != 1 or len(roots) > 1:
        raise keys.error(f"{inner}.meta_file", "expected one list of labeled images, and one root_dir")
    keys.flag(flag, lists[0])
    if roots and first:
        keys.flag("--imagenet-image-root", roots[0])
    elif roots and roots[0] not in keys.flags:
        raise keys.error(f"{inner}.root_dir", "both sets start from one folder here; give the folder above them")
    keys.drop(f"{inner}.image_reader", "every decoder gives Pillow's pixels")
    keys.drop(f"{inner}.sampler", "each image is classified once")
    keys.only(f"{inner}.transforms.type", ("ONECROP",), "images are resized and cropped in the middle; give ONECROP")
    keys.only(f"{inner}.evaluator.type", ("imagenet",), "expected imagenet")
    top = keys.take(f"{inner}.evaluator.kwargs.topk", [1, 5])
    if not set(_numbers(top)) <= {1, 5}:
        raise keys.error(
            f"{inner}.evaluator.kwargs.topk", "accuracies are of the first and the first five; give [1, 5]"
        )
    templates = [keys.take(f"{name}.label_texts_ensemble") for name in (section, inner)]
    for value in [item for item in templates if item is not None][:1] if first else []:
        keys.flag("--templates", value)


def _numbers(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _listed(value: Any) -> list[str]:
    """Texts of a value that is one text, or a list of them."""
    return [str(item) for item in value] if isinstance(value, list) else [] if value is None else [str(value)]
