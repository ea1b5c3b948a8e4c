"""What an engine can serve where; and the real engines, on a tiny checkpoint with random weights."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.campaign.catalogue import Catalogue
from moecap.engines.base import EngineSpec, Request, engine_class, kinds, load
from moecap.engines.capabilities import (
    Machine,
    catalogue_machine,
    check_can_serve,
    parse_cpuinfo,
    scheme_of,
    this_machine,
)
from moecap.engines.catalogue import known_mismatch
from moecap.errors import MoecapError, PermanentError

ROOT = Path(__file__).parents[2]
ENGINES = Catalogue(ROOT / "config/catalogue").engines
OPTIONS = {"engine_args": {"enforce_eager": True, "dtype": "bfloat16", "kv_cache_memory_bytes": 2**26}}

ZEN4 = parse_cpuinfo(
    "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni\n",
    "epyc",
    packages=frozenset({"vllm", "zentorch"}),
    isa="x86_64",
)
ZEN2 = parse_cpuinfo("vendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2 avx2\n", "old-epyc", isa="x86_64")
SAPPHIRE = parse_cpuinfo(
    "vendor_id\t: GenuineIntel\nflags\t\t: avx512f amx_bf16 amx_tile amx_int8\n", "xeon", isa="x86_64"
)
SKYLAKE = parse_cpuinfo("vendor_id\t: GenuineIntel\nflags\t\t: avx512f\n", "old-xeon", isa="x86_64")
GRAVITON = parse_cpuinfo("Features\t: fp asimd i8mm bf16\n", "graviton", isa="aarch64")


# -- capabilities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "serves"),
    [
        (ZEN4, {"bf16", "W8A8", "W4A16"}),
        (ZEN2, {"bf16"}),
        (SAPPHIRE, {"bf16", "W8A8", "W4A16", "FP8", "MXFP4"}),
        (SKYLAKE, {"bf16"}),
        (GRAVITON, {"bf16", "W8A8"}),
        (Machine("unknown"), {"bf16", "W8A8", "W4A16", "FP8", "MXFP4"}),
    ],
)
def test_vllm_on_cpus(machine, serves):
    for scheme in ("bf16", "W8A8", "W4A16", "W8A16", "FP8", "MXFP4", "NVFP4"):
        if scheme in serves:
            check_can_serve(ENGINES["vllm-cpu"], scheme, machine, engine="vllm-cpu")
        else:
            with pytest.raises(PermanentError, match=f"{scheme}"):
                check_can_serve(ENGINES["vllm-cpu"], scheme, machine, engine="vllm-cpu")


def test_zen_without_zentorch():
    machine = Machine("epyc", "x86_64", "AuthenticAMD", ZEN4.flags, frozenset({"vllm"}))
    with pytest.raises(PermanentError, match="lacks package zentorch"):
        check_can_serve(ENGINES["vllm-cpu"], {"scheme": "W8A8"}, machine, engine="vllm-cpu")


def test_message_says_where_and_why():
    with pytest.raises(PermanentError) as caught:
        check_can_serve(ENGINES["vllm-cpu"], "W8A8", SKYLAKE, engine="vllm-cpu", where="demo.csv, line 3 (demo-int8)")
    message = str(caught.value)
    assert message.startswith("demo.csv, line 3 (demo-int8): engine vllm-cpu cannot serve experts in W8A8 on old-xeon")
    assert "CPU feature amx_tile" in message
    assert "\n" not in message


@pytest.mark.parametrize("gpu", [None, {"vendor": "amd", "lacks": []}])
def test_cuda_needs_an_nvidia_gpu(gpu):
    with pytest.raises(PermanentError, match="a GPU by nvidia"):
        check_can_serve(ENGINES["vllm-cuda"], "bf16", catalogue_machine("x", gpu), engine="vllm-cuda")


def test_dtypes_that_a_gpu_lacks():
    old = catalogue_machine("MI250X", {"vendor": "amd", "lacks": ["fp8", "fp4"]})
    new = catalogue_machine("MI300X", {"vendor": "amd", "lacks": ["fp4"]})
    check_can_serve(ENGINES["vllm-rocm"], "FP8", new, engine="vllm-rocm")
    with pytest.raises(PermanentError, match="fp8 units"):
        check_can_serve(ENGINES["vllm-rocm"], "FP8", old, engine="vllm-rocm")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tensor_parallel": 2}, "`tensor_parallel` is 2"),
        ({"data_parallel": 2}, "`data_parallel` is 2"),
        ({"offload": "dram"}, "`offload` is 'dram'"),
    ],
)
def test_what_one_cpu_engine_cannot(more, message):
    with pytest.raises(PermanentError, match=message):
        check_can_serve(ENGINES["vllm-cpu"], "bf16", ZEN4, engine="vllm-cpu", **more)


def test_gpus_may_be_many():
    machine = catalogue_machine("H100", {"vendor": "nvidia", "lacks": []})
    check_can_serve(ENGINES["vllm-cuda"], "FP8", machine, engine="vllm-cuda", tensor_parallel=8, expert_parallel=8)


def test_catalogue():
    for name, entry in ENGINES.items():
        assert entry.kind in kinds(), name
        assert entry.tried or entry.source, f"{name}: a template says where its command comes from"
        if entry.instead:
            other = ENGINES[entry.instead]
            assert other.device == entry.device
            assert {"W8A8", "W4A16"} <= set(other.capabilities.precisions)


@pytest.mark.parametrize("name", [name for name, entry in ENGINES.items() if entry.capabilities.wrong])
def test_known_mismatches_are_data(name):
    """Every one is found by its own config, and by no config that differs in any of its keys."""
    capabilities = ENGINES[name].capabilities
    for wrong in capabilities.wrong:
        assert known_mismatch(capabilities, {**wrong.config, "hidden_size": 1}) is not None
        for key in wrong.config:
            rest = {other: value for other, value in wrong.config.items() if other != key}
            assert known_mismatch(capabilities, rest) is None
            assert known_mismatch(capabilities, {**rest, key: "other"}) is None


def test_this_machine_is_known():
    machine = this_machine()
    assert machine.isa
    assert machine.flags


def test_scheme_of():
    assert [scheme_of(p) for p in (None, "W8A8", {"scheme": "W4A16"}, {"recipe": None})] == [
        "bf16",
        "W8A8",
        "W4A16",
        "bf16",
    ]


def test_unknown_kind():
    with pytest.raises(MoecapError, match="Did you mean 'vllm'"):
        engine_class("vlm")


# -- schedules from notes ---------------------------------------------------------------------------------------------


def note(start, end, requests, preempted=()):
    n = len(requests)
    return {
        "start_s": start,
        "end_s": end,
        "requests": list(requests),
        "first_position": [0] * n,
        "tokens": [1] * n,
        "cached_tokens": [0] * n,
        "preempted": list(preempted),
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 5)), min_size=1, max_size=20))
def test_overlapping_steps_share_the_time(spans):
    """Steps that overlap are counted once: their walls add up to no more than the time that passed."""
    from moecap.engines.vllm.engine import make_steps

    starts = sorted(start for start, _ in spans)
    ends = sorted(start + length for start, length in spans)
    steps = make_steps([note(s, e, ["r"]) for s, e in zip(starts, ends, strict=True)], {"r": 0}, 0.0)
    assert all(step.wall_s >= 0 for step in steps)
    assert sum(step.wall_s for step in steps) <= ends[-1] + 1e-9
    assert [step.start_s + step.wall_s for step in steps] == pytest.approx(ends)


def test_steps_of_an_engine_in_this_process_are_its_calls():
    from moecap.engines.vllm.engine import make_steps

    calls = [(10.0, 10.1), (10.2, 11.0), (11.0, 12.0)]  # the first computed nothing
    steps = make_steps([note(10.3, 10.9, ["x", "y"]), note(11.1, 11.9, ["y"], ["x"])], {"x": 0, "y": 1}, 10.0, calls)
    assert [(s.start_s, s.wall_s) for s in steps] == [pytest.approx((0.2, 0.8)), pytest.approx((1.0, 1.0))]
    assert (steps[0].request, steps[1].request, steps[1].preempted) == ([0, 1], [1], [0])


def test_steps_of_nobody():
    from moecap.engines.vllm.engine import make_steps

    with pytest.raises(MoecapError, match="none of this run's"):
        make_steps([note(0.0, 1.0, ["stranger"])], {}, 0.0)
    with pytest.raises(MoecapError, match="no call"):
        make_steps([note(0.0, 1.0, ["x"])], {"x": 0}, 0.0, [(0.5, 2.0)])
    assert make_steps([{**note(0.0, 1.0, ["x"]), "end_s": None}], {"x": 0}, 0.0) == []


# -- the real engines -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Qwen2-MoE with two layers and random weights, and no tokenizer: engines get token ids."""
    torch = pytest.importorskip("torch", reason="needs the engine environment (make test)")
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=128,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen2MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def spec(checkpoint, kind="vllm", seqs=4, options=None, **engine_args):
    if options is None:
        options = {"engine_args": {**OPTIONS["engine_args"], "skip_tokenizer_init": True, **engine_args}}
        options["env"] = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return EngineSpec(
        f"{kind}-test", kind, "cpu", checkpoint, options, max_num_seqs=seqs, context_tokens=256, threads=1
    )


def check_run(result, requests):
    """Follow every request through the schedule: nothing is skipped, nothing computed without reason, times fit."""
    assert [r.prompt_token_ids for r in result.requests] == [list(r.prompt_token_ids) for r in requests]
    assert [len(r.output_token_ids) for r in result.requests] == [r.output_tokens for r in requests]
    computed = dict.fromkeys(range(len(requests)), 0)
    tokens_out = dict.fromkeys(range(len(requests)), 0)
    admitted = set()
    end = 0.0
    for step in result.steps:
        assert step.start_s >= end - 1e-9
        end = step.start_s + step.wall_s
        for request in step.preempted:
            computed[request] = 0
            admitted.discard(request)
        rows = zip(step.request, step.first_position, step.tokens, step.cached_tokens, strict=True)
        for request, first, tokens, cached in rows:
            if request not in admitted:
                assert first == cached
                admitted.add(request)
            else:
                assert (first, cached) == (computed[request], 0)
            computed[request] = first + tokens
            length = len(requests[request].prompt_token_ids) + tokens_out[request]
            assert computed[request] <= length
            if computed[request] == length:  # caught up: this step gives the next token
                arrival = result.requests[request].token_times_s[tokens_out[request]]
                assert step.start_s <= arrival <= result.wall_s
                tokens_out[request] += 1
    assert tokens_out == {i: r.output_tokens for i, r in enumerate(requests)}
    assert end <= result.wall_s + 1e-6
    for record in result.requests:
        assert record.finish_reason == "length"
        assert sorted(record.token_times_s) == record.token_times_s
        assert 0 <= record.arrival_s <= record.token_times_s[0]


def prompts(*lengths, output=6):
    return [Request(tuple(3 + (7 * i + j) % 120 for j in range(n)), output) for i, n in enumerate(lengths)]


@pytest.mark.engine
def test_vllm_chunked_mixed_and_preempted(checkpoint):
    blocks = {"block_size": 32, "num_gpu_blocks_override": 9}  # 8 × 32 tokens and one that vLLM keeps
    with load(spec(checkpoint, max_num_batched_tokens=16, **blocks)) as engine:
        assert engine.max_num_batched_tokens == 16
        assert "cpu" in engine.version
        assert engine.libraries["vllm"] == engine.version
        requests = prompts(5, 40, 7, 11)
        for _ in range(2):  # a second run starts from nothing
            result = engine.run(requests)
            check_run(result, requests)
            assert max(sum(step.tokens) for step in result.steps) <= 16
            chunks = [t for s in result.steps for r, t in zip(s.request, s.tokens, strict=True) if r == 1]
            assert len([t for t in chunks if t > 1]) >= 3  # 40 tokens in chunks of at most 16
            mixed = [s for s in result.steps if 1 in s.tokens and max(s.tokens) > 1]
            assert mixed
        requests = prompts(20, 20, 20, 20, output=80)  # 400 tokens at the end, in 256
        result = engine.run(requests)
        check_run(result, requests)
        assert any(step.preempted for step in result.steps)
        with pytest.raises(MoecapError, match="loaded for 4"):
            engine.run(prompts(5, 5, 5, 5, 5))
        with pytest.raises(PermanentError, match="306 tokens of context"):
            engine.run(prompts(300))


@pytest.mark.engine
def test_vllm_prefix_cache_only_where_asked(checkpoint):
    options = spec(checkpoint, block_size=32, max_num_batched_tokens=64).options
    shared = tuple(range(3, 73))
    requests = [Request((*shared, i), 4) for i in range(80, 84)]
    with load(spec(checkpoint, options={**options, "prefix_caching": True})) as engine:
        for _ in range(2):  # the cache is emptied between runs
            result = engine.run(requests)
            check_run(result, requests)
            cached = [sum(column) for column in zip(*(_cached(result, i) for i in range(4)), strict=True)]
            assert sum(cached) == 3 * 64
            assert _cached(result, 0) == [0] * len(result.steps)


def _cached(result, request):
    return [sum(c for r, c in zip(s.request, s.cached_tokens, strict=True) if r == request) for s in result.steps]


@pytest.mark.engine
def test_vllm_in_a_process_of_its_own(checkpoint):
    """The way of GPUs: the engine's core elsewhere, the schedule from there by the same code."""
    options = spec(checkpoint, max_num_batched_tokens=16).options
    requests = prompts(5, 40, 7, 11)
    with load(spec(checkpoint, options={**options, "multiprocessing": True})) as engine:
        assert not engine.in_process
        result = engine.run(requests)
        check_run(result, requests)
        folder = engine._folder
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.engine
def test_transformers(checkpoint):
    requests = prompts(5, 40, 7, 11)
    with load(spec(checkpoint, "transformers", options={"dtype": "float32"})) as engine:
        assert engine.weights_as == "stored"
        result = engine.run(requests)
        check_run(result, requests)
        assert [sum(step.tokens) for step in result.steps] == [63, 4, 4, 4, 4, 4]
        # padding changes nothing: alone, each prompt gives the same tokens
        for request, record in zip(requests, result.requests, strict=True):
            assert engine.run([request]).requests[0].output_token_ids == record.output_token_ids
        # the last position's logits, computed in one pass without cache or padding, name the same last token
        torch = engine._torch
        for record in result.requests:
            ids = torch.tensor([record.prompt_token_ids + record.output_token_ids[:-1]])
            with torch.inference_mode():
                assert int(engine._model(ids).logits[0, -1].argmax()) == record.output_token_ids[-1]


@pytest.mark.engine
def test_transformers_unequal_outputs(checkpoint):
    requests = [Request((5, 6, 7), 2), Request((9, 8), 5)]
    with load(spec(checkpoint, "transformers", options={"dtype": "float32"})) as engine:
        result = engine.run(requests)
    check_run(result, requests)
    assert [step.request for step in result.steps] == [[0, 1], [0, 1], [1], [1], [1]]


@pytest.mark.parametrize("kind", kinds())
def test_options_that_do_not_exist(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with (
        pytest.raises(PermanentError, match=r"unknown (option 'colour'|key `colour`)"),
        load(EngineSpec("x", kind, "cpu", str(tmp_path), {"colour": 1})),
    ):
        pass
