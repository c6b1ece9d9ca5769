"""Texts that begin alike: computing the beginning once equals computing every text whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.models import SharedPrefixes, create_model, model_config

CONFIG = model_config("emoji-64")
END = CONFIG.text.vocab_size - 1


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return create_model(replace(CONFIG), dtype=torch.float64).text.eval()


def texts(prefixes):
    """(tokens, lengths, group, prefix length) of lists of (prefix ids, list of branch ids)."""
    rows, owner, shared = [], [], []
    for number, (prefix, branches) in enumerate(prefixes):
        for branch in branches:
            rows.append([*prefix, *branch, END])
            owner.append(number)
            shared.append(len(prefix))
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([len(row) for row in rows]), torch.tensor(owner), torch.tensor(shared)


ids = st.lists(st.integers(1, 400), max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ids, st.lists(ids, min_size=1, max_size=4)), min_size=1, max_size=6), st.randoms())
def test_shared_beginnings_equal_whole_texts(tower, prefixes, random):
    parts = texts(prefixes)
    order = list(range(len(parts[0])))
    random.shuffle(order)
    tokens, lengths, owner, shared = (part[order] for part in parts)
    with torch.no_grad():
        whole = tower(tokens, lengths).pooled
        assert torch.allclose(
            tower(tokens, lengths, prefix=SharedPrefixes(owner, shared)).pooled, whole, rtol=0, atol=1e-11
        )


def test_gradients_are_the_same_too(tower):
    parts = texts([([5, 6, 7], [[1], [2, 3], []]), ([], [[4, 4]]), ([5], [[9], [9, 9]])])
    gradients = []
    for features in (tower(*parts[:2]).pooled, tower(*parts[:2], prefix=SharedPrefixes(*parts[2:])).pooled):
        tower.zero_grad()
        features.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in tower.parameters()])
    assert all(torch.allclose(left, right, rtol=1e-9, atol=1e-10) for left, right in zip(*gradients, strict=True))


def test_beginnings_that_differ_are_refused(tower):
    tokens, lengths, owner, shared = texts([([5, 6], [[1], [2]])])
    tokens[1, 0] = 9
    with pytest.raises(ConfigError, match="begin with the same ids"):
        tower(tokens, lengths, prefix=SharedPrefixes(owner, shared))
    with pytest.raises(ConfigError, match="go on after its prefix"):
        tower(*texts([([5], [[]])])[:2], prefix=SharedPrefixes(torch.tensor([0]), torch.tensor([2])))
