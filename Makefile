# The two commands for a newcomer: `make demo` and `make test`. Both do all their own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ENGINE ?= cpu
CORES ?= $(shell nproc)
ARGS ?=
# What the demo and the tests run on, whatever engine build the site chose for its own runs.
BIN := .venv-cpu/bin
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)
# Where this is set (many container images do), every job compiles vLLM's sources anew: ten seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-engines test test-all test-slurm test-gpu paper validate bench docs env pins lint clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: ## train, quantize, serve, score, cost and chart a small MoE on this machine's CPU
	@envs/setup.sh cpu quantize
	@$(SNAKEMAKE) --quiet rules reason host $(ARGS)
	@echo; $(BIN)/moecap show results/cap.parquet --answer --sort usd_per_million_tokens --top 6 \
	  --columns deployment,dataset,batch_size,accuracy,tpot_s,usd_per_million_tokens
	@echo; echo "Report: $(CURDIR)/results/report.html   Table: results/cap.parquet   More: moecap show --help"

demo-engines: ## every engine that runs on a CPU machine, on the demo's model, into one CAP table
	@envs/setup.sh cpu quantize llamacpp
	@$(SNAKEMAKE) --configfile config/engines.yaml --quiet rules reason host $(ARGS)
	@echo; $(BIN)/moecap show results/engines/cap.parquet --sort deployment \
	  --columns deployment,dataset,batch_size,accuracy,tpot_s,output_tokens_per_s,decode_s_mbu_complete,usd_per_million_tokens
	@echo; echo "Report: $(CURDIR)/results/engines/report.html   Table: results/engines/cap.parquet"

test: ## linters, unit, property and DAG tests, the demo end to end and through a real Slurm
	@envs/setup.sh dev quantize
	@$(MAKE) --no-print-directory lint
	@tests/run.sh $(ARGS)

test-all: ## everything, the slow tests and the real Slurm too
	@envs/setup.sh dev quantize
	@$(MAKE) --no-print-directory lint
	@$(BIN)/pytest $(ARGS)

test-slurm: ## the pipeline on a real Slurm, started on this machine
	@envs/setup.sh dev quantize
	@$(BIN)/pytest -m slurm $(ARGS)

test-gpu: ## bytes by an NVIDIA GPU's own counters (needs ncu), into docs/validation
	@envs/setup.sh cuda-dev
	@.venv-cuda/bin/pytest -m gpu tests/gpu --record docs/validation $(ARGS)

lint: ## ruff, mypy, snakefmt and snakemake --lint
	@envs/setup.sh dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check Snakefile workflow/Snakefile rules tests/slurm/Snakefile
	@$(BIN)/snakemake --lint

paper: ## the paper's own tables through our cost model and charts (no engine)
	@envs/setup.sh core
	@.venv-core/bin/snakemake --cores $(CORES) --configfile config/paper.yaml -- all $(ARGS)
	@echo; echo "Report: $(CURDIR)/results/paper/report.html   Table: results/paper/cap.parquet"

validate: ## bytes, S-MBU and the replay held against measurements, into docs/validation
	@envs/setup.sh cpu quantize
	@$(BIN)/python scripts/validate_bytes.py
	@$(BIN)/python scripts/validate_bandwidth.py
	@$(SNAKEMAKE) $(ARGS)
	@$(BIN)/python scripts/validate_replay.py --wide results/validation/wide \
	  $(foreach p,bf16 int8 int4,\
	  --variant $(p) results/models/demo-moe/$(p) results/performance/demo-$(p)/requests.parquet)

bench: ## the performance figures of the project itself, into results/bench.json
	@envs/setup.sh dev
	@$(BIN)/python scripts/bench_scale.py --output results/bench.json
	@$(BIN)/python scripts/bench_plan.py --output results/bench.json
	@$(BIN)/python scripts/bench_dryrun.py --output results/bench.json

docs: ## the documentation's site, into docs/_build/html
	@envs/setup.sh docs
	@.venv-docs/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

env: ## the engine build of this site: make env ENGINE=cpu|cuda|rocm
	@envs/setup.sh $(ENGINE) quantize
	@ln -sfn .venv-$(ENGINE) .venv

pins: ## compile envs/*.txt anew from pyproject.toml
	@envs/setup.sh dev
	@UV=$$(command -v uv || echo .tools/bin/uv) envs/compile.sh

clean: ## remove environments (results stay)
	rm -rf .venv .venv-* .tools
