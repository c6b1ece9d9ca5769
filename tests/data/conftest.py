"""Fixtures of the tests of data: a cache of their own, and what is logged."""

import pytest

from diptych import log


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def said(monkeypatch):
    """All lines that are logged, together."""
    lines = []
    monkeypatch.setattr(log, "info", lines.append)
    monkeypatch.setattr(log, "warn", lines.append)
    return lines
