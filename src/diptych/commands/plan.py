"""``diptych plan``: how a run would lie over so many devices of so much memory, what it sends, how long it takes.

Arguments and tables only; the planning is ``diptych.plan``'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from diptych.commands import command
from diptych.config import Count, NotNegative, Range

if TYPE_CHECKING:
    from diptych.plan import Duration, Plan, Request

EFFICIENCY = 0.2


@dataclass(frozen=True)
class Options:
    """What to train, on what, and which choices are made already."""

    model: str
    """Architecture."""
    devices: Annotated[int, Range(1, 1 << 20)]
    """Accelerators, of all machines together."""
    memory: str
    """Memory of one of them: 80GB, 80GiB."""
    batch_size: Annotated[int, Range(1)]
    """Pairs of a whole step over all devices: the global batch, where that of diptych train is of one process."""
    objective: str = "clip"
    """What is optimized; clip and siglip are counted in full, of others it is said what is not."""
    precision: str = "bf16"
    """Arithmetic inside the towers: fp32, bf16 or fp16, with fp32 weights, gradients and moments; or pure_bf16."""
    master_weights: Literal["fp32", "none"] = "fp32"
    """With pure_bf16: whether there are fp32 copies of the weights, whose gradients and moments are fp32 too."""
    optimizer: Literal["adamw", "lamb", "muon", "sgd"] = "adamw"
    """Whose moments are held."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    lock_image: bool = False
    """The image tower is not trained."""
    lock_text: bool = False
    """The text tower is not trained."""
    caption_tokens: Count = 0
    """Tokens of a caption, begin and end included; 0 takes the most that the model reads."""
    sharding: Literal["auto", "none", "stage1", "stage2", "stage3"] = "auto"
    """Take this stage; auto chooses."""
    sharding_parallel_degree: Count = 0
    """With --sharding: processes that share one copy of the state; 0 chooses."""
    tensor_parallel_degree: Count = 0
    """Processes that share a layer; 0 chooses."""
    micro_batch: Count = 0
    """Pairs of a process that are encoded at a time; 0 takes the most that fit."""
    devices_per_node: Annotated[int, Range(1)] = 8
    """Accelerators of one machine."""
    reserve: Annotated[float, Range(0, 0.9)] = 0.1
    """Share of the memory that is left free, for kernels, collective libraries and the allocator."""
    samples: Count = 0
    """Pairs that the run sees in all: gives its days; 0 leaves them out."""
    peak_flops: NotNegative = 0.0
    """Peak of a device in the precision, in operations per second (989e12): gives an estimate of the time."""
    efficiency: Annotated[float, Range(0.001, 1)] | None = None
    """Share of the peak that towers reach; without it 0.2: published runs of CLIP have 0.18 to 0.21."""
    measure: bool = False
    """Estimate the time from 20 real steps on this machine's device."""
    measure_pairs: Count = 0
    """measure: pairs of such a step; 0 takes those of a micro-batch, on a CPU 8 at most."""
    device: str = "auto"
    """measure: accelerator. cpu: memory as a CPU takes it."""
    json: bool = False
    """One JSON object instead of tables."""


@command("plan", example="diptych plan --model ViT-L-14 --devices 64 --memory 80GB --batch-size 32768")
def main(options: Options) -> int:
    """Plan a run: memory of a device, collectives and bytes of a step, the layout to take, days; nothing is allocated."""
    from diptych.plan import plan

    planned = plan(_request(options))
    duration = _duration(options, planned)
    if options.json:
        print(json.dumps(_plain(planned, duration, options.samples)))
    else:
        _print(planned, duration, options)
    return 0


def _request(options: Options) -> Request:
    from diptych.distributed.precisions import precision_of
    from diptych.errors import ConfigError
    from diptych.objectives import OBJECTIVES
    from diptych.plan import Request, parse_memory

    if options.sharding_parallel_degree and options.sharding not in ("stage1", "stage2", "stage3"):
        raise ConfigError("--sharding-parallel-degree goes with --sharding stage1, stage2 or stage3; add it.")
    timed = options.measure or bool(options.peak_flops)
    for unused, flag, needed in (
        (options.measure_pairs and not options.measure, "--measure-pairs", "--measure"),
        (options.samples and not timed, "--samples", "--peak-flops or --measure"),
        (options.efficiency is not None and not options.peak_flops, "--efficiency", "--peak-flops"),
        (options.device not in ("auto", "cpu") and not options.measure, f"--device {options.device}", "--measure"),
    ):
        if unused:
            raise ConfigError(f"{flag} goes with {needed}; add it.")
    if options.measure and options.peak_flops:
        raise ConfigError("--measure and --peak-flops are two estimates of the time; choose one.")
    return Request(
        options.model, options.devices, parse_memory(options.memory), options.batch_size,
        OBJECTIVES.get(options.objective).Config(objective=options.objective), precision_of(options.precision),
        options.optimizer, options.grad_checkpointing, options.lock_image, options.lock_text, options.caption_tokens,
        options.sharding, options.sharding_parallel_degree, options.tensor_parallel_degree, options.micro_batch,
        options.devices_per_node, options.reserve, options.device == "cpu",
        options.master_weights,
    )  # fmt: skip


def _duration(options: Options, planned: Plan) -> Duration | None:
    """The time of a step, None where nothing says how fast a device is."""
    from diptych.plan import from_peak, measured, operations

    request, choice = planned.request, planned.choice
    if options.peak_flops:
        each = operations(request, choice.micro_batches, choice.degrees.tensor)
        return from_peak(choice.pairs, each, options.peak_flops, options.efficiency or EFFICIENCY)
    if not options.measure:
        return None
    from diptych.devices import get_device

    device = get_device(options.device)
    device.prepare_process()
    most = min(8, choice.micro_batch) if device.name == "cpu" else choice.micro_batch
    pairs = options.measure_pairs or most
    # Processes of a tensor group share the work of their pairs.
    return measured(request, device, max(1, choice.pairs // choice.degrees.tensor), pairs, choice.micro_batches)


def _days(duration: Duration, planned: Plan, samples: int) -> float:
    return duration.seconds * samples / planned.request.batch_size / 86_400


def _plain(planned: Plan, duration: Duration | None, samples: int) -> dict[str, Any]:
    from diptych.plan import describe

    choice = planned.choice
    return {
        "model": planned.request.model, "devices": planned.request.devices,
        "global_batch_size": planned.request.batch_size, "pairs_per_process": choice.pairs,
        "micro_batch": choice.micro_batch, "layout": describe(choice.sharding, choice.degrees),
        "sharding": choice.sharding, **choice.degrees._asdict(),
        "memory": {**choice.memory.rows(), "total": choice.memory.total, "usable": planned.request.usable},
        "collectives": [{**vars(item), "sent": item.sent} for item in choice.collectives],
        "sent": choice.sent, "checkpoint": planned.checkpoint, "notes": list(planned.notes),
        "others": [
            {"layout": describe(item.sharding, item.degrees), "micro_batch": item.micro_batch,
             "total": item.memory.total, "sent": item.sent}
            for item in planned.others
        ],
        **({} if duration is None else {"seconds_per_step": duration.seconds, "estimated_from": duration.source}),
        **({"days": _days(duration, planned, samples)} if duration is not None and samples else {}),
        "command": planned.command,
    }  # fmt: skip


def _print(planned: Plan, duration: Duration | None, options: Options) -> None:
    from diptych.plan import describe, human

    request, choice = planned.request, planned.choice
    print(f"{request.model}: {describe(choice.sharding, choice.degrees)}")
    print(
        f"global batch {request.batch_size} = {choice.degrees.data} x {choice.pairs} pairs; "
        f"{choice.micro_batch} at a time, {choice.micro_batches} micro-batch{'es' if choice.micro_batches > 1 else ''}"
    )
    memory = [[name, human(size)] for name, size in choice.memory.rows().items() if size]
    total = [["at most", human(choice.memory.total)], ["usable", human(request.usable)]]
    _table([["memory of a device", ""], *memory, *total])
    heads = ["collectives of a step", "over", "times", "given", "sent"]
    lines = [
        [f"{item.kind}: {item.purpose}", str(item.processes), str(item.count), human(item.given), human(item.sent)]
        for item in choice.collectives
    ]
    _table([heads, *(lines or [["none", "", "", "", ""]])])
    if planned.others:
        rows = [
            [describe(item.sharding, item.degrees), str(item.micro_batch), human(item.memory.total), human(item.sent)]
            for item in planned.others
        ]
        _table([["also fits", "at a time", "memory", "sent"], *rows])
    print(f"checkpoint: {human(planned.checkpoint)}")
    for note in planned.notes:
        print(f"assumed: {note}" if not note.startswith("not counted") else note)
    if duration is None:
        print("step time: not estimated; give --peak-flops, or --measure")
    else:
        print(f"step time, an estimate: {duration.seconds:.3g} s ({duration.source})")
        if options.samples:
            print(f"{options.samples:,} samples, an estimate: {_days(duration, planned, options.samples):.3g} days")
    print(f"\n{planned.command}")


def _table(lines: list[list[str]]) -> None:
    """Columns under their heads, the first to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print()
    for first, *rest in lines:
        print(
            first.ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        )
    print()
