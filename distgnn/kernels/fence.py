"""Order between memory that processes share: what one writes before it says so, the other reads after it has heard."""

from __future__ import annotations

from numba import config, njit, types
from numba.extending import intrinsic


@intrinsic
def _fence(typing_context):
    """LLVM's fence between all reads and writes before it and all after it."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _python_fence():
    pass


@njit(nogil=True, cache=True)
def _compiled_fence():
    _fence()


# `fence()`: all that this thread has read and written so far comes before all that it reads and writes from here on.
# Processors of other makes than x86 would else let a later write be seen first.
fence = _python_fence if config.DISABLE_JIT else _compiled_fence
