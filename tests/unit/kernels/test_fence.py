"""The fence is an instruction of the processor."""

from __future__ import annotations

import platform

import pytest
from numba import config, njit

from distgnn.kernels.fence import fence


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_the_compiled_function_holds_a_fence() -> None:
    fence()
    compiled = njit(fence.py_func)  # one that comes from the cache does not tell
    compiled()
    (assembly,) = compiled.inspect_asm().values()
    wanted = {"x86_64": ("mfence", "lock"), "aarch64": ("dmb",)}.get(platform.machine())
    if wanted is None:
        pytest.skip(f"which instruction it is on {platform.machine()} is not known here")
    assert any(word in line.split()[:1] for line in assembly.splitlines() for word in wanted)
