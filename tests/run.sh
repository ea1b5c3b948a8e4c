#!/usr/bin/env bash
# All tests but the slow ones and those for GPUs. What needs neither the demo's results nor Slurm runs first, on all
# cores, and beside it the demo's checkpoint is trained (on one thread). What times engines runs alone, after that.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv-cpu/bin
common=(-m "not slow and not gpu and not e2e and not slurm")
alone=(-m "(e2e or slurm) and not slow and not gpu")

mkdir -p results/logs
nice -n 5 $bin/snakemake --cores 1 --quiet all --until train_demo >results/logs/train-first.log 2>&1 &
training=$!
trap 'kill $training 2>/dev/null || true' EXIT
status=0
$bin/pytest -n "$(nproc)" --dist loadfile "${common[@]}" "$@" || status=$?
# Where it failed, the tests that need the demo start it again and show why.
wait $training || true
$bin/pytest "${alone[@]}" "$@" || status=$?
exit $status
