from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import distgnn


def run(code: str, **environment: str) -> str:
    """Output of a fresh interpreter."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**env, **environment}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_import_is_light() -> None:
    assert run("import sys, distgnn; print([m for m in ('torch', 'numba', 'pyarrow') if m in sys.modules])") == "[]"


def test_the_public_names() -> None:
    for name in distgnn.__all__:
        assert getattr(distgnn, name) is not None
    assert distgnn.sampler.NeighborSampler.__module__ == "distgnn.sampler.neighbor"
    assert distgnn.evaluate is not None
    assert {"Trainer", "evaluate", "load_dataset", "sampler"} <= set(dir(distgnn))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = distgnn.nothing


CACHE = "import distgnn, numba; print(numba.config.CACHE_DIR)"


def test_compiled_kernels_have_one_place(tmp_path: Path) -> None:
    plain = Path(run(CACHE, DISTGNN_CACHE=str(tmp_path)))
    assert plain.parent == tmp_path
    assert Path(run(CACHE, DISTGNN_CACHE=str(tmp_path))) == plain
    assert run("import numba, distgnn; print(numba.config.CACHE_DIR)", DISTGNN_CACHE=str(tmp_path)) == str(plain)


def test_bounds_checked_kernels_are_kept_apart(tmp_path: Path) -> None:
    plain = run(CACHE, DISTGNN_CACHE=str(tmp_path))
    assert run(CACHE, DISTGNN_CACHE=str(tmp_path), NUMBA_BOUNDSCHECK="1") == f"{plain}-boundscheck"
    assert run(CACHE, DISTGNN_CACHE=str(tmp_path), NUMBA_BOUNDSCHECK="0") == plain


def test_a_cache_that_is_given_is_kept(tmp_path: Path) -> None:
    assert run(CACHE, NUMBA_CACHE_DIR=str(tmp_path)) == str(tmp_path)


def test_a_home_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "distgnn-" in run(CACHE, DISTGNN_CACHE=str(tmp_path / "file"))
