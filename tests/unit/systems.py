"""Small models, runs and routings for the tests of metrics, and a step table counted the slow and obvious way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.model.structure import COMPONENTS, Anatomy, Component, LayerKind


def anatomy_of(
    kinds: list[dict[str, Any]],
    *,
    hidden: int = 64,
    vocab: int = 1000,
    tied: bool = False,
    weight_bytes: float = 2,
    kv_dtype_bytes: float = 2,
    model: str = "test-model",
) -> Anatomy:
    """An anatomy from the parameters of each kind of layer; everything is stored in ``weight_bytes`` per parameter."""
    names = ("attention", "router", "expert", "shared", "dense_mlp", "norm", "other")
    made = []
    for kind in kinds:
        full = dict(kind)
        for name in names:
            params = full.get(f"{name}_params", 0)
            full.setdefault(f"{name}_bytes", params * weight_bytes)
            if name != "norm":
                full.setdefault(f"{name}_flops", 2 * params)
        full.setdefault("kv_bytes_per_token", full.get("kv_elements_per_token", 0) * kv_dtype_bytes)
        made.append(LayerKind(**full))
    sizes = {c: [0, 0] for c in COMPONENTS}
    for kind in made:
        for component in COMPONENTS:
            if component not in ("embedding", "lm_head"):
                sizes[component][0] += kind.count * kind.component_params(component)
                sizes[component][1] += kind.count * kind.component_bytes(component)
    sizes["norms"][0] += hidden
    sizes["norms"][1] += hidden * 2
    for component in ("embedding",) if tied else ("embedding", "lm_head"):
        sizes[component] = [hidden * vocab, hidden * vocab * 2]
    total = sum(p for p, _ in sizes.values())
    idle = sum(k.count * (k.experts - k.top_k) * k.expert_params for k in made)
    return Anatomy(
        model=model,
        precision="bf16",
        total_params=total,
        active_params=total - idle,
        components={name: Component(int(p), round(b)) for name, (p, b) in sizes.items()},
        kinds=tuple(made),
        layer_kind=tuple(i for i, kind in enumerate(made) for _ in range(kind.count)),
        hidden_size=hidden,
        vocab_size=vocab,
        tied_embeddings=tied,
        embedding_row_bytes=hidden * 2,
        kv_dtype_bytes=kv_dtype_bytes,
    )


def attention_params(hidden: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Parameters of grouped-query attention without biases."""
    return hidden * head_dim * (2 * heads + 2 * kv_heads)


def moe_kind(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    experts: int,
    top_k: int,
    width: int,
    **more: Any,
) -> dict[str, Any]:
    """The parameters of a decoder layer with gated experts, from its shapes."""
    return {
        "count": layers,
        "attention_params": attention_params(hidden, heads, kv_heads, head_dim),
        "router_params": hidden * experts,
        "expert_params": 3 * hidden * width,
        "experts": experts,
        "top_k": top_k,
        "norm_params": 2 * hidden,
        "kv_elements_per_token": 2 * kv_heads * head_dim,
        "query_heads": heads,
        "qk_head_dim": head_dim,
        "v_head_dim": head_dim,
        "kv_heads": kv_heads,
        **more,
    }


def mixtral_8x7b(layers: int = 32) -> Anatomy:
    return anatomy_of([moe_kind(4096, layers, 32, 8, 128, 8, 2, 14336)], hidden=4096, vocab=32000, model="Mixtral-8x7B")


def mixtral_8x22b() -> Anatomy:
    return anatomy_of([moe_kind(6144, 56, 48, 8, 128, 8, 2, 16384)], hidden=6144, vocab=32000, model="Mixtral-8x22B")


def dbrx() -> Anatomy:
    return anatomy_of([moe_kind(6144, 40, 48, 8, 128, 16, 4, 10752)], hidden=6144, vocab=100352, model="DBRX")


def qwen3_30b() -> Anatomy:
    kind = moe_kind(2048, 48, 32, 4, 128, 128, 8, 768)
    kind["norm_params"] += 2 * 128  # of queries and keys
    return anatomy_of([kind], hidden=2048, vocab=151936, model="Qwen3-30B-A3B")


def deepseek_v3(weight_bytes: float = 1) -> Anatomy:
    """3 dense and 58 MoE layers, latent attention (512 + 64 elements of KV per token and layer)."""
    hidden, heads = 7168, 128
    attention = (
        hidden * 1536 + 1536 * heads * 192 + hidden * (512 + 64) + 512 * heads * (128 + 128) + heads * 128 * hidden
    )
    common = {
        "attention_params": attention,
        "norm_params": 2 * hidden + 1536 + 512,
        "kv_elements_per_token": 576,
        "query_heads": heads,
        "qk_head_dim": 192,
        "v_head_dim": 128,
        "attention": "latent",
    }
    expert = 3 * hidden * 2048
    return anatomy_of(
        [
            {"count": 3, "dense_mlp_params": 3 * hidden * 18432, **common},
            {
                "count": 58,
                "router_params": hidden * 256 + 256,
                "expert_params": expert,
                "experts": 256,
                "top_k": 8,
                "shared_params": expert,
                **common,
            },
        ],
        hidden=hidden,
        vocab=129280,
        weight_bytes=weight_bytes,
        model="DeepSeek-V3",
    )


def small(
    experts: int = 8, top_k: int = 2, moe_layers: int = 3, dense_layers: int = 1, window: int | None = None, **more: Any
) -> Anatomy:
    """A toy: dense layers first, then MoE layers (every second one with a sliding window where one is given)."""
    moe = moe_kind(64, moe_layers, 4, 2, 16, experts, top_k, 32, shared_params=3 * 64 * 16)
    kinds = (
        [{**moe_kind(64, dense_layers, 4, 2, 16, 0, 0, 0), "dense_mlp_params": 3 * 64 * 128}] if dense_layers else []
    )
    if window is not None:
        kinds.append({**moe, "count": moe_layers // 2, "kv_window": window, "attention": "sliding"})
        moe = {**moe, "count": moe_layers - moe_layers // 2}
    return anatomy_of([k for k in [*kinds, moe] if k["count"]], **more)


@dataclass
class FakeRouting:
    """A routing store in memory."""

    ids: dict[str, np.ndarray]
    layers: tuple[int, ...]

    def experts(self, sequence_sha256: str) -> np.ndarray:
        return self.ids[sequence_sha256]


@dataclass
class Run:
    """Tables of a made-up timed run."""

    points: pa.Table
    requests: pa.Table
    schedule: pa.Table
    routing: FakeRouting


def make_run(
    anatomy: Anatomy,
    rng: np.random.Generator,
    *,
    batch_sizes: tuple[int, ...] = (3,),
    repeats: int = 1,
    prompt: tuple[int, int] = (2, 9),
    output: int = 5,
    chunk: int = 6,
    preempt: float = 0.0,
    dataset: str = "toy",
    step_s: Any = None,
) -> Run:
    """Serve random requests with chunked prefill, decode first, and now and then a preemption."""
    ids: dict[str, np.ndarray] = {}
    requests: list[dict[str, Any]] = []
    schedule: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    layers, top_k = len(anatomy.moe_layers), anatomy.top_k
    for batch in batch_sizes:
        prompts = rng.integers(*prompt, size=batch)
        for repeat in range(repeats):
            computed = np.zeros(batch, dtype=int)
            goal = prompts + output - 1
            clock, step, first_token, times = 0.0, 0, {}, {r: [] for r in range(batch)}
            while (computed < goal).any():
                budget, entries, preempted = chunk, [], []
                for r in range(batch):
                    if computed[r] > prompts[r] and computed[r] < goal[r] and rng.random() < preempt:
                        preempted.append(r)
                        computed[r] = 0
                produced = [len(times[r]) for r in range(batch)]
                for r in range(batch):
                    target = prompts[r] + produced[r] if produced[r] else prompts[r]
                    target = min(target, goal[r])
                    n = min(target - computed[r], budget)
                    if n > 0:
                        entries.append((r, int(computed[r]), int(n)))
                        budget -= n
                        computed[r] += n
                wall = float(step_s(entries) if step_s else rng.uniform(0.5, 1.5) * 1e-3)
                schedule.append(
                    {
                        "dataset": dataset,
                        "batch_size": batch,
                        "repeat": repeat,
                        "step": step,
                        "start_s": clock,
                        "wall_s": wall,
                        "request": [e[0] for e in entries],
                        "first_position": [e[1] for e in entries],
                        "tokens": [e[2] for e in entries],
                        "cached_tokens": [0] * len(entries),
                        "preempted": preempted,
                    }
                )
                clock += wall
                step += 1
                for r, _, _ in entries:
                    if computed[r] >= prompts[r] + len(times[r]):
                        times[r].append(clock)
                        first_token.setdefault(r, clock)
            for r in range(batch):
                name = f"{dataset}-{batch}-{r}"
                if layers and name not in ids:
                    size = (int(prompts[r]) + output, layers)
                    noise = rng.random((*size, anatomy.experts))
                    ids[name] = np.argsort(noise, axis=-1)[..., :top_k].astype(np.uint8)
                requests.append(
                    {
                        "dataset": dataset,
                        "batch_size": batch,
                        "repeat": repeat,
                        "request": r,
                        "sequence_sha256": name,
                        "prompt_token_ids": list(range(int(prompts[r]))),
                        "output_token_ids": list(range(output)),
                        "arrival_s": 0.0,
                        "first_token_s": first_token[r],
                        "finished_s": times[r][-1],
                        "token_times_s": times[r],
                        "finish_reason": "length",
                    }
                )
            points.append(
                {
                    "dataset": dataset,
                    "batch_size": batch,
                    "repeat": repeat,
                    "workload": f"prompts of {dataset}, {output} tokens each",
                    "start_unix_s": 1.7e9 + len(points),
                    "wall_s": clock,
                    "requests": batch,
                    "prompt_tokens": int(prompts.sum()),
                    "generated_tokens": batch * output,
                    "load_id": "load",
                    "engine": "test",
                    "engine_version": "0",
                    "libraries": "{}",
                    "hardware": "{}",
                    "seed": 1,
                    "energy_j": None,
                    "power_w": None,
                    "energy_source": None,
                }
            )
    return Run(
        pa.Table.from_pylist(points),
        pa.Table.from_pylist(requests, schema=REQUESTS),
        pa.Table.from_pylist(schedule, schema=SCHEDULE),
        FakeRouting(ids, anatomy.moe_layers),
    )


_INTS = pa.list_(pa.int32())
SCHEDULE = pa.schema(
    [
        ("dataset", pa.string()),
        ("batch_size", pa.int32()),
        ("repeat", pa.int32()),
        ("step", pa.int32()),
        ("start_s", pa.float64()),
        ("wall_s", pa.float64()),
        ("request", _INTS),
        ("first_position", _INTS),
        ("tokens", _INTS),
        ("cached_tokens", _INTS),
        ("preempted", _INTS),
    ]
)
REQUESTS = pa.schema(
    [
        ("dataset", pa.string()),
        ("batch_size", pa.int32()),
        ("repeat", pa.int32()),
        ("request", pa.int32()),
        ("sequence_sha256", pa.string()),
        ("prompt_token_ids", _INTS),
        ("output_token_ids", _INTS),
        ("arrival_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("finished_s", pa.float64()),
        ("token_times_s", pa.list_(pa.float64())),
        ("finish_reason", pa.string()),
    ]
)


def schedule_of(rows: list[dict[str, Any]]) -> pa.Table:
    """A schedule table from the columns that matter to a test; the others get harmless values."""
    base = {"dataset": "toy", "batch_size": 1, "repeat": 0, "start_s": 0.0, "wall_s": 1e-3, "preempted": []}
    full = []
    for step, row in enumerate(rows):
        row = {**base, "step": step, **row}
        row.setdefault("cached_tokens", [0] * len(row["request"]))
        full.append(row)
    return pa.Table.from_pylist(full, schema=SCHEDULE)


def requests_of(prompts: list[int], output: int = 4, batch_size: int = 1) -> pa.Table:
    """A requests table: request i has ``prompts[i]`` prompt tokens and is called ``seq-i``."""
    rows = [
        {
            "dataset": "toy",
            "batch_size": batch_size,
            "repeat": 0,
            "request": i,
            "sequence_sha256": f"seq-{i}",
            "prompt_token_ids": list(range(n)),
            "output_token_ids": list(range(output)),
            "arrival_s": 0.0,
            "first_token_s": 0.1,
            "finished_s": 1.0,
            "token_times_s": [0.1 + 0.1 * t for t in range(output)],
            "finish_reason": "length",
        }
        for i, n in enumerate(prompts)
    ]
    return pa.Table.from_pylist(rows, schema=REQUESTS)


def brute_force(run: Run, anatomy: Anatomy) -> list[dict[str, Any]]:
    """The step table by loops over tokens; shares no code with the library."""
    names = {
        (r["dataset"], r["batch_size"], r["repeat"], r["request"]): (r["sequence_sha256"], len(r["prompt_token_ids"]))
        for r in run.requests.to_pylist()
    }
    done: dict[Any, int] = {}
    held: dict[Any, int] = {}
    result = []
    for row in run.schedule.to_pylist():
        point = (row["dataset"], row["batch_size"], row["repeat"])
        used = [set() for _ in anatomy.moe_layers]
        out = {"prefill": 0, "decode": 0, "recomputed": 0, "context": [], "pairs": []}
        context = [0] * len(anatomy.kinds)
        pairs = [0] * len(anatomy.kinds)
        lost = sum(held.get((*point, r), 0) for r in row["preempted"])
        for request, first, tokens in zip(row["request"], row["first_position"], row["tokens"], strict=True):
            key = (*point, request)
            name, prompt = names[key]
            for kind_index, kind in enumerate(anatomy.kinds):
                read = set()
                for position in range(first, first + tokens):
                    seen = [p for p in range(position + 1) if kind.kv_window is None or p > position - kind.kv_window]
                    read |= set(seen)
                    pairs[kind_index] += len(seen)
                context[kind_index] += len(read)
            for position in range(first, first + tokens):
                again = position < done.get(key, 0)
                out["recomputed"] += again
                out["prefill" if position < prompt or again else "decode"] += 1
                for layer in range(len(anatomy.moe_layers)):
                    used[layer] |= set(run.routing.ids[name][position, layer].tolist())
            done[key] = max(done.get(key, 0), first + tokens)
            held[key] = first + tokens
        out.update(context=context, pairs=pairs, unique=[len(u) for u in used], lost=lost)
        result.append(out)
    return result
