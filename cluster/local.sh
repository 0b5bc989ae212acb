#!/usr/bin/env bash
# A Ray cluster on this machine, with token authentication, on loopback alone.
#
#   cluster/local.sh start [options of ray start]   e.g. --num-gpus=2
#   cluster/local.sh status
#   eval "$(cluster/local.sh env)"                  what ray and distgnn need in the environment to reach it
#   cluster/local.sh stop                           stops what start started, and nothing else
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
for python in "${DISTGNN_PYTHON:-}" "$here/../.venv/bin/python" "$(command -v python3 || true)" "$(command -v python || true)"; do
    if [ -x "$python" ] && [ -x "$(dirname "$python")/ray" ]; then
        exec "$python" "$here/local_cluster.py" "$@"
    fi
done
echo "cluster/local.sh: no Python with ray found: run make .venv/.installed, or activate the environment that distgnn is in" >&2
exit 2
