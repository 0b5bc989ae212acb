"""Benchmarks: each file asks one question, prints a table and writes its figures. Tests are elsewhere."""
