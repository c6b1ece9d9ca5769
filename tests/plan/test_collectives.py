"""State and collectives of a plan against real steps of two and of four processes over gloo: bytes of local tensors, and what the
profiler saw in the third step, whose buckets are settled.
"""

import functools
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.mesh import ParallelOptions, degrees_of
from diptych.distributed.parallel import parallelize
from diptych.distributed.process_group import World
from diptych.distributed.tensor_parallel import local
from diptych.models import create_model, model_config
from diptych.objectives import OBJECTIVES, create_objective
from diptych.plan.collectives import collectives_of
from diptych.plan.layouts import Planner
from diptych.plan.request import Request
from diptych.plan.state import state_of
from diptych.train.dry_run import trial_batch
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.distributed._processes import run_in_processes
from tests.distributed.test_equal_layouts import FOUR as LAYOUTS
from tests.distributed.test_equal_layouts import TWO
from tests.objectives.worlds import pieces_of

PAIRS, TOKENS = 8, 9
FOUR = {
    **{name: layout for name, layout in LAYOUTS.items() if name != "stage3"},
    "replicas of stage3": ParallelOptions(sharding="stage3", sharding_parallel_degree=2),
}
# Of gloo: it scatters by summing, so that both are all_reduce there.
OF_GLOO = {
    "all-gather": "all_gather",
    "all-reduce": "all_reduce",
    "reduce-scatter": "all_reduce",
    "broadcast": "broadcast",
}


def objective_of(name, objective):
    entry = OBJECTIVES.get(objective)
    options = entry.Config(objective=objective)
    config = model_config(name).with_needs(entry.model_needs(options))
    torch.manual_seed(0)
    return create_objective(options, create_model(config))


def real_step(layouts, cases):
    """By layout and case: (bytes of local tensors by kind, counts of collectives, bytes given to them)."""
    results = {}
    for layout_name, options in layouts.items():
        for case in cases:
            name, objective_name, parts, optimizer_name, checkpointing, locked = case
            device, world = get_device("cpu"), process_group.world_from_environment()
            objective = objective_of(name, objective_name)
            objective.model.lock(image=locked)
            objective.model.checkpoint_activations(checkpointing)
            layout = parallelize(objective, device, world, options)
            layout.train()
            chosen = OptimizerOptions(optimizer=optimizer_name)
            optimizer = create_optimizer(layout.trainable(), objective.model, chosen, device)
            step = Step(layout, optimizer, device, "fp32")
            batch = trial_batch(objective.model.config, objective.wants, PAIRS // layout.size, TOKENS)
            batch = batch._replace(images=torch.zeros(batch.images.shape, dtype=torch.uint8))
            pieces = pieces_of(batch, parts)
            step(pieces)
            step(pieces)
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
                step(pieces)
            results[layout_name, case] = (local_bytes(objective, optimizer), *seen(profiled))
    return results


def local_bytes(objective, optimizer):
    """Bytes of this process's parameters, gradients and moments."""

    def size(tensor):
        return local(tensor).numel() * tensor.element_size()

    parameters = list(objective.parameters())
    moments = [item for state in optimizer.state.values() for item in state.values() if isinstance(item, torch.Tensor)]
    return [
        sum(map(size, parameters)),
        sum(size(item.grad) for item in parameters if item.grad is not None),
        sum(map(size, moments)),
    ]


def seen(profiled):
    """Counts and bytes by gloo's names; ring transfers have counts only."""
    counts, sizes = {}, {}
    for event in profiled.events():
        kind = event.name.removeprefix("gloo:")
        if kind in OF_GLOO.values() and kind != event.name:
            counts[kind] = counts.get(kind, 0) + 1
            numbers = sum(math.prod(shape) for shape in event.input_shapes)
            sizes[kind] = sizes.get(kind, 0) + numbers
        elif event.name == "c10d::send":
            counts["send"] = counts.get("send", 0) + 1
    return counts, sizes


@functools.cache
def planner_of(case):
    """The planner of a case; what it is planned for is not its own: layouts are given."""
    name, objective, _, optimizer, checkpointing, locked = case
    request = Request(
        name, 1, 1 << 40, PAIRS, OBJECTIVES.get(objective).Config(objective=objective), "fp32", optimizer,
        checkpointing, locked, caption_tokens=TOKENS, on_cpu=True,
    )  # fmt: skip
    return Planner(request)


@functools.cache
def planned_exchange(options, case, processes):
    """Counts of collectives and elements given to them, by gloo's names, of a plan."""
    degrees, planner, parts = degrees_of(options, World(0, processes)), planner_of(case), case[2]
    pairs = PAIRS // degrees.data
    shape = planner.step_shape(options.sharding, degrees.tensor, pairs, pairs // parts)
    counts, sizes = {}, {}
    for item in collectives_of(planner.parameters, degrees, shape, case[1]):
        kind = OF_GLOO.get(item.kind, item.kind)
        counts[kind] = counts.get(kind, 0) + item.count
        if kind != "send":
            # Elements: the profiler counts these; the answer of whether a step is finite is int64, as are counters.
            width = 8 if item.purpose in ("is the step finite", "counters of buffers") else 4
            sizes[kind] = sizes.get(kind, 0) + item.given // width
    return counts, sizes


def planned_step(options, case, processes, rank):
    """The same of a plan."""
    degrees = degrees_of(options, World(0, processes))
    shard = (rank // degrees.tensor) % degrees.shards
    state = state_of(planner_of(case).parameters, degrees, case[3], shard)
    return [state.parameters, state.gradients, state.moments], *planned_exchange(options, case, processes)


def check(processes, layouts, cases):
    wrong = []
    for rank, results in enumerate(run_in_processes(processes, real_step, layouts, cases, limit=1500)):
        for (layout, case), actual in results.items():
            planned = planned_step(layouts[layout], case, processes, rank)
            for what, own, real in zip(("bytes", "counts", "elements"), planned, actual, strict=True):
                if own != real:
                    wrong.append(f"rank {rank}, {layout}, {case}: {what} planned {own}, seen {real}")
    assert not wrong, "\n".join(wrong)


PLAIN = ("tiny-test", "clip", 1, "adamw", False, False)


@pytest.mark.slow
def test_a_plan_counts_what_two_processes_hold_and_send():
    check(
        2,
        {name: TWO[name] for name in ("replicated", "stage3", "tensor")},
        [("tiny-test", "clip", 2, "adamw", False, False)],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *(("tiny-test", name, count, "adamw", False, False) for name in ("clip", "siglip") for count in (1, 4)),
        ("tiny-test", "clip", 1, "lamb", False, False),
        ("tiny-test", "clip", 1, "sgd", False, False),
        ("tiny-test", "clip", 2, "adamw", True, False),
        ("tiny-test", "clip", 2, "adamw", False, True),
        ("tiny-test-resnet", "clip", 2, "adamw", False, False),
        ("tiny-test-siglip", "siglip", 2, "adamw", False, False),
    ],
    ids=lambda case: "-".join(map(str, case)),
)
def test_a_plan_counts_what_two_processes_hold_and_send_under_every_layout(case):
    check(2, TWO, [case])


@pytest.mark.slow
def test_a_plan_counts_the_buckets_of_replicas():
    check(2, {"replicated": TWO["replicated"]}, [("ViT-Mini-8-64", "clip", 1, "sgd", False, False)])


@pytest.mark.slow
def test_a_plan_counts_what_four_processes_hold_and_send():
    check(4, FOUR, [PLAIN, ("tiny-test", "clip", 2, "adamw", False, False)])


def test_muon_has_one_moment_for_hidden_matrices():
    request = Request("tiny-test", 1, 1 << 40, 8, precision="fp32")
    planner = Planner(request)
    objective = objective_of("tiny-test", "clip")
    device = get_device("cpu")
    layout = parallelize(objective, device, World())
    optimizer = create_optimizer(layout.trainable(), objective.model, OptimizerOptions(optimizer="muon"), device)
    for item in objective.parameters():
        item.grad = torch.zeros_like(item)
    optimizer.step()
    planned = state_of(planner.parameters, degrees_of(ParallelOptions(), World()), "muon")
    assert [planned.parameters, planned.gradients, planned.moments] == local_bytes(objective, optimizer)


def test_the_last_shards_of_few_rows_hold_less():
    planner = Planner(Request("tiny-test", 4, 1 << 40, 8, precision="fp32"))
    degrees = degrees_of(ParallelOptions(sharding="stage3"), World(0, 4))
    sizes = [state_of(planner.parameters, degrees, "adamw", shard).parameters for shard in range(4)]
    whole = state_of(planner.parameters, degrees_of(ParallelOptions(), World()), "adamw").parameters
    scalars = 4 * sum(1 for item in planner.parameters if item.whole == 1)
    assert sum(sizes) - 3 * scalars == whole and sizes[0] > sizes[-1]
