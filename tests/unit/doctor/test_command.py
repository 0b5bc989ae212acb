"""The whole command, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distgnn import cli
from distgnn.doctor import examination
from distgnn.doctor.finding import FAIL, OK, WARN, Check, Finding


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the only check finds."""
    found: list[Finding] = []
    monkeypatch.setattr(examination, "CHECKS", (Check("thing", lambda _: found, "look elsewhere"),))
    return found


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "DISTGNN_CACHE": str(tmp_path / "cache"), "DISTGNN_RAY_HOME": str(tmp_path / "ray")}


def test_the_exit_code_and_the_last_line(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    findings += [Finding(OK, "a", "1"), Finding(WARN, "b", "2", "mind it")]
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok    a: 1\nwarn  b: 2\n      -> mind it\nnothing fails\n"
    findings.append(Finding(FAIL, "c", "3", "mend it"))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 3 fail"


def test_json(findings: list[Finding], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings.append(Finding(FAIL, "c", "3", "mend it"))
    assert cli.main(["doctor", "--json", str(tmp_path / "result.json")]) == 2
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {
        "ok": False,
        "findings": [{"status": "FAIL", "what": "c", "figure": "3", "advice": "mend it"}],
    }
    (tmp_path / "file").touch()
    assert cli.main(["doctor", "--json", str(tmp_path / "file" / "result.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_configuration_that_is_wrong(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--set", "cluster.worker=2"]) == 2
    assert "did you mean workers" in capsys.readouterr().err


def test_all_checks_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'[run]\nout = "{tmp_path}/runs/first"\n[cluster]\nworkers = 64\n')
    before = {path.name for path in tmp_path.iterdir()}
    result = subprocess.run(
        [sys.executable, "-m", "distgnn", "doctor", "--config", "config.toml", "--json", "result.json"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.stderr == ""
    found: list[dict[str, Any]] = json.loads((tmp_path / "result.json").read_text())["findings"]
    assert [finding["what"] for finding in found if not finding["what"].startswith("GPU")] == [
        "Python",
        "packages",
        "kernels",
        "data.name",
        "run.out",
        "cores",
        "memory",
        "shared memory",
        "disk, cache",
        "disk, run.out",
        "disk, temporary",
        "Ray",
    ]
    states = {finding["what"]: finding["status"] for finding in found}
    assert states["cores"] == WARN
    assert states["run.out"] == states["packages"] == states["kernels"] == OK
    assert result.returncode == (2 if FAIL in states.values() else 0)
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache", "result.json"}


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from distgnn.cli import main
sys.exit(main(["doctor"]))
"""


def test_a_missing_package_ends_no_other_check(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (result.returncode, result.stderr) == (2, "")
    assert "FAIL  GPUs: cannot be checked: " in result.stdout
    assert "ok    Ray: " in result.stdout
