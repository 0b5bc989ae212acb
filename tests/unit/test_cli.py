from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import distgnn
from distgnn import cli, commands
from distgnn.config import Config
from distgnn.types import UserError, WorkerError

SURFACE = {
    "prepare": [
        "--config",
        "--set",
        "--name",
        "--input",
        "--test-input",
        "--valid-input",
        "--format",
        "--user-column",
        "--item-column",
        "--timestamp-column",
        "--weight-column",
        "--user-features",
        "--item-features",
        "--split",
        "--parts",
        "--out",
    ],
    "train": [
        "--config",
        "--set",
        "--name",
        "--input",
        "--test-input",
        "--valid-input",
        "--format",
        "--user-column",
        "--item-column",
        "--timestamp-column",
        "--weight-column",
        "--user-features",
        "--item-features",
        "--split",
        "--data",
        "--workers",
        "--seed",
        "--baselines",
        "--trace",
        "--out",
        "--resume",
    ],
    "evaluate": ["--config", "--set", "--run", "--name", "--data", "--workers", "--baselines", "--out"],
    "distill": ["--config", "--set", "--run", "--workers", "--out", "--resume"],
    "recommend": ["--config", "--set", "--run", "--k", "--users", "--allow", "--block", "--unknown", "--out"],
    "compare": ["--loss-tolerance", "--metric-tolerance"],
    "datasets": [],
    "doctor": ["--config", "--set", "--json"],
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """Commands that were called, instead of being run."""
    calls: list[tuple[str, Config]] = []

    def recorder(name: str) -> Callable[[Config], None]:
        return lambda config: calls.append((name, config))

    for name in ("prepare", "train", "evaluate", "distill", "recommend"):
        monkeypatch.setattr(commands, name, recorder(name))
    return calls


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_the_surface_is_as_promised() -> None:
    (subcommands,) = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    found = {
        name: [
            option for action in parser._actions for option in action.option_strings if option not in ("-h", "--help")
        ]
        for name, parser in subcommands.choices.items()
    }
    assert found == SURFACE


def test_flags_are_short_for_options(called: list[tuple[str, Config]], tmp_path: Any) -> None:
    (tmp_path / "c.toml").write_text("[train]\nepochs = 3\n[cluster]\nworkers = 1\n[run]\nseed = 1\n")
    arguments = ["train", "--config", str(tmp_path / "c.toml"), "--set", "run.seed=5", "--workers", "2"]
    assert cli.main([*arguments, "--user-column", "who", "--baselines", "toppop,als", "--out", "x=y", "--resume"]) == 0
    ((name, config),) = called
    assert name == "train"
    assert (config.train.epochs, config.run.seed, config.cluster.workers) == (3, 5, 2)
    assert (config.data.user_column, config.evaluate.baselines) == ("who", ("toppop", "als"))
    assert (config.run.out, config.run.resume) == ("x=y", True)


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "distill", "recommend"])
def test_every_flag_sets_an_option_that_exists(called: list[tuple[str, Config]], command: str) -> None:
    values = {"--format": "csv", "--split": "given", "--baselines": "als", "--unknown": "popular"}
    numbers = {"--parts": "2", "--workers": "2", "--seed": "3", "--k": "5"}
    for flag in set(SURFACE[command]) - {"--config", "--set", "--resume"}:
        assert cli.main([command, flag, {**values, **numbers}.get(flag, "text")]) == 0, flag
        assert called[-1][1] != Config()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command in SURFACE:
        with pytest.raises(SystemExit, match="^0$"):
            cli.main([command, "--help"])
    assert "optim.lr = 0.005" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"distgnn {distgnn.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["tarin"], "invalid choice: 'tarin'"),
        (["train", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
        (["train", "--work", "2"], "unrecognized arguments: --work 2"),
        (["train", "--workers"], "expected one argument"),
        (["train", "--set", "sampler.fanuot=5"], "did you mean fanout?"),
        (["train", "--config", "nowhere.toml"], "cannot read nowhere.toml"),
        (["evaluate"], "name a run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("distgnn: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("user.csv: row 3: no item"), 2, "distgnn: user.csv: row 3: no item\n"),
        (KeyboardInterrupt(), 130, "distgnn: interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/full/x"),
            2,
            "distgnn: /full/x: cannot be written: No space left on device (",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "Disk quota exceeded; free some of the quota"),
        (MemoryError("cannot hold 3 bytes"), 2, "distgnn: out of memory: cannot hold 3 bytes; use a larger machine"),
        (WorkerError("worker 1 was killed by signal 9; the run is stopped"), 1, "distgnn: worker 1 was killed"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "train", failing(error))
    assert cli.main(["train"]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), RuntimeError("a bug"), KeyError("a bug")])
def test_bugs_are_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "train", failing(error))
    with pytest.raises(type(error)):
        cli.main(["train"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "distgnn", "datasets"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait() == 0


def test_datasets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["datasets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "users", "items", "train", "valid", "test", "state", "source"]
    assert any(line.startswith("debian-deps") and "bundled" in line for line in lines)
