"""The contract, over every registered objective with every configuration that it offers, and over one that uses all of it."""

import copy
import io

import numpy as np
import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.parallel import parallelize
from diptych.distributed.process_group import World
from diptych.objectives import OBJECTIVES, differentiable, pairs_of
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step, total
from tests.distributed._processes import run_in_processes

from .batch_references import FROM_BATCH
from .references import REFERENCES
from .worlds import EXAMPLES, batch_for, make_objective, own_rows, pieces_of

every_example = pytest.mark.parametrize("name", EXAMPLES)


def make_step(name, dtype=torch.float64, lock_statistics=True):
    """A step of an example; towers with BatchNorm in evaluation mode, since a batch's cuts change them by definition."""
    device, world = get_device("cpu"), process_group.world_from_environment()
    objective = make_objective(EXAMPLES[name], dtype)
    layout = parallelize(objective, device, world)
    layout.train()
    if lock_statistics:
        for module in objective.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    optimizer = create_optimizer(layout.trainable(), objective.model, OptimizerOptions(lr=1e-3), device)
    return Step(layout, optimizer, device, "fp32")


def gradients(step):
    """The gradient of every parameter as arrays: a queue would carry tensors as file handles that outlive the process."""
    return {name: item.grad.numpy().copy() for name, item in step.layout.trainable()}


def buffers(step):
    return {name: item.double().numpy().copy() for name, item in step.layout.objective.named_buffers()}


def after_step(name, parts=1, steps=1):
    """Losses, metrics, gradients and buffers after steps over this process's share, cut into ``parts``."""
    step, world = make_step(name), process_group.world_from_environment()
    values = []
    for number in range(steps):
        batch = own_rows(batch_for(step.layout.objective, 12, seed=number), world)
        result = step(pieces_of(batch, parts))
        values.append(
            process_group.all_reduce_mean_of({"loss": result.loss.double(), **result.losses, **result.metrics})
        )
    return values, gradients(step), buffers(step)


def assert_equal(actual, expected, tolerance=1e-9):
    for one, other in zip(actual[0], expected[0], strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=2e-6)  # means over processes are taken in fp32
    for own, wanted in zip(actual[1:], expected[1:], strict=True):
        assert own.keys() == wanted.keys()
        for key, item in wanted.items():
            np.testing.assert_allclose(own[key], item, rtol=1e-5, atol=tolerance, err_msg=key)


def test_every_objective_offers_examples_and_has_a_reference():
    for name in OBJECTIVES.names():
        examples = OBJECTIVES.get(name).examples()
        assert examples and all(example.options.objective == name for example in examples)
        assert name in {*REFERENCES, *FROM_BATCH}


@every_example
def test_terms_are_finite_and_every_parameter_gets_a_gradient(name):
    step = make_step(name)
    terms, _ = step.layout.terms(batch_for(step.layout.objective))
    assert terms.losses
    assert all(bool(torch.isfinite(item).all()) for item in (*terms.losses.values(), *terms.metrics.values()))
    total(terms).backward()
    assert not [key for key, item in step.layout.trainable() if item.grad is None]


@every_example
def test_encoding_looks_at_one_pair_at_a_time(name):
    objective = make_objective(EXAMPLES[name]).eval()
    batch = batch_for(objective)
    whole = objective.encode(batch, objective.encode_frozen(batch))
    pieces = [objective.encode(piece, objective.encode_frozen(piece)) for piece in pieces_of(batch, 3)]
    for item, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        if differentiable(item) and all(part.shape[1:] == item.shape[1:] for part in parts):
            assert torch.allclose(item, torch.cat(parts), atol=1e-10)


@every_example
def test_the_loss_equals_the_reference(name):
    step = make_step(name)
    objective = step.layout.objective
    chosen = EXAMPLES[name].options.objective
    if chosen not in {*REFERENCES, *FROM_BATCH}:
        pytest.skip("not one of the product's objectives")
    batch = batch_for(objective, 7)
    terms, _ = step.layout.terms(batch)
    with torch.no_grad():
        image = objective.model.image(batch.images[0]).pooled.numpy()
        text = objective.model.text(batch.tokens[0], batch.lengths[0]).pooled.numpy()
    if chosen in FROM_BATCH:
        expected = FROM_BATCH[chosen](objective, batch, image, text)
    else:
        expected = REFERENCES[chosen](objective.model, image, text)
    assert {key: item.item() for key, item in terms.losses.items()} == pytest.approx(expected, rel=1e-10)


@every_example
@pytest.mark.parametrize("parts", [2, 3])
def test_micro_batches_equal_the_whole_batch(name, parts):
    assert_equal(after_step(name, parts, steps=2), after_step(name, 1, steps=2))


def every_example_in_parts(parts):
    return {name: after_step(name, parts, steps=2) for name in EXAMPLES}


@pytest.fixture(scope="module")
def on_two_processes():
    """Results of two processes by number of micro-batches, rank and example: started once, since starting takes seconds."""
    return {parts: run_in_processes(2, every_example_in_parts, parts) for parts in (1, 2)}


@pytest.mark.heavy
@every_example
@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_equal_one(name, parts, on_two_processes):
    expected = after_step(name, steps=2)
    for results in on_two_processes[parts]:
        assert_equal(results[name], expected)


def concatenated(items):
    """Rows of all parts; shorter parts are padded with zeros to the longest in every other dimension, as a step does."""
    if items[0] is None:
        return None
    shape = [sum(map(len, items)), *map(max, zip(*(item.shape[1:] for item in items), strict=True))]
    whole, start = items[0].new_zeros(shape), 0
    for item in items:
        whole[(slice(start, start + len(item)), *(slice(size) for size in item.shape[1:]))] = item
        start += len(item)
    return whole


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if "resnet" in example.preset])
def test_batch_norm_towers_equal_the_graph_with_the_same_cuts(name):
    step, other = make_step(name, lock_statistics=False), make_step(name, lock_statistics=False)
    objective = other.layout.objective
    pieces = pieces_of(batch_for(objective, 12), 3)
    step(pieces)
    encoded = [objective.encode(piece, objective.encode_frozen(piece)) for piece in pieces]
    features = type(encoded[0])(*map(concatenated, zip(*encoded, strict=True)))
    total(objective.compare(features, pairs_of(pieces))).backward()
    with torch.no_grad():
        objective.after_step(features, pairs_of(pieces))
    actual = gradients(step)
    for key, item in objective.named_parameters():
        np.testing.assert_allclose(actual[key], item.grad.numpy(), atol=1e-10, err_msg=key)
    statistics = dict(objective.named_buffers())
    for key, item in step.layout.objective.named_buffers():
        assert torch.equal(item, statistics[key]), key  # once per micro-batch, not twice


@every_example
def test_resume_is_exact_to_the_bit(name):
    step = make_step(name, torch.float32)
    batches = [pieces_of(batch_for(step.layout.objective, 8, seed=number), 2) for number in range(4)]
    for batch in batches[:2]:
        step(batch)
    file = io.BytesIO()
    torch.save({"weights": step.layout.full_state(), "step": step.state()}, file)
    for batch in batches[2:]:
        step(batch)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = make_step(name, torch.float32)
    resumed.layout.load_full_state(saved["weights"])
    resumed.restore(saved["step"])
    for batch in batches[2:]:
        resumed(batch)
    expected = step.layout.full_state()
    assert resumed.layout.full_state().keys() == expected.keys()
    for key, item in resumed.layout.full_state().items():
        assert torch.equal(item, expected[key]), key


@every_example
def test_validation_changes_no_state(name):
    step = make_step(name, torch.float32, lock_statistics=False)
    objective = step.layout.objective
    before = copy.deepcopy(objective.state_dict())
    batch = batch_for(objective, wants=objective.validation_wants)
    with step.layout.evaluating(), torch.no_grad():
        terms = step.layout.validation_terms(batch)
    assert all(bool(torch.isfinite(item)) for item in terms.losses.values())
    for key, item in objective.state_dict().items():
        assert torch.equal(item, before[key]), key
    assert objective.training


@every_example
def test_the_model_is_built_with_what_the_loss_needs(name):
    example = EXAMPLES[name]
    needs = OBJECTIVES.get(example.options.objective).model_needs(example.options)
    model = make_objective(example).model
    if needs.logit_bias is not None:
        assert model.logit_bias is not None and model.logit_bias.item() == pytest.approx(needs.logit_bias)
    if needs.logit_scale is not None:
        assert model.logit_scale.item() == pytest.approx(needs.logit_scale)


def test_without_crossing_gradients_the_direction_is_kept_but_not_the_size():
    # open_clip's default: each process's own rows alone carry gradient, so the mean over two processes is half of it.
    _, expected, _ = after_step("clip-1")
    _, actual, _ = run_in_processes(2, _without_crossing)[0]
    for key, values in expected.items():
        if key.startswith(("model.image", "model.text")):
            np.testing.assert_allclose(2 * actual[key], values, rtol=1e-5, atol=1e-6, err_msg=key)


def _without_crossing():
    from . import worlds

    worlds.EXAMPLES["clip-1"] = worlds.without(worlds.EXAMPLES["clip-1"], gather_with_grad=False)
    return after_step("clip-1")


def test_the_world_of_one_needs_no_group():
    assert process_group.world_from_environment() == World()
