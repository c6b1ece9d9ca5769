"""The package's losses beside open_clip's, values and gradients, alone and in processes; and beside the whole batch's loss."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F

from diptych.distributed import process_group
from diptych.errors import ConfigError, DistributedError
from diptych.open_clip import loss as ours
from tests.distributed._processes import run_in_processes

CLIP = [
    {"local_loss": local, "gather_with_grad": with_gradient, "cache_labels": cached}
    for local, with_gradient, cached in itertools.product((False, True), repeat=3)
]
SIGLIP = [{"dist_impl": name} for name in ("bidir", "shift", "reduce", "gather", None)]


def features(seed: int, count: int = 5) -> list[torch.Tensor]:
    """Two of the student and two of a teacher: unit features [count, 8] with gradient."""
    generator = torch.Generator().manual_seed(seed)
    rows = [F.normalize(torch.randn(count, 8, generator=generator, dtype=torch.float64), dim=-1) for _ in range(4)]
    return [row.float().requires_grad_() for row in rows]


def results(module, name: str, options: dict, seed: int = 0) -> list[torch.Tensor]:
    """Losses and gradients of features, scale and bias."""
    image, text, teacher_image, teacher_text = features(seed)
    scale, bias = torch.tensor(7.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    inputs = [image, text, scale]
    loss = getattr(module, name)(**options)
    extra = (teacher_image, teacher_text, 11.0) if name == "DistillClipLoss" else (bias,)
    given = loss(*inputs, *extra, output_dict=True)
    sum(given.values()).backward()
    gradients = [item.grad for item in (*inputs, *extra) if isinstance(item, torch.Tensor)]
    return [*given.values(), *(gradient for gradient in gradients if gradient is not None)]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, atol=1e-6, rtol=1e-6) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["ClipLoss", "DistillClipLoss"])
@pytest.mark.parametrize("options", CLIP[:3], ids=str)
def test_alone_losses_and_gradients_are_open_clips(peer, name, options):
    assert equal(results(ours, name, options), results(peer.loss, name, options))


@pytest.mark.parametrize("options", SIGLIP, ids=str)
def test_alone_siglips_are_open_clips(peer, options):
    assert equal(results(ours, "SigLipLoss", options), results(peer.loss, "SigLipLoss", options))


def _compare_with_open_clip() -> list[str]:
    from benchmarks._peers import open_clip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = open_clip().loss
    world = process_group.world_from_environment()
    ranks = {"rank": world.rank, "world_size": world.size}
    cases = [("ClipLoss", options) for options in CLIP] + [("DistillClipLoss", options) for options in CLIP[::2]]
    cases += [("SigLipLoss", options) for options in SIGLIP]
    wrong = []
    for name, options in cases:
        pair = [results(module, name, {**options, **ranks}, seed=world.rank) for module in (ours, theirs)]
        if not equal(*pair):
            wrong.append(f"{name} {options}")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_in_processes_losses_and_gradients_are_open_clips(peer, count):
    assert run_in_processes(count, _compare_with_open_clip) == [[]] * count


def _all_results(name: str, options: dict) -> list[torch.Tensor]:
    world = process_group.world_from_environment()
    ranks = {"rank": world.rank, "world_size": world.size}
    return [item.tolist() for item in results(ours, name, {**options, **ranks}, seed=world.rank)]


WHOLE = [
    ("ClipLoss", {"local_loss": True, "gather_with_grad": True}),
    ("ClipLoss", {"local_loss": False, "gather_with_grad": True}),
    *(("SigLipLoss", options) for options in SIGLIP[:4]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), WHOLE, ids=str)
def test_the_mean_over_processes_is_the_whole_batchs(name, options):
    parts = run_in_processes(2, _all_results, name, options)
    images, texts = (
        torch.cat([features(seed)[index] for seed in (0, 1)]).detach().requires_grad_() for index in (0, 1)
    )
    scale, bias = torch.tensor(7.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    whole = getattr(ours, name)()(images, texts, scale, bias)
    whole.backward()
    mean = [torch.stack([torch.tensor(part[index]) for part in parts]).mean(0) for index in (0, 3, 4)]
    assert torch.allclose(mean[0], whole, atol=1e-6)
    assert torch.allclose(mean[1], scale.grad, atol=1e-6)
    # Data-parallel training averages gradients over processes.
    gradients = torch.cat([torch.tensor(part[1]) for part in parts]) / 2
    assert torch.allclose(gradients, images.grad, atol=1e-6)


def test_plain_formulas():
    image, text, *_ = features(3)
    logits = 7.0 * image @ text.T
    own = torch.arange(5)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert torch.allclose(ours.ClipLoss()(image, text, 7.0), expected)
    signs = 2 * torch.eye(5) - 1
    expected = F.softplus(-signs * (logits - 3)).sum() / 5
    assert torch.allclose(ours.SigLipLoss()(image, text, 7.0, -3.0), expected)
    contrastive, distill = ours.DistillClipLoss()(image, text, 7.0, image, text, 7.0)
    probability = logits.softmax(1)
    by_image = -(probability * probability.log()).sum(1).mean()
    by_text = -(logits.T.softmax(1) * logits.T.log_softmax(1)).sum(1).mean()
    assert torch.allclose(distill, (by_image + by_text) / 2)
    assert torch.allclose(contrastive, ours.ClipLoss()(image, text, 7.0))


def test_labels_are_cached_where_asked():
    loss = ours.ClipLoss(cache_labels=True)
    first = loss.get_ground_truth(torch.device("cpu"), 4)
    assert loss.get_ground_truth(torch.device("cpu"), 4) is first
    assert loss.get_ground_truth(torch.device("cpu"), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "call",
    [
        lambda: ours.ClipLoss(use_horovod=True),
        lambda: ours.SigLipLoss(dist_impl="ring"),
        lambda: ours.CoCaLoss(1.0, 2.0),
        lambda: ours.gather_features(*features(0)[:2], use_horovod=True),
    ],
)
def test_what_is_not_here_is_one_line(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", [ours.ClipLoss(world_size=2), ours.SigLipLoss(rank=1, world_size=2)])
def test_a_world_that_is_not_there_is_said(loss):
    with pytest.raises(DistributedError, match="rank 0 of 1"):
        loss(*features(0)[:2], 7.0, -3.0)
