#!/usr/bin/env bash
# Makes environments: envs/setup.sh NAME..., each of core, anatomy, cpu, cuda, rocm, quantize, llamacpp, aiperf, dev, cuda-dev, docs
#
# `cpu`, `cuda` and `rocm` are the engine environments; `dev` adds the test tools to `cpu`, `cuda-dev` to `cuda`. Each is a folder
# .venv-NAME; `.venv` is a link to the one that the site chose (the first one made, or `make env ENGINE=...`).
# What is installed is written down exactly in envs/*.txt; a stamp keeps a second run from doing anything.
#
# torch is pinned without its build tag. The build is chosen here. On CPUs: where PIP_FIND_LINKS names a folder that holds
# a torch wheel for this Python, that wheel; else PyTorch's own index for CPUs. On NVIDIA GPUs: the one of PyPI, which
# vLLM's wheel on PyPI is built for.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${1:?which environment: core, anatomy, cpu, cuda, rocm, quantize, dev, cuda-dev or docs}"
uv_version=0.13.9

fail() {
  echo "setup: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 to 3.14 is needed and none was found ($(python3 --version 2>&1 || true)); install one, or set PYTHON=/path/to/python."
}

# Of environment $1: its files of pins, its folder, what it takes on the disk, and the stamp that says it is ready.
describe() {
  name=$1
  case $name in
  core) pins=(core) directory=.venv-core gigabytes=1 ;;
  docs) pins=(core docs) directory=.venv-docs gigabytes=1 ;;
  anatomy) pins=(anatomy) directory=.venv-anatomy gigabytes=3 ;;
  cpu) pins=(engine-cpu) directory=.venv-cpu gigabytes=5 ;;
  dev) pins=(engine-cpu dev) directory=.venv-cpu gigabytes=5 ;;
  cuda-dev) pins=(engine-cuda dev) directory=.venv-cuda gigabytes=15 ;;
  cuda) pins=(engine-cuda) directory=.venv-cuda gigabytes=15 ;;
  rocm) pins=(engine-rocm) directory=.venv-rocm gigabytes=30 ;;
  quantize) pins=(quantize) directory=.venv-quantize gigabytes=2 ;;
  aiperf) pins=(engine-aiperf) directory=.venv-aiperf gigabytes=1 ;;
  llamacpp) pins=(engine-llamacpp) directory=.venv-llamacpp gigabytes=1 ;;
  *) fail "unknown environment '$name': core, anatomy, cpu, cuda, rocm, quantize, dev, cuda-dev or docs." ;;
  esac
  files=()
  for pin in "${pins[@]}"; do files+=("envs/$pin.txt"); done
  stamp="$directory/.ready-$(cat "${files[@]}" pyproject.toml envs/vllm-cpu-shim/pyproject.toml "$0" | sha256sum | cut -c1-16)-$name"
}

# A larger environment serves the smaller one too.
ready() { [ -e "$stamp" ] || { [ "$name" = cpu ] && [ -e "${stamp%-cpu}-dev" ]; }; }

# What is missing is said before anything starts, for all that was asked for.
needed=0 missing=()
for asked in "$@"; do
  describe "$asked"
  ready && continue
  missing+=("$asked")
  [ -d "$directory" ] || needed=$((needed + gigabytes))
done
[ ${#missing[@]} -gt 0 ] || exit 0
python=$(find_python)
available=$(df --output=avail -B1G . | tail -1 | tr -d ' ')
[ "$available" -ge "$needed" ] || fail "$needed GB of free disk are needed for the environments (${missing[*]}), $available GB are left here."

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
  uv=.tools/bin/uv
  if [ ! -x "$uv" ]; then
    echo "setup: installing uv $uv_version into .tools"
    "$python" -m venv .tools 2>/dev/null || fail "$python cannot make virtual environments; install its venv package (Debian: apt install python3-venv)."
    .tools/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version" 2>/dev/null ||
      fail "the Python package index cannot be reached (installing uv $uv_version failed); check the network or pip's settings."
  fi
fi

# PyPI proxies can be slow; uv's default of 30 s is short for wheels of hundreds of megabytes.
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} UV_NO_PROGRESS=1
echo packaging | "$uv" pip compile --quiet --no-deps - >/dev/null 2>&1 ||
  fail "the Python package index cannot be reached; check the network, or UV_DEFAULT_INDEX where you use an index of your own."

# uv does not read pip's settings: hand over the folder of local wheels, if there is one.
wheels=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null | tail -1 || true)}}
tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
unset UV_FIND_LINKS

make_environment() {
  describe "$1"
  local torch_from=() wanted extra=()
  [ -z "$wheels" ] || export UV_FIND_LINKS=$wheels
  if grep -q '^torch==' "${files[@]}"; then
    wanted=$(grep -h '^torch==' "${files[@]}" | head -1 | cut -d= -f3)
    case $name in
    cuda | cuda-dev)
      # A build for CPUs in the folder of wheels would be taken for the newer one.
      unset UV_FIND_LINKS
      [ -z "${TORCH_BACKEND:-}" ] || torch_from=(--torch-backend="$TORCH_BACKEND")
      ;;
    *)
      if [ -n "$wheels" ] && compgen -G "$wheels/torch-$wanted*-$tag-*.whl" >/dev/null; then
        echo "setup: torch $wanted from the wheel in the folder that PIP_FIND_LINKS names"
      else
        torch_from=(--torch-backend=cpu)
      fi
      ;;
    esac
  fi

  echo "setup: making $directory from ${files[*]} (up to $gigabytes GB)"
  [ -x "$directory/bin/python" ] || "$uv" venv --quiet --python "$python" "$directory"
  case $name in
  cpu | dev) extra=(./envs/vllm-cpu-shim) ;;
  esac
  local install=("$uv" pip install --quiet --python "$directory/bin/python")
  for file in "${files[@]}"; do
    "${install[@]}" --no-deps "${torch_from[@]}" -r "$file" ||
      fail "installing $file failed, see above. If a package could not be fetched, check the network or pip's settings and start again: what was fetched is kept."
  done
  case $name in
  # The quantization scripts find the library by PYTHONPATH: its own environment pins other versions.
  quantize | llamacpp | aiperf) ;;
  *) "${install[@]}" --no-deps "${extra[@]}" --editable . || fail "installing moecap itself failed, see above." ;;
  esac
  if [ "$name" = rocm ]; then
    # vLLM's ROCm build, and the torch that it was built for, are on vLLM's own index only.
    "${install[@]}" "vllm==$(sed -n 's/^vllm-cpu==//p' envs/engine-cpu.txt)" --extra-index-url "${VLLM_ROCM_INDEX:-https://wheels.vllm.ai/rocm/}" ||
      fail "vLLM's ROCm wheel could not be installed; set VLLM_ROCM_INDEX to an index that carries it for your ROCm version."
  fi
  rm -f "$directory"/.ready-*
  touch "$stamp"
  [ "$name" != dev ] || touch "${stamp%-dev}-cpu"
  case $name in quantize | llamacpp | aiperf) ;; *) [ -e .venv ] || ln -sfn "$directory" .venv ;; esac
  echo "setup: $directory is ready ($(du -sh "$directory" | cut -f1))"
}

for asked in "${missing[@]}"; do make_environment "$asked"; done
