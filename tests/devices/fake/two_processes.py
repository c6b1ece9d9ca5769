"""Under torchrun: two steps of the tiny model by every process on its share of the batch; rank 0 prints the losses."""

import json
import os
import sys

import torch

from diptych.conformance.training import PAIRS, example_batch, part_of, training_step
from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.models import create_model

world = process_group.world_from_environment()
device = get_device(sys.argv[1], world.local_rank if world.size > 1 else None)
process_group.start(device)
torch.manual_seed(11)
step = training_step(create_model("tiny-test"), device, "fp32", learning_rate=1e-3, clip_norm=1.0, world=world)
share = PAIRS // world.size
batch = part_of(example_batch(32, 77), slice(world.rank * share, (world.rank + 1) * share))
losses = [float(process_group.all_reduce_mean(step([batch]).loss)) for _ in range(2)]
if world.main:
    print(json.dumps({"losses": losses, "device": str(device.torch_device), "size": world.size}))
sys.stdout.flush()
process_group.stop()
os._exit(0)  # a plug-in's threads must not delay the end of the process
