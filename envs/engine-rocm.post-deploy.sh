#!/usr/bin/env bash
# Run by Snakemake inside the new conda environment, from the root of the workflow.
set -euo pipefail
uv pip install --python "$CONDA_PREFIX/bin/python" --no-deps -r envs/engine-rocm.txt --editable .
# vLLM's ROCm build, with the torch it was built for, is on vLLM's own index.
uv pip install --python "$CONDA_PREFIX/bin/python" --extra-index-url "${VLLM_ROCM_INDEX:-https://wheels.vllm.ai/rocm/}" vllm==0.32.0
