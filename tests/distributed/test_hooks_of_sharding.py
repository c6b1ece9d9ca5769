"""FSDP2 registers hooks on every block; they see parameters only, so that sharded towers keep their fast forms."""

import pytest
import torch

from diptych.models import create_model, hooked

from ._processes import run_in_processes


def sharded(name):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = create_model(name), init_device_mesh("cpu", (1,))
    answers = []
    for tower in (model.image, model.text):
        for block in tower.blocks():
            fully_shard(block, mesh=mesh)
        fully_shard(tower, mesh=mesh)
        answers.append(hooked(*tower.children()))
        tower.blocks()[-1].register_forward_hook(lambda module, args, output: None)
        answers.append(hooked(*tower.children()))
    model.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    return answers


@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-siglip"])
def test_hooks_of_sharding_do_not_count_and_others_do(name):
    assert run_in_processes(1, sharded, name) == [[False, True, False, True]]
