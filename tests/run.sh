#!/usr/bin/env bash
# All tests but the slow ones and those for GPUs. First the demo, alone: what it times is timed on a quiet machine. Then
# every test on all cores, a file at a time, those of the finished demo first: they are the longest.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv-cpu/bin

mkdir -p results/logs
# Where the demo fails, the first test that needs it makes it again and shows why.
SECONDS=0
$bin/snakemake --cores "$(nproc)" --quiet rules reason host >results/logs/demo.log 2>&1 || true
echo "The demo took $((SECONDS / 60)) min $((SECONDS % 60)) s: results/logs/demo.log"
exec $bin/pytest -n "$(nproc)" --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" "$@"
