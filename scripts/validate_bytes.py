"""Hold predicted bytes against measured ones; writes bytes.csv, bytes.md and bytes.svg.

    python scripts/validate_bytes.py --output docs/validation

Three architectures at small size with random weights, and one Mixtral-8x7B layer of its real dimensions (2.9 GB in
bf16), each decoded by Transformers at batch sizes 1 to 64 while every op's operands are counted. For the layer of real
dimensions the routing is also forced, from 1 to 8 unique experts.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moecap.charts.draw import save
from moecap.charts.step_bytes import measured_bytes
from moecap.checks.byte_check import (
    TOTAL_ERROR,
    WEIGHTS_OVER_ACTIVATIONS,
    WHOLE,
    check,
    disagreements,
    table,
)
from moecap.errors import MoecapError
from moecap.hardware import machine
from moecap.io import atomic_path
from moecap.model.counted import anatomy as anatomy_of
from moecap.model.structure import Anatomy
from moecap.provenance import library_versions

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
REAL = "Mixtral-8x7B, one layer of real size"
FORCED = "the same, routing forced"
FORCED_BATCH = 4

_SMALL = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 5,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
#: Name → model type, what differs from the above, and tokens of the prompt. Transformers expands a latent KV cache
#: (MLA) for the whole context at every step: activations that grow with the prompt, and that MLA engines do not make.
SMALL: dict[str, tuple[str, dict[str, Any], int]] = {
    "Mixtral type": (
        "mixtral",
        {"intermediate_size": 1024, "num_local_experts": 8, "num_experts_per_tok": 2},
        31,
    ),
    "Qwen2-MoE type": (
        "qwen2_moe",
        {
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 1024,
            "num_experts": 16,
            "num_experts_per_tok": 4,
        },
        31,
    ),
    "DeepSeek-V3 type": (
        "deepseek_v3",
        {
            "first_k_dense_replace": 2,
            "intermediate_size": 1024,
            "moe_intermediate_size": 512,
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "q_lora_rank": 128,
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "num_key_value_heads": 4,
        },
        3,
    ),
}


def small(name: str, folder: Path) -> tuple[Any, Anatomy]:
    """A small model with random weights, and its anatomy, counted from the checkpoint that it was saved as."""
    kind, more, _ = SMALL[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_SMALL, **more}), dtype=torch.bfloat16)
    for key, buffer in model.named_buffers():
        if key.endswith("e_score_correction_bias"):  # stored, and kept, in fp32 by the released models
            buffer.data = torch.randn_like(buffer, dtype=torch.float32) * 1e-3
    model.save_pretrained(folder)
    return model, anatomy_of(str(folder), name=name)


def real_layer(device: str = "cpu", **config: Any) -> tuple[Any, Anatomy]:
    """A model of one Mixtral-8x7B layer of its real dimensions with random bf16 weights; its vocabulary is small."""
    settings = {"num_hidden_layers": 1, "vocab_size": 256, **config}
    shape = AutoConfig.for_model("mixtral", **settings)
    return random_weights(shape, device), anatomy_of({**shape.to_dict(), "dtype": "bfloat16"}, name=REAL)


def random_weights(config: Any, device: str = "cpu") -> Any:
    """The model of a config in bf16, each parameter filled from one block of random numbers: what takes a while is
    drawing billions of them, and bytes and times do not depend on values."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    block = torch.randn(1 << 20, generator=generator, device=device).mul_(0.02).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), block.numel()):
                flat[start : start + block.numel()].copy_(block[: flat.numel() - start])
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(device)  # its buffers are computed, not loaded
    return model


@contextmanager
def forced_routing(model: Any, unique: int) -> Iterator[None]:
    """Have every router of ``model`` send its tokens to the first ``unique`` experts, in turn."""

    def force(_module: Any, _args: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        logits, scores, ids = output
        return logits, scores, (torch.arange(ids.numel(), device=ids.device) % unique).view_as(ids)

    handles = [m.register_forward_hook(force) for n, m in model.named_modules() if n.endswith(".gate")]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def small_rows(name: str, folder: Path, batch_sizes: Sequence[int] = BATCH_SIZES) -> list[dict[str, Any]]:
    """All rows of one small architecture."""
    model, anatomy = small(name, folder)
    return check(model, anatomy, batch_sizes, prompt_tokens=SMALL[name][2])


def real_rows(
    batch_sizes: Sequence[int] = BATCH_SIZES, unique: Sequence[int] = tuple(range(1, 9))
) -> list[dict[str, Any]]:
    """All rows of the layer of real dimensions: free routing by batch size, then forced."""
    model, anatomy = real_layer()
    rows = check(model, anatomy, batch_sizes, prompt_tokens=7)
    for count in unique:
        with forced_routing(model, count):
            forced = check(model, anatomy, [FORCED_BATCH], prompt_tokens=7)
        rows += [{**row, "model": FORCED} for row in forced]
    return rows


def charted(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The middle MoE layer of each model, free routing."""
    middle: dict[str, str] = {}
    for model in dict.fromkeys(row["model"] for row in rows if row["model"] != FORCED):
        layers = list(dict.fromkeys(r["layer"] for r in rows if r["model"] == model and r["layer"] != WHOLE))
        middle[model] = layers[len(layers) // 2]
    return [row for row in rows if middle.get(row["model"]) == row["layer"]]


def _size(value: float) -> str:
    return f"{value / 1e6:,.3f}"


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = {
        "batch_size": "batch",
        "unique_experts": "experts read",
        "mbu_bytes": "MBU",
        "s_mbu_bytes": "S-MBU, printed",
        "s_mbu_complete_bytes": "S-MBU, complete",
        "measured_bytes": "measured",
        "total_error": "complete / measured",
        "mbu_overestimate": "MBU / measured",
    }

    def cell(name: str, value: float) -> str:
        if name == "total_error":
            return f"{100 * value:+.3f}%"
        if name == "mbu_overestimate":
            return f"{100 * value:+.1f}%"
        return _size(value) if name.endswith("_bytes") else f"{value:g}"

    return [
        "| " + " | ".join(heads.values()) + " |",
        "|" + "---:|" * len(heads),
        *("| " + " | ".join(cell(name, row[name]) for name in heads) + " |" for row in rows),
        "",
    ]


def markdown(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """What was done, on what, the tables, and whether the goals are met."""
    lines = [
        "# Predicted bytes against measured bytes",
        "",
        "Transformers decodes one token per sequence while every operation of PyTorch is watched "
        "(`moecap/checks/measured_bytes.py`): an operand that lies in a weight's storage is a read of that region, "
        "one in the KV cache is a read of that, the rest is activations. Experts are executed one by one. The counter "
        "shares no code with the prediction (`moecap/metrics/utilization.py`); the experts that the prediction "
        "counts are those that the routers chose in that very step. Weights are random.",
        "",
        "“Measured” is weights, KV cache, and the activations that matrix products and attention read and write. Other "
        "activations (`unfused_bytes` in `bytes.csv`) are apart: how much of them reaches memory is a matter of the "
        "engine's fusion.",
        "",
        f"{facts['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + f". {facts['date']}.",
        "",
        "![Bytes by who counts](bytes.svg)",
        "",
    ]
    for model in dict.fromkeys(row["model"] for row in charted(rows)):
        shown = [row for row in charted(rows) if row["model"] == model]
        lines += [f"## {model}: layer {shown[0]['layer']}, MB per decode step", "", *_lines(shown)]
    forced = [row for row in rows if row["model"] == FORCED and row["layer"] != WHOLE]
    if forced:
        lines += [f"## {REAL}: routing forced, batch {FORCED_BATCH}, MB per decode step", "", *_lines(forced)]
    lines += ["## What holds", "", *verdicts(rows), "", "Made by `scripts/validate_bytes.py` (`make validate`).", ""]
    return "\n".join(lines)


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The goals, and how many points meet them."""
    said = []
    for name, word in (("weight", "Weights"), ("kv", "KV cache")):
        equal = sum(row[f"predicted_{name}_bytes"] == row[f"measured_{name}_bytes"] for row in rows)
        said.append(f"- {word}: predicted equals measured, to the byte, at {equal} of {len(rows)} points.")
    counts = [row for row in rows if row["weights_over_activations"] >= WEIGHTS_OVER_ACTIVATIONS]
    close = [row for row in counts if abs(row["total_error"]) <= TOTAL_ERROR]
    worst = max((abs(row["total_error"]) for row in counts), default=0.0)
    said.append(
        f"- Total: within {100 * TOTAL_ERROR:g}% at {len(close)} of the {len(counts)} points whose weights are at "
        f"least {WEIGHTS_OVER_ACTIVATIONS} times their activations; the largest deviation there is {100 * worst:.3f}%."
    )
    ratios = [row["predicted_activation_bytes"] / row["measured_activation_bytes"] for row in rows]
    said.append(
        f"- Activations are an estimate: {min(ratios):.2f} to {max(ratios):.2f} of the measured ones (least where "
        "Transformers expands a latent KV cache, which engines with an MLA kernel do not)."
    )
    every = [
        (row["s_mbu_complete_bytes"] / (row["measured_bytes"] + row["unfused_bytes"]) - 1)
        for row in rows
        if row["measured_weight_bytes"]
        >= WEIGHTS_OVER_ACTIVATIONS * (row["measured_activation_bytes"] + row["unfused_bytes"])
    ]
    if every:
        within = sum(abs(error) <= TOTAL_ERROR for error in every)
        said.append(
            f"- Were nothing fused, so that every operation's activations went through memory: within "
            f"{100 * TOTAL_ERROR:g}% at {within} of the {len(every)} points whose weights are that much more than all "
            f"activations; the largest deviation is {100 * min(every):+.2f}%."
        )
    real = [row for row in rows if row["model"] == REAL and row["batch_size"] == 1 and row["layer"] != WHOLE]
    if real:
        said.append(
            f"- {REAL}, batch 1: MBU counts {100 * real[0]['mbu_overestimate']:+.1f}% against what was read (+268% by "
            "the paper's sizes)."
        )
    return said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--without-real-size", action="store_true", help="leave out the layer that takes 2.9 GB")
    parser.add_argument("--output", type=Path, default=Path("docs/validation"))
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # products this small are slower on more, and crawl beside other work
        for name in SMALL:
            with tempfile.TemporaryDirectory() as folder:
                rows += small_rows(name, Path(folder))
            print(f"{name}: done", file=sys.stderr, flush=True)
        torch.set_num_threads(threads)
        if not args.without_real_size:
            rows += real_rows()
            print(f"{REAL}: done", file=sys.stderr, flush=True)
        detected = machine.detect()
        facts = {
            "machine": f"{detected['cpu_model']}, {detected['cores']} cores",
            "versions": library_versions("torch", "transformers"),
            "date": time.strftime("%Y-%m-%d"),
        }
        columns = table(rows).schema
        with atomic_path(args.output / "bytes.csv") as path, path.open("w", newline="") as file:
            for column in columns:
                unit = column.metadata[b"unit"].decode()
                file.write(f"# {column.name}{f' ({unit})' if unit else ''}: {column.metadata[b'meaning'].decode()}\n")
            writer = csv.DictWriter(file, columns.names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        save(measured_bytes(charted(rows)), args.output / "bytes.svg")
        with atomic_path(args.output / "bytes.md") as path:
            path.write_text(markdown(rows, facts))
    except MoecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wrong = disagreements(rows)
    for line in wrong:
        print(f"disagreement: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
