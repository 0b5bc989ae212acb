from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no datasets but the bundled one."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DISTGNN_CACHE", str(cache))
    monkeypatch.delenv("DISTGNN_DATA", raising=False)
    return cache
