"""Whatever a user's files hold: a line for each mistake, never a traceback, and the same from `validate` and Snakemake.

Each row of MUTATIONS spoils one file of a campaign that is otherwise sound, and says what has to be read then.
"""
# ruff: noqa: E501 (a row of the table is a line)

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from moecap.cli import main
from moecap.cluster.start import start
from moecap.errors import Mistakes, MoecapError
from tests.conftest import ROOT, snakemake

CONFIG = """deployments: table.csv
catalogue: config/catalogue
results: results
seed: 1
site: config/site.yaml
performance:
  repeats: 3
cost:
  years: 3
  region: us-average
cap:
  reference: d
"""
TABLE = """deployment,model,precision,engine,hardware,devices,datasets,batch_sizes
d,demo-moe,bf16,vllm-cpu,this-machine,1,arithmetic,1 4
e,demo-moe,int8,vllm-cpu,this-machine,1,arithmetic-mc,1
"""
C, T, S = "my.yaml", "table.csv", "config/site.yaml"
MODELS, DATASETS = "config/catalogue/models.yaml", "config/catalogue/datasets.yaml"
ENGINES, PRECISIONS = "config/catalogue/engines.yaml", "config/catalogue/precisions.yaml"
HARDWARE = "config/catalogue/hardware.yaml"
YAML_FILES = (C, S, MODELS, DATASETS, ENGINES, PRECISIONS, HARDWARE)

Edit = Callable[[Path], None]


def bytes_of(content: bytes) -> Edit:
    return lambda path: path.write_bytes(content) and None


def added(text: str) -> Edit:
    return lambda path: path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8") and None


def replaced(old: str, new: str) -> Edit:
    def edit(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def encoded(encoding: str) -> Edit:
    """The same text with a letter that is not ASCII, in another encoding."""
    return lambda path: (
        path.write_bytes(f"# é\n{path.read_text(encoding='utf-8')}".encode(encoding, "replace")) and None
    )


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


BOMB = "bomb:\n  a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
#: name -> (file, edit, what is read then)
MUTATIONS: dict[str, tuple[str, Edit, tuple[str, ...]]] = {}


def line_of(text: str) -> str:
    """Where the catalogue of datasets has it first."""
    before, found, _ = (ROOT / DATASETS).read_text(encoding="utf-8").partition(text)
    assert found
    return f"line {before.count(chr(10)) + 1}"


def mutation(name: str, file: str, edit: Edit, *said: str) -> None:
    assert name not in MUTATIONS
    MUTATIONS[name] = (file, edit, said)


# Any YAML file, spoilt as a file.
for file in YAML_FILES:
    short = Path(file).stem
    mutation(f"{short}: latin-1", file, encoded("latin-1"), file, "is not UTF-8", "line 1")
    mutation(f"{short}: utf-16", file, encoded("utf-16"), file, "UTF-16", "UTF-8")
    mutation(f"{short}: utf-16 without a mark", file, encoded("utf-16-le"), file, "UTF-16")
    mutation(f"{short}: a folder", file, folder, file, "a folder")
    mutation(f"{short}: a link to nothing", file, broken_link, file, "a link to", "does not exist")
    mutation(f"{short}: a list", file, bytes_of(b"- 1\n- 2\n"), file, "mapping")
    mutation(f"{short}: a word", file, bytes_of(b"hello\n"), file, "mapping")
    mutation(f"{short}: not closed", file, added("\nx: [1,\n"), file, "line", "not valid YAML")
    mutation(f"{short}: a tab", file, added("\nx:\n\ty: 1\n"), file, "not valid YAML")
    mutation(f"{short}: two documents", file, added("\n---\na: 1\n"), file, "not valid YAML", "document")
    mutation(f"{short}: an object", file, added("\nx: !!python/object:os.system {}\n"), file, "not valid YAML")
    mutation(f"{short}: a cycle", file, added("\nx: &x {y: *x}\n"), file, "never ends")
    mutation(f"{short}: laughs", file, added(f"\n{BOMB}"), file, "unfold")
    mutation(f"{short}: deep", file, added("\nx: " + "[" * 3000 + "]" * 3000 + "\n"), file, "deep")
    mutation(f"{short}: a key twice", file, added("\nzz: 1\nzz: 2\n"), file, "`zz` is given twice", "in line")
    mutation(f"{short}: twice inside", file, added("\nzz: {a: {b: 1, c: 2, b: 3}}\n"), "`b` is given twice")
    mutation(f"{short}: a key that is no name", file, added("\nno: 1\n"), file, "`no`", "in quotes")
    mutation(f"{short}: control characters", file, added("\nx: \x01\n"), file, "not valid YAML")
    mutation(f"{short}: a date that is none", file, added("\nx: 2026-13-45\n"), file, "quotes")

WAYS = [name.partition(": ")[2] for name in MUTATIONS if name.startswith(f"{short}: ")]

# The config.
for name, old, new, said in [
    ("unknown key", "seed: 1", "seeds: 1", ("`seeds`", "'seed'", "line 4")),
    ("unknown key inside", "repeats: 3", "repeat: 3", ("`performance.repeat`", "line 7")),
    ("negative seed", "seed: 1", "seed: -1", ("`seed`", "-1", "line 4")),
    ("seed yes", "seed: 1", "seed: yes", ("`seed`", "true")),
    ("seed beyond", "seed: 1", "seed: 1" + "0" * 24, ("`seed`", "larger")),
    ("seed of 5000 digits", "seed: 1", "seed: 1" + "0" * 5000, ("my.yaml",)),
    ("seed a word", "seed: 1", "seed: one", ("`seed`", "'one'")),
    ("seed a fraction", "seed: 1", "seed: 1.5", ("`seed`", "1.5")),
    ("seed null", "seed: 1", "seed: null", ("`seed`",)),
    ("seed a list", "seed: 1", "seed: [1]", ("`seed`",)),
    ("seed a date", "seed: 1", "seed: 2026-01-01", ("`seed`",)),
    ("years nan", "years: 3", "years: .nan", ("`cost.years`",)),
    ("years inf", "years: 3", "years: .inf", ("`cost.years`",)),
    ("years too many", "years: 3", "years: 1000", ("`cost.years`",)),
    ("years zero", "years: 3", "years: 0", ("`cost.years`", "greater than 0")),
    ("years no", "years: 3", "years: no", ("`cost.years`", "false")),
    ("region unknown", "us-average", "us-averag", ("`cost.region`", "'us-average'", "line 10")),
    ("region no", "region: us-average", "region: no", ("`cost.region`", "false")),
    ("no region", "  region: us-average\n", "", ("neither `region` nor `usd_per_kwh`",)),
    ("cost a word", "cost:\n  years: 3\n  region: us-average\n", "cost: cheap\n", ("`cost`", "mapping")),
    ("results empty", "results: results", 'results: ""', ("`results`", "empty", "line 3")),
    ("results the root", "results: results", "results: /", ("`results`", "root")),
    ("results here", "results: results", "results: .", ("`results`", "folder of their own")),
    ("results above", "results: results", "results: ../..", ("`results`",)),
    ("results with braces", "results: results", 'results: "res{x}"', ("`results`", "'{'")),
    ("results unset", "results: results", "results: $MOECAP_NOT_SET/x", ("`results`", "$MOECAP_NOT_SET")),
    ("results of nobody", "results: results", "results: ~nobody-here/x", ("`results`", "~nobody-here")),
    ("results too long", "results: results", f"results: {'r' * 300}", ("`results`", "too long")),
    ("results a file", "results: results", "results: table.csv", ("`results`", "a file")),
    ("results in a file", "results: results", "results: table.csv/x", ("`results`", "a file")),
    ("results null byte", "results: results", 'results: "a\\0b"', ("`results`",)),
    ("table unset", "deployments: table.csv", "deployments: ${MOECAP_NOT_SET}.csv", ("`deployments`",)),
    ("table missing", "deployments: table.csv", "deployments: no.csv", ("no.csv", "does not exist")),
    ("table null", "deployments: table.csv\n", "", ("`deployments` is missing",)),
    ("table a folder", "deployments: table.csv", "deployments: config", ("config", "a folder")),
    ("catalogue missing", "catalogue: config/catalogue", "catalogue: no", ("catalogue",)),
    ("catalogue elsewhere", "catalogue: config/catalogue", "catalogue: nowhere", ("`catalogue`", "no folder")),
    ("site missing", "site: config/site.yaml", "site: no.yaml", ("`site`", "'no.yaml'", "line 5")),
    ("archive missing", "seed: 1", "archive: gone.tar.zst", ("`archive`", "'gone.tar.zst'", "does not exist")),
    ("archive with a space", "seed: 1", "archive: a b", ("`archive`",)),
    ("before missing", "seed: 1", "before: a.tar.zst\nafter: b.tar.zst", ("`before`", "`after`", "does not exist")),
    ("before alone", "seed: 1", "before: table.csv", ("`before`", "`after`")),
    ("reference unknown", "reference: d", "reference: f", ("`cap.reference`", "'f'", "line 12")),
    ("reference size", "reference: d", "reference: d\n  reference_batch_size: 3", ("reference_batch_size", "1 4")),
    ("reference of a model", "reference: d", "references: {dbrx: d}", ("cap.references", "'dbrx'")),
    ("repeats too few", "repeats: 3", "repeats: 2", ("`performance.repeats`", "line 7")),
    ("repeats too many", "repeats: 3", "repeats: 100000", ("`performance.repeats`",)),
    ("plan systems", "seed: 1", "plan: {systems: [H100]}", ("plan.systems", "H100-SXM5-80GB")),
    ("plan limits", "seed: 1", "plan: {limits: {tpot_s: -1}}", ("`plan.limits.tpot_s`",)),
    ("plan sizes", "seed: 1", "plan: {devices: [0]}", ("`plan.devices[0]`",)),
    ("plan calibrates", "seed: 1", "plan: {calibrate_on: x}", ("`plan.calibrate_on`", "'x'")),
    ("cost of nobody", "years: 3", "years: 3\n  deployments: {x: {years: 1}}", ("cost.deployments", "'x'")),
    ("site of pue", "years: 3", "years: 3\n  pue: gogle", ("`cost.pue`", "'google'")),
    ("trust unknown", "seed: 1", "trust_remote_code: [demo-mo]", ("`trust_remote_code`", "'demo-moe'")),
    ("data of nobody", "seed: 1", "data_files: {gsm9k: {test: table.csv}}", ("data_files", "'gsm9k'")),
    ("data missing", "seed: 1", "data_files: {gsm8k: {test: no.jsonl}}", ("data_files.gsm8k.test", "no.jsonl")),
    ("data split", "seed: 1", "data_files: {gsm8k: {tset: empty.jsonl}}", ("'test'", "tset")),
    ("data empty", "seed: 1", "data_files: {gsm8k: {test: empty.jsonl}}", ("empty.jsonl is empty",)),
    ("data kind", "seed: 1", "data_files: {gsm8k: {test: my.yaml}}", (".jsonl",)),
    ("data not json", "seed: 1", "data_files: {gsm8k: {test: bad.jsonl}}", ("bad.jsonl, line 1",)),
    ("data of a group", "seed: 1", "data_files: {mmlu: {test: good.jsonl}}", ("several tasks",)),
    ("no quantizer", "seed: 1", "quantize_python: no/python", ("`quantize_python`", "demo-moe/int8", "does not exist", "line 4")),
    ("published folder", "seed: 1", "published: {tables: no, hardware: paper-a100-80gb}", ("`published.tables`",)),
    ("published hardware", "seed: 1", "published: {tables: config/paper, hardware: x}", ("published.hardware", "'x'")),
    ("measured bytes", "seed: 1", "measured_bytes: some", ("`measured_bytes`", "'trained'")),
]:  # fmt: skip
    mutation(f"config: {name}", C, replaced(old, new), *said)
mutation("config: empty", C, bytes_of(b""), C, "empty")
mutation("config: comments only", C, bytes_of(b"# nothing\n"), C, "empty")

# The deployment table.
for name, edit, said in [
    ("latin-1", encoded("latin-1"), ("line 1", "not UTF-8")),
    ("utf-16", encoded("utf-16"), ("UTF-16",)),
    ("empty", bytes_of(b""), ("is empty",)),
    ("header only", bytes_of(TABLE.splitlines()[0].encode()), ("no deployment",)),
    ("semicolons", bytes_of(TABLE.replace(",", ";").encode()), ("semicolons", "commas")),
    ("tabs", bytes_of(TABLE.replace(",", "\t").encode()), ("tabs", "commas")),
    ("a line for Excel", bytes_of(b"sep=,\n" + TABLE.encode()), ("Excel", "Delete")),
    ("semicolons in a row", replaced("d,demo-moe,bf16", "d;demo-moe;bf16"), ("line 2", "semicolons")),
    ("a column twice", replaced("devices,", "devices,devices,"), ("`devices` is given twice",)),
    ("a column without a name", replaced("devices,", "devices,,"), ("no name",)),
    ("a column missing", replaced("devices,", ""), ("`devices` is missing",)),
    ("a column unknown", replaced("devices,", "device,"), ("`device`", "'devices'")),
    ("a short row", replaced(",arithmetic,1 4", ",arithmetic"), ("line 2 (d)", "7 values for 8 columns", "batch_sizes")),
    ("a long row", replaced("1 4\n", "1,4\n"), ("line 2 (d)", "9 values", "spaces")),
    ("a quote not closed", replaced("d,demo-moe", '"d,demo-moe'), ("line 2", "not closed")),
    ("a quote inside", replaced("d,demo-moe", '"d"x,demo-moe'), ("line 2",)),
    ("an id twice", added("d,demo-moe,bf16,vllm-cpu,this-machine,1,arithmetic,1\n"), ("line 4", "line 2")),
    ("case", added("D,demo-moe,bf16,vllm-cpu,this-machine,1,arithmetic,1\n"), ("line 4", "only in case", "line 2")),
    ("an id that is a rule", replaced("e,demo", "all,demo"), ("line 3 (all)", "target of the workflow")),
    ("an id that is a target", replaced("e,demo", "accuracy,demo"), ("target of the workflow",)),
    ("an id that is a rule of a stage", replaced("e,demo", "measure,demo"), ("target of the workflow",)),
    ("an id that is a number", replaced("e,demo", "12,demo"), ("a name",)),
    ("an id with a slash", replaced("e,demo", "e/f,demo"), ("`deployment`", "letters")),
    ("an id with braces", replaced("e,demo", "e{f},demo"), ("`deployment`", "letters")),
    ("an id that is long", replaced("e,demo", f"{'e' * 300},demo"), ("`deployment`", "100")),
    ("an id that is hidden", replaced("e,demo", "..,demo"), ("`deployment`",)),
    ("no id", replaced("e,demo", ",demo"), ("`deployment` is missing",)),
    ("batch 0", replaced("1 4", "0 4"), ("line 2 (d)", "`batch_sizes`", "'0'")),
    ("batch inf", replaced("1 4", "inf"), ("`batch_sizes`", "'inf'")),
    ("batch twice", replaced("1 4", "4 4"), ("`batch_sizes`", "twice")),
    ("batch beyond", replaced("1 4", "1" + "0" * 24), ("`batch_sizes`",)),
    ("batch of 5000 digits", replaced("1 4", "1" + "0" * 5000), ("`batch_sizes`",)),
    ("devices nan", replaced("this-machine,1,arithmetic,", "this-machine,nan,arithmetic,"), ("`devices`", "'nan'")),
    ("devices true", replaced("this-machine,1,arithmetic,", "this-machine,true,arithmetic,"), ("`devices`", "'true'")),
    ("devices 2", replaced("this-machine,1,arithmetic,", "this-machine,2,arithmetic,"), ("devices is 2", "tensor_par")),
    ("model", replaced("d,demo-moe", "d,demo-mo"), ("`model`", "'demo-moe'", "line 2 (d)")),
    ("model in capitals", replaced("d,demo-moe", "d,DEMO-MOE"), ("`model`", "'demo-moe'")),
    ("precision", replaced("bf16", "bf61"), ("`precision`", "'bf16'")),
    ("engine", replaced("vllm-cpu", "vlm-cpu"), ("`engine`", "'vllm-cpu'")),
    ("hardware", replaced("this-machine", "this-machin"), ("'this-machine'",)),
    ("dataset", replaced("arithmetic,1 4", "arithmetics,1 4"), ("`datasets`", "'arithmetic'")),
    ("two mistakes", replaced("demo-moe,bf16", "demo-mo,bf61"), ("`model`", "`precision`")),
]:  # fmt: skip
    mutation(f"table: {name}", T, edit, T, *said)

# Entries of the catalogues.
for name, file, old, new, said in [
    ("recipe key", PRECISIONS, "algorithm: rtn, group_size: 128", "algorithm: rtn, grup_size: 128", ("grup_size", "'group_size'")),
    ("recipe key without end", PRECISIONS, "algorithm: rtn, group_size: 128", f"algorithm: rtn, {'x' * 900}: 128", ("unknown key", "xxx…")),
    ("recipe algorithm", PRECISIONS, "algorithm: rtn, group_size", "algorithm: magic, group_size", ("algorithm", "'magic'")),
    ("recipe group", PRECISIONS, "group_size: 128", "group_size: 0", ("recipe.group_size", "greater than or equal to 1")),
    ("recipe group a word", PRECISIONS, "group_size: 128", "group_size: big", ("recipe.group_size", "'big'")),
    ("recipe group yes", PRECISIONS, "group_size: 128", "group_size: yes", ("recipe.group_size", "true")),
    ("recipe scheme", PRECISIONS, "recipe: {scheme: W4A16,", "recipe: {scheme: W4A61,", ("recipe.scheme", "'W4A16'")),
    ("recipe text", PRECISIONS, "    calibration_hub: openai/gsm8k\n", "", ("calibrate",)),
    ("recipe template", PRECISIONS, '"Question: {question}', '"Question: {question', ("calibration_template",)),
    ("recipe data set", PRECISIONS, "calibration_dataset: arithmetic", "calibration_dataset: gsm8k", ("calibration_dataset", "generates")),
    ("recipe ignore", PRECISIONS, "algorithm: rtn, group_size", 'algorithm: rtn, ignore: ["re:("], group_size', ("recipe.ignore", "regular expression")),
    ("dtype", PRECISIONS, "compute_dtype: int8", "compute_dtype: int9", ("compute_dtype", "'int8'")),
    ("task", DATASETS, "task: arithmetic\n", "task: arithmetik\n", ("`task`", "'arithmetic'", line_of("task: arithmetic\n"))),
    ("metric", DATASETS, "metric: exact_match\n", "metric: exact_mach\n", ("`metric`", "exact_match", line_of("metric: exact_match\n"))),
    ("filter", DATASETS, "flexible-extract", "flexible-extrac", ("`metric`", "flexible-extract")),
    ("filter left out", DATASETS, "exact_match,flexible-extract", "exact_match", ("strict-match",)),
    ("kind", DATASETS, "kind: multiple_choice\n  metric: acc\n  output", "kind: generate\n  metric: acc\n  output", ("`kind`", "multiple_choice")),
    ("a tag", DATASETS, "task: gsm8k\n", "task: math_word_problems\n", ("`task`", "tag")),
    ("a group without a score", DATASETS, "task: mmlu\n", "task: galician_bench\n", ("`task`", "group")),
    ("a group with a score of some", DATASETS, "task: mmlu\n", "task: leaderboard\n", ("`metric`", "group 'leaderboard'", "leaderboard_bbh")),
    ("a list per question", DATASETS, "task: gsm8k\n  kind: generate\n  metric: exact_match,flexible-extract", "task: ifeval\n  kind: generate\n  metric: inst_level_strict_acc", ("no mean of one score", "prompt_level_strict_acc")),
    ("output tokens", DATASETS, "output_tokens: 48", "output_tokens: 1", ("output_tokens", "greater than or equal to 2")),
    ("output tokens no", DATASETS, "output_tokens: 48", "output_tokens: no", ("output_tokens", "false")),
    ("entry empty", DATASETS, "\narithmetic-mc:", "\nnothing:\narithmetic-mc:", ("nothing", "empty")),
    ("entry twice", DATASETS, "\narithmetic-mc:", "\narithmetic:", ("`arithmetic` is given twice",)),
    ("entry in capitals", DATASETS, "\narithmetic-mc:", "\nArithmetic:", ("only in case",)),
    ("entry's name", DATASETS, "\narithmetic-mc:", "\na/b:", ("`a/b`", "part of a file")),
    ("engine kind", ENGINES, "kind: vllm\n", "kind: vlm\n", ("`kind`", "vllm")),
    ("engine device", ENGINES, "device: cpu\n", "device: gpu\n", ("`device`", "'gpu'")),
    ("engine environment", ENGINES, "environment: engine-cpu\n", "environment: engine-cpus\n", ("`environment`", "'engine-cpu'")),
    ("engine timeout", ENGINES, "load_s: 1800", "load_s: -1", ("load_s",)),
    ("engine timeout key", ENGINES, "load_s: 1800", "load: 1800", ("load",)),
    ("engine timeout nan", ENGINES, "load_s: 1800", "load_s: .nan", ("load_s",)),
    ("engine capability", ENGINES, "    schedule: exact", "    schedule: exactly", ("schedule", "'exact'")),
    ("engine capability key", ENGINES, "    schedule: exact", "    shedule: exact", ("shedule", "'schedule'")),
    ("engine instead", ENGINES, "instead: transformers\n", "instead: transformer\n", ("`instead`", "'transformers'")),
    ("engine without lm-eval", ENGINES, "    model: vllm\n", "    modl: vllm\n", ("lm_eval",)),
    ("engine option", ENGINES, "    engine_args:\n", "    engine_arg:\n", ("engine_arg", "'engine_args'")),
    ("engine option a word", ENGINES, "  options:\n    dtype: bfloat16", "  options:\n    dtype: bfloat61", ("dtype", "'bfloat61'")),
    ("engine variable", ENGINES, "VLLM_CPU_OMP_THREADS_BIND: nobind", "VLLM_CPU_OMP_THREADS_BIND: [nobind]", ("env",)),
    ("engine argument", ENGINES, "enforce_eager: true\n", "enforce_eagr: true\n", ("options.engine_args", "'enforce_eager'", "line")),
    ("lm-eval's model", ENGINES, "    model: vllm\n", "    model: vlm\n", ("lm_eval.model", "'vllm'")),
    ("lm-eval's argument", ENGINES, "model_args: {dtype: bfloat16, enforce_eager", "model_args: {dtypes: bfloat16, enforce_eager", ("lm_eval.model_args", "'dtype'")),
    ("lm-eval's argument of hf", ENGINES, "model_args: {dtype: bfloat16, device: cpu", "model_args: {dtype: bfloat16, devic: cpu", ("lm_eval.model_args", "'device'")),
    ("lm-eval's arguments a word", ENGINES, "model_args: {dtype: bfloat16, device: cpu, batch_size: auto}", "model_args: fast", ("lm_eval.model_args", "mapping")),
    ("lm-eval's key", ENGINES, "    model_args: {dtype: bfloat16, enforce", "    model_arg: {dtype: bfloat16, enforce", ("lm_eval", "'model_args'")),
    ("model folder", MODELS, "source: {train: demo}", "source: {path: nowhere}", ("source.path", "'nowhere'", "does not exist")),
    ("model no folder", MODELS, "source: {train: demo}", "source: {path: config}", ("source.path", "config.json")),
    ("model variable", MODELS, "source: {train: demo}", "source: {path: $MOECAP_NOT_SET/m}", ("$MOECAP_NOT_SET",)),
    ("model two sources", MODELS, "source: {train: demo}", "source: {train: demo, hub: a/b}", ("give one of",)),
    ("model hub", MODELS, "hub: mistralai/Mixtral-8x7B-Instruct-v0.1", "hub: mistralai", ("source.hub",)),
    ("model config", MODELS, "model_configs/mixtral-8x7b.json", "model_configs/mixtral.json", ("`config`", "mixtral.json")),
    ("model params", MODELS, "total_params: 46702792704", "total_params: -5", ("total_params",)),
    ("model params inf", MODELS, "total_params: 46702792704", "total_params: .inf", ("total_params",)),
    ("model key", MODELS, "licence: apache-2.0", "license: apache-2.0", ("`license`", "'licence'")),
    ("price negative", HARDWARE, "low: 8000", "low: -8000", ("price.low", "-8000", "line")),
    ("price nan", HARDWARE, "low: 8000", "low: .nan", ("price.low",)),
    ("currency", HARDWARE, "currency: USD", "currency: CHF", ("USD",)),
    ("section", HARDWARE, "gpus:", "gpu:", ("`gpu`", "'gpus'")),
    ("memory", HARDWARE, "memory_bytes: ", "memory_bytes: 1.e+40 #", ("memory_bytes", "larger")),
    ("site key", S, "account: null", "acount: null", ("`acount`", "'account'")),
    ("site per node", S, "type: a100, per_node: 8", "type: a100, per_node: 0", ("per_node",)),
    ("site per node yes", S, "type: a100, per_node: 8", "type: a100, per_node: yes", ("per_node", "true")),
    ("site gpu", S, "A100-SXM4-80GB: {", "A100-SXM-80GB: {", ("A100-SXM-80GB", "'A100-SXM4-80GB'")),
    ("site runtime", S, "max_runtime_min: 1440", "max_runtime_min: .inf", ("max_runtime_min",)),
    ("site modules", S, "modules: []", "modules: cuda", ("`modules`",)),
]:  # fmt: skip
    mutation(f"{Path(file).stem}: {name}", file, replaced(old, new), file, *said)


@dataclass(frozen=True)
class Site:
    """A campaign in a folder of its own."""

    folder: Path

    def apply(self, name: str) -> tuple[str, ...]:
        file, edit, said = MUTATIONS[name]
        edit(self.folder / file)
        return said


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sound")
    shutil.copytree(ROOT / "config", made / "config", symlinks=True)
    (made / C).write_text(CONFIG, encoding="utf-8")
    (made / T).write_text(TABLE, encoding="utf-8")
    (made / "empty.jsonl").touch()
    (made / "bad.jsonl").write_text("not json\n", encoding="utf-8")
    (made / "good.jsonl").write_text('{"question": "1+1", "answer": "2"}\n', encoding="utf-8")
    return made


@pytest.fixture
def site(zen: None, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    copy = Path(shutil.copytree(sound, tmp_path / "site"))
    monkeypatch.chdir(copy)
    monkeypatch.delenv("MOECAP_NOT_SET", raising=False)
    # Without the packaged catalogue below it, which is sound and would be read each time.
    monkeypatch.setattr("moecap.campaign.catalogue.catalogue_layers", lambda path: [Path(path)])
    return Site(copy)


def test_there_are_enough() -> None:
    assert len(MUTATIONS) >= 150 and {file for file, _, _ in MUTATIONS.values()} == {*YAML_FILES, T}


def test_the_sound_one_is_valid(site: Site) -> None:
    assert list(start([C]).campaign.deployments) == ["d", "e"]


def sample() -> set[str]:
    """Each way to spoil a YAML file, once (of one file after the other), and every third row of the rest."""
    of_files = [f"{Path(YAML_FILES[i % len(YAML_FILES)]).stem}: {way}" for i, way in enumerate(WAYS)]
    rest = [name for name in MUTATIONS if name.partition(": ")[2] not in WAYS]
    assert set(of_files) <= set(MUTATIONS)
    return {*of_files, *rest[::3]}


def rows() -> list[object]:
    often = sample()
    return [pytest.param(name, marks=() if name in often else pytest.mark.slow, id=name) for name in MUTATIONS]


@pytest.mark.parametrize("name", rows())
def test_a_spoilt_file_is_explained(name: str, site: Site) -> None:
    said = site.apply(name)
    began = time.process_time()
    with pytest.raises(MoecapError) as caught:
        start([C])
    assert time.process_time() - began < 5
    text = str(caught.value)
    for part in said:
        assert part in text, text
    for line in text.splitlines():
        assert 0 < len(line) < 2500 and line == line.strip(), line
        assert "Traceback" not in line and "the row" not in line and "line ?" not in line, line
    if isinstance(caught.value, Mistakes):
        assert all(mistake.place.file for mistake in caught.value.mistakes)


def test_all_mistakes_are_shown_at_once_each_in_a_line(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["config: repeats too few", "table: batch 0", "datasets: output tokens", "site: site key", "models: model key",
             "hardware: price negative", "precisions: recipe group", "engines: engine timeout"]  # fmt: skip
    wanted = [site.apply(name) for name in names]
    assert main(["validate", C]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") and ", line " in line for line in lines), lines
    for said in wanted:
        assert any(all(part in line for part in said) for line in lines), (said, lines)
    assert len(lines) == len(names), "\n".join(lines)


def test_the_last_word_of_the_command_line_is_named(site: Site) -> None:
    with pytest.raises(Mistakes, match=r"--config: `seed`: "):
        start([C], {"seed": -1})


@pytest.mark.parametrize(
    "name",
    ["config: results the root", "table: an id that is a rule", "site: site key", "precisions: recipe algorithm",
     "config: before missing", "datasets: a key twice"],
)  # fmt: skip
def test_snakemake_says_what_validate_says(name: str, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.apply(name)
    for part in ("Snakefile", "rules", "scripts", "moecap", "envs", "profiles", "report"):
        (site.folder / part).symlink_to(ROOT / part)
    assert main(["validate", C]) == 1
    validated = capsys.readouterr().err
    run = snakemake("-n", "--cores", "1", "--configfile", C, cwd=site.folder)
    shown = run.stdout + run.stderr
    assert run.returncode == 1 and validated in shown, shown
    assert "Traceback" not in shown and "WorkflowError" not in shown and "common.smk" not in shown, shown


def test_yaml_that_is_meant_is_read(tmp_path: Path) -> None:
    """Merges, anchors used twice and JSON are no mistakes."""
    from moecap.documents import read_document

    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1, y: [1, 2]}\nown: {<<: *b, x: 2}\nagain: *b\n", encoding="utf-8")
    document = read_document(path)
    assert document.data["own"] == {"x": 2, "y": [1, 2]} and document.data["again"] == document.data["base"]
    assert document.line(("own", "x")) == 2 and document.line(("own", "y")) == 1 and document.line(("no",)) is None
    path.write_text('{\n\t"a": 1\n}\n', encoding="utf-8")
    assert read_document(path).data == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\r\nb: 2\r\n")
    assert read_document(path).data == {"a": "é", "b": 2} == yaml.safe_load("a: é\nb: 2")


def test_a_table_as_spreadsheets_write_it_is_read(site: Site) -> None:
    """A byte order mark, CRLF, quotes, a newline within a cell, empty rows below, comments."""
    text = TABLE.replace("1 4", '"1\n4"').replace("\n", "\r\n") + ',,,,,,,\r\n# a comment, with "a quote\r\n'
    (site.folder / T).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert start([C]).campaign.deployment("d").batch_sizes == (1, 4)
