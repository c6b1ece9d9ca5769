"""How a training run would lie over devices: memory, collectives and time of a step, and the layout to take.

``plan(request)`` is the whole of it. State and collectives are formulas that tests count after; activations are counted on the
real towers without memory. A plan runs no training, and knows nothing of networks but what is sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from diptych.plan.collectives import Collective
from diptych.plan.duration import STEPS, Duration, from_peak, measured, operations
from diptych.plan.layouts import Choice, Planner, describe
from diptych.plan.memory import Memory
from diptych.plan.request import Request
from diptych.plan.state import checkpoint_bytes
from diptych.train.sizes import human, parse_memory

COUNTED = ("clip", "siglip")
"""Objectives whose loss is counted; of others, what ``compare`` holds and sends is taken to be CLIP's."""


@dataclass(frozen=True)
class Plan:
    """The layout to take, and the others that fit; ``checkpoint`` bytes of one; ``notes`` on what was assumed or not counted."""

    request: Request
    choice: Choice
    others: tuple[Choice, ...]
    checkpoint: int
    notes: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that trains so; ``--batch-size`` is of one process there."""
        return " ".join([*_launcher(self.request), "train", *_flags(self.request, self.choice)])


def plan(request: Request) -> Plan:
    """Plan a run. Raises ConfigError, saying what would fit, where nothing does."""
    planner = Planner(request)
    fitting = planner.options()
    choice = planner.chosen(fitting)
    buffers = sum(item.numel() * item.element_size() for item in planner.towers(1).objective.buffers())
    others = tuple(item for item in fitting if item is not choice)
    size = checkpoint_bytes(planner.parameters, buffers, request.optimizer)
    return Plan(request, choice, others, size, tuple(_notes(request, planner, choice)))


def _notes(request: Request, planner: Planner, choice: Choice) -> list[str]:
    name, model = request.objective.objective, planner.towers(1).objective.model
    context = model.config.text.context_length
    tokens = min(request.caption_tokens or context, context)
    notes = [
        f"captions of {tokens} tokens{'' if request.caption_tokens else ', the most that the model takes (--caption-tokens)'}",
        f"{request.reserve:.0%} of the memory is left to kernels, collective libraries and the allocator (--reserve)",
    ]
    if name not in COUNTED:
        notes.append(
            f"not counted: what the loss of {name} holds and sends beyond CLIP's (heads' activations, queues, token features)"
        )
    if not planner.enough(choice):
        notes.append(f"{choice.micro_batch} pairs at a time leave a device idle for much of a step")
    if choice.degrees.tensor > 1 and model.config.vision.family == "resnet":
        notes.append("a ResNet is not split: each process of a tensor group computes all of it")
    return notes


def _launcher(request: Request) -> list[str]:
    if request.devices == 1:
        return ["diptych"]
    nodes = request.devices // request.node
    machines = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"] if nodes > 1 else []
    return ["torchrun", *machines, "--nproc_per_node", str(request.node), "-m", "diptych"]


def _flags(request: Request, choice: Choice) -> list[str]:
    """The options of ``diptych train`` that the plan decides or was given."""
    options: dict[str, object] = {
        "model": request.model, "objective": request.objective.objective, "precision": request.precision,
        "optimizer": request.optimizer, "batch-size": choice.pairs,
    }  # fmt: skip
    if request.master_weights != "fp32":
        options["master-weights"] = request.master_weights
    if choice.micro_batches > 1:
        options["micro-batch"] = choice.micro_batch
    if choice.sharding != "none":
        options["sharding"] = choice.sharding
        if choice.degrees.replicas > 1:
            options["sharding-parallel-degree"] = choice.degrees.shards
    if choice.degrees.tensor > 1:
        options["tensor-parallel-degree"] = choice.degrees.tensor
    switches = [
        f"--{name.replace('_', '-')}"
        for name in ("grad_checkpointing", "lock_image", "lock_text")
        if getattr(request, name)
    ]
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*named, *switches, "--train-data", "PAIRS", "--output", "runs/planned"]


__all__ = [
    "STEPS",
    "Choice",
    "Collective",
    "Duration",
    "Memory",
    "Plan",
    "Request",
    "describe",
    "from_peak",
    "human",
    "measured",
    "operations",
    "parse_memory",
    "plan",
]
