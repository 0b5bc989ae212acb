"""The command line: options to a Config, a command, and its errors to one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from distgnn import __version__
from distgnn.config_reading import load_config
from distgnn.errors import system_refusal
from distgnn.option_reference import help_text
from distgnn.types import UserError, WorkerError

_DATA_FLAGS = {
    "--input": "data.input",
    "--test-input": "data.test_input",
    "--valid-input": "data.valid_input",
    "--format": "data.format",
    "--user-column": "data.user_column",
    "--item-column": "data.item_column",
    "--timestamp-column": "data.timestamp_column",
    "--weight-column": "data.weight_column",
    "--user-features": "data.user_features",
    "--item-features": "data.item_features",
    "--split": "data.split",
}
_FLAGS = {
    "prepare": {"--name": "data.name", **_DATA_FLAGS, "--parts": "partition.parts", "--out": "run.out"},
    "train": {
        "--name": "data.name",
        **_DATA_FLAGS,
        "--data": "data.path",
        "--workers": "cluster.workers",
        "--seed": "run.seed",
        "--baselines": "evaluate.baselines",
        "--trace": "run.trace",
        "--out": "run.out",
    },
    "evaluate": {
        "--run": "run.path",
        "--name": "data.name",
        "--data": "data.path",
        "--workers": "cluster.workers",
        "--baselines": "evaluate.baselines",
        "--out": "run.out",
    },
    "distill": {"--run": "run.path", "--workers": "cluster.workers", "--out": "run.out"},
    "recommend": {
        "--run": "run.path",
        "--k": "recommend.k",
        "--users": "recommend.users",
        "--allow": "recommend.allow",
        "--block": "recommend.block",
        "--unknown": "recommend.unknown",
        "--out": "run.out",
    },
}
_HELP = {
    "prepare": "turn an interaction log into a partitioned dataset",
    "train": "train a graph recommender and evaluate it",
    "evaluate": "evaluate a run, or baselines, on the whole catalogue",
    "distill": "distil a run into small tables that need no graph",
    "recommend": "write lists of recommended items to a file",
    "compare": "tell whether two runs are the same one, and where they first differ (exit code 1)",
    "datasets": "list the datasets that can be named",
    "doctor": "check what a run needs before it starts, and say what to do about what it lacks",
}
_SECTIONS = {
    "prepare": ("run", "data", "partition", "cluster"),
    "train": (
        "run",
        "data",
        "partition",
        "sampler",
        "model",
        "loss",
        "optim",
        "train",
        "evaluate",
        "baselines",
        "cluster",
    ),
    "evaluate": ("run", "data", "evaluate", "baselines", "cluster"),
    "doctor": ("run", "data", "cluster"),
    "distill": ("run", "distill", "evaluate", "cluster"),
    "recommend": ("run", "recommend", "cluster"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, as for any other mistake."""

    sections: tuple[str, ...] = ()  # whose options its help lists

    def format_help(self) -> str:
        """The help; what it lists of the options is read out of the source only now, which takes half a second."""
        if self.sections:
            self.epilog = help_text(self.sections)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The command-line surface."""
    parser = _Parser(prog="distgnn", description="Distributed training of graph recommenders.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"distgnn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _HELP.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.sections = _SECTIONS.get(name, ())
        if name == "datasets":
            continue
        if name == "compare":
            _add_comparison(command)
            continue
        command.add_argument("--config", metavar="FILE", help="TOML file of options")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            dest="overrides",
            help="override one option",
        )
        for flag, key in _FLAGS.get(name, {}).items():
            command.add_argument(flag, metavar="VALUE", help=f"short for --set {key}=VALUE")
        if name == "doctor":
            command.add_argument("--json", metavar="FILE", default="", help="write the findings there too")
        if name in ("train", "distill"):
            command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in run.out")
    return parser


def _add_comparison(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", metavar="RUN", nargs=2, help="two run directories, local or any fsspec URI")
    command.add_argument(
        "--loss-tolerance",
        type=float,
        metavar="X",
        help="largest relative difference of a loss (float64: 1e-9; float32: 1e-6 to step 60, 1e-5 to 200, then 1e-3)",
    )
    command.add_argument("--metric-tolerance", type=float, metavar="X", help="largest difference of a metric (0.001)")


def _overrides(arguments: argparse.Namespace) -> list[str]:
    values = list(arguments.overrides)
    for flag, key in _FLAGS.get(arguments.command, {}).items():
        value = getattr(arguments, flag[2:].replace("-", "_"))
        if value is not None:
            values.append(f"{key}={value}")
    if getattr(arguments, "resume", False):
        values.append("run.resume=true")
    return values


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "doctor":
        from distgnn import doctor  # without `commands`: they import packages that may be what is missing

        return doctor.run_doctor(load_config(arguments.config, _overrides(arguments)), arguments.json)
    from distgnn import commands  # heavy imports only once the command line is known to be right

    if arguments.command == "datasets":
        commands.datasets()
    elif arguments.command == "compare":
        tolerances = {"loss_tolerance": arguments.loss_tolerance, "metric_tolerance": arguments.metric_tolerance}
        return 0 if commands.compare(*arguments.runs, **tolerances).same else 1
    else:
        getattr(commands, arguments.command)(load_config(arguments.config, _overrides(arguments)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0; 1 failure or difference; 2 a user's mistake; 130 interrupted."""
    try:
        code = _run(build_parser().parse_args(argv))
        sys.stdout.flush()
    except UserError as error:
        print(f"distgnn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("distgnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except WorkerError as error:
        print(f"distgnn: {error}", file=sys.stderr)
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        refusal = system_refusal(error)
        if refusal is None:
            raise
        print(f"distgnn: {refusal}", file=sys.stderr)
        return 2
    return code
