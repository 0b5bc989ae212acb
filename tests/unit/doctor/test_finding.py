from __future__ import annotations

import threading
import time

import pytest

from distgnn.config import Config
from distgnn.doctor.finding import FAIL, OK, WARN, Check, Examination, Finding, guarded
from distgnn.types import UserError


def outcome(run: object, timeout: float = 5.0) -> Finding:
    (finding,) = guarded(Check("thing", run, "look elsewhere"), Examination(Config()), timeout)  # type: ignore[arg-type]
    return finding


def raising(error: BaseException) -> object:
    def run(_: Examination) -> list[Finding]:
        raise error

    return run


def test_how_a_finding_is_printed() -> None:
    assert str(Finding(OK, "cores", "2")) == "ok    cores: 2"
    assert str(Finding(WARN, "cores", "2", "lower it")) == "warn  cores: 2\n      -> lower it"
    assert str(Finding(FAIL, "cores", "2", "lower\nit")).splitlines()[0] == "FAIL  cores: 2"
    assert str(Finding(FAIL, "cores", "2", "lower\nit")).count("\n") == 1
    with pytest.raises(AssertionError):
        Finding(FAIL, "cores", "2")


def test_no_password_is_printed() -> None:
    finding = Finding(FAIL, "data", "sftp://me:secret@host/log: refused", "see ftp://me:secret@host")
    assert "secret" not in str(finding) + str(finding.to_dict())
    assert "sftp://***@host/log" in str(finding)


def test_what_a_check_finds_is_passed_on() -> None:
    assert outcome(lambda _: [Finding(OK, "thing", "there")]) == Finding(OK, "thing", "there")


def test_a_mistake_is_split_into_figure_and_advice() -> None:
    finding = outcome(raising(UserError("x.csv: empty; choose another")))
    assert finding == Finding(FAIL, "thing", "x.csv: empty", "choose another")


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_of_the_check_is_a_failure(error: BaseException) -> None:
    finding = outcome(raising(error))
    assert (finding.status, finding.advice) == (FAIL, "look elsewhere")
    assert type(error).__name__ in finding.figure


def test_a_missing_module_is_named() -> None:
    finding = outcome(raising(ModuleNotFoundError("No module named 'torch'")))
    assert finding.status == FAIL
    assert "torch" in finding.figure


def test_a_check_that_hangs_is_left_behind() -> None:
    release = threading.Event()
    started = time.monotonic()
    finding = outcome(lambda _: release.wait(60) and [], timeout=0.2)
    release.set()
    assert time.monotonic() - started < 30
    assert finding == Finding(FAIL, "thing", "no answer within 0.2 s", "look elsewhere")
