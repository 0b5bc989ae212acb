"""Does torch.compile or bfloat16 make the dense part of a GraphSAGE layer faster, forward and backward?

    python -m benchmarks.dense_layer --threads 1 --json OUT.json

Two linear maps of 64 to 64 and GELU on as many rows as the outer block of a step on `w1` has; milliseconds, medians of
15 rounds in which the ways take turns, and the largest difference of the outputs from float32's. torch.compile needs a
C++ compiler on the CPU; compilation is not timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import exit_with, parser, write_json
from distgnn.nn.linear import Linear
from distgnn.report import format_table

ROWS, DIM, ROUNDS = 23_000, 64, 15
Layer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def layer(matmul: torch.dtype | None) -> Layer:
    """The sum of both maps through GELU; the same parameters every time."""
    torch.manual_seed(0)
    own, neighbor = Linear(DIM, DIM), Linear(DIM, DIM, bias=False)
    own.matmul = neighbor.matmul = matmul
    return lambda x, mean: F.gelu(own(x) + neighbor(mean))


def timed(one: Layer, x: torch.Tensor, mean: torch.Tensor, grad: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Milliseconds forward and backward, and the output."""
    x, mean = x.detach().requires_grad_(), mean.detach().requires_grad_()
    started = time.perf_counter()
    out = one(x, mean)
    out.backward(grad)
    return 1000 * (time.perf_counter() - started), out.detach()


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    ways = {"float32": layer(None), "bfloat16": layer(torch.bfloat16)}
    ways |= {f"{name}, torch.compile": torch.compile(one) for name, one in ways.items()}
    x, mean, grad = torch.randn(3, ROWS, DIM, generator=torch.Generator().manual_seed(0))
    for one in ways.values():
        timed(one, x, mean, grad)
    found: dict[str, list[float]] = {name: [] for name in ways}
    difference = {}
    reference = timed(ways["float32"], x, mean, grad)[1]
    for _ in range(ROUNDS):
        for name, one in ways.items():
            milliseconds, out = timed(one, x, mean, grad)
            found[name].append(milliseconds)
            difference[name] = float((out - reference).abs().max())
    rows: list[dict[str, Any]] = [
        {"way": name, "ms": f"{statistics.median(ms):.1f}", "from-to": f"{min(ms):.1f}-{max(ms):.1f}"}
        | {"difference": f"{difference[name]:.1e}"}
        for name, ms in found.items()
    ]
    print(format_table(rows, list(rows[0])))
    write_json(arguments.json, {"threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    exit_with(main)
