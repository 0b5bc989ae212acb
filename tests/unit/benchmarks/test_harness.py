from __future__ import annotations

import json
from pathlib import Path

from benchmarks import harness


def test_the_machine_is_told() -> None:
    facts = harness.machine()
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 1 << 28
    assert set(facts["versions"]) >= {"torch", "numba", "numpy"}
    assert facts["processor"]


def test_figures_are_written_with_the_machine(tmp_path: Path) -> None:
    harness.write_json(str(tmp_path / "new" / "figures.json"), {"rows": [1, 2]})
    content = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert content["rows"] == [1, 2]
    assert content["machine"]["cores"] >= 1
    harness.write_json(None, {"rows": []})
    assert harness.parser("question?").parse_args(["--json", "x"]).json == "x"
