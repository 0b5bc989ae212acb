"""Write recommendations of a run to a file.

ray job submit --working-dir . -- python jobs/recommend.py --run /data/runs/student --out s3://bucket/top.parquet
"""

from _entry import run

run("recommend")
