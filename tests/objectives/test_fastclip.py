"""FastCLIP against NumPy over several epochs, its estimates at any division of a batch, its schedule, and what it refuses."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives import Objective, RunFacts
from diptych.objectives._repeats import CaptionedFeatures
from diptych.objectives._terms import Features
from diptych.objectives.fastclip import FastClip, FastClipConfig, _last_of_each
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.types import Pairs
from tests.distributed._processes import run_in_processes

from .test_objectives import gradients, make_step
from .worlds import batch_for, own_rows, pieces_of

RECORDS, EPOCHS = 9, 8.0
FACTS = RunFacts(RECORDS, EPOCHS)


def objective(dtype=torch.float64, facts=FACTS, **options):
    own = FastClip(FastClipConfig(**options), create_model("tiny-test"))
    own.begin_run(facts)
    return own.to(dtype)


def unit(count, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return (
        F.normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=1).to(dtype).requires_grad_()
    )


def pairs(numbers, epoch):
    rows = torch.tensor(numbers)
    return Pairs(tuple(map(str, numbers)), rows, rows, rows, None, epoch)


def steps():
    """(records, epoch) of four steps: new records, and again with gamma at 1, between, and at the end of its fall."""
    return [([0, 1, 2, 3, 4], 0), ([3, 0, 5, 1, 6], 0), ([2, 1, 0, 7, 3], 2), ([0, 3, 8, 2, 5], 6)]


class Reference:
    """The formula in float64, with u as it is written in the paper, and the two parts of the gradient of the scale."""

    def __init__(self, rho=6.5, final=0.2):
        self.u, self.rho, self.final = {}, rho, final

    def gamma(self, epoch):
        return 1.0 if epoch == 0 else self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1, epoch / 4))) / 2

    def __call__(self, image, text, scale, numbers, epoch):
        ratios, logs = 0.0, 0.0
        gradient_of_image, gradient_of_text, of_scale = np.zeros_like(image), np.zeros_like(text), 0.0
        for side, (rows, columns, to_rows, to_columns) in enumerate(
            ((image, text, gradient_of_image, gradient_of_text), (text, image, gradient_of_text, gradient_of_image))
        ):
            for i, number in enumerate(numbers):
                others = [j for j in range(len(numbers)) if j != i]
                differences = np.array([rows[i] @ columns[j] - rows[i] @ columns[i] for j in others])
                weights = np.exp(scale * differences) / len(others)
                g, old, gamma = weights.sum(), self.u.get((side, number), 0.0), self.gamma(epoch)
                u = g if old == 0 else (1 - gamma) * old + gamma * g
                self.u[side, number] = u
                share = weights / (u + 1e-14) / len(numbers)
                ratios += share.sum()
                logs += np.log(u) / len(numbers)
                for j, weight in zip(others, share, strict=True):
                    to_rows[i] += weight * (columns[j] - columns[i])  # times scale, divided by scale
                    to_columns[j] += weight * rows[i]
                    to_columns[i] -= weight * rows[i]
                of_scale += (share * differences).sum() / scale
        of_scale -= (self.rho + logs / 2) / scale**2
        losses = {"global": ratios / scale, "temperature": self.rho / scale + logs / (2 * scale)}
        return losses, gradient_of_image, gradient_of_text, of_scale * scale  # of log s


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_terms_gradients_and_estimates_equal_numpy_over_epochs(dtype, tolerance, temperature):
    own, reference = objective(dtype, initial_temperature=temperature), Reference()
    for number, (numbers, epoch) in enumerate(steps()):
        image, text = (unit(len(numbers), 2 * number + side, dtype) for side in (0, 1))
        terms = own.compare(Features(image, text), pairs(numbers, epoch))
        loss = sum(terms.losses.values())
        found_gradients = torch.autograd.grad(loss, (image, text, own.model.logit_scale))
        arrays = [item.detach().double().numpy() for item in (image, text)]
        best = (image @ text.T).argmax(dim=1) == torch.arange(len(numbers))
        assert float(terms.metrics["batch_accuracy"]) == pytest.approx(float(best.double().mean()))
        losses, *wanted = reference(*arrays, math.exp(own.model.logit_scale.item()), numbers, epoch)
        assert {key: item.item() for key, item in terms.losses.items()} == pytest.approx(losses, rel=tolerance)
        for one, other in zip(found_gradients, wanted, strict=True):
            np.testing.assert_allclose(one.double().numpy().squeeze(), other, rtol=10 * tolerance, atol=tolerance)
        with torch.no_grad():
            own.after_step(Features(image.detach(), text.detach()), pairs(numbers, epoch))
        for (side, record), u in reference.u.items():
            assert own.log_u[side, record].item() == pytest.approx(math.log(u), rel=tolerance, abs=tolerance)
        assert own.seen.nonzero().flatten().tolist() == sorted({record for _, record in reference.u})


def test_a_scale_of_100_overflows_nothing():
    own = objective(torch.float32, initial_temperature=0.01)
    image = F.normalize(torch.eye(4), dim=1).requires_grad_()
    terms = own.compare(
        Features(image, -image + image.roll(1, 0)), pairs([0, 1, 2, 3], 0)
    )  # exp(200) is infinite in fp32
    loss = sum(terms.losses.values())
    assert loss.isfinite() and torch.autograd.grad(loss, image)[0].isfinite().all()


def test_gamma_is_one_in_the_first_epoch_and_falls_over_half_of_the_run():
    own = objective()
    assert [own.gamma(epoch) for epoch in (0, 2, 4, 7)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert objective(gamma_epochs=2, gamma=0.5).gamma(1) == pytest.approx(0.75)
    assert objective(facts=RunFacts(RECORDS, 0.4)).gamma(0) == 1


def test_a_pair_without_negatives_moves_nothing():
    own = objective(repeated_captions="ignored")
    image, text = unit(3, 0, torch.float64), unit(3, 1, torch.float64)
    ids = torch.tensor([[5, 6], [5, 6], [5, 6]])
    terms = own.compare(CaptionedFeatures(image, text, ids), pairs([0, 1, 2], 3))
    assert terms.losses["global"].item() == 0
    assert all(not item.any() for item in torch.autograd.grad(terms.losses["global"], (image, text)))
    with torch.no_grad():
        own.after_step(CaptionedFeatures(image, text, ids), pairs([0, 1, 2], 3))
    assert not own.seen.any() and not own.log_u.any()


def test_ignoring_repeated_captions_equals_a_step_without_them():
    own, image, text = objective(repeated_captions="ignored"), unit(3, 0, torch.float64), unit(3, 1, torch.float64)
    ids = torch.tensor([[5, 6], [7, 0], [5, 6]])
    own.compare(CaptionedFeatures(image, text, ids), pairs([0, 1, 2], 0))
    log_u = own._newest[0]
    without = objective()
    without.compare(Features(image[:2], text[:2]), pairs([0, 1], 0))
    assert torch.allclose(log_u[:, 0], without._newest[0][:, 0], rtol=1e-12)


def test_of_one_record_twice_in_a_step_neither_is_a_negative_and_the_last_counts():
    own, image, text = objective(), unit(4, 0, torch.float64), unit(4, 1, torch.float64)
    features, step = Features(image, text), pairs([2, 0, 2, 1], 0)
    own.compare(features, step)
    log_u = own._newest[0].clone()
    true = (image[2] @ text[2]).item()
    scale = own.model.logit_scale.exp().item()
    expected = np.mean([math.exp(scale * ((image[2] @ text[j]).item() - true)) for j in (1, 3)])
    with torch.no_grad():
        own.after_step(features, step)
    assert own.log_u[0, 2].item() == pytest.approx(math.log(expected), rel=1e-10)
    assert torch.equal(own.log_u[:, [2, 0, 1]], log_u[:, [2, 1, 3]])


@pytest.mark.parametrize(("temperature", "share"), [(0.05, 1), (0.02, 1 / 3)])
def test_a_cold_temperature_moves_at_a_third_of_its_rate(temperature, share):
    own, image, text = objective(initial_temperature=temperature), unit(3, 0, torch.float64), unit(3, 1, torch.float64)
    start = own.model.logit_scale.item()
    own.compare(Features(image, text), pairs([0, 1, 2], 0))
    with torch.no_grad():
        own.model.logit_scale += 0.06  # the optimizer's step
        own.after_step(Features(image, text), pairs([0, 1, 2], 0))
    assert own.model.logit_scale.item() - start == pytest.approx(0.06 * share)


def after_steps(name, parts=1):
    """Two steps with gamma below 1, other records in each, over this process's share in ``parts`` micro-batches."""
    step, world = make_step(name), process_group.world_from_environment()
    for seed in range(3):
        batch = batch_for(step.layout.objective, 12, seed=seed)
        batch = batch._replace(indices=(batch.indices * 5 + seed) % 17, epoch=2)
        step(pieces_of(own_rows(batch, world), parts))
    own = step.layout.objective
    return gradients(step), own.log_u.numpy().copy(), own.seen.numpy().copy()


def everyone(parts):
    return {name: after_steps(name, parts) for name in ("fastclip-0", "fastclip-1", "fastclip-2")}


@pytest.mark.heavy
@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_and_micro_batches_equal_the_whole_batch(parts):
    expected = everyone(1)
    for result in [everyone(3), *run_in_processes(2, everyone, parts)]:
        for name, (wanted, log_u, seen) in expected.items():
            assert np.array_equal(result[name][2], seen) and seen[:17].all() and not seen[17:].any()
            np.testing.assert_allclose(result[name][1], log_u, rtol=1e-7, atol=1e-9)
            for key, item in wanted.items():
                np.testing.assert_allclose(result[name][0][key], item, rtol=1e-5, atol=1e-9, err_msg=key)


def test_resume_continues_the_estimates_to_the_bit():
    def batch(own, seed):
        whole = batch_for(own, 8, seed=seed)
        return [whole._replace(indices=(whole.indices * 3 + seed) % 11, epoch=seed)]

    step = make_step("fastclip-0", torch.float32)
    for seed in range(2):
        step(batch(step.layout.objective, seed))
    state = copy.deepcopy((step.layout.full_state(), step.state()))
    resumed = make_step("fastclip-0", torch.float32)
    resumed.layout.load_full_state(state[0])
    resumed.restore(state[1])
    for seed in (2, 3):
        for each in (step, resumed):
            each(batch(each.layout.objective, seed))
    own, other = step.layout.full_state(), resumed.layout.full_state()
    assert {"log_u", "seen"} <= own.keys() and not torch.equal(own["log_u"], state[0]["log_u"])
    assert all(torch.equal(item, other[key]) for key, item in own.items())


def test_a_fixed_temperature_is_not_trained_and_rho_would_move_nothing():
    own = objective(temperature="fixed", initial_temperature=0.05)
    assert not own.model.logit_scale.requires_grad
    assert own.model.logit_scale.item() == pytest.approx(math.log(20))
    with pytest.raises(ConfigError, match=r"--rho 8.5 moves a learned temperature"):
        objective(temperature="fixed", rho=8.5)


def test_resampled_data_is_refused():
    with pytest.raises(ConfigError, match="leave it out, or take --objective clip"):
        objective(facts=RunFacts(RECORDS, EPOCHS, resampled=True))


def test_without_a_run_the_first_step_says_what_is_missing():
    own = FastClip(FastClipConfig(), create_model("tiny-test"))
    with pytest.raises(ConfigError, match="begin_run"):
        own.compare(Features(torch.eye(2), torch.eye(2)), pairs([0, 1], 0))


def test_other_objectives_need_nothing_of_the_run():
    assert Objective.begin_run(None, RunFacts(3, 1.0)) is None


def test_the_scale_has_a_rate_of_its_own():
    own, device = objective(), get_device("cpu")
    named = list(own.named_parameters())
    groups = create_optimizer(named, own.model, OptimizerOptions(lr=1e-3, scale_lr=2e-4), device).param_groups
    (group,) = [group for group in groups if any(item is own.model.logit_scale for item in group["params"])]
    assert (group["peak_lr"], group["weight_decay"], len(group["params"])) == (2e-4, 0.0, 1)
    assert {group["peak_lr"] for group in groups} == {1e-3, 2e-4}
    locked = [(name, item) for name, item in named if item is not own.model.logit_scale]
    with pytest.raises(ConfigError, match="--scale-lr is for a logit scale that is locked"):
        create_optimizer(locked, own.model, OptimizerOptions(scale_lr=2e-4), device)


def test_of_equal_numbers_the_last_is_known_without_sizes():
    assert _last_of_each(torch.tensor([3, 1, 3, 2, 1])).tolist() == [2, 4, 2, 3, 4]
