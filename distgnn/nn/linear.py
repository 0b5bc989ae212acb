"""Linear maps whose products may be taken in bfloat16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters, in their dtype.

    Attributes:
        matmul: dtype that the operands of its products are rounded to, forward and backward; None: their own. Sums stay
            in float32 within a product, and the bias is added in the parameters' dtype.
    """

    matmul: torch.dtype | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[n, out]` from `[n, in]`, in the dtype of the input."""
        if self.matmul is None:
            return super().forward(input)
        product = F.linear(input.to(self.matmul), self.weight.to(self.matmul)).to(input.dtype)
        return product if self.bias is None else product + self.bias


def multiply_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Have every `Linear` of a model take its products in this dtype."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.matmul = dtype
