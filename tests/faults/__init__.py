"""Faults of processes, storage and clusters, tried for real."""
