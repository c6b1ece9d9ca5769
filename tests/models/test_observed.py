"""Hooks see every module with its full shapes; recorded graphs are right for other batches; both cost nothing otherwise.

Runs the towers by ``jit.trace``, ``torch.export`` and ``torch.compile``; ONNX where its packages are installed.
"""

import importlib.util
import time
import warnings

import pytest
import torch
from torch import nn

from diptych.models import create_model, hooked, traced

END = 49407
FAMILIES = {"vit": "tiny-test", "resnet": "tiny-test-resnet", "siglip": "tiny-test-siglip", "clipa": "tiny-test-clipa"}
MODELS = FAMILIES


def ids_of(model, *lengths, width=None):
    """Captions of random words with an end token, as a tokenizer gives them."""
    text = model.config.text
    width = width or text.context_length
    generator = torch.Generator().manual_seed(sum(lengths))
    end = text.vocab_size - 1 if text.end_id is None else text.end_id
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(2, min(text.vocab_size, end), (length,), generator=generator)
        ids[row, length - 1] = end
    return ids


def pixels_of(model, count, seed=0):
    size = model.config.vision.image_size
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    torch.manual_seed(0)
    return create_model(request.param).eval()


def inputs_of(model, tower):
    return pixels_of(model, 3) if tower == "image" else ids_of(model, 3, 7, 5)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_hook_fires_on_every_module_with_as_many_rows_as_images_or_texts(model, tower):
    part, given = getattr(model, tower), inputs_of(model, tower)
    expected = part(given).pooled
    shapes = {}

    def note(name):
        def hook(module, args, output):
            shapes[name] = output.shape

        return hook

    leaves = {name: item for name, item in part.named_modules() if name and type(item) is not nn.ModuleList}
    handles = [item.register_forward_hook(note(name)) for name, item in leaves.items()]
    seen = part(given).pooled
    for handle in handles:
        handle.remove()
    assert sorted(shapes) == sorted(leaves)
    assert all(shape[0] == 3 for shape in shapes.values()), shapes
    assert torch.allclose(seen, expected, atol=1e-5)
    assert torch.equal(part(given).pooled, expected)  # and the fast form is back


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_hook_on_the_last_block_sees_all_of_its_tokens(tower):
    model = create_model("tiny-test").eval()
    part, given = getattr(model, tower), inputs_of(model, tower)
    seen = []
    part.layers[-1].attention.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    part(given)
    length = given.shape[1] if tower == "text" else part.positional_embedding.shape[0]
    assert seen == [(3, length, part.layers[0].ln_1.normalized_shape[0])]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_gradients_reach_a_backward_hook_with_the_full_shape(tower):
    model = create_model("tiny-test").eval()
    part, given = getattr(model, tower), inputs_of(model, tower)
    seen = []
    part.layers[-1].register_full_backward_hook(lambda module, inward, outward: seen.append(outward[0].shape))
    part(given).pooled.sum().backward()
    assert len(seen) == 1
    assert seen[0][0] == 3
    assert len(seen[0]) == 3


def test_a_forward_put_on_a_module_is_called():
    model = create_model("tiny-test").eval()
    attention, calls = model.image.layers[-1].attention, []
    whole = attention.forward

    def instead(x, plan):
        calls.append(x.shape)
        return whole(x, plan)

    attention.forward = instead
    model.encode_image(pixels_of(model, 2))
    assert len(calls) == 1


def test_hooks_of_torch_itself_and_none_do_not_count():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert not hooked(inner, None)

    def of_torch(module, args):
        return None

    of_torch.__module__ = "torch.distributed.fsdp"
    inner[1][0].register_forward_pre_hook(of_torch)
    assert not hooked(inner)
    handle = inner[1][0].register_forward_pre_hook(lambda module, args: None)
    assert hooked(inner)
    assert not hooked(inner[0])
    handle.remove()
    assert not hooked(inner)
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    assert hooked(inner[0])
    everywhere.remove()


def test_asking_for_hooks_costs_little():
    tower = create_model("ViT-B-32", device="meta").image

    def once():
        begin = time.perf_counter()
        hooked(*tower.children())
        return time.perf_counter() - begin

    assert min(once() for _ in range(50)) < 1e-3  # 0.08 ms where this was written


class Both(nn.Module):
    """What people export: features of unit length."""

    def __init__(self, model, tower):
        super().__init__()
        self.model, self.tower = model, tower
        self.eval()  # exporters put a module back into the mode of the outermost

    def forward(self, x):
        return getattr(self.model, f"encode_{self.tower}")(x, normalize=True)


def others_of(model, tower):
    """Batches of other sizes, and texts of other lengths, than ``inputs_of`` gives."""
    if tower == "image":
        return [pixels_of(model, 3, seed=5), pixels_of(model, 2, seed=6), pixels_of(model, 7, seed=7)]
    longest = model.config.text.context_length
    lengths = [(5, 3, 7), (7, 7, 7), (longest, 3), (3, 4, 5, 6, 7)]
    return [ids_of(model, *item) for item in lengths] + [ids_of(model, 3, 6, 4, 5, width=9)]


def assert_right(model, tower, graph):
    for given in others_of(model, tower):
        expected = Both(model, tower)(given)
        assert torch.allclose(graph(given), expected, atol=1e-5), tuple(given.shape)


@pytest.mark.parametrize("tower", ["image", "text"])
@torch.no_grad()
def test_a_traced_tower_is_right_for_other_batches(model, tower):
    graph = by_trace(Both(model, tower), inputs_of(model, tower))
    assert_right(model, tower, graph)


def by_trace(module, given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # people trace all the same
        return torch.jit.trace(module, given)


def dynamic_shapes(tower):
    batch = torch.export.Dim("batch", max=512)
    return ({0: batch} if tower == "image" else {0: batch, 1: torch.export.Dim.AUTO},)


@pytest.mark.parametrize("tower", ["image", "text"])
@torch.no_grad()
def test_an_exported_tower_is_right_for_other_batches(model, tower):
    given = inputs_of(model, tower)
    if tower == "text":
        given = ids_of(model, 3, 7, 5, width=12)
    program = torch.export.export(Both(model, tower), (given,), dynamic_shapes=dynamic_shapes(tower))
    assert_right(model, tower, program.module())


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "text"])
@torch.no_grad()
def test_a_compiled_tower_is_right_for_other_batches(model, tower):
    graph = torch.compile(Both(model, tower), backend="aot_eager", fullgraph=True)
    assert_right(model, tower, graph)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
@torch.no_grad()
def test_a_tower_in_onnx_is_right_for_other_batches(model, tower, dynamo, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if dynamo and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed")
    path, given = tmp_path / "tower.onnx", inputs_of(model, tower)
    axes = {0: "batch"} if tower == "image" else {0: "batch", 1: "length"}
    names = {"input_names": ["input"], "output_names": ["features"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        if dynamo:
            shapes = dynamic_shapes(tower)
            torch.onnx.export(
                Both(model, tower), (given,), path, dynamo=True, dynamic_shapes=shapes, verbose=False, **names
            )
        else:
            dynamic = {"input": axes, "features": {0: "batch"}}
            torch.onnx.export(Both(model, tower), (given,), path, dynamo=False, dynamic_axes=dynamic, **names)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert_right(model, tower, lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0]))


def test_values_of_images_decide_nothing_while_a_graph_is_recorded():
    model = create_model("tiny-test").eval()
    graph = by_trace(Both(model, "image"), torch.randn(2, 3, 32, 32))
    given = torch.randn(5, 3, 32, 32)
    assert torch.allclose(graph(given), Both(model, "image")(given), atol=1e-5)
    assert traced(torch.zeros(1, device="meta"))
    assert not traced(torch.zeros(1))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_a_tower_gives_the_features_of_each():
    model = create_model("tiny-test").eval()
    given = pixels_of(model, 4).unflatten(0, (2, 2))
    mapped = torch.func.vmap(model.encode_image)(given)
    assert torch.allclose(mapped.flatten(0, 1), model.encode_image(given.flatten(0, 1)), atol=1e-5)


def test_an_attention_of_somebody_else_is_called_with_every_token():
    class Other(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, plan):
            return self.inner(x, plan)

    model = create_model("tiny-test").eval()
    images, ids = pixels_of(model, 3), ids_of(model, 3, 7, 5)
    expected = model.encode_image(images), model.encode_text(ids)
    for tower in (model.image, model.text):
        tower.layers[-1].attention = Other(tower.layers[-1].attention)
    assert torch.allclose(model.encode_image(images), expected[0], atol=1e-6)
    assert torch.allclose(model.encode_text(ids), expected[1], atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_a_whole_model_is_exported_with_both_sizes_dynamic(model, strict):
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=model.config.text.context_length)
    given = pixels_of(model, 3), ids_of(model, 3, 7, 5, width=9)
    program = torch.export.export(model, given, dynamic_shapes=({0: batch}, {0: batch, 1: length}), strict=strict)
    other = pixels_of(model, 5, seed=3), ids_of(model, 3, 11, 5, 2, 4, width=12)
    for got, expected in zip(program.module()(*other), model(*other), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.heavy
def test_a_compiled_model_trains():
    model = create_model("tiny-test").train()
    graph = torch.compile(model, backend="aot_eager", fullgraph=True)
    given = pixels_of(model, 3), ids_of(model, 3, 7, 5)
    gradients = []
    for call in (graph, model):
        model.zero_grad()
        images, texts, scale = call(*given)
        (scale * (images @ texts.T)).square().sum().backward()
        gradients.append({name: item.grad.clone() for name, item in model.named_parameters()})
    largest = max(float(item.abs().max()) for item in gradients[1].values())
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-5 * largest), name
