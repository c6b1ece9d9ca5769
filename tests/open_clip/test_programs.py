"""Programs written for open_clip run on this package under its name, and give what they give with the real one.

CLIP_benchmark's loader and metrics, clip-retrieval's loader (all_clip), torchmetrics' CLIP score, and FiftyOne's use, which is
written anew here because FiftyOne does not install beside these. Each skips where its package is absent (benchmarks/peers.txt).
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diptych import open_clip as package
from tests.open_clip._models import config

NAME = "small-for-programs"
CLASSES = ["red square", "green circle", "blue star", "dark night", "bright day", "grey"]
TEMPLATES = ["a photo of a {c}.", "{c} on a table"]
pytestmark = pytest.mark.filterwarnings("ignore")


def pictures(count=6):
    generator = np.random.default_rng(4)
    return [Image.fromarray(generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def weights(peer, tmp_path):
    """A file of a small model that knows CLIP's whole vocabulary; the architecture is added to both packages."""
    path = tmp_path / f"{NAME}.json"
    path.write_text(json.dumps(config((), {"vocab_size": 49408, "context_length": 24})))
    for module in (peer, package):
        module.add_model_config(path)
    torch.manual_seed(0)
    save_file(dict(peer.create_model(NAME).state_dict()), tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def modules_of(name):
    return [key for key in sys.modules if key == name or key.startswith(f"{name}.")]


@pytest.fixture
def both(peer, monkeypatch):
    """``both(run)``: the result of ``run`` with the real open_clip, and with ours in its place; programs are imported anew."""

    def results(run, *programs):
        given = []
        for module in (peer, package):
            with monkeypatch.context() as patch:
                if module is package:
                    for name in modules_of("open_clip"):
                        patch.delitem(sys.modules, name)
                    for name in modules_of("diptych.open_clip"):
                        patch.setitem(sys.modules, name.removeprefix("diptych."), sys.modules[name])
                given.append(run(module))
            for program in programs:
                for name in modules_of(program):
                    del sys.modules[name]
        return given

    return results


class Loader(list):
    """Batches, and the data set that CLIP_benchmark asks for its classes."""

    dataset = types.SimpleNamespace(classes=CLASSES)


def test_clip_benchmark(both, weights):
    pytest.importorskip("clip_benchmark", reason="CLIP_benchmark is not installed; see benchmarks/peers.txt")

    def run(module):
        loader = importlib.import_module("clip_benchmark.models.open_clip")
        assert loader.open_clip is module
        classification = importlib.import_module("clip_benchmark.metrics.zeroshot_classification")
        retrieval = importlib.import_module("clip_benchmark.metrics.zeroshot_retrieval")
        model, transform, tokenizer = loader.load_open_clip(NAME, weights, device="cpu")
        model.eval()
        images = torch.stack([transform(picture) for picture in pictures()])
        labels = torch.eye(6, dtype=torch.long)  # several labels: its accuracy of one fails with numpy 2.4
        batches = Loader([(images[:4], labels[:4]), (images[4:], labels[4:])])
        captions = Loader([(images[:4], [[f"{name} {n}" for n in (1, 2)] for name in CLASSES[:4]])])
        vectors = classification.zero_shot_classifier(model, tokenizer, CLASSES, TEMPLATES, "cpu", amp=False)
        logits, _ = classification.run_classification(model, vectors, batches, "cpu", amp=False)
        metrics = classification.evaluate(model, batches, tokenizer, CLASSES, TEMPLATES, "cpu", amp=False)
        return (
            vectors,
            logits,
            metrics,
            retrieval.evaluate(model, captions, tokenizer, "cpu", amp=False, recall_k_list=[1, 2]),
        )

    theirs, ours = both(run, "clip_benchmark")
    for left, right in zip(theirs[:2], ours[:2], strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=1e-4)  # logits are 100 times a cosine
    assert theirs[2:] == ours[2:]
    assert set(ours[2]) == {"mean_average_precision"}


@pytest.mark.parametrize("jit", [False, True])
def test_clip_retrieval(both, weights, jit, tmp_path):
    spec = importlib.util.find_spec("all_clip")
    if spec is None or spec.origin is None:
        pytest.skip("all_clip, clip-retrieval's loader, is not installed; see benchmarks/peers.txt")
    # The one file: its package imports OpenAI's `clip`, which is not on the package index.
    spec = importlib.util.spec_from_file_location("its_open_clip", Path(spec.origin).parent / "open_clip.py")

    def run(module):
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        jit_here = jit and module is package  # the real one would script the model; ours says that it does not
        model, preprocess, tokenizer = loader.load_open_clip(f"{NAME}/{weights}", jit_here, "cpu", str(tmp_path))
        model.eval()
        with torch.no_grad():
            images = model.encode_image(torch.stack([preprocess(picture) for picture in pictures()]))
            texts = model.encode_text(tokenizer(CLASSES))
        return [rows / rows.norm(dim=-1, keepdim=True) for rows in (images, texts)]

    for left, right in zip(*both(run), strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=1e-6)


class AsTransformers(torch.nn.Module):
    """An open_clip model with the methods that torchmetrics calls."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, types.SimpleNamespace()

    @property
    def device(self):
        return next(self.parameters()).device

    def get_image_features(self, pixels):
        return self.model.encode_image(pixels)

    def get_text_features(self, ids, _mask):
        return self.model.encode_text(ids)


def test_torchmetrics(both, weights):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; see benchmarks/peers.txt")
    pytest.importorskip("transformers", reason="torchmetrics' CLIP score asks for transformers")

    def run(module):
        model, preprocess = module.create_model_from_pretrained(NAME, weights)
        tokenizer = module.get_tokenizer(NAME)

        def process(text=None, images=None, **_):
            if images is not None:
                arrays = [image.permute(1, 2, 0).numpy() for image in images]
                return {"pixel_values": torch.stack([preprocess(Image.fromarray(array)) for array in arrays])}
            ids = tokenizer(text)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        from torchmetrics.functional.multimodal import clip_score
        from torchmetrics.multimodal import CLIPScore

        images = [torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in pictures()]
        give = lambda: (AsTransformers(model.eval()), process)  # noqa: E731
        metric = CLIPScore(model_name_or_path=give)
        metric.update(images[:3], CLASSES[:3])
        metric.update(images[3:], CLASSES[3:])
        return metric.compute(), clip_score(images, CLASSES, model_name_or_path=give)

    for left, right in zip(*both(run), strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=1e-4)


def test_fiftyone(both, weights):
    """FiftyOne's zoo model: arrays of any size become a batch, class prompts become logits of each image."""

    def run(_):
        import open_clip

        model, _, preprocess = open_clip.create_model_and_transforms(
            NAME, pretrained=weights, device=torch.device("cpu")
        )
        tokenizer = open_clip.get_tokenizer(NAME)
        model = model.to("cpu").eval()
        arrays = [np.asarray(picture) for picture in pictures()]
        batch = torch.stack([preprocess(Image.fromarray(array)) for array in arrays])
        with torch.no_grad():
            prompts = model.encode_text(tokenizer([f"A photo of a {name}" for name in CLASSES]))
            images = model.encode_image(batch)
        units = [rows / rows.norm(dim=-1, keepdim=True) for rows in (images, prompts)]
        with torch.no_grad():
            logits = model.logit_scale.exp() * units[0] @ units[1].t()
        return images, logits, logits.softmax(dim=-1).numpy()

    theirs, ours = both(run)
    for left, right, tolerance in zip(theirs, ours, (1e-6, 1e-5, 1e-5), strict=True):
        torch.testing.assert_close(torch.as_tensor(right), torch.as_tensor(left), rtol=0, atol=tolerance)
