"""The report as one HTML page: no script, no font, no image from elsewhere.

Records of metrics.jsonl that it draws:

    {"phase", "step", "epoch", "loss", ...}       training; the loss is the global one
    {"phase", "step", "epoch", "ndcg@20", ...}    validation; the metrics stand flat in the record
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distgnn.report.charts import Series, bar_rows, line_chart
from distgnn.report.style import STYLE
from distgnn.report.table import format_value
from distgnn.report.waiting import blocked_sentence, straggler_sentence

TABLE_METRICS = ("recall@20", "ndcg@20", "recall@10", "ndcg@10", "hit@10", "mrr", "coverage@20", "gini@20")
COSTS = ("bytes", "latency_ms", "fit_seconds")  # not marked: they are no contest of their own
SLICES = {
    "Long tail": "tail",
    "Users with few training edges": "cold_user",
    "Items without a training edge": "cold_item",
}
_LOWER_IS_BETTER = ("gini@20",)


def render_html(report: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The whole page. Every text of the report is escaped."""
    dataset = report["dataset"]
    title = f"{dataset.get('name', 'dataset')} - distgnn report"
    sections = [
        _header(report),
        _tiles(report),
        _section("Ranking of the whole catalogue", _metrics_table(report) + _slices_table(report) + _notes(report)),
        _curves(records),
        _section("Where the time went", _timing(report["seconds"]) + _waiting(report)),
        _section("Resources", _resources(report)),
        _section("Configuration", _config(report["config"])),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_escape(title)}</h2>{body}</section>\n" if body else ""


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _header(report: Mapping[str, Any]) -> str:
    dataset, config = report["dataset"], report["config"]
    model = " / ".join(
        str(config[section][key])
        for section, key in (("model", "encoder"), ("model", "tower"), ("loss", "name"))
        if key in config.get(section, {})
    )
    counts = [
        f"{format_value(dataset[key], key)} {label}"
        for key, label in (
            ("n_users", "users"),
            ("n_items", "items"),
            ("n_train", "training edges"),
            ("n_test", "test edges"),
        )
        if dataset.get(key) is not None
    ]
    run = ", ".join(
        [_counted(report["workers"], "worker"), _counted(report["partitions"], "partition"), f"seed {report['seed']}"]
    )
    lines = "".join(f"<p>{_escape(line)}</p>" for line in (model, ", ".join(counts), run) if line)
    return f"<header><h1>{_escape(dataset.get('name', 'dataset'))}</h1>{lines}</header>\n"


def _tiles(report: Mapping[str, Any]) -> str:
    metrics, seconds = report["metrics"], report["seconds"]
    tiles = [
        (label, format_value(metrics[name], name))
        for label, name in (("Recall@20", "recall@20"), ("NDCG@20", "ndcg@20"), ("MRR", "mrr"))
        if metrics.get(name) is not None
    ]
    if seconds.get("total") is not None:
        tiles.append(("Total time", _seconds(seconds["total"])))
    if report["positives_per_second"] is not None:
        tiles.append(("Positives a second", f"{report['positives_per_second']:,.0f}"))
    boxes = "".join(f"<div><b>{_escape(value)}</b><span>{_escape(label)}</span></div>" for label, value in tiles)
    return f'<div class="tiles">{boxes}</div>\n'


def _model_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = report.get("model") or report["config"].get("model", {}).get("encoder", "model")
    cost = {key: report[key] for key in ("bytes", "latency_ms") if key in report}
    own = {"model": f"{name} (this run)", **report["metrics"], **cost}
    if report["seconds"].get("total") is not None:
        own["fit_seconds"] = report["seconds"]["total"]
    return [own, *report.get("baselines", [])]


def _metrics_table(report: Mapping[str, Any]) -> str:
    rows = _model_rows(report)
    columns = [name for name in TABLE_METRICS if any(row.get(name) is not None for row in rows)]
    if not columns:
        return ""
    labels = {"fit_seconds": "fit, s", "latency_ms": "request, ms"}
    if len(rows) > 1:
        columns += [name for name in COSTS if any(row.get(name) is not None for row in rows[1:])]
    return _table(rows, columns, labels)


def _slices_table(report: Mapping[str, Any]) -> str:
    rows = _model_rows(report)
    columns, labels = [], {}
    for title, prefix in SLICES.items():
        for metric, label in (("recall@20", "recall@20"), ("ndcg@20", "ndcg@20")):
            name = f"{prefix}_{metric}"
            if any(row.get(name) is not None for row in rows):
                columns.append(name)
                labels[name] = f"{title}: {label}"
    return f"<h3>Slices</h3>{_table(rows, columns, labels)}" if columns else ""


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], labels: Mapping[str, str]) -> str:
    best = {name: _best(rows, name) for name in columns}
    head = "".join(f"<th>{_escape(labels.get(name, name))}</th>" for name in columns)
    body = []
    for number, row in enumerate(rows):
        cells = []
        for name in columns:
            marked = len(rows) > 1 and row.get(name) is not None and row.get(name) == best[name]
            kind = ' class="best"' if marked else ""
            cells.append(f"<td{kind}>{_escape(format_value(row.get(name), name))}</td>")
        kind = ' class="own"' if number == 0 and len(rows) > 1 else ""
        body.append(f"<tr{kind}><th>{_escape(row['model'])}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>Model</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _best(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values or name in COSTS:
        return None
    return min(values) if name in _LOWER_IS_BETTER else max(values)


def _notes(report: Mapping[str, Any]) -> str:
    notes = [
        "All items are ranked for every user with a held-out item; items that the user already has are masked; equal "
        "scores are ordered by a hash of user and item. Recall@k is hits / held-out items; the ideal DCG is truncated "
        "at k. Best value of a column in bold (the lowest for gini).",
    ]
    if report.get("n_evaluated") is not None:
        dropped = report.get("n_dropped") or 0
        notes.append(f"{report['n_evaluated']:,} users evaluated, {dropped:,} without a held-out item left out.")
    return "".join(f'<p class="note">{_escape(note)}</p>' for note in notes)


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for title, key, x_key in (("Training loss", "loss", "step"), ("Validation NDCG@20", "ndcg@20", "epoch")):
        series = _series(records, key, x_key)
        if series:
            chart = line_chart(series, x_label=x_key, y_label=title, mark_best=key == "ndcg@20")
            charts.append(f"<figure><figcaption>{_escape(title)}</figcaption>{chart}</figure>")
    return _section("Training", f'<div class="charts">{"".join(charts)}</div>') if charts else ""


def _series(records: Iterable[Mapping[str, Any]], key: str, x_key: str) -> list[Series]:
    """One series a phase, in the order the phases come."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        x, y = record.get(x_key), record.get(key)
        if isinstance(x, (int, float)) and isinstance(y, (int, float)):
            points.setdefault(str(record.get("phase", "")), []).append((float(x), float(y)))
    return [Series(phase, found) for phase, found in points.items()]


def _timing(seconds: Mapping[str, Any]) -> str:
    total = seconds.get("total")
    parts = [(name, float(value)) for name, value in seconds.items() if name != "total" and value is not None]
    if not parts:
        return ""
    whole = total or sum(value for _, value in parts) or 1.0
    longest = max(value for _, value in parts) or 1.0
    rows = [(name, value / longest, f"{_seconds(value)} ({value / whole:.0%})") for name, value in parts]
    note = (
        '<p class="note">Shares of the wall time of one worker; sampling runs ahead in threads, so parts overlap and '
        "need not add up to the whole.</p>"
    )
    return bar_rows(rows) + note


def _waiting(report: Mapping[str, Any]) -> str:
    sentences = " ".join(filter(None, (blocked_sentence(report), straggler_sentence(report))))
    return f'<p class="note">{_escape(sentences)}</p>' if sentences else ""


def _resources(report: Mapping[str, Any]) -> str:
    peak = report["peak_rss_bytes"]
    peaks = peak if isinstance(peak, list) else [peak]
    rows = [("Peak memory of each worker", ", ".join(_bytes(value) for value in peaks if value is not None) or "-")]
    for label, key, unit in (
        ("Fetched from and sent to other workers", "remote_bytes", _bytes),
        ("Positives a second", "positives_per_second", lambda value: f"{value:,.0f}"),
        ("Sampled edges a second", "sampled_edges_per_second", lambda value: f"{value:,.0f}"),
    ):
        value = report[key]
        if isinstance(value, list):
            value = sum(value)
        rows.append((label, unit(value) if value is not None else "-"))
        if key == "remote_bytes":
            rows += [
                (f"\u2014 {kind}", _bytes(part))
                for kind, part in report.get("remote_bytes_by_kind", {}).items()
                if part
            ]
    return _pairs(rows)


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{_escape(key)}</th><td>{_escape(value)}</td></tr>" for key, value in rows)
    return f'<table class="pairs">{cells}</table>'


def _config(config: Mapping[str, Any]) -> str:
    blocks = []
    for name, section in config.items():
        rows = section.items() if isinstance(section, Mapping) else [(name, section)]
        shown = [(key, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for key, v in rows]
        blocks.append(f"<div><h3>{_escape(name)}</h3>{_pairs(shown)}</div>")
    return f'<details><summary>All options of this run</summary><div class="config">{"".join(blocks)}</div></details>'
