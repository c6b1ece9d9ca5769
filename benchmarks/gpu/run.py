"""G1 to G7 on one accelerator, in less than eight minutes; without one, the same code in a reduced form on the CPU.

    python benchmarks/gpu/run.py [OUT.json] [--reduced]  (without a network: gather.py, wheels.txt)

Runs with or without open_clip: where it can be imported (it is carried as a wheel) each row has its ratio. Prints and keeps the
matmul peak that the device reaches, and of every training row the share of it and the counts of ``counts.py`` (kernels, waits).
A race that would begin after seven minutes is left out, and named. Nothing is read but what the script makes itself: random
weights, random images, captions of class names.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _peers import machine, open_clip
from gpu.counts import counts

from diptych.conformance.training import training_step
from diptych.data import Loader, LoaderOptions, build_prepare, open_source
from diptych.devices import get_device
from diptych.evaluate import Encoder, build_classifier
from diptych.evaluate._prompts import class_set, load_templates
from diptych.image import ViewOptions
from diptych.models import create_model, model_config
from diptych.objectives.clip import Features, contrastive
from diptych.profile import count as counted
from diptych.text import get_tokenizer
from diptych.train.step import Step
from diptych.types import Batch, Wants

DEVICE = get_device("auto")
REDUCED = DEVICE.name == "cpu" or "--reduced" in sys.argv
SIZES = (
    {
        "G1": [("emoji-64", 32), ("ViT-Mini-8-64", 16)], "G3": [("ViT-Mini-8-64", 8)], "images": 128, "classes": 2,
        "loss": [1024, 2048], "steps": 3,
    }
    if REDUCED
    else {
        "G1": [("ViT-B-32", 4096), ("ViT-B-32", 2048)], "G3": [("ViT-L-14", 384)], "images": 20_000, "classes": 1000,
        "loss": [16_384, 32_768, 65_536], "steps": 20,
    }
)  # fmt: skip
PRECISION = DEVICE.default_precision()
SMALL = "emoji-64"  # of the reduced form
LIMIT = 420.0  # seconds after which no race begins


def seconds(call: Callable[[], Any], rounds: int, warm: int = 2) -> float:
    """Median seconds of a call, the device waited for."""
    times = []
    for number in range(warm + rounds):
        DEVICE.synchronize()
        start = time.perf_counter()
        call()
        DEVICE.synchronize()
        if number >= warm:
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def peer() -> Any:
    with contextlib.suppress(Exception):
        return open_clip()
    return None


def matmul_peak() -> float:
    """FLOP per second of the best of a few square products in the device's own precision."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(PRECISION, torch.float32)
    best = 0.0
    for size in (1024, 2048) * 3 if REDUCED else (4096, 8192, 16_384) * 2:  # twice and more: a busy moment is no peak
        left, right = (torch.randn(size, size, device=DEVICE.torch_device).to(kind) for _ in range(2))
        best = max(best, 2 * size**3 / seconds(lambda a=left, b=right: a @ b, 5))
    return best


def captions(count: int) -> list[str]:
    names = list(class_set("imagenet").values())
    return [f"a photo of a {names[n % 1000]} beside a {names[n * 7 % 1000]} on a sunny day" for n in range(count)]


def batch_of(name: str, size: int) -> Batch:
    side = model_config(name).vision.image_size
    tokenizer = get_tokenizer("bpe", model_config(name).text.context_length)
    tokens, lengths = tokenizer.pad([tokenizer.encode(text).ids for text in captions(size)])
    images = torch.randint(0, 256, (1, size, 3, side, side), dtype=torch.uint8)
    keys = tuple(map(str, range(size)))
    rows = torch.arange(size)
    moved = [item.to(DEVICE.torch_device) for item in (images, tokens[None], lengths[None], rows)]
    return Batch(*moved[:3], keys, *[moved[3]] * 3)


def our_step(name: str, dropout: float = 0.0) -> Step:
    model: Any = create_model(name, device=DEVICE.torch_device)
    model.image.patch_dropout = dropout
    return training_step(model, DEVICE, PRECISION, learning_rate=5e-4)


def their_step(name: str, size: int, best: bool, dropout: float | None = None) -> Callable[..., Any] | None:
    library = peer()
    if library is None or name not in library.list_models():
        return None
    device = DEVICE.torch_device
    model = library.create_model(name, device=device, force_patch_dropout=dropout).train()
    if best and DEVICE.name == "cuda":
        model = torch.compile(model)
    side = model_config(name).vision.image_size
    ready = torch.randn(size, 3, side, side, device=device), library.get_tokenizer(name)(captions(size)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, **({"fused": True} if best else {}))
    loss = library.ClipLoss()

    def step(pair: Any = ready) -> None:
        optimizer.zero_grad()
        with DEVICE.autocast(PRECISION):
            total = loss(*model(*(item.to(device, non_blocking=True) for item in pair)))
        total.backward()
        optimizer.step()

    return step


def training(race: str, peak: float) -> list[dict[str, Any]]:
    rows = []
    for name, size in SIZES[race]:
        step, batch = our_step(name), batch_of(name, size)
        DEVICE.reset_peak_memory()
        ours = seconds(lambda step=step, batch=batch: step([batch]), SIZES["steps"])
        memory = DEVICE.memory().get("peak", 0)
        profile = counted(name)
        # What a step must compute: three times forward, texts of their own length in place of 77 (attention left out).
        short = float(batch.lengths.float().mean()) / model_config(name).text.context_length
        flops = 3 * size * 1e9 * (profile.image_gflops + profile.text_gflops * short)
        row = {
            "race": race, "model": name, "batch": size, "precision": PRECISION, "pairs_per_second": size / ours,
            "share_of_matmul_peak": flops / ours / peak, "peak_memory_bytes": memory,
        }  # fmt: skip
        row["counts"] = counts(lambda step=step, batch=batch: step([batch]))
        del step
        for label, best in (("open_clip", False), ("open_clip_best", True)):
            call = their_step(name, size, best)
            if call is not None:
                row[f"ratio_to_{label}"] = seconds(call, SIZES["steps"]) / ours
                row[f"counts_{label}"] = counts(call)
            del call
        rows.append(row)
    return rows


def write_images(folder: Path, count: int) -> Path:
    """JPEGs of smooth noise with a caption each, and their list."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(min(count, 256)):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((340, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    lines = []
    for number, text in enumerate(captions(count)):
        (folder / f"{number}.jpg").write_bytes(encoded[number % len(encoded)])
        lines.append(json.dumps({"image": f"{number}.jpg", "caption": text}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "pairs.jsonl"


def end_to_end(pairs: Path) -> list[dict[str, Any]]:
    """G2: from JPEG files to weights moved."""
    name, size = SIZES["G1"][-1]
    config = model_config(name)
    views = ViewOptions(config.vision.image_size, kernel="fast")
    prepare = build_prepare(Wants(), get_tokenizer("bpe", config.text.context_length), views)
    options = LoaderOptions(size, workers=2 if REDUCED else 14, pin_memory=DEVICE.abilities.pin_memory)
    loader = Loader(open_source(str(pairs)), prepare, options)
    step = our_step(name)
    ours = rate((batch for batch, _ in loader), lambda batch: step([batch]), size)
    row = {"race": "G2", "model": name, "batch": size, "pairs_per_second": ours}
    other = their_step(name, size, best=True)
    if other is not None:
        for workers in (2,) if REDUCED else (4, 14):
            theirs = rate(their_batches(pairs, name, size, workers), other, size)
            row[f"ratio_to_open_clip_with_{workers}_workers"] = ours / theirs
    return [row]


def rate(batches: Any, step: Callable[[Any], Any], size: int) -> float:
    """Pairs per second from files to moved weights, without the first two batches."""
    start, done = 0.0, -2
    for batch in batches:
        step(batch)
        done += 1
        if done == 0:
            DEVICE.synchronize()
            start = time.perf_counter()
        if done >= SIZES["steps"]:
            break
    DEVICE.synchronize()
    return max(done, 0) * size / (time.perf_counter() - start)


def their_batches(pairs: Path, name: str, size: int, workers: int) -> Any:
    """open_clip's own data set and transform over the same files, again and again."""
    library = peer()
    from open_clip_train.data import CsvDataset

    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    lines = [f"{pairs.parent / row['image']}\t{row['caption']}" for row in rows]
    table = pairs.parent / "pairs.tsv"
    table.write_text("filepath\ttitle\n" + "\n".join(lines) + "\n", encoding="utf-8")
    transform = library.image_transform(model_config(name).vision.image_size, is_train=True)
    tokenizer = library.get_tokenizer(name)
    data = CsvDataset(str(table), transform, img_key="filepath", caption_key="title", sep="\t", tokenizer=tokenizer)
    pinned = DEVICE.abilities.pin_memory
    loader = torch.utils.data.DataLoader(
        data, size, shuffle=True, num_workers=workers, drop_last=True, pin_memory=pinned
    )
    while True:
        yield from loader


def patch_dropout() -> list[dict[str, Any]]:
    """G7: FLIP's half of the patches, another recipe on both sides."""
    name, size = ("ViT-Mini-8-64", 8) if REDUCED else ("ViT-B-16", 1024)
    step, batch = our_step(name, 0.5), batch_of(name, size)
    ours = seconds(lambda: step([batch]), SIZES["steps"])
    row = {"race": "G7", "model": name, "batch": size, "patch_dropout": 0.5, "pairs_per_second": size / ours}
    other = their_step(name, size, best=False, dropout=0.5)
    if other is not None:
        row["ratio_to_open_clip"] = seconds(other, SIZES["steps"]) / ours
    return [row]


def classifier() -> list[dict[str, Any]]:
    """G4: strings to class vectors."""
    rows, names, templates = [], list(class_set("imagenet").values())[: SIZES["classes"]], load_templates("openai80")
    for model in (SMALL,) if REDUCED else ("ViT-B-32", "ViT-L-14", "ViT-H-14"):
        ours = create_model(model, device=DEVICE.torch_device).eval()
        tokenizer = get_tokenizer("bpe", ours.config.text.context_length)
        encoder = Encoder(ours, tokenizer, None, DEVICE, precision=PRECISION, cache=False)
        spent = seconds(lambda e=encoder: build_classifier(e, names, templates, lambda n: None), 1, 1)
        row = {"race": "G4", "model": model, "classes": len(names), "seconds": spent}
        library = peer()
        if library is not None and model in library.list_models():
            other = library.create_model(model, device=DEVICE.torch_device).eval()
            given = (other, library.get_tokenizer(model), names, templates)
            build = library.build_zero_shot_classifier
            with torch.no_grad():
                theirs = seconds(lambda b=build, g=given: b(*g, device=DEVICE.torch_device), 1, 0)
            row["ratio_to_open_clip"] = theirs / spent
        rows.append(row)
    return rows


def loss() -> list[dict[str, Any]]:
    """G5: time and extra memory of the contrastive loss."""
    rows = []
    for count in SIZES["loss"]:
        image, text = (F.normalize(torch.randn(count, 512, device=DEVICE.torch_device), dim=-1) for _ in range(2))
        for item in (image, text):
            item.requires_grad_()
        scale = torch.tensor([50.0], device=DEVICE.torch_device, requires_grad=True)
        pair = Features(image, text)
        DEVICE.reset_peak_memory()
        row = {"race": "G5", "pairs": count}
        row["seconds"] = seconds(lambda p=pair, s=scale: contrastive(p, p, s)[0].backward(), 2, 1)
        row["peak_memory_bytes"] = DEVICE.memory().get("peak", 0)
        library = peer()
        if library is not None:
            with contextlib.suppress(RuntimeError):  # too large for the plain form
                call = library.ClipLoss()
                other = seconds(lambda a=image, b=text, s=scale, c=call: c(a, b, s).backward(), 2, 1)
                row["ratio_to_open_clip"] = other / row["seconds"]
        rows.append(row)
    return rows


def embedding(pairs: Path) -> list[dict[str, Any]]:
    """G6: JPEG files to features."""
    name = SMALL if REDUCED else "ViT-L-14"
    from diptych import weights

    model = create_model(name, device=DEVICE.torch_device).eval()
    transform = weights.transforms(model.config)[1].transform
    encoder = Encoder(
        model,
        get_tokenizer("bpe", model.config.text.context_length),
        transform,
        DEVICE,
        64 if REDUCED else 256,
        2 if REDUCED else 14,
        PRECISION,
    )
    source = open_source(str(pairs))
    count = min(len(source), 128 if REDUCED else 10_000)
    spent = seconds(lambda: encoder.images(source, range(count), lambda n: None), 1, 0)
    return [{"race": "G6", "model": name, "images": count, "images_per_second": count / spent}]


def what_remains() -> str:
    """A profile of the training step: the operations that take longest."""
    name, size = SIZES["G1"][-1]
    step, batch = our_step(name), batch_of(name, size)
    step([batch])
    from torch.profiler import profile

    with profile() as result:
        step([batch])
    order = "self_cpu_time_total" if DEVICE.name == "cpu" else "self_device_time_total"
    return result.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60)


def main() -> None:
    outs = [word for word in sys.argv[1:] if not word.startswith("--")]
    out = Path(outs[0]) if outs else Path(__file__).resolve().parents[1] / "results" / "gpu.json"
    start = time.perf_counter()
    if REDUCED:
        print(f"REDUCED FORM on {DEVICE.name}: small models and few steps; its figures say only that the script works.")
    DEVICE.prepare_process()
    peak = matmul_peak()
    print(f"matmul peak {peak / 1e12:.2f} TFLOP/s in {PRECISION}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_images(Path(folder), SIZES["images"])
        for name, race in {
            "G1": lambda: training("G1", peak), "G2": lambda: end_to_end(pairs), "G3": lambda: training("G3", peak),
            "G4": classifier, "G5": loss, "G6": lambda: embedding(pairs),
            "G7": patch_dropout,
        }.items():  # fmt: skip
            try:
                late = time.perf_counter() - start > LIMIT
                result = [{"race": name, "failed": f"not begun: {LIMIT:.0f} s were over"}] if late else race()
            except (RuntimeError, torch.OutOfMemoryError) as error:  # a race that fails must not lose the others
                result = [{"race": name, "failed": str(error).splitlines()[0]}]
            rows += result
            for row in result:
                print(json.dumps(row), flush=True)
    result = {
        "device": str(DEVICE), "reduced": REDUCED, "matmul_peak_flops": peak, "rows": rows,
        "seconds": time.perf_counter() - start, "machine": machine("torch"), "profile": what_remains(),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
