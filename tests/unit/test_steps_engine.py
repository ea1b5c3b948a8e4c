"""The step table of real vLLM runs, held against what hooks in the same forward passes saw.

The hooks share nothing with the join: rows are counted as they pass the model, KV lengths are those that vLLM's
attention gets, expert ids those that its routers chose in the decode itself, not in a replay.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from moecap.checks import replay_check
from moecap.engines.base import load
from moecap.engines.tokens import sequence_hash
from moecap.engines.vllm.replay import attach, collect
from moecap.metrics.steps import step_table
from moecap.model.counted import anatomy
from moecap.routing import decode_trace, replay

from .test_engines import checkpoint, prompts, spec  # noqa: F401

pytestmark = pytest.mark.engine


def watch(model):
    """Note, per forward pass, how many rows vLLM's attention computes and how much KV each request has."""
    from vllm.forward_context import get_forward_context

    model.moecap_seen = []

    def note(_module, _args, _kwargs):
        metadata = get_forward_context().attn_metadata
        if metadata:
            one = next(iter(metadata.values()))
            model.moecap_seen.append((int(one.num_actual_tokens), one.seq_lens.tolist()))

    model.register_forward_pre_hook(note, with_kwargs=True)


def take(model):
    seen, model.moecap_seen = model.moecap_seen, []
    return seen


def tables(result):
    point = {"dataset": "d", "batch_size": 4, "repeat": 0}
    lists = ("request", "first_position", "tokens", "cached_tokens", "preempted")
    schedule = pa.table(
        {
            **{k: [v] * len(result.steps) for k, v in point.items()},
            "step": range(len(result.steps)),
            **{k: [getattr(s, k) for s in result.steps] for k in ("start_s", "wall_s")},
            **{k: pa.array([getattr(s, k) for s in result.steps], pa.list_(pa.int32())) for k in lists},
        }
    )
    requests = [
        {
            **point,
            "request": number,
            "sequence_sha256": sequence_hash([*r.prompt_token_ids, *r.output_token_ids]),
            "prompt_token_ids": r.prompt_token_ids,
            "output_token_ids": r.output_token_ids,
        }
        for number, r in enumerate(result.requests)
    ]
    return schedule, pa.Table.from_pylist(requests)


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_chunks_mixed_steps_and_preemption_against_the_forward_passes(checkpoint, prefix_caching):  # noqa: F811
    options = spec(
        checkpoint, max_num_batched_tokens=16, block_size=32, num_gpu_blocks_override=9, dtype="float32"
    ).options
    runs = []
    with load(spec(checkpoint, options={**options, "prefix_caching": prefix_caching})) as engine:

        def apply(function):
            return engine.apply_model(function)[0]

        shape = apply(attach)
        apply(watch)
        # chunks and mixed steps; then 400 tokens in a cache of 256
        for requests in (prompts(5, 40, 7, 11), prompts(20, 20, 20, 20, output=80)):
            apply(collect), apply(take)
            runs.append((engine.run(requests), apply(collect), apply(take)))
    sequences = [[*r.prompt_token_ids, *r.output_token_ids] for result, _, _ in runs for r in result.requests]
    backend = replay.BACKENDS["vllm"](checkpoint, max_tokens=max(map(len, sequences)), dtype="float32")
    try:
        ids = {sequence_hash(sequences[index]): found for index, found in backend.routing(sequences)}
    finally:
        backend.close()
    assert list(backend.layers) == shape["layers"]
    routing = replay_check.Ids(ids, backend.layers, backend.top_k, backend.n_experts)
    for result, passes, seen in runs:
        schedule, requests = tables(result)
        steps = step_table(schedule, requests, routing, anatomy(checkpoint))
        rows = np.array([len(step.positions) for step in passes])
        column = {name: np.array(steps.column(name).to_pylist()) for name in steps.column_names}
        computed = column["prefill_tokens"] + column["decode_tokens"]
        assert computed.tolist() == rows.tolist() == [tokens for tokens, _ in seen] == column["routed_tokens"].tolist()
        # One kind of layer, no window: what attention reads is every running request's whole KV.
        assert column["context_tokens"][:, 0].tolist() == [sum(lengths) for _, lengths in seen]
        assert column["running_requests"].tolist() == [len(lengths) for _, lengths in seen]
        pairs = [int((step.positions + 1).sum()) for step in passes]  # a query sees itself and all before it
        assert column["attention_pairs"][:, 0].tolist() == pairs
        unique = [[len(np.unique(step.experts[layer])) for layer in shape["layers"]] for step in passes]
        assert column["unique_experts"].tolist() == unique
        # Every position but the last output is computed once; what is computed beyond that is computed again.
        outputs = sum(len(r.output_token_ids) - 1 for r in result.requests)
        needed = sum(len(r.prompt_token_ids) for r in result.requests) + outputs
        assert column["decode_tokens"].sum() == outputs
        assert column["recomputed_tokens"].sum() == rows.sum() + column["cached_tokens"].sum() - needed - (
            _cached_again(result)
        )
    preempted = [step for step in runs[1][0].steps if step.preempted]
    assert preempted and column["preempted_tokens"].sum() > 0 and column["recomputed_tokens"].sum() > 0


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_routers_read_inside_the_decode_are_those_of_the_replay(checkpoint, prefix_caching):  # noqa: F811
    options = {**spec(checkpoint, max_num_batched_tokens=16, block_size=32, dtype="float32").options}
    options["prefix_caching"] = prefix_caching
    batches = [("d", 4, 0, prompts(5, 40, 7, 11)), ("d", 1, 0, prompts(9)), ("d", 2, 0, prompts(48, 48)[:1] * 2)]
    with load(spec(checkpoint, options=options)) as engine:
        decoded, schedule = decode_trace.trace(engine, batches)
    sequences = [[*r["prompt_token_ids"], *r["output_token_ids"]] for r in decoded.to_pylist()]
    backend = replay.BACKENDS["vllm"](checkpoint, max_tokens=max(map(len, sequences)), dtype="float32")
    try:
        ids = {sequence_hash(sequences[index]): found for index, found in backend.routing(sequences)}
    finally:
        backend.close()
    routing = replay_check.Ids(ids, backend.layers, backend.top_k, backend.n_experts)
    found = {}
    for batch_size, run in replay_check.runs_of(decoded, schedule):
        found[batch_size] = replay_check.compare([run], routing, anatomy(checkpoint))
        # Every position but the last output was computed, or found in the cache where a prompt was seen before.
        skipped = [int((~computed[:-1]).sum()) for computed in run.computed()]
        assert all(not computed[-1] for computed in run.computed())
        assert sum(skipped) == sum(sum(step) for step in run.schedule["cached_tokens"].to_pylist())
        assert bool(sum(skipped)) == (prefix_caching and batch_size == 2)
    assert list(found) == [1, 2, 4]
    for row in found.values():
        assert row["sets_equal"] == row["prefill_sets_equal"] == row["unique_equal"] == 1
        assert row["s_mbu_error"] == row["s_mbu_complete_error"] == 0
        assert row["control_sets_equal"] < 0.9
    assert found[4]["token_layers"] == 4 * 5 * 2  # requests × outputs that are computed × layers


def _cached_again(result):
    """Tokens from the prefix cache that the request itself had computed before it was preempted."""
    reached, again = {}, 0
    for step in result.steps:
        for request, first, tokens, cached in zip(
            step.request, step.first_position, step.tokens, step.cached_tokens, strict=True
        ):
            again += min(cached, reached.get(request, 0))
            reached[request] = max(reached.get(request, 0), first + tokens)
    return again
