"""--torchcompile: blocks are compiled one by one, seldom again, with the results of the uncompiled model, and leave its names."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from diptych.devices import get_device
from diptych.errors import ConfigError
from diptych.models import create_model, model_config
from diptych.train.changes import changes_of
from diptych.train.config import read
from diptych.train.model_options import ModelOptions
from diptych.train.pipeline import Pipeline
from diptych.train.text_layout import with_text_layout

from .runs import argv, losses, run, tensors

# PyTorch's own, when its compiler is imported and while it records a graph.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batches(count, context):
    draw = torch.Generator().manual_seed(0)
    for _ in range(count):
        lengths = torch.randint(2, context + 1, (8,), generator=draw)
        ids = torch.randint(1, 1000, (8, int(lengths.max())), generator=draw)
        yield torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=draw), ids, lengths


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["tiny-test", "emoji-64"])
def test_fifty_batches_of_different_captions_compile_at_most_three_times_more(name):
    torch.manual_seed(0)
    plain, compiled = create_model(name, dtype=torch.float64), create_model(name, dtype=torch.float64)
    compiled.load_state_dict(plain.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile_blocks(counter)
    plain.text.layout = compiled.text.layout = "padded"
    side, first = plain.config.vision.image_size, None
    for images, ids, lengths in batches(50, plain.config.text.context_length):
        results = []
        for model in (plain, compiled):
            features = model.image(images[..., :side, :side]).pooled, model.text(ids, lengths).pooled
            model.zero_grad()
            torch.cat(features).square().sum().backward()
            results.append([*features, *(item.grad for item in model.parameters() if item.grad is not None)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-10)
        first = first or counter.frame_count
    assert first > 0
    assert counter.frame_count - first <= 3


def test_names_of_weights_and_hooks_stay_as_they_are():
    model = create_model("tiny-test")
    names = list(model.state_dict())
    model.compile_blocks("eager")
    assert list(model.state_dict()) == names


def test_a_backend_is_checked_before_anything_is_built():
    with pytest.raises(ConfigError, match="goes with --torchcompile"):
        changes_of(ModelOptions(torchcompile_backend="eager"), resumed=False)
    with pytest.raises(ConfigError, match="inducto"):
        changes_of(ModelOptions(torchcompile=True, torchcompile_backend="inducto"), resumed=False)


@pytest.mark.heavy
def test_a_compiled_run_trains_as_an_uncompiled_one(pairs, tmp_path):
    run(pairs, tmp_path / "plain", "--max-steps", "3")
    run(pairs, tmp_path / "compiled", "--max-steps", "3", "--torchcompile", "--torchcompile-backend", "aot_eager")
    expected, actual = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert [loss for _, loss in actual] == pytest.approx([loss for _, loss in expected], rel=1e-4)
    assert tensors(tmp_path / "compiled").keys() == tensors(tmp_path / "plain").keys()


def test_groups_of_equal_length_are_refused_with_it(pairs, tmp_path):
    with pytest.raises(ConfigError, match="take buckets"):
        run(pairs, tmp_path / "run", "--max-steps", "1", "--torchcompile", "--text-layout", "groups")


def test_no_flag_is_named_that_was_not_given(pairs, tmp_path, capsys):
    config = read(argv(pairs, tmp_path / "run", "--torchcompile"), program="diptych train")
    pipeline, siglip = Pipeline(*[None] * 9), model_config("tiny-test-siglip").text
    assert with_text_layout(config, pipeline, siglip, get_device("cpu"), "fp32") == (config, pipeline)
    assert not capsys.readouterr().err


def test_split_layers_are_refused_with_it(pairs, tmp_path):
    with pytest.raises(ConfigError, match="take --sharding"):
        run(pairs, tmp_path / "run", "--max-steps", "1", "--torchcompile", "--tensor-parallel-degree", "2")
