"""Tables for the terminal, and numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Aligned text table: the first column to the left, the others to the right, "-" where a row lacks a value."""
    cells = [list(columns)] + [[_printable(format_value(row.get(name), name)) for name in columns] for row in rows]
    widths = [max(len(line[c]) for line in cells) for c in range(len(columns))]
    lines = [
        "  ".join(text.ljust(width) if c == 0 else text.rjust(width) for c, (text, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def format_value(value: Any, name: str) -> str:
    """A number as a reader wants it, by the kind its name tells."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "-"
    if name.endswith("seconds"):
        return f"{value:,.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
