"""Plots of the benchmarks' figures, as SVG files for the results pages.

python -m benchmarks.plots --sampler S.json --training T.json --evaluation E.json --scaling G.json
python -m benchmarks.plots --scaling-model M.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "distgnn"  # the same figures give the same file

import matplotlib.pyplot as plt  # noqa: E402

STAGES = ("loading", "sampling", "waiting", "fetch", "forward", "backward", "optimizer", "collectives")


def bars(
    groups: list[str], series: dict[str, list[float]], label: str, title: str, limit: list[float] | None = None
) -> Any:
    """A group of bars for each name, a bar for each series; a line over each group where a limit is given."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        places = [g - 0.4 + width * (k + 0.5) for g in range(len(groups))]
        axes.bar_label(axes.bar(places, values, width, label=name), fmt="%.3g", fontsize=7, padding=1)
    if limit:
        tallest = max(max(values) for values in series.values())
        # Arrays within the caches have a limit far above: it would flatten everything else.
        shown = [(g, high) for g, high in enumerate(limit) if high < 3 * tallest]
        left, right = [g - 0.45 for g, _ in shown], [g + 0.45 for g, _ in shown]
        axes.hlines([high for _, high in shown], left, right, colors="black", linestyles="dashed", label="limit")
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(series) + 1)
    return figure


def sampler_plot(figures: dict[str, Any], threads: int) -> Any:
    """Million sampled edges a second by workload and fanout, and the ceiling."""
    cases = [case for case in figures["cases"] if case["threads"] == threads]
    shapes = list(dict.fromkeys((case["workload"], tuple(case["fanout"])) for case in cases))
    names = list(dict.fromkeys(f"{case['contender']}, {case['expand']}" for case in cases))
    found = {
        (case["workload"], tuple(case["fanout"]), f"{case['contender']}, {case['expand']}"): case["edges_per_second"][
            "median"
        ]
        for case in cases
    }
    series = {name: [found.get((*shape, name), 0.0) / 1e6 for shape in shapes] for name in names}
    limit = [figures["ceiling_gathers_per_second"][f"{shape[0]}, {threads}"] / 1e6 for shape in shapes]
    groups = [f"{workload}\n[{', '.join(map(str, fanout))}]" for workload, fanout in shapes]
    title = f"Neighbour sampling, {threads} thread{'s' * (threads > 1)}; dashed: dependent random reads"
    return bars(groups, series, "million edges a second", title, limit)


def training_plot(figures: dict[str, Any], threads: int) -> Any:
    """Milliseconds of a step by stage; sampling that runs beside the trainer is not on top of it."""
    cells = [cell for cell in figures["cells"] if cell["threads"] == threads]
    names, rows = [], []
    for cell in cells:
        for name, one in cell["contenders"].items():
            names.append(f"{cell['model']}, {cell['workload']}, {cell['batch']:,}: {name}")
            rows.append({s: ms for s, ms in one["stages_ms"].items() if s != "sampling"})
    return stacked(names, rows, f"A training step, {threads} core{'s' * (threads > 1)}")


def stacked(names: list[str], rows: list[dict[str, float]], title: str) -> Any:
    """A bar for each name, of the milliseconds of its stages."""
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.26 * len(names)), layout="constrained")
    left = [0.0] * len(names)
    for stage in STAGES:
        values = [row.get(stage, 0.0) for row in rows]
        if any(values):
            axes.barh(names, values, left=left, label=stage)
            left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("milliseconds a step")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(STAGES))
    return figure


def scaling_plots(figures: dict[str, Any]) -> dict[str, Any]:
    """Two workers' rate by that of one, measured and at best, and the busiest worker's milliseconds by stage."""
    cells = [cell for cell in figures["cells"] if "failed" not in cell]
    topologies = ("replicated", "partitioned")
    plots = {}
    for kind in dict.fromkeys(cell["kind"] for cell in cells):
        found = [cell for cell in cells if cell["kind"] == kind]
        groups = [f"{cell['workload']}\n{cell['partitions']}\n{t}" for cell in found for t in topologies]
        series = {name: [cell[t][name] for cell in found for t in topologies] for name in ("speedup", "bound")}
        title = f"Two workers of one core each, {kind} scaling"
        plots[f"scaling-{kind}"] = bars(groups, series, "times one worker", title)
    names, rows = [], []
    for cell in cells:
        for name, stages in cell["stages_ms"].items():
            workers = "1 worker" if name == "1" else f"2 workers, {name}"
            names.append(f"{cell['workload']}, {cell['kind']}, {cell['partitions']}: {workers}")
            rows.append({stage: ms for stage, ms in stages.items() if stage != "sampling"})
    return {**plots, "scaling-stages": stacked(names, rows, "A training step of the busiest worker")}


def ranking_plot(figures: dict[str, Any]) -> Any:
    """Share of the speed of a large matrix product."""
    cases = [case for case in figures["ranking"] if case["threads"] == 1]
    shapes = list(dict.fromkeys((case["workload"], case["k"]) for case in cases))
    names = list(dict.fromkeys(case["contender"] for case in cases))
    found = {
        (case["workload"], case["k"], case["contender"]): 100
        * case["operations_per_second"]
        / case["limit_operations_per_second"]
        for case in cases
    }
    series = {name: [found.get((*shape, name), 0.0) for shape in shapes] for name in names}
    groups = [f"{workload}\nbest {k}" for workload, k in shapes]
    return bars(groups, series, "% of a large product's speed", "Full ranking, one thread")


def scaling_model_plot(figures: dict[str, Any], data: str) -> Any:
    """Predicted efficiency by workers: a panel for strong and for weak scaling, of METIS and of random partitions."""
    cases = [case for case in figures["predicted"] if case["data"] == data]
    figure, grid = plt.subplots(2, 2, figsize=(8, 5.6), sharex=True, sharey=True, layout="constrained")
    for across, mode in enumerate(("strong", "weak")):
        for down, method in enumerate(("both", "random")):
            axes = grid[down, across]
            shown = [case for case in cases if (case["mode"], case["method"]) == (mode, method)]
            for case in shown:
                name = f"{case['compute']}, {case['link']}"
                style = "dotted" if case["compute"] == "core" else "solid"
                workers = [int(w) for w in case["efficiency"]]
                axes.plot(workers, list(case["efficiency"].values()), label=name, marker=".", linestyle=style)
            axes.plot(
                workers, list(shown[0]["bound"].values()), color="black", linestyle="dashed", label="bound by draws"
            )
            axes.set_xscale("log", base=2)
            axes.set_xticks(workers, list(map(str, workers)))
            axes.set_ylim(0, 1.5)
            axes.set_title(f"{mode} scaling, {'random' if method == 'random' else 'METIS'} partitions", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[1]:
        axes.set_xlabel("workers", fontsize=9)
    figure.supylabel("predicted efficiency", fontsize=9)
    figure.suptitle(f"{data}: a model, not a measurement", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    """Write the plots whose figures are given."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("sampler", "training", "evaluation", "scaling", "scaling_model"):
        options.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", help=f"figures of benchmarks.{name}")
    options.add_argument("--out", default="benchmarks/results", help="folder")
    arguments = options.parse_args()
    plots: dict[str, Any] = {}
    for name, threaded in (("sampler", sampler_plot), ("training", training_plot)):
        if getattr(arguments, name):
            figures = json.loads(Path(getattr(arguments, name)).read_text(encoding="utf-8"))
            for threads in sorted({case["threads"] for case in figures["cases" if name == "sampler" else "cells"]}):
                plots[f"{name}-{threads}"] = threaded(figures, threads)
    if arguments.evaluation:
        plots["ranking"] = ranking_plot(json.loads(Path(arguments.evaluation).read_text(encoding="utf-8")))
    if arguments.scaling:
        plots |= scaling_plots(json.loads(Path(arguments.scaling).read_text(encoding="utf-8")))
    if arguments.scaling_model:
        figures = json.loads(Path(arguments.scaling_model).read_text(encoding="utf-8"))
        for data in dict.fromkeys(case["data"] for case in figures["predicted"]):
            plots[f"scaling-model-{data}"] = scaling_model_plot(figures, data)
    for name, figure in plots.items():
        figure.savefig(Path(arguments.out) / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
