"""Make a dataset from an interaction log.

ray job submit --working-dir . -- python jobs/prepare.py --input s3://bucket/log.parquet --out s3://bucket/dataset
"""

from _entry import run

run("prepare")
