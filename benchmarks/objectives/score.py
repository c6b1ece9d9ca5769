"""The scores of one trained model: retrieval on Flickr8k's validation split, and a linear probe on CIFAR-10. Trains nothing.

Beside the scores stand the answers that paired intervals need: of each image the mean reciprocal rank of its queries in both
directions, and of each probed picture whether it was right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diptych import weights
from diptych.data import SourceOptions, open_split
from diptych.devices import get_device
from diptych.distributed.layout import Layout
from diptych.distributed.process_group import World
from diptych.evaluate import EVALUATORS, Encoder, ProbeData, open_labeled
from diptych.evaluate._scores import retrieval_ranks
from diptych.image import EvalTransform
from diptych.objectives import OBJECTIVES, create_objective


def encoder(path: Path) -> Encoder:
    """The encoder of a weight file, on the CPU."""
    device = get_device("cpu")
    device.prepare_process("auto")
    model = weights.load(str(path))
    preprocess, size = model.config.preprocess, model.config.vision.image_size
    transform = EvalTransform(size, preprocess.resize_mode, preprocess.interpolation, preprocess.resize_to)
    layout = Layout(create_objective(OBJECTIVES.get("clip").Config(), model), device, World())
    return Encoder(layout, weights.tokenizer_of(model.config), transform, device, 64, 1)


def scores(path: Path, pairs: Path, probe: tuple[Path, Path]) -> dict[str, Any]:
    """Recalls, mean reciprocal rank and probe accuracy as fractions, counts, and the answers behind them."""
    model = encoder(path)
    retrieval = EVALUATORS.get("retrieval")()
    result = retrieval.run(
        model, open_split(str(pairs), "val", (), SourceOptions(), "--val-split"), retrieval.Options()
    )
    ranked = retrieval_ranks(result.image_features, result.text_features, result.text_to_image)
    images = len(result.image_features)
    of_images = torch.zeros(images, dtype=torch.float64)
    of_images[ranked.images] = 1 / ranked.image_to_text.double()
    of_texts = torch.zeros(images, dtype=torch.float64).index_add_(0, ranked.owners, 1 / ranked.text_to_image.double())
    of_texts /= torch.bincount(ranked.owners, minlength=images)
    reciprocal = (of_images + of_texts) / 2
    linear = EVALUATORS.get("linear_probe")()
    fit, test = (open_labeled(str(folder)) for folder in probe)
    probed = linear.run(model, ProbeData(fit, test), linear.Options())
    right = probed.outcomes["top1"].right.bool().tolist()
    recalls = {key: round(value, 5) for key, value in result.metrics.items() if "_R@" in key}
    return {
        **recalls,
        "mrr": round(float(reciprocal.mean()), 6),
        "probe": round(probed.metrics["top1"], 5),
        "images": images,
        "texts": len(result.text_features),
        "probed": len(right),
        "reciprocal": [float(f"{value:.3g}") for value in reciprocal.tolist()],
        "right": f"{int(''.join('01'[answer] for answer in right), 2):x}",
    }
