"""What a plan counts of weights stored in bf16, with copies and without: state to the byte, and exchanges, against real steps."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.mesh import Degrees, ParallelOptions, degrees_of
from diptych.distributed.process_group import World
from diptych.distributed.tensor_parallel import local
from diptych.errors import ConfigError
from diptych.objectives import OBJECTIVES
from diptych.plan import Request, plan
from diptych.plan.collectives import collectives_of
from diptych.plan.layouts import Planner
from diptych.plan.state import checkpoint_bytes, state_of
from diptych.train.dry_run import trial_batch
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from tests.distributed._processes import run_in_processes
from tests.distributed.test_equal_layouts import FOUR, TWO

from .test_collectives import OF_GLOO, PAIRS, TOKENS, objective_of, seen

MASTERS = ("fp32", "none")


def size(tensor):
    return local(tensor).numel() * tensor.element_size()


def real_state(options, masters, optimizer="adamw", name="tiny-test", locked=False, steps=3):
    """Bytes of this process's parameters, gradients, moments and copies, and its collectives in the last step."""
    device, world = get_device("cpu"), process_group.world_from_environment()
    objective = objective_of(name, "clip")
    objective.model.lock(image=locked)
    parallel = ParallelOptions(
        sharding=options.sharding,
        sharding_parallel_degree=options.sharding_parallel_degree,
        tensor_parallel_degree=options.tensor_parallel_degree,
        master_weights=masters,
    )
    step = create_step(objective, OptimizerOptions(optimizer=optimizer), device, "pure_bf16", world, parallel=parallel)
    batch = trial_batch(objective.model.config, objective.wants, PAIRS // step.layout.size, TOKENS)
    batch = batch._replace(images=torch.zeros(batch.images.shape, dtype=torch.uint8))
    for _ in range(steps - 1):
        step([batch])
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        step([batch])
    moments = [item for state in step.optimizer.state.values() for item in state.values()]
    state = [
        sum(map(size, objective.parameters())),
        sum(size(item.grad) for _, item in step.layout.trainable()),
        sum(map(size, moments)),
        sum(size(item) for _, item in step.layout.masters.items()),
    ]
    return state, seen(profiled), step.layout.full_state(), step.state()["optimizer"]


def planner_of(masters, optimizer="adamw", name="tiny-test", locked=False, precision="pure_bf16"):
    request = Request(
        name, 1, 1 << 40, PAIRS, OBJECTIVES.get("clip").Config(), precision, optimizer, lock_image=locked,
        caption_tokens=TOKENS, on_cpu=True, master_weights=masters,
    )  # fmt: skip
    return Planner(request)


def bytes_of(value):
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(bytes_of, items))


@pytest.mark.parametrize("masters", MASTERS)
@pytest.mark.parametrize(
    ("optimizer", "name", "locked"),
    [("adamw", "tiny-test", False), ("muon", "tiny-test", True), ("sgd", "tiny-test-resnet", False)],
)
def test_state_and_checkpoint_of_one_process_to_the_byte(masters, optimizer, name, locked):
    state, _, weights, moments = real_state(ParallelOptions(), masters, optimizer, name, locked, steps=1)
    planner = planner_of(masters, optimizer, name, locked)
    planned = state_of(planner.parameters, Degrees(), optimizer)
    assert state == [planned.parameters, planned.gradients, planned.moments, planned.masters]
    assert planned.total == sum(state) and bool(planned.masters) == (masters == "fp32")
    buffers = sum(item.numel() * item.element_size() for item in planner.buffers.values())
    expected = bytes_of(weights) + bytes_of(moments)
    assert checkpoint_bytes(planner.parameters, buffers, optimizer) == expected


def test_what_is_planned_in_pure_bf16_is_what_is_said_of_it():
    request = Request("tiny-test", 2, 1 << 30, 64, precision="bf16", sharding="stage2", tensor=1)
    mixed, pure = plan(request).choice.memory, plan(_with(request, precision="pure_bf16")).choice.memory
    none = plan(_with(request, precision="pure_bf16", master_weights="none"))
    assert pure.parameters < 0.51 * mixed.parameters and 0.99 * mixed.parameters < pure.masters <= mixed.parameters
    assert (pure.gradients, pure.moments) == (mixed.gradients, mixed.moments)
    assert none.choice.memory.masters == 0 and none.choice.memory.moments < 0.51 * mixed.moments
    assert "--precision pure_bf16" in none.command and "--master-weights none" in none.command
    with pytest.raises(ConfigError, match="--master-weights none goes with --precision pure_bf16"):
        plan(_with(request, master_weights="none"))
    with pytest.raises(ConfigError, match="batch normalization"):
        plan(_with(request, model="tiny-test-resnet", precision="pure_bf16"))
    assert (
        plan(_with(request, model="tiny-test-resnet", precision="pure_bf16", sharding="auto")).choice.sharding == "none"
    )


def _with(request, **changes):
    return Request(**{**vars(request), **changes})


def every_layout(layouts, masters):
    return {name: real_state(options, masters)[:2] for name, options in layouts.items()}


def check(processes, layouts, masters):
    planner, fp32, wrong = planner_of(masters), planner_of("fp32", precision="fp32"), []
    for rank, results in enumerate(run_in_processes(processes, every_layout, layouts, masters, limit=1500)):
        for name, (state, (counts, elements)) in results.items():
            degrees = degrees_of(layouts[name], World(0, processes))
            shard = (rank // degrees.tensor) % degrees.shards
            planned = state_of(planner.parameters, degrees, "adamw", shard)
            expected = [planned.parameters, planned.gradients, planned.moments, planned.masters]
            if state != expected:
                wrong.append(f"rank {rank}, {name}: planned {expected}, held {state}")
            times, numbers = exchange(planner, fp32, layouts[name], degrees)
            if (times, numbers) != (counts, elements):
                wrong.append(f"rank {rank}, {name}: planned {times}, {numbers}, sent {counts}, {elements}")
    assert not wrong, "\n".join(wrong)


def exchange(planner, fp32, options, degrees):
    """Counts of collectives of the plan, and elements given to them, which are those of fp32: the profiler sees no types."""
    counts, numbers, pairs = {}, {}, PAIRS // degrees.data
    for one in (planner, fp32):
        shape = one.step_shape(options.sharding, degrees.tensor, pairs, pairs)
        for item in collectives_of(one.parameters, degrees, shape, "clip"):
            kind = OF_GLOO[item.kind]
            if one is planner:
                counts[kind] = counts.get(kind, 0) + item.count
            else:
                numbers[kind] = numbers.get(kind, 0) + item.given // (8 if item.purpose == "is the step finite" else 4)
    return counts, numbers


@pytest.mark.slow
@pytest.mark.parametrize("masters", MASTERS)
def test_two_processes_hold_what_is_planned(masters):
    check(2, TWO, masters)


@pytest.mark.slow
def test_four_processes_hold_what_is_planned():
    check(4, FOUR, "fp32")


def test_gradients_and_gathers_are_sent_as_they_are_stored():
    for options in (TWO["replicated"], TWO["stage3"]):
        given = {}
        for precision in ("fp32", "pure_bf16"):
            planner, degrees = planner_of("fp32", precision=precision), degrees_of(options, World(0, 2))
            shape = planner.step_shape(options.sharding, 1, 4, 4)
            exchanged = collectives_of(planner.parameters, degrees, shape, "clip")
            given[precision] = {item.purpose: item.given for item in exchanged}
        scalars = 4 if options.sharding == "none" else 0
        for purpose in ("gradients", "parameters") if options.sharding != "none" else ("gradients",):
            assert 2 * (given["pure_bf16"][purpose] - scalars) == given["fp32"][purpose] - scalars
        assert given["pure_bf16"]["features"] == given["fp32"]["features"]
