#!/usr/bin/env bash
# Run by Snakemake inside the new conda environment, from the root of the workflow.
set -euo pipefail
uv pip install --python "$CONDA_PREFIX/bin/python" --no-deps -r envs/engine-aiperf.txt
