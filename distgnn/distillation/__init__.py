"""From a trained teacher to a small student: objective, student tables, compressed baselines."""
