"""Inner products of int8 rows with a scale each: exact in int32, one rounding at the end."""

from __future__ import annotations

import numpy as np
from numba import njit

ITEM_TILE = 64  # rows of items that stay in the first-level cache while the users pass over them


@njit(nogil=True, cache=True)
def int8_scores(users, user_scale, items, item_scale, out):
    """out[u, i] = (users[u] . items[i]) * (user_scale[u] * item_scale[i]).

    The same to the bit for one user as for many. Every step is cast back to int32: Numba would add up in int64, which
    compiles to a loop several times slower.

    Args:
        users: int8 `[c, d]`, d below 2**17. user_scale: float32 `[c]`.
        items: int8 `[m, d]`. item_scale: float32 `[m]`.
        out: float32 `[c, m]`, written.
    """
    for begin in range(0, items.shape[0], ITEM_TILE):
        end = min(begin + ITEM_TILE, items.shape[0])
        for u in range(users.shape[0]):
            user = users[u]
            scale = user_scale[u]
            row = out[u]
            for i in range(begin, end):
                total = np.int32(0)
                for c in range(user.shape[0]):
                    total = np.int32(total + np.int32(user[c]) * np.int32(items[i, c]))
                row[i] = np.float32(total) * (scale * item_scale[i])
