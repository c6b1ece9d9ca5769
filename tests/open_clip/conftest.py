"""The real open_clip beside ours. Absent from the project's own environment on purpose: such tests skip there, with a reason."""

import importlib
import importlib.util
import warnings

import pytest

from diptych.open_clip import _registry


@pytest.fixture(scope="session")
def peer():
    """open_clip 3.3.0 (or later) as a module; skips where it is not installed."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed here; run with the environment of benchmarks/peers.txt")
    peers = importlib.import_module("benchmarks._peers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peers.open_clip()


@pytest.fixture(autouse=True)
def no_added_configs():
    """What a test adds to the registry is gone after it."""
    added = _registry._added
    before = dict(added)
    yield
    added.clear()
    added.update(before)
