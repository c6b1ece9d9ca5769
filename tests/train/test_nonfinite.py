"""A loss, gradient or weight that is not finite: the step is not taken, nothing of it is written, and what was whole is kept."""

import json

import pytest
import torch
from safetensors.torch import load_file

from diptych.commands import main
from diptych.distributed import checkpoint
from diptych.errors import ConfigError, NonFiniteError
from diptych.objectives.clip import Clip
from diptych.train.nonfinite import SkippedSteps, allowed_skips, names_not_finite
from tests.objectives.worlds import make_batch, pieces_of
from tests.train.runs import argv, losses, run, tensors
from tests.train.test_step import make_step

HOT = ("--lr", "1e6", "--warmup", "0", "--max-steps", "12")


class Poisoned(Clip):
    """CLIP whose features, from the third step on, have a gradient that is not finite while the loss is."""

    taken = 0

    def after_step(self, features, pairs):
        type(self).taken += 1

    def encode(self, batch, frozen=None):
        features = super().encode(batch, frozen)
        if self.taken < 2:
            return features
        image = features.image
        # sqrt has an infinite slope at 0: the value is unchanged, the gradient is not a number.
        return features._replace(image=image + (image - image.detach()).abs().sqrt())


def snapshot(step):
    return {name: item.clone() for name, item in step.layout.full_state().items()}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_moves_nothing(parts, clip_norm):
    Poisoned.taken = 0
    step = make_step(clip_norm=clip_norm, objective=lambda config, model: Poisoned(config, model))
    for seed in range(2):
        assert step(pieces_of(make_batch(6, seed=seed), parts)).finite
    before, moments = snapshot(step), step.state()["optimizer"]
    result = step(pieces_of(make_batch(6, seed=3), parts))
    assert not result.finite and torch.isfinite(result.loss) and not torch.isfinite(result.gradient_norm)
    assert all(torch.equal(before[name], item) for name, item in step.layout.full_state().items())
    assert step.layout.not_finite()
    after = step.state()["optimizer"]
    for name, own in moments["state"].items():
        assert all(torch.equal(torch.as_tensor(own[key]), torch.as_tensor(after["state"][name][key])) for key in own)
    assert Poisoned.taken == 2


def test_running_statistics_do_not_see_a_step_that_was_not_taken():
    step = make_step("tiny-test-resnet")
    step([make_batch(6)])
    before = snapshot(step)
    with torch.no_grad():
        step.layout.objective.model.logit_scale.fill_(float("nan"))
    assert not step([make_batch(6, seed=1)]).finite
    moved = [name for name, item in step.layout.full_state().items() if not torch.equal(before[name], item)]
    assert moved == ["model.logit_scale"]


def test_the_run_stops_before_the_update_and_says_what_was_in_the_step(pairs, tmp_path, capsys):
    assert main(["train", *argv(pairs, tmp_path / "a", *HOT)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("diptych: step ") and "finite_step_" in last and "--lr" in last
    assert not (tmp_path / "a" / "model.safetensors").exists()
    (report,) = (tmp_path / "a").glob("nonfinite_step_*.json")
    values = json.loads(report.read_text())
    assert len(values["ranks"][0]["keys"]) == 4 and values["parameters_without_finite_gradient"]["count"] > 0
    (kept,) = (tmp_path / "a" / "checkpoints").glob("finite_step_*.pt")
    state = checkpoint.load(kept)
    assert state["step"] == values["step"] - 1 and not names_not_finite(state["weights"])


def test_the_step_before_it_can_be_resumed_and_leaves_the_same_batch_next(pairs, tmp_path):
    with pytest.raises(NonFiniteError):
        run(pairs, tmp_path / "a", *HOT)
    first = json.loads(next((tmp_path / "a").glob("nonfinite_step_*.json")).read_text())
    with pytest.raises(NonFiniteError):
        run(pairs, tmp_path / "a", *HOT, "--resume", "latest")
    again = json.loads(next((tmp_path / "a").glob("nonfinite_step_*.json")).read_text())
    assert (first["step"], first["ranks"][0]["keys"]) == (again["step"], again["ranks"][0]["keys"])


def test_as_many_steps_as_allowed_are_left_out_and_counted_through_resume(pairs, tmp_path, capsys):
    flags = (*HOT, "--on-nonfinite", "skip:3", "--save-every-steps", "1")
    with pytest.raises(NonFiniteError):
        run(pairs, tmp_path / "whole", *flags)
    written = sorted(path.name for path in (tmp_path / "whole").glob("nonfinite_step_*.json"))
    assert len(written) == 4 and "(3 of 3)" in capsys.readouterr().err
    started = int(written[0][-13:-5])
    assert not run(pairs, tmp_path / "parts", *flags, "--stop-after", str(started + 1)).finished
    with pytest.raises(NonFiniteError):
        run(pairs, tmp_path / "parts", *flags, "--resume", "latest")
    assert sorted(path.name for path in (tmp_path / "parts").glob("nonfinite_step_*.json")) == written
    assert [step for step, _ in losses(tmp_path / "whole")] == list(range(1, started + 3))


def test_steps_left_out_after_the_last_checkpoint_are_counted_again_by_a_resumed_run(pairs, tmp_path, monkeypatch):
    """A process that dies has counted in vain: the resumed run takes the same steps again, and comes to the same number."""
    flags = (*HOT, "--on-nonfinite", "skip:3", "--save-every-steps", "1000")
    with pytest.raises(NonFiniteError):
        run(pairs, tmp_path / "whole", *flags)
    written = sorted(path.name for path in (tmp_path / "whole").glob("nonfinite_step_*.json"))
    first_bad = int(written[0][-13:-5])
    run(pairs, tmp_path / "parts", *flags, "--stop-after", str(first_bad - 1))  # saves the last finite step
    leave_out = SkippedSteps.leave_out

    def die_after_two(self, *step):
        assert self.count < 2, "the process dies"
        return leave_out(self, *step)

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="the process dies"):
        patch.setattr(SkippedSteps, "leave_out", die_after_two)
        run(pairs, tmp_path / "parts", *flags, "--resume", "latest")
    assert checkpoint.steps(tmp_path / "parts" / "checkpoints") == [first_bad - 1]
    with pytest.raises(NonFiniteError):
        run(pairs, tmp_path / "parts", *flags, "--resume", "latest")
    assert sorted(path.name for path in (tmp_path / "parts").glob("nonfinite_step_*.json")) == written
    one, other = (
        checkpoint.load(next((tmp_path / name / "checkpoints").glob("finite_*"))) for name in ("whole", "parts")
    )
    assert (one["skipped_steps"], one["step"]) == (other["skipped_steps"], other["step"]) == (3, first_bad + 2)


def test_weights_that_are_not_finite_are_never_written(pairs, tmp_path):
    # A finite gradient and an infinite update: the last step leaves weights that only saving sees.
    with pytest.raises(NonFiniteError, match="are not finite"):
        run(pairs, tmp_path / "a", "--lr", "1e38", "--warmup", "0", "--wd", "1e3", "--max-steps", "1")
    assert not (tmp_path / "a" / "model.safetensors").exists()
    assert checkpoint.steps(tmp_path / "a" / "checkpoints") == []


def test_a_quiet_run_is_as_before(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2")
    run(pairs, tmp_path / "b", "--max-steps", "2", "--on-nonfinite", "skip:2")
    one, other = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.equal(item, other[name]) for name, item in one.items())
    assert not names_not_finite(load_file(tmp_path / "a" / "model.safetensors"))


@pytest.mark.parametrize("text", ["", "go on", "skip", "skip:", "skip:0", "skip:-1", "skip:two", "stop:1"])
def test_a_policy_of_another_form_is_refused(text):
    with pytest.raises(ConfigError, match="expected stop, or skip:N"):
        allowed_skips(text)


def test_a_sum_that_overflows_is_no_fault():
    assert names_not_finite({"a": torch.full((4,), 3e38), "n": torch.ones(3, dtype=torch.int64)}) == []
    assert names_not_finite({"a": torch.tensor([float("inf"), float("-inf")])}) == ["a"]
