"""``moecap anatomy MODEL``: what a model is made of."""

from __future__ import annotations

import argparse
import json
from typing import Any

from moecap.model.structure import COMPONENTS, Anatomy

#: The context, in tokens, for which the text says what is cached and read.
CONTEXT_SHOWN = 32768


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "anatomy",
        help="count a model's parameters, bytes, FLOPs and KV per layer and component",
        description="Counts a model from its config alone, or a checkpoint from its safetensors headers. No weight is "
        "read, no GPU is needed.",
    )
    parser.add_argument("model", help="a catalogue name, a hub id, a checkpoint folder or a config.json")
    parser.add_argument(
        "--precision", help="how weights are stored (bf16, int8, int4, …); default: as the model has them"
    )
    parser.add_argument(
        "--kv-dtype-bytes", type=float, help="bytes per KV element; default: the model's dtype (1: fp8)"
    )
    for flag, meaning in (("tp", "tensor"), ("ep", "expert"), ("pp", "pipeline"), ("dp", "data")):
        parser.add_argument(
            f"--{flag}", type=int, default=1, metavar="N", help=f"{meaning} parallelism: bytes per device"
        )
    parser.add_argument("--shared", choices=("split", "replicate"), default="split", help="shared experts under --tp")
    parser.add_argument("--catalogue", help="folder of catalogues (default: config/catalogue)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Count, and print a table or JSON."""
    from moecap.model.counted import anatomy

    found = anatomy(args.model, args.precision, kv_dtype_bytes=args.kv_dtype_bytes, catalogue=args.catalogue)
    data = describe(found, args.tp, args.ep, args.pp, args.dp, args.shared)
    print(json.dumps(data, indent=2) if args.json else as_text(data))
    return 0


def describe(
    anatomy: Anatomy, tp: int = 1, ep: int = 1, pp: int = 1, dp: int = 1, shared: str = "split"
) -> dict[str, Any]:
    """The anatomy as JSON data; with parallelism, bytes and FLOPs are those of one device, parameters global."""
    from moecap.model.parallel import per_device

    data = anatomy.to_json()
    if (tp, ep, pp, dp) == (1, 1, 1, 1) and shared == "split":
        return data | {"parallel": {"tp": 1, "ep": 1, "pp": 1, "dp": 1, "devices": 1}}
    view = per_device(anatomy, tp, ep, pp, dp, shared)  # type: ignore[arg-type]
    data["weight_bytes"] = view.weight_bytes
    data["kv_bytes_per_token"] = view.kv_bytes_per_token
    data["state_bytes"] = view.state_bytes
    for at in data["kv_at"]:
        at["cached_bytes"] = round(view.kv_bytes_cached(at["context_tokens"]))
        at["read_bytes"] = round(view.kv_bytes_read(at["context_tokens"]))
    data["flops_per_token"] = view.flops_per_token
    for name in COMPONENTS:
        data["components"][name]["bytes"] = view.components[name]
    bytes_and_flops = {k for k in data["layer_kinds"][0] if k.endswith(("_bytes", "_flops")) or "kv_bytes" in k}
    for kind, share in zip(data["layer_kinds"], view.kinds, strict=True):
        kind |= {key: getattr(share, key) for key in bytes_and_flops if key != "weight_bytes"}
        here = view.experts if share.experts else 0
        kind["weight_bytes"] = round(share.fixed_bytes + share.expert_bytes * min(here, share.experts))
        kind["experts_per_device"] = here
        # A token's experts lie on any of the EP ranks alike: a rank does its share of them.
        kind["flops_per_token"] = share.flops_per_token - share.top_k * share.expert_flops * (1 - 1 / view.ep)
        kind["score_flops_per_pair"] = share.score_flops_per_pair
    data["parallel"] = {
        "tp": view.tp,
        "ep": view.ep,
        "pp": view.pp,
        "dp": view.dp,
        "devices": view.devices,
        "experts_per_device": view.experts,
        "stages": [
            {"layers": list(s.layers), "weight_bytes": s.weight_bytes, "kv_bytes_per_token": s.kv_bytes_per_token}
            for s in view.stages
        ],
    }
    return data


def as_text(data: dict[str, Any]) -> str:
    """The same for people."""
    parallel = data["parallel"]
    device = " per device" if parallel["devices"] > 1 else ""
    lines = [
        f"{data['model']} · {data['precision']} · counted from the {data['source']}",
        f"  {_count(data['total_params'])} parameters, {_count(data['active_params'])} active per token",
        f"  {data['layers']} layers, {data['moe_layers']} with experts: {data['experts']} experts, top-{data['top_k']}",
        f"  weights {_size(data['weight_bytes'])}{device}, KV {_size(data['kv_bytes_per_token'])} per token{device} "
        f"({data['kv_elements_per_token']:,} elements in all)",
    ]
    at = next(at for at in data["kv_at"] if at["context_tokens"] == CONTEXT_SHOWN)
    lines.append(
        f"  at {CONTEXT_SHOWN:,} tokens of context: {_size(at['cached_bytes'])} cached per sequence, "
        f"{_size(at['read_bytes'])} read per token{device}"
    )
    if data["mtp_layers"]:
        lines.append(
            f"  {data['mtp_layers']} layer(s) of multi-token prediction apart: about {_count(data['mtp_params'])} "
            f"parameters, {_size(data['mtp_bytes'])}"
        )
    if data["state_bytes"]:
        lines.append(f"  constant state {_size(data['state_bytes'])} per sequence{device}")
    lines += ["", f"  {'component':<16}{'parameters':>18}{'bytes' + device:>24}"]
    for name, component in data["components"].items():
        if component["params"] or component["bytes"]:
            lines.append(f"  {name:<16}{component['params']:>18,}{_size(component['bytes']):>24}")
    lines += [
        "",
        f"  {'layers':>6}  {'attention':<10}"
        + "".join(f"{head:>16}" for head in ("attention", "one expert", "shared", "dense"))
        + f"{'KV/token':>10}",
    ]
    for kind in data["layer_kinds"]:
        window = f" {kind['kv_window']}" if kind["kv_window"] else ""
        lines.append(
            f"  {kind['count']:>6}  {kind['attention'] + window:<10}{kind['attention_params']:>16,}"
            f"{kind['expert_params']:>16,}{kind['shared_params']:>16,}{kind['dense_mlp_params']:>16,}"
            f"{kind['kv_elements_per_token']:>10,}"
        )
    for name, size in data["unread"].items():
        lines.append(f"  not read when decoding: {name}, {_size(size)}")
    lines += [f"  note: {note}" for note in data["notes"]]
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number / 1e9:,.3f} B" if number >= 10**9 else f"{number / 1e6:,.3f} M"


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.3f} {unit}"
    return f"{count:,.0f} B"
