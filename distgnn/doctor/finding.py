"""What a check finds, and running one so that neither an error nor a hang ends the others."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from distgnn.config import Config
from distgnn.types import UserError

OK, WARN, FAIL = "ok", "warn", "FAIL"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")  # user:password@ in a URI


@dataclass(frozen=True)
class Finding:
    """One line of the result.

    Attributes:
        status: ok, warn or FAIL.
        what: was looked at.
        figure: what was found.
        advice: what to do; empty where all is well.
    """

    status: str
    what: str
    figure: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert (self.status == OK) == (self.advice == ""), "what is wrong comes with advice, and nothing else does"
        for name in ("figure", "advice"):
            object.__setattr__(self, name, _CREDENTIALS.sub("***@", " ".join(getattr(self, name).split())))

    def __str__(self) -> str:
        text = f"{self.status:<4}  {self.what}: {self.figure}"
        return text + (f"\n      -> {self.advice}" if self.advice else "")

    def to_dict(self) -> dict[str, str]:
        """Its fields, for JSON."""
        return asdict(self)


@dataclass
class Examination:
    """What the checks work on, and what one leaves for those after it.

    Attributes:
        config: of the run to come.
        n_nodes: of the dataset, once it is known.
        n_edges: training edges of a prepared dataset, once they are known.
        n_rows: interactions of a raw log, once they are known; 0 where nothing is to be prepared.
        timestamps, weights: whether those are read from it.
        n_by_role: users and items, under `user` and `item`, once they are known.
        feature_widths: values in a row of features, likewise.
    """

    config: Config
    n_nodes: int | None = None
    n_edges: int = 0
    n_rows: int = 0
    timestamps: bool = False
    weights: bool = False
    n_by_role: dict[str, int] = field(default_factory=dict)
    feature_widths: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check and what to look at where it gives no answer in time.

    Attributes:
        what: is looked at.
        run: the check.
        unanswered: advice for a check that hangs.
    """

    what: str
    run: Callable[[Examination], list[Finding]]
    unanswered: str


def refusal(what: str, message: str, advice: str = "") -> Finding:
    """A failure from a message `what is wrong; what to do`, with the advice given where the message has none."""
    figure, _, own = message.partition("; ")
    return Finding(FAIL, what, figure, "; ".join(filter(None, [own, advice])) or "see the message")


def first_line(error: BaseException) -> str:
    """The first line of what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def guarded(check: Check, examination: Examination, timeout: float) -> list[Finding]:
    """Run a check; an error or no answer within `timeout` seconds is a failure of what it looks at.

    A check that hangs is left behind in a thread that does not keep the process alive.
    """
    found: list[Finding] = []

    def run() -> None:
        try:
            found.extend(check.run(examination))
        except UserError as error:
            found.append(refusal(check.what, str(error)))
        except ImportError as error:
            found.append(
                Finding(FAIL, check.what, f"cannot be checked: {first_line(error)}", "install what is missing first")
            )
        except BaseException as error:
            text = f"the check itself failed: {type(error).__name__}: {first_line(error)}"
            found.append(Finding(FAIL, check.what, text, check.unanswered))

    thread = threading.Thread(target=run, name=f"doctor: {check.what}", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        return [Finding(FAIL, check.what, f"no answer within {timeout:g} s", check.unanswered)]
    return found
