#!/usr/bin/env bash
# Submit the main job on the bundled dataset, with fewer epochs than its recipe has, to a cluster of its own, and stop that
# again: cluster/demo.sh FOLDER
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
case "$1" in /*) out="$1" ;; *) out="$PWD/$1" ;; esac
DISTGNN_RAY_HOME="$(mktemp -d)"
export DISTGNN_RAY_HOME
trap '"$here/local.sh" stop; rm -rf "$DISTGNN_RAY_HOME"' EXIT
cores="$(nproc)"
"$here/local.sh" start --num-cpus="$((cores < 2 ? 2 : cores))"
eval "$("$here/local.sh" env)"
cd "$here/.."
ray job submit --working-dir . -- python jobs/demo.py --config jobs/recipes/debian-deps.toml --out "$out" --set train.epochs=8
