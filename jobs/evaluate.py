"""Evaluate a run on the workers of the cluster.

ray job submit --working-dir . -- python jobs/evaluate.py --run /data/runs/gowalla --workers 2
"""

from _entry import run

run("evaluate")
