"""Run report: report.json for programs, report.html for people, a table for the terminal."""

from distgnn.report.table import format_table
from distgnn.report.waiting import straggler_sentence
from distgnn.report.writer import write_report

__all__ = ["format_table", "straggler_sentence", "write_report"]
