"""Distil a run into a small student on the workers of the cluster.

ray job submit --working-dir . -- python jobs/distill.py --run /data/runs/gowalla --workers 2
"""

from _entry import run

run("distill")
