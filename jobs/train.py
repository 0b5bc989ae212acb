"""Train a teacher on the workers of the cluster.

ray job submit --working-dir . -- python jobs/train.py --config jobs/recipes/gowalla.toml --out /data/runs/gowalla
"""

from _entry import run

run("train")
