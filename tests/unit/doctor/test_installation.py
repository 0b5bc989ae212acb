from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from distgnn.config import Config
from distgnn.doctor import installation
from distgnn.doctor.finding import FAIL, OK, WARN, Examination, Finding

EXAMINATION = Examination(Config())


def install(folder: Path, name: str, version: str, *requires: str, python: str = ">=3.10") -> None:
    """Metadata of a distribution that shadows an installed one."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires), "", ""]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def packages() -> Finding:
    (finding,) = installation.check_packages(EXAMINATION)
    return finding


def test_this_environment_is_sound() -> None:
    (python,) = installation.check_python(EXAMINATION)
    assert python.status == OK
    assert packages().status == OK
    assert f"numba {metadata.version('numba')}" in packages().figure


def test_a_python_that_is_too_old(site: Path) -> None:
    install(site, "distgnn", "0.1.0", python=">=4.1")
    (finding,) = installation.check_python(EXAMINATION)
    assert finding.status == FAIL
    assert ">=4.1" in finding.advice


def test_a_missing_package_and_an_old_one(site: Path) -> None:
    install(site, "distgnn", "0.1.0", "numba>=0.60", "no-such-thing[fast]>=2", "no-marker; python_version < '3'")
    install(site, "numba", "0.1")
    finding = packages()
    assert finding.status == FAIL
    assert finding.figure == "numba is 0.1, needs >=0.60; no-such-thing is not installed"
    assert finding.advice == f"{sys.executable} -m pip install 'numba>=0.60' 'no-such-thing[fast]>=2'"


def test_what_an_extra_asks_for(site: Path) -> None:
    install(site, "distgnn", "0.1.0", "base[web]")
    install(site, "base", "1.0", "needed-anyway", "server>=1; extra == 'web'", "other; extra == 'rest'")
    assert packages().figure == "server is not installed"
    install(site, "server", "1.5")
    assert packages().status == OK


def test_kernels_compile() -> None:
    (finding,) = installation.check_kernels(EXAMINATION)
    expected = WARN if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0") else OK
    assert finding.status == expected


KERNELS = """
from distgnn.config import Config
from distgnn.doctor.finding import Examination
from distgnn.doctor.installation import check_kernels
print(*check_kernels(Examination(Config())))
"""


def kernels(**environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    result = subprocess.run(
        [sys.executable, "-c", KERNELS], env={**env, **environment}, capture_output=True, text=True, check=True
    )
    return result.stdout


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = kernels(NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert text.startswith("FAIL  kernels")
    assert "Not a directory" in text
    assert "-> set NUMBA_CACHE_DIR" in text


def test_kernels_that_are_not_compiled() -> None:
    assert kernels(NUMBA_DISABLE_JIT="1").startswith("warn  kernels")


def test_a_kernel_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        pytest.skip("nothing is compiled")
    monkeypatch.setattr(installation, "_SPLITMIX64_OF_0", 1)
    (finding,) = installation.check_kernels(EXAMINATION)
    assert finding.status == FAIL
