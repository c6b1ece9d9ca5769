"""The layout's verbs under DistributedDataParallel and under FSDP2, on two processes over gloo, against one process.

The sharded layout is the test's own (``sharded.py``): it proves that step, state, saving, finishing and evaluation ask nothing
that only replicas can answer.
"""

import numpy as np
import pytest
import torch

from diptych import weights
from diptych.devices import get_device
from diptych.distributed import checkpoint, process_group
from diptych.distributed.layout import frozen_digests
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import parallelize
from diptych.distributed.saving import CheckpointWriter, SaveOptions
from diptych.evaluate import Encoder
from diptych.models import SharedPrefixes
from diptych.train.changes import exported
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, own_rows, pieces_of

from ._processes import run_in_processes

LAYOUTS = {
    "replicated": ParallelOptions(),
    **{name: ParallelOptions(sharding=name) for name in ("stage1", "stage3")},
}
EXAMPLE = "siglip-1"
TEXTS = [f"a photo of {'very ' * (number % 5)}thing number {number}" for number in range(17)]


def make_step(layout, clip_norm=0.0, dtype=torch.float64, vocabulary=512):
    device, world = get_device("cpu"), process_group.world_from_environment()
    laid_out = parallelize(make_objective(EXAMPLES[EXAMPLE], dtype, vocabulary), device, world, LAYOUTS[layout])
    laid_out.train()
    optimizer = create_optimizer(
        laid_out.trainable(), laid_out.objective.model, OptimizerOptions(lr=1e-3, image_layer_decay=0.5), device
    )
    return Step(laid_out, optimizer, device, "fp32", clip_norm)


def take(step, numbers, parts):
    for number in numbers:
        batch = own_rows(batch_for(step.layout.objective, 16, seed=number), step.layout.world)
        result = step(pieces_of(batch, parts))
    return {
        **process_group.all_reduce_mean_of({"loss": result.loss, **result.metrics}),
        "norm": float(result.gradient_norm),
    }


def plain(state):
    """As arrays: a queue would carry tensors as file handles that outlive the process."""
    return {name: item.detach().numpy().copy() for name, item in state.items()}


def assert_close(actual, expected, tolerance=1e-6):
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=tolerance, err_msg=name)


def trained(layout, parts, clip_norm):
    step = make_step(layout, clip_norm)
    row = take(step, range(3), parts)
    return row, plain(step.layout.full_state())


def every_case(layout, cases):
    return [trained(layout, *case) for case in cases]


CASES = [(parts, clip_norm) for parts in (1, 2, 4) for clip_norm in (0.0, 0.05)]


def every_verb(layout, folder):
    """All that the tests below look at, in one start of two processes, since starting takes seconds."""
    return {
        "steps": every_case(layout, CASES),
        "resumed": saved_and_resumed(layout, folder),
        "finished": finished(layout, folder / "model.safetensors"),
        "evaluated": evaluated(layout),
        "losses": losses_by_rank(layout),
    }


@pytest.fixture(scope="module", params=LAYOUTS)
def on_two(request, tmp_path_factory):
    """A folder with what two processes wrote, and the results of both."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, run_in_processes(2, every_verb, request.param, folder)


@pytest.mark.heavy
def test_steps_equal_those_of_one_process(on_two):
    expected = every_case("replicated", [(1, clip_norm) for _, clip_norm in CASES])
    for results in on_two[1]:
        for (row, state), (wanted, whole) in zip(results["steps"], expected, strict=True):
            assert row == pytest.approx(wanted, rel=1e-5)
            assert_close(state, whole)


def saved_and_resumed(layout, folder):
    """Two steps, a checkpoint that rank 0 writes and one of every process, two more; and the same from each. Final states."""
    step = make_step(layout)
    take(step, range(2), 2)
    state = {"weights": step.layout.full_state(), "step_state": step.state()}  # a collective
    if step.layout.world.main:
        checkpoint.save(folder, 2, state)
    process_group.barrier()
    writer = CheckpointWriter(folder / "folders", step.layout.world, SaveOptions("folder"))
    writer.save(2, {"weights": step.layout.own_state(), "step_state": step.state(whole=False)})
    take(step, (2, 3), 2)
    states = [plain(step.layout.full_state())]
    for parent in (folder, folder / "folders"):
        resumed = make_step(layout)
        loaded = checkpoint.load(checkpoint.path_of(parent, 2))
        resumed.layout.load_full_state(loaded["weights"])
        resumed.restore(loaded["step_state"])
        take(resumed, (2, 3), 2)
        states.append(plain(resumed.layout.full_state()))
    return states


def test_a_checkpoint_is_whole_and_resumes_exactly(on_two):
    folder, (results, _) = on_two
    whole, *resumed = results["resumed"]
    for state in resumed:
        assert_close(state, whole, tolerance=0)
    # It is the same file whatever the layout: one process goes on from it.
    step = make_step("replicated")
    loaded = checkpoint.load(checkpoint.path_of(folder, 2))
    step.layout.load_full_state(loaded["weights"])
    step.restore(loaded["step_state"])
    take(step, (2, 3), 2)
    assert_close(plain(step.layout.full_state()), whole)


def finished(layout, path):
    step = make_step(layout, dtype=torch.float32)
    take(step, range(2), 1)
    state = step.layout.model_state()
    if step.layout.world.main:
        weights.save_state(path, step.layout.objective.model.config, exported((), state), {})
    process_group.barrier()
    return plain(step.layout.model_state())


def test_final_weights_are_whole(on_two):
    folder, results = on_two
    loaded = plain(weights.load(folder / "model.safetensors").state_dict())
    for rank in results:
        assert_close(rank["finished"], loaded, tolerance=0)


def evaluated(layout):
    """Features of 17 texts at batch 4, with every process taking part, and the losses of validation."""
    step = make_step(layout, dtype=torch.float32, vocabulary=49408)  # the tokenizer's
    objective = step.layout.objective
    tokenizer, transform = weights.tokenizer_of(objective.model.config), weights.transforms(objective.model.config)[1]
    encoder = Encoder(step.layout, tokenizer, transform, step.device, 4, 0, "fp32", shared=step.layout.size > 1)
    with step.layout.evaluating():
        features = encoder.texts(TEXTS, lambda count: None)
        with torch.no_grad():
            batch = own_rows(batch_for(objective, 16, wants=objective.validation_wants), step.layout.world)
            terms = step.layout.validation_terms(batch)
    assert objective.training
    return features.tolist(), process_group.all_reduce_mean_of(terms.losses)["sigmoid"]


def test_evaluation_gives_every_process_all_features(on_two):
    expected, loss = evaluated("replicated")
    for rank in on_two[1]:
        features, own = rank["evaluated"]
        assert torch.allclose(torch.tensor(features), torch.tensor(expected), atol=1e-5)
        assert own == pytest.approx(loss, rel=1e-5)


def losses_by_rank(layout):
    step = make_step(layout)
    batch = own_rows(batch_for(step.layout.objective, 8), step.layout.world)
    result = step([batch])
    own = {name: float(item) for name, item in result.losses.items()}
    return own, process_group.all_reduce_mean_of({"loss": result.loss, **result.losses})


def test_losses_are_means_over_ranks_and_sum_to_the_loss(on_two):
    results = [rank["losses"] for rank in on_two[1]]
    own = [sum(losses.values()) for losses, _ in results]
    assert own[0] != pytest.approx(own[1], rel=1e-3)
    for _, means in results:
        assert means["loss"] == pytest.approx(sum(own) / 2, rel=1e-6)
        assert means["loss"] == pytest.approx(sum(value for name, value in means.items() if name != "loss"), rel=1e-6)


def test_companions_are_placed_locked_and_hashed():
    objective = make_objective(EXAMPLES["everything-1"])
    layout = parallelize(objective, get_device("cpu"), process_group.world_from_environment())
    layout.train()
    teacher = objective.frozen()["teacher"]
    assert not teacher.training and not [item for item in teacher.parameters() if item.requires_grad]
    assert not [name for name in layout.full_state() if "teacher" in name]
    before = frozen_digests(objective.frozen())
    with torch.no_grad():
        teacher.logit_scale += 1e-6
    assert frozen_digests(objective.frozen()) != before


def test_encoding_texts_passes_lengths_and_prefixes():
    layout = make_step("replicated").layout
    layout.objective.eval()
    tokens = torch.randint(1, 500, (4, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, :3] = tokens[0, :3]
    lengths, text = torch.tensor([5, 6, 7, 8]), layout.objective.model.text
    with torch.no_grad():
        expected = text(tokens, lengths).pooled
        assert not torch.allclose(expected, text(tokens).pooled)
        assert torch.equal(layout.encode_text(tokens, lengths), expected)
        prefix = SharedPrefixes(torch.zeros(4, dtype=torch.int64), torch.full((4,), 3))
        calls = []
        hook = text.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        shared = layout.encode_text(tokens, lengths, prefix)
        hook.remove()
    assert any(item is prefix for args, kwargs in calls for item in (*args, *kwargs.values()))
    assert torch.allclose(shared, expected, atol=1e-9)
