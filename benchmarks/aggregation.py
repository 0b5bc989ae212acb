"""Which way of summing neighbours over a sampled block is fastest, forward and backward?

    python -m benchmarks.aggregation --threads 1 --json OUT.json

The outermost block of steps on `w1` (fanout [10, 10], all nodes expanded), d = 64, float32. Every contender sums the
same edges with the same weights, and must agree with the kernels within rounding. Rounds take turns; medians and
spread in milliseconds. `same bits`: twenty repetitions, and two threads, give the result to the last bit.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import exit_with, parser, write_json
from benchmarks.workloads import WORKLOADS
from distgnn.graph import Topology
from distgnn.nn.aggregation import neighbor_sum
from distgnn.nn.batch import BlockTensors, block_tensors, destinations, node_keys
from distgnn.report import format_table
from distgnn.sampler import NeighborSampler, SeedOrder

Sum = Callable[[torch.Tensor], torch.Tensor]


def outer_block(batch: int) -> BlockTensors:
    """The block that takes the input rows, of the first step."""
    workload = WORKLOADS["w1"]
    topology = Topology.from_edges(*workload.edges(), workload.users, workload.items)
    sampler = NeighborSampler(topology, (10, 10), 0, negatives="uniform")
    minibatch = sampler.sample(SeedOrder(topology, batch, 0).seeds(0), 0)
    keys = node_keys(minibatch.node_type, minibatch.stable_id)
    return block_tensors(minibatch.blocks, keys, torch.device("cpu"), torch.float32)[-1]


def contenders(block: BlockTensors) -> dict[str, Sum]:
    """Name -> mean of the drawn neighbours' rows over the root of their degree, as a function of all rows."""
    source = block.degree.clamp(min=1).rsqrt()
    scale = 1.0 / block.drawn.clamp(min=1)
    indices, indptr = block.indices.long(), block.indptr
    target = destinations(indptr, block.indices)
    weight = source[indices] * scale[target]
    csr = torch.sparse_csr_tensor(indptr, indices, weight, (block.n_dst, block.n_src))

    def scatter(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(block.n_dst, x.shape[1]).index_add(0, target, x.index_select(0, indices) * weight[:, None])

    def bag(x: torch.Tensor) -> torch.Tensor:
        return F.embedding_bag(indices, x, indptr[:-1], mode="sum", per_sample_weights=weight)

    def segments(x: torch.Tensor) -> torch.Tensor:
        rows = x.index_select(0, indices) * weight[:, None]
        return torch.segment_reduce(rows, "sum", offsets=indptr, axis=0, unsafe=True)

    return {
        "Numba, rows shared out": lambda x: neighbor_sum(x, source, scale, block),
        "index_select + index_add": scatter,
        "embedding_bag": bag,
        "index_select + segment_reduce": segments,
        "torch.sparse CSR @": lambda x: csr @ x,
    }


def timed(one: Sum, rows: torch.Tensor, grad: torch.Tensor) -> tuple[float, float, torch.Tensor, torch.Tensor]:
    """(milliseconds forward, backward, the sums, the gradient)."""
    x = rows.detach().requires_grad_()
    started = time.perf_counter()
    out = one(x)
    between = time.perf_counter()
    out.backward(grad)
    ended = time.perf_counter()
    assert x.grad is not None
    return 1000 * (between - started), 1000 * (ended - between), out.detach(), x.grad


def same_bits(one: Sum, rows: torch.Tensor, grad: torch.Tensor, threads: int) -> bool:
    """Whether repetitions and another number of threads agree to the bit."""
    _, _, out, x_grad = timed(one, rows, grad)
    same = True
    for repetition in range(20):
        torch.set_num_threads(2 if repetition % 2 else 1)
        _, _, again, grad_again = timed(one, rows, grad)
        same &= torch.equal(out, again) and torch.equal(x_grad, grad_again)
    torch.set_num_threads(threads)
    return same


def measure(batch: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each contender."""
    torch.set_num_threads(threads)
    block = outer_block(batch)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(block.n_src, 64, generator=generator)
    grad = torch.randn(block.n_dst, 64, generator=generator)
    every = contenders(block)
    reference = timed(next(iter(every.values())), rows, grad)
    facts: dict[str, dict[str, Any]] = {}
    for name, one in list(every.items()):
        try:
            found = timed(one, rows, grad)
        except RuntimeError as error:
            facts[name] = {"contender": name, "forward": "-", "backward": f"not there: {str(error).splitlines()[0]}"}
            del every[name]
            continue
        for got, expected in zip(found[2:], reference[2:], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        facts[name] = {"contender": name, "same bits": same_bits(one, rows, grad, threads)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, one in every.items():
            times[name].append(timed(one, rows, grad)[:2])
    for name, each in times.items():
        for part, milliseconds in zip(("forward", "backward"), zip(*each, strict=True), strict=True):
            facts[name][part] = statistics.median(milliseconds)
            facts[name][f"{part} spread"] = f"{min(milliseconds):.1f}-{max(milliseconds):.1f}"
    size = {"batch": batch, "threads": threads, "edges": len(block.indices), "rows": block.n_src}
    return [{**size, **row} for row in facts.values()]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
    options_parser = parser(__doc__.split("\n")[0])
    options_parser.add_argument("--threads", type=int, default=1)
    options_parser.add_argument("--batches", default="1024,4096")
    options_parser.add_argument("--rounds", type=int, default=15)
    options = options_parser.parse_args(arguments)
    rows = [row for b in options.batches.split(",") for row in measure(int(b), options.threads, options.rounds)]
    shown = [{k: f"{v:.1f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    columns = ["batch", "edges", "rows", "contender", "forward", "forward spread", "backward", "backward spread"]
    print(
        format_table([{c: row.get(c, "-") for c in [*columns, "same bits"]} for row in shown], [*columns, "same bits"])
    )
    write_json(options.json, {"rows": rows, "rounds": options.rounds})
    return 0


if __name__ == "__main__":
    exit_with(main)
