"""A live line of progress on stderr."""

from __future__ import annotations

import sys
import time

_LINE_SECONDS = 10.0  # between lines where the output is not a terminal


class ProgressLine:
    """Shows a text that changes: in place on a terminal, else every ten seconds."""

    def __init__(self) -> None:
        self._shown = 0.0

    def show(self, text: str, *, last: bool = False) -> None:
        """Show the text; the `last` one stays."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
            sys.stderr.flush()
        elif last or time.monotonic() - self._shown > _LINE_SECONDS:
            self._shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)
