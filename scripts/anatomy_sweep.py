"""Try every mixture of experts that transformers ships, at small dimensions, and write docs/anatomy-sweep.md.

    python scripts/anatomy_sweep.py [--output docs/anatomy-sweep.md] [FAMILY ...]

A family is counted from its config on the meta device, then built for real and run: the count stands only if the
running model's cache grows by the predicted KV per token, keeps the predicted constant state, and hands its experts the
predicted number of ids per token. Anything else is refused, with the reason.
"""

from __future__ import annotations

import argparse
import re
import sys
from math import lcm
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError
from moecap.io import atomic_path
from moecap.model.built import build
from moecap.model.counted import assemble
from moecap.model.reader import skeleton
from moecap.model.recipes import Recipe
from moecap.model.running import measure
from moecap.model.skeleton import Refused, Skeleton

#: A class of this kind in a family's modelling file makes it a mixture of experts.
MARK = re.compile(r"class \w*(Experts|Moe|MoE|MOE|SparseMLP|Router)\w*\(")
#: Small values for the words that configs use; set where a config has the word.
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "d_model": 64, "intermediate_size": 96, "d_ff": 96, "num_attention_heads": 4,
    "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "d_kv": 16, "global_head_dim": 16,
    "moe_intermediate_size": 32, "expert_intermediate_size": 32, "shared_expert_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48, "shared_intermediate_size": 48, "intermediate_size_mlp": 80,
    "share_expert_dim": 48, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_top_k": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2,
    "n_group": 1, "topk_group": 1, "num_expert_group": 1, "num_expert_groups": 1, "q_lora_rank": 24, "kv_lora_rank": 20,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 12, "qk_head_dim": 28, "v_head_dim": 16, "index_head_dim": 16,
    "index_n_heads": 2, "first_k_dense_replace": 1, "num_dense_layers": 1, "first_dense_layers": 1,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_dt_rank": 4,
    "mamba_expand": 2, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1,
    "sliding_window": 32,
    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_layers": 4, "decoder_layers": 4, "num_decoder_layers": 4, "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 1, "max_position_embeddings": 128,
    "kv_channels": 16, "num_kv_heads": 2, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 0, "attention_chunk_size": 32,
}  # fmt: skip
#: The number of layers, under each of its names.
LAYERS_WORDS = ("num_hidden_layers", "num_layers", "n_layers")
LAYERS = 4
#: How vision towers, which are not counted, call their depth.
DEPTH_WORDS = ("depth", "num_hidden_layers", "layers")
#: What a family's own defaults lack or need beside that: facts of its config class, so that a small one can be built.
EXTRA: dict[str, dict[str, Any]] = {
    # One key-value head, of a latent that is the value too; two groups of outputs; two streams, as four would be an
    # eighth of so small a model (of the released one they are a thousandth).
    "deepseek_v4": {
        "num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 16, "hc_mult": 2,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}, "index_topk": 4,
    },
    "longcat_flash": {"ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 4},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "gemma4": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}},
    },
    "glm5_next": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "qk_head_dim": 12},
    "mistral4": {"qk_nope_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "granitemoeshared": {"shared_intermediate_size": 48},
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [32, 32], "hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1,
    },
    "diffusion_gemma": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32},
    "deepseek_ocr2": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "qwen4_exp": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 32,
        "indexer_compress_ratio": 4, "ple_layer_ids": [1], "ple_embed_dim": 64, "ngram_vocab_size_base": 512,
        "hc_lowrank": 16, "heads_per_ngram": 2, "split_ngram_parts": 1, "eos_token_id": 1,
    },
}  # fmt: skip
#: The same beside a text model's config.
BESIDE: dict[str, dict[str, Any]] = {
    "deepseek_ocr2": {"vision_config": {"sam_config": {"downsample_channels": [512, 896]}}},
    "diffusion_gemma": {"vision_config": {"model_type": "gemma4_vision"}},
    "qwen3_omni_moe": {"enable_audio_output": False},
}


def families() -> dict[str, str]:
    """Every family with a class of experts or a router in its modelling file: folder -> model_type."""
    import transformers
    from transformers import CONFIG_MAPPING

    root = Path(transformers.__file__).parent / "models"
    marked = [p.parent.name for p in sorted(root.glob("*/modeling_*.py")) if MARK.search(p.read_text())]
    found: dict[str, str] = {}
    for folder in dict.fromkeys(marked):
        types = [t for t in CONFIG_MAPPING if _folder_of(t) == folder]
        if types:
            found[folder] = folder if folder in types else min(types, key=len)
    return found


def _folder_of(model_type: str) -> str | None:
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[model_type].__module__.split(".")[-2]
    except Exception:
        return None


def small_config(family: str, model_type: str) -> Any:
    """The family's config class with small values."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    default = cls()
    text = default.get_text_config(decoder=True)
    if text is default or default.is_encoder_decoder:
        return cls(**small_values(default, family))
    name = next((n for n in ("text_config", "thinker_config") if hasattr(default, n)), None)
    if name != "text_config":
        whole = {"text_config": small_values(text, family)}
        return cls(**{name: whole} if name else {}, **BESIDE.get(family, {}))
    given = default.to_dict()
    tower = given.get("vision_config")
    vision = {"vision_config": {**tower, **{w: 1 for w in DEPTH_WORDS if w in tower}}} if tower else {}
    return cls(text_config=type(text)(**small_values(text, family)), **{**vision, **BESIDE.get(family, {})})


def small_values(config: Any, family: str) -> dict[str, Any]:
    """Keyword arguments of a small config: small values for the words it has, its pattern of layers kept."""
    given = config.to_dict()
    own = {k: v for k, v in SMALL.items() if isinstance(given.get(k), int)}
    own |= {word: LAYERS for word in LAYERS_WORDS if isinstance(given.get(word), int)}
    if given.get("kv_lora_rank"):
        own["num_key_value_heads"] = own["num_attention_heads"]  # a compressed KV has no heads of its own
    types = given.get("layer_types")
    if types:
        kinds = list(dict.fromkeys(types))
        own["layer_types"] = (kinds * LAYERS)[:LAYERS] if len(kinds) > 1 else types[:LAYERS]
    mlp = given.get("mlp_layer_types")
    if mlp:
        own["mlp_layer_types"] = [mlp[0], *[mlp[-1]] * (LAYERS - 1)]
    return own | EXTRA.get(family, {})


def try_family(family: str, model_type: str) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"family": family, "result": "refused", "reason": ""}
    try:
        config = small_config(family, model_type)
    except Exception as error:
        return row | {"reason": f"no small config could be made ({type(error).__name__}: {first(error)})"}
    try:
        structure = skeleton(config)
        counted = assemble(family, "bf16", structure, Recipe("bf16").sizes(structure))
    except Refused as error:
        return row | {"reason": str(error)}
    except MoecapError as error:
        return row | {"reason": str(error)}
    row |= {"params": counted.total_params, "active": counted.active_params, "experts": counted.experts,
            "top_k": counted.top_k, "kv": counted.kv_elements_per_token, "layers": counted.layers,
            "moe": len(counted.moe_layers), "kinds": sorted({k.attention for k in counted.kinds} - {"none"}),
            "other": counted.components["other"].params}  # fmt: skip
    whole = weights_of(build(config), structure)
    uncounted = sum(int(n.split()[0]) for n in counted.notes if "outside the text model" in n)
    if counted.total_params + uncounted != whole:
        return row | {"reason": f"the sum of parts is {counted.total_params}, the model has {whole}"}
    if not counted.experts:
        return row | {"reason": "no experts at these dimensions"}
    if whole > 200_000_000:
        return row | {"result": "counted", "reason": "not run: no small config"}
    try:
        run = lcm(*(getattr(config, "compress_rates", None) or {"none": 1}).values())
        ran = measure(config, (run, 2 * run) if run > 1 else (5, 9))
    except MoecapError as error:
        return row | {"result": "counted", "reason": f"not run: {error}"}
    state = sum(layer.memory.state_elements for layer in structure.layers)
    wrong = [
        f"{what}: counted {mine}, the running model has {theirs}"
        for what, mine, theirs in (
            ("KV elements per token", counted.kv_elements_per_token, ran.kv_elements_per_token),
            ("constant state", state, ran.state_elements),
            ("experts per token", counted.top_k, ran.top_k or counted.top_k),
        )
        if mine != theirs
    ]
    if wrong:
        return row | {"result": "wrong", "reason": "; ".join(wrong)}
    unseen = "" if ran.top_k else "no tensor of expert ids to check top-k against"
    return row | {"result": "counted, run", "reason": unseen}


def weights_of(model: Any, structure: Skeleton) -> int:
    """Elements of the model that a checkpoint has and the count speaks of.

    All parameters, less rows that are made for experts that compute nothing; and of the buffers those that are learnt
    (they correct a router's scores), which are no parameters to torch.
    """
    made = {layer.prefix: (layer.experts, layer.zero_experts) for layer in structure.layers if layer.zero_experts}
    counted = {part.name for part in structure.parts}
    total = sum(b.numel() for name, b in model.named_buffers() if name in counted)
    for name, parameter in model.named_parameters():
        experts, zero = next((n for prefix, n in made.items() if name.startswith(f"{prefix}.")), (0, 0))
        surplus = zero if parameter.ndim == 3 and len(parameter) == experts + zero else 0
        total += parameter.numel() * (len(parameter) - surplus) // len(parameter)
    return total


def first(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def table(rows: list[dict[str, Any]]) -> str:
    """The page."""
    import torch
    import transformers

    count = {
        result: sum(r["result"] == result for r in rows) for result in ("counted, run", "counted", "refused", "wrong")
    }
    lines = [
        "# Every mixture of experts in transformers, tried",
        "",
        f"Made by `python scripts/anatomy_sweep.py` with transformers {transformers.__version__} and torch "
        f"{torch.__version__.split('+')[0]}; small dimensions ({LAYERS} layers, hidden size 64, 8 experts where the "
        "config has these words).",
        "",
        "*Counted, run*: parts sum to the whole, and a forward pass on random weights gave the predicted KV per token, "
        "constant state and experts per token. *Counted*: parts sum to the whole, the small model could not be run. "
        "*Refused*: `moecap anatomy` says so, with this reason, and gives no figure.",
        "",
        f"{len(rows)} families: {count['counted, run']} counted and run, {count['counted']} counted, "
        f"{count['refused']} refused, {count['wrong']} wrong.",
        "",
        "| family | result | parameters | active | experts | top-k | MoE layers | memory | KV per token | remark |",
        "|---|---|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for r in rows:
        cells = [
            r["family"],
            r["result"],
            *(f"{r[k]:,}" if k in r else "" for k in ("params", "active", "experts", "top_k")),
        ]
        cells += [f"{r['moe']} of {r['layers']}" if "moe" in r else "", ", ".join(r.get("kinds", []))]
        cells += [f"{r['kv']:,}" if "kv" in r else "", r["reason"].replace("|", "\\|").replace("\n", " ")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    import torch

    torch.manual_seed(0)
    rows = []
    for family, model_type in families().items():
        if args.families and family not in args.families:
            continue
        rows.append(try_family(family, model_type))
        print(f"{family:24} {rows[-1]['result']:14} {rows[-1]['reason'][:220]}", file=sys.stderr, flush=True)
    text = table(rows)
    if args.output:
        with atomic_path(args.output) as path:
            path.write_text(text)
    else:
        print(text)
    return int(any(r["result"] == "wrong" for r in rows))


if __name__ == "__main__":
    raise SystemExit(main())
