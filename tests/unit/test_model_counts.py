"""What is kept of the catalogue's models: read back as it was, up to date, without the library that builds models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moecap import anatomy
from moecap.campaign.catalogue import Catalogue
from moecap.model.counts import from_plain, kept_skeleton, key_of, to_plain
from moecap.model.parallel import per_device
from moecap.model.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ROOT / "config" / "catalogue" / "counts"
NAMES = sorted(name for name, entry in Catalogue(ROOT / "config/catalogue").models.items() if entry.config)


def test_every_model_with_a_config_is_kept_and_nothing_else() -> None:
    keys = {key_of(found.config) for name in NAMES if (found := resolve(name)).config is not None}
    assert {path.stem for path in COUNTS.glob("*.json")} == keys
    assert len(NAMES) >= 60


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v4-flash", "nemotron-3-super-120b-a12b", "kimi-k3"])
def test_what_is_kept_is_what_is_built(name: str) -> None:
    pytest.importorskip("transformers")
    from moecap.model.counted import built_skeleton

    config = resolve(name).config
    assert config is not None
    built = built_skeleton(config)
    kept = json.loads((COUNTS / f"{key_of(config)}.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(to_plain(built, kept["model"]))) == kept
    again = from_plain(kept, config)
    assert (again.layers, again.quantization) == (built.layers, built.quantization)
    assert sorted(again.parts, key=lambda part: part.name) == sorted(built.parts, key=lambda part: part.name)


def test_another_config_is_not_answered_from_what_is_kept() -> None:
    config = dict(resolve("mixtral-8x7b").config or {})
    assert kept_skeleton(config) is not None
    assert kept_skeleton(config | {"hidden_size": 1}) is None


def test_a_model_of_the_catalogue_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from moecap import anatomy; print(anatomy('qwen3.5-397b-a17b', 'int4').total_params)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == str(anatomy("qwen3.5-397b-a17b").total_params)


#: Counted by hand from the released configs: total and active in billions, KV elements per token, and the bytes of the
#: state per sequence in MB.
BY_HAND = {
    "deepseek-v3.2": (671.88, 38.40, 42_944, 0),
    "glm-5": (743.91, 41.78, 54_912, 0),
    "qwen3.5-397b-a17b": (396.35, 17.35, 15_360, 193.2),
    "nemotron-3-nano-30b-a3b": (31.58, 3.58, 3_072, 49.4),
    "gpt-oss-120b": (116.83, 5.71, 36_864, 0),
    "gemma-4-26b-a4b": (25.23, 3.82, 112_640, 0),
    "step-3.7-flash": (195.84, 10.88, 92_160, 0),
    # 43 layers keep a latent of 512 that slides, 21 of them also one of 512 and an index of 128 per 4 tokens, 20 one
    # of 512 per 128 tokens.
    "deepseek-v4-flash": (284.33, 13.80, 43 * 512 + 21 * (512 + 128) // 4 + 20 * 512 // 128, 0),
    # 60 layers of 2 x 4 heads of 128; 57 keep an index of 128.
    "minimax-m3": (426.17, 25.96, 60 * 2 * 4 * 128 + 57 * 128, 0),
    "kimi-k3": (2779.48, 105.36, 24 * 576, 454.5),
    "longcat-flash": (560.66, 32.18, 28 * 2 * 576, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_released_models_count_as_by_hand(name: str) -> None:
    total, active, elements, state = BY_HAND[name]
    counted = anatomy(name)
    assert round(counted.total_params / 1e9, 2) == total
    assert round(counted.active_params / 1e9, 2) == active
    assert counted.kv_elements_per_token == elements
    assert counted.state_bytes / 1e6 == pytest.approx(state, abs=0.06)


def test_what_is_read_is_not_what_is_cached() -> None:
    """DeepSeek-V3.2 reads 2,048 latents of 576 and every index of 128, in 61 layers, at two bytes."""
    counted = anatomy("deepseek-v3.2")
    assert counted.kv_bytes_cached(100_000) == 100_000 * 61 * (576 + 128) * 2
    assert counted.kv_bytes_read(100_000) == 61 * (2048 * 576 + 100_000 * 128) * 2
    assert counted.kv_bytes_read(1000) == counted.kv_bytes_cached(1000)
    dense = anatomy("deepseek-v3")
    assert dense.kv_bytes_read(100_000) == dense.kv_bytes_cached(100_000)


def test_state_has_its_own_dtype_whatever_that_of_the_kv() -> None:
    counted = anatomy("qwen3.5-397b-a17b")
    recurrent, conv = 45 * 64 * 128 * 128, 45 * (2 * 16 + 64) * 128 * 4
    assert counted.state_bytes == 4 * recurrent + 2 * conv
    assert anatomy("qwen3.5-397b-a17b", kv_dtype_bytes=1).state_bytes == counted.state_bytes


def test_a_third_of_the_layers_does_not_slide() -> None:
    kinds = anatomy("step-3.7-flash").kinds
    assert sum(kind.count for kind in kinds if kind.kv_window == 512) == 33
    assert anatomy("step-3.7-flash").vocab_size == 128_896


def test_layers_of_multi_token_prediction_are_apart() -> None:
    counted = anatomy("deepseek-v3.2")
    assert counted.mtp_layers == 1 and counted.mtp_params > counted.kinds[-1].params
    assert sum(c.params for c in counted.components.values()) == counted.total_params


@pytest.mark.parametrize("name", ["deepseek-v3.2", "deepseek-v4-flash", "minimax-m3", "gpt-oss-120b", "mixtral-8x7b"])
@pytest.mark.parametrize("context", [100, 5000, 200_000])
def test_devices_together_hold_no_less_than_the_model(name: str, context: int) -> None:
    """Latents and indexes are on every rank, heads on one: a rank holds between an eighth and all of it."""
    counted, tp = anatomy(name), 4
    view = per_device(counted, tp=tp)
    for whole, part in (
        (counted.kv_bytes_cached(context), view.kv_bytes_cached(context)),
        (counted.kv_bytes_read(context), view.kv_bytes_read(context)),
    ):
        assert whole / tp <= part <= whole
    assert per_device(counted).kv_bytes_read(context) == counted.kv_bytes_read(context)
