"""Inline SVG line charts and bars for the report. Colours and fonts come from the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 40
_MAX_POINTS = 300
_COLORS = 4


_Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """A named line of (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, mark_best: bool = False) -> str:
    """An SVG element; long series are shown by the means of neighbouring points.

    Args:
        series: at least one, none empty, all values finite.
        x_label: below the axis.
        y_label: accessible name of the chart.
        mark_best: put a dot on every point and a label at each series' largest value.
    """
    drawn = [Series(s.name, _thinned(s.points)) for s in series]
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs), whole=True), _ticks(min(ys), max(ys))
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1e-9)
    low_y, high_y = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        right = (x - low_x) / (high_x - low_x) if len(set(xs)) > 1 else 0.5
        return _LEFT + right * width, _HEIGHT - _BOTTOM - (y - low_y) / (high_y - low_y) * height

    parts = [_axes(x_ticks, y_ticks, place, (low_x, high_x), x_label)]
    parts += [_curve(number, s, place, mark_best) for number, s in enumerate(drawn)]
    parts.append(_legend([s.name for s in drawn]))
    label = html.escape(y_label, quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def bar_rows(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: (label, share of the widest possible bar in [0, 1], text after it)."""
    cells = "".join(
        f'<span>{html.escape(label)}</span><div><i style="width:{100 * min(max(share, 0.0), 1.0):.2f}%"></i></div>'
        f"<span>{html.escape(text)}</span>"
        for label, share, text in rows
    )
    return f'<div class="bars">{cells}</div>'


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _MAX_POINTS means of runs of neighbouring points."""
    size = math.ceil(len(points) / _MAX_POINTS)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round values, about five, that span [low, high]; whole numbers only where asked."""
    if high <= low:
        margin = 1.0 if whole else (abs(low) * 0.1 or 1.0)
        low, high = low - margin, high + margin
    raw = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw * (1 - 1e-9))
    if whole:
        step = float(max(1, math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _tick_text(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    if abs(value) >= 10_000 and step >= 1000 and step % 500 == 0:
        return f"{value / 1000:g}k"
    for digits in range(7):
        if all(abs(round(t, digits) - t) < step * 1e-6 for t in ticks):
            return f"{value:.{digits}f}"
    return f"{value:.2e}"


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], place: _Place, x_range: tuple[float, float], x_label: str
) -> str:
    low_x, high_x = x_range
    parts = []
    for tick in y_ticks:
        _, y = place(low_x, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = _tick_text(tick, y_ticks)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        if low_x - 1e-9 <= tick <= high_x + 1e-9:
            x, _ = place(tick, y_ticks[0])
            text = _tick_text(tick, x_ticks)
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    return "".join(parts)


def _curve(number: int, series: Series, place: _Place, mark_best: bool) -> str:
    color = number % _COLORS
    placed = [place(x, y) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = [f'<polyline class="curve c{color}" points="{path}"/>']
    if mark_best or len(placed) == 1:
        parts += [f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed]
    if mark_best:
        best = max(range(len(placed)), key=lambda i: series.points[i][1])
        x, y = placed[best]
        x = min(max(x, _LEFT + 22), _WIDTH - _RIGHT - 22)
        value = f"{series.points[best][1]:.4f}"
        parts.append(f'<text class="f{color}" x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value}</text>')
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    parts, x = [], float(_LEFT)
    for number, name in enumerate(names):
        if not name:
            continue
        color = number % _COLORS
        parts.append(f'<rect class="f{color}" x="{x:.0f}" y="6" width="14" height="4" rx="2"/>')
        parts.append(f'<text x="{x + 20:.0f}" y="12">{html.escape(name)}</text>')
        x += 42 + 7 * len(name)
    return "".join(parts)
