"""Contenders of the benchmarks, each a script of its own process."""
