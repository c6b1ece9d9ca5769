"""Under torchrun: two steps of the tiny model by every process on its share of the batch; rank 0 prints the losses."""

import json
import os
import sys

import torch

from diptych.conformance.training import PAIRS, example_batch, part_of
from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.models import create_model
from diptych.objectives import OBJECTIVES, create_objective
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step

here = process_group.world_from_environment()
device = get_device(sys.argv[1], here.local_rank if here.size > 1 else None)
process_group.start(device)
torch.manual_seed(11)
model = create_model("tiny-test")
objective = create_objective(OBJECTIVES.get("clip").Config(), model)
step = create_step(objective, OptimizerOptions(lr=1e-3, grad_clip_norm=1.0), device, world=here)
share = PAIRS // here.size
batch = part_of(example_batch(32, 77), slice(here.rank * share, (here.rank + 1) * share))
losses = [float(process_group.all_reduce_mean(step([batch]).loss)) for _ in range(2)]
if here.main:
    print(json.dumps({"losses": losses, "device": str(device.torch_device), "size": here.size}))
sys.stdout.flush()
process_group.stop()
os._exit(0)  # a plug-in's threads must not hold the process
