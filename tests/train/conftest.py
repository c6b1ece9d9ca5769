"""Fixtures of the tests of training."""

import pytest

from tests.data.world import write_jsonl


@pytest.fixture
def pairs(tmp_path):
    return write_jsonl(tmp_path / "data")
