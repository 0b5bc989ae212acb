#!/usr/bin/env bash
# A Ray cluster on this machine, with token authentication, on loopback alone.
#
#   cluster/local.sh start [options of ray start]   e.g. --num-gpus=2
#   cluster/local.sh status
#   eval "$(cluster/local.sh env)"                  what ray and distgnn need in the environment to reach it
#   cluster/local.sh stop                           stops what start started, and nothing else
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
for python in "${DISTGNN_PYTHON:-}" "${VIRTUAL_ENV:-}/bin/python" "$here/../.venv/bin/python" \
    "$(command -v python3 || true)" "$(command -v python || true)"; do
    if [ -x "$python" ] && [ -x "$(dirname "$python")/ray" ] && (cd / && "$python" -c "import distgnn" 2>/dev/null); then
        exec "$python" "$here/local_cluster.py" "$@"
    fi
done
echo "cluster/local.sh: no Python with distgnn found: run make .venv/.installed, or activate the environment that it is in" >&2
exit 2
