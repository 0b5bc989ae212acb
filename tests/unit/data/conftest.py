from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.data.http_server import Site, serve

DATA_ROOT = os.environ.get("DISTGNN_DATA")  # tests of the registry change the variable


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server on loopback, reached without any proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve() as running:
        yield running


@pytest.fixture
def data_root() -> Path:
    """The folder of datasets that are not bundled."""
    if not DATA_ROOT:
        pytest.skip("DISTGNN_DATA is not set: no copies of the published datasets to compare with")
    return Path(DATA_ROOT)
