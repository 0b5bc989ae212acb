"""Report files: contents, escaping, curves, and the terminal's table."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from distgnn.config import Config
from distgnn.report import format_table, write_report
from distgnn.report.charts import Series, _ticks, line_chart
from distgnn.report.writer import REQUIRED_KEYS


def report(**changes):
    return {
        "dataset": {"name": "toy", "n_users": 1234, "n_items": 20, "n_train": 100, "n_test": 30},
        "config": Config().to_dict(),
        "seed": 3,
        "workers": 1,
        "partitions": 2,
        "metrics": {"recall@20": np.float64(0.25), "ndcg@20": 0.125, "tail_recall@20": 0.5, "gini@20": 0.9},
        "seconds": {"prepare": 1.0, "sampling": 3.0, "total": 8.0},
        "peak_rss_bytes": [1 << 20, 3 << 20],
        "remote_bytes": 2048,
        "remote_bytes_by_kind": {"rows": 1536, "gradients": 512, "gathered": 0},
        "positives_per_second": 12.5,
        "sampled_edges_per_second": float("nan"),
        "baselines": [{"model": "TopPop", "recall@20": 0.5, "ndcg@20": 0.0625, "gini@20": 0.8, "fit_seconds": 0.5}],
    } | changes


RECORDS = [
    {"phase": "fit", "step": 0, "epoch": 0, "loss": 4.0},
    {"phase": "fit", "step": 1, "epoch": 0, "loss": float("nan")},
    {"phase": "fit", "step": 2, "epoch": 1, "loss": 2.0},
    {"phase": "fit", "step": 2, "epoch": 1, "ndcg@20": 0.11},
    {"phase": "fit", "step": 4, "epoch": 2, "ndcg@20": 0.37},
    {"phase": "full", "step": 0, "epoch": 0, "loss": 3.0},
    {"phase": "full", "step": 2, "epoch": 1, "loss": 1.0},
]


def written(tmp_path, content=None, records=RECORDS):
    write_report(str(tmp_path), content or report(), records)
    return json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.html").read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Tags balance, and nothing is loaded or run."""

    VOID = frozenset({"meta", "circle", "rect", "line", "polyline", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_json_holds_what_was_given(tmp_path):
    content, _ = written(tmp_path)
    assert set(REQUIRED_KEYS) <= content.keys()
    assert content["metrics"]["recall@20"] == 0.25
    assert content["sampled_edges_per_second"] is None  # no NaN in JSON
    assert content["config"]["sampler"]["fanout"] == [10, 10]


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_a_missing_key_is_named_and_nothing_written(tmp_path, key):
    content = report()
    del content[key]
    with pytest.raises(ValueError, match=f"missing {key}"):
        write_report(str(tmp_path), content, [])
    assert list(tmp_path.iterdir()) == []


def test_page_is_whole_and_self_contained(tmp_path):
    _, page = written(tmp_path)
    checker = parsed(page)
    assert not checker.tags & {"script", "link", "img", "iframe", "object"}
    assert "url(" not in page
    assert "@import" not in page
    text = " ".join(checker.text)
    for shown in ("toy", "1,234 users", "1 worker,", "2 partitions", "Long tail", "TopPop", "3.0 s (38%)", "2.0 KiB"):
        assert shown in text
    assert "Items without a training edge" not in text  # nobody has a value


def test_page_says_what_the_workers_waited_for(tmp_path):
    found = {"rank": 1, "seconds": 9.0, "others_seconds": 5.5, "stage": "fetch", "stage_lost_seconds": 2.5}
    seconds = {"training": 8.0, "blocked": 2.0, "total": 9.0}
    _, page = written(tmp_path, report(workers=2, seconds=seconds, straggler=found, blocked_share=0.25))
    text = " ".join(parsed(page).text)
    assert "at most 2.0 s, 25% of its time" in text
    assert "Worker 1 is the straggler" in text


def test_best_values_are_marked(tmp_path):
    _, page = written(tmp_path)
    toppop = re.search(r"<tr><th>TopPop</th>(.*?)</tr>", page).group(1)
    assert '<td class="best">0.5000</td>' in toppop
    assert '<td class="best">0.8000</td>' in toppop  # the lower gini
    assert '<td class="best">0.0625</td>' not in toppop
    assert '<td class="best">0.1250</td>' in page


def test_curves_of_each_phase(tmp_path):
    _, page = written(tmp_path)
    charts = re.findall(r"<svg.*?</svg>", page)
    assert len(charts) == 2
    loss, validation = charts
    lines = re.findall(r'<polyline class="curve c(\d)" points="([^"]*)"', loss)
    assert [(color, len(points.split())) for color, points in lines] == [("0", 2), ("1", 2)]  # the NaN is left out
    assert "fit" in loss
    assert "full" in loss
    assert "0.3700</text>" in validation
    assert "0.1100</text>" not in validation


def test_without_records_there_is_no_training_section(tmp_path):
    _, page = written(tmp_path, records=[])
    assert "<svg" not in page
    parsed(page)


def test_missing_values_leave_dashes(tmp_path):
    bare = report(metrics={}, seconds={}, baselines=[], peak_rss_bytes=[], remote_bytes=None, positives_per_second=None)
    _, page = written(tmp_path, bare)
    parsed(page)


def test_everything_is_escaped(tmp_path):
    bad = "</title><script>alert('x')</script>&\"'"
    content = report(
        dataset={"name": bad, "n_users": 1},
        config={bad: {bad: bad}, "model": {"encoder": bad, "tower": bad}, "loss": {"name": bad}},
        baselines=[{"model": bad, "recall@20": 0.1}],
        seconds={bad: 1.0, "total": 2.0},
    )
    _, page = written(tmp_path, content, [{"phase": bad, "step": s, "epoch": s, "loss": 1.0} for s in range(2)])
    checker = parsed(page)
    assert "script" not in checker.tags
    assert "<script" not in page


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 2.0), (5, 2.0)], [(i, np.sin(i / 50)) for i in range(5000)]])
def test_any_series_can_be_drawn(points):
    chart = line_chart([Series("a", points)], x_label="step", y_label="loss")
    coordinates = re.findall(r"(-?[\d.]+),(-?[\d.]+)", re.search(r'points="([^"]*)"', chart).group(1))
    assert 1 <= len(coordinates) <= 300
    assert all(58 <= float(x) <= 506 and 30 <= float(y) <= 240 for x, y in coordinates)
    assert "nan" not in chart


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.123, 0.124), (5.6, 7.7), (3, 3), (0, 0), (0, 123456), (-2, 5)])
def test_ticks_are_round_and_span_the_values(low, high):
    ticks = _ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 3 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_format_table():
    rows = [
        {"model": "distgnn", "recall@20": 0.5, "n": 12345, "fit_seconds": 3.21},
        {"model": "bad\x1b[31m", "recall@20": float("nan")},
    ]
    assert format_table(rows, ["model", "recall@20", "n", "fit_seconds"]).splitlines() == [
        "model     recall@20       n  fit_seconds",
        "--------  ---------  ------  -----------",
        "distgnn      0.5000  12,345          3.2",
        "bad?[31m          -       -            -",
    ]
