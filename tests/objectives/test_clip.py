"""CLIP's loss against ten lines of NumPy, and the combination of flags that would be silently wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives.clip import Clip, ClipConfig, Features, contrastive


def reference(image, text, scale):
    logits = scale * image @ text.T
    rows = logits - logits.max(axis=1, keepdims=True)
    columns = logits - logits.max(axis=0, keepdims=True)
    by_image = np.log(np.exp(rows).sum(axis=1)) - np.diag(rows)
    by_text = np.log(np.exp(columns).sum(axis=0)) - np.diag(columns)
    return (by_image.mean() + by_text.mean()) / 2


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 8), st.floats(1, 100), st.integers(0, 2**31))
def test_the_loss_equals_the_reference(pairs, width, scale, seed):
    rng = np.random.default_rng(seed)
    image, text = (
        item / np.linalg.norm(item, axis=1, keepdims=True) for item in rng.standard_normal((2, pairs, width))
    )
    features = Features(torch.from_numpy(image), torch.from_numpy(text))
    loss, correct = contrastive(features, features, torch.tensor([scale], dtype=torch.float64))
    assert float(loss) == pytest.approx(reference(image, text, scale), rel=1e-9, abs=1e-9)
    assert float(correct) == pytest.approx((np.argmax(image @ text.T, axis=1) == np.arange(pairs)).mean())
    single = Features(*(item.float() for item in features))
    assert float(contrastive(single, single, torch.tensor([scale]))[0]) == pytest.approx(
        float(loss), rel=1e-4, abs=1e-4
    )


def test_autocast_does_not_touch_the_similarities():
    torch.manual_seed(0)
    features = Features(*(torch.nn.functional.normalize(torch.randn(64, 32), dim=1) for _ in range(2)))
    plain = contrastive(features, features, torch.tensor([100.0]))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive(features, features, torch.tensor([100.0]))[0], plain)


def test_rows_of_a_part_of_the_batch_know_their_columns():
    torch.manual_seed(0)
    whole = Features(*(torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2)))
    scale = torch.tensor([10.0], dtype=torch.float64)
    parts = [Features(*(item[start : start + 3] for item in whole)) for start in (0, 3)]
    losses = [contrastive(part, whole, scale, offset)[0] for part, offset in zip(parts, (0, 3), strict=True)]
    assert torch.allclose(torch.stack(losses).mean(), contrastive(whole, whole, scale)[0])


def test_local_loss_without_crossing_gradients_is_refused():
    with pytest.raises(ConfigError, match="wrong gradients"):
        Clip(ClipConfig(local_loss=True, gather_with_grad=False), create_model("tiny-test"))


def test_by_default_rows_are_local_and_gradients_cross():
    assert (ClipConfig().local_loss, ClipConfig().gather_with_grad) == (True, True)


def test_the_loader_of_companions_is_handed_on():
    def load(name):
        raise AssertionError(name)

    assert Clip(ClipConfig(), create_model("tiny-test"), load).load is load
