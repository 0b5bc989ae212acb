"""summary.json of a teacher, its student and the baselines: one row a model, and the same as a printed table."""

from __future__ import annotations

from typing import Any

from distgnn import storage
from distgnn.report.table import format_table

COLUMNS = ["model", "recall@20", "ndcg@20", "bytes", "latency_ms"]
_NAMES = {"TopPop": "toppop", "ItemKNN": "itemknn", "ALS": "als", "GF-CF": "gfcf"}
_ORDER = (*_NAMES.values(), "teacher", "student", "student-int8")


def summary_rows(teacher: dict[str, Any], student: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of COLUMNS: the baselines of a teacher's report, then teacher and students of a student's report."""
    found = {_NAMES.get(row["model"], row["model"]): row for row in [*teacher["baselines"], *student["models"]]}
    return [{**{key: found[name][key] for key in COLUMNS}, "model": name} for name in _ORDER if name in found]


def write_summary(folder: str, teacher_run: str, student_run: str) -> list[dict[str, Any]]:
    """Write FOLDER/summary.json from the reports of two runs, print the table, return its rows."""
    reports = [storage.read_json(storage.join(run, "report.json")) for run in (teacher_run, student_run)]
    rows = summary_rows(*reports)
    uri = storage.join(folder, "summary.json")
    storage.write_json(uri, {"rows": rows})
    print(format_table(rows, COLUMNS))
    print(f"summary: {uri}")
    return rows
