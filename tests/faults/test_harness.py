"""What the other tests rely on sees what is left behind, a hang, and a curve that is another one."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.harness import MarkedRun, Outcome, curve_difference, in_short, outcome_table

_LEAVES = """
import pathlib, subprocess, sys, tempfile
folder = pathlib.Path(tempfile.gettempdir())
(folder / "note").write_text("left")
pathlib.Path("/dev/shm", sys.argv[1]).write_text("left")
subprocess.Popen(["sleep", "600"], start_new_session=True)
"""


def test_what_is_left_is_seen(tmp_path: Path) -> None:
    name = f"distgnn-test-{tmp_path.name}-{id(tmp_path)}"
    run = MarkedRun([sys.executable, "-c", _LEAVES, name], tmp_path)
    try:
        assert run.wait(30) == 0
        process, file, shared = run.left(grace=0.2)
        assert process.endswith("sleep 600")
        assert file == f"file {tmp_path}/tmp/note"
        assert shared == f"shared memory {name}"
    finally:
        run.kill()
        Path("/dev/shm", name).unlink()
    (tmp_path / "tmp" / "note").unlink()
    assert run.left() == []


def test_a_hang_fails_and_is_ended(tmp_path: Path) -> None:
    run = MarkedRun([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"], tmp_path)
    with pytest.raises(AssertionError, match="it hangs, after 2 s:\nhere"):
        run.wait(2)
    assert run.left() == []


def test_another_curve_is_seen(tmp_path: Path) -> None:
    for name, values in (("a", [3.0, 2.0]), ("b", [3.0, 2.0]), ("c", [3.0, 2.0000000000000004]), ("d", [3.0])):
        (tmp_path / name).mkdir()
        records = [{"phase": "fit", "step": step, "loss": loss} for step, loss in enumerate(values)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert curve_difference(tmp_path / "b", tmp_path / "a") == ""
    assert "fit step 1: loss 2.0000000000000004 instead of 2.0" in curve_difference(tmp_path / "c", tmp_path / "a")
    assert "other steps" in curve_difference(tmp_path / "d", tmp_path / "a")


def test_the_table_has_a_row_an_outcome() -> None:
    table = outcome_table([Outcome("SIGKILL of worker 1", "forward", 12, "same curve, 1 restart", 4.25)])
    assert " ".join(table.splitlines()[-1].split()) == "SIGKILL of worker 1 forward 12 4.2 same curve, 1 restart"


def test_a_line_in_short_has_no_folders_but_the_files_name() -> None:
    assert (
        in_short("distgnn: s3://b/run/shard-1.bin: cannot be written: timeout")
        == "shard-1.bin: cannot be written: timeout"
    )
    assert (
        in_short("distgnn: /a/b/users.npy: altered at http://1.2.3.4:80/x")
        == "users.npy: altered at http://1.2.3.4:80/x"
    )
    assert len(in_short("x" * 200)) == 90


def test_signals_that_the_tests_own_shell_ignores_reach_a_run(tmp_path: Path) -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        run = MarkedRun(["sleep", "600"], tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    run.process.send_signal(signal.SIGHUP)
    assert run.wait(30) == -signal.SIGHUP
