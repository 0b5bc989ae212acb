"""Python, the packages and their versions, and the compiled kernels."""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from distgnn.doctor.finding import FAIL, OK, WARN, Examination, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_NAMED = ("torch", "ray", "numba", "numpy", "pyarrow", "torch-geometric")  # of those that are as they should be
_SPLITMIX64_OF_0 = 0xE220A8397B1DCDAF  # first output of the reference implementation started at 0


def check_python(examination: Examination) -> list[Finding]:
    """This Python against what the package's metadata asks for."""
    from packaging.specifiers import SpecifierSet

    needed = metadata.metadata("distgnn")["Requires-Python"] or ""
    figure = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    if SpecifierSet(needed).contains(platform.python_version(), prereleases=True):
        return [Finding(OK, "Python", figure)]
    return [Finding(FAIL, "Python", figure, f"make the environment with a Python {needed}")]


def check_packages(examination: Examination) -> list[Finding]:
    """Every package that the package's own metadata asks for, and what the extras it names ask for in turn."""
    wrong, named = [], {}
    requirements = _requirements()
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append((requirement, "is not installed"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((requirement, f"is {version}, needs {requirement.specifier}"))
        elif requirement.name in _NAMED:
            named[requirement.name] = version
    if not wrong:
        versions = ", ".join(f"{name} {named[name]}" for name in _NAMED if name in named)
        return [Finding(OK, "packages", f"{len(requirements)} as required: {versions}")]
    pip = [sys.executable, "-m", "pip", "install", *(str(_plain(requirement)) for requirement, _ in wrong)]
    text = "; ".join(f"{requirement.name} {how}" for requirement, how in wrong)
    return [Finding(FAIL, "packages", text, shlex.join(pip))]


def _requirements() -> list[Requirement]:
    """What distgnn requires on this machine, each distribution's extras resolved one level down."""
    found = {}
    for requirement in _needed_by("distgnn", set()):
        found[requirement.name] = requirement
        if requirement.extras:
            for inner in _needed_by(requirement.name, requirement.extras):
                found.setdefault(inner.name, inner)
    return list(found.values())


def _needed_by(distribution: str, extras: set[str]) -> list[Requirement]:
    """What a distribution requires, or, with `extras`, what these alone add."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    needed = []
    for requirement in map(Requirement, texts):
        plain = _applies(requirement, "")
        if (plain and not extras) or (not plain and any(_applies(requirement, extra) for extra in extras)):
            needed.append(requirement)
    return needed


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _plain(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def check_kernels(examination: Examination) -> list[Finding]:
    """Numba's cache takes files, and a kernel compiled there computes what it should."""
    import numba
    import numpy as np

    from distgnn.kernels.rng import splitmix64

    if numba.config.DISABLE_JIT:
        advice = "unset NUMBA_DISABLE_JIT: sampling runs as plain Python, hundreds of times slower"
        return [Finding(WARN, "kernels", "not compiled (NUMBA_DISABLE_JIT)", advice)]
    folder = Path(numba.config.CACHE_DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set NUMBA_CACHE_DIR, or DISTGNN_CACHE, to a folder that this user may write to"
        return [Finding(FAIL, "kernels", f"cache {folder} cannot be written: {error.strerror}", advice)]
    started = time.perf_counter()
    value = int(splitmix64(np.uint64(0)))
    if value != _SPLITMIX64_OF_0:
        figure = f"a compiled kernel gives {value:#x} instead of {_SPLITMIX64_OF_0:#x}"
        return [Finding(FAIL, "kernels", figure, f"remove {folder}, and reinstall numba if that does not help")]
    return [Finding(OK, "kernels", f"compiled in {time.perf_counter() - started:.1f} s, kept in {folder}")]
