"""The real open_clip beside ours. Absent from the project's own environment on purpose: such tests skip there, with a reason."""

import importlib
import importlib.util
import warnings

import pytest


@pytest.fixture(scope="session")
def peer():
    """open_clip 3.3.0 (or later) as a module; skips where it is not installed."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed here; run with the environment of benchmarks/peers.txt")
    peers = importlib.import_module("benchmarks._peers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peers.open_clip()
