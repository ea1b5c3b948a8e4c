"""What a layer keeps between tokens, read off its attention's modules: keys and values, latents, indexes, states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from moecap.model.modules import attribute, first, out_features
from moecap.model.skeleton import Memory, Refused
from moecap.model.structure import Cache
from moecap.model.words import (
    COMPRESS_WORDS,
    COMPRESSOR,
    CONSTANT,
    CROSS_WORDS,
    FUSED_KV_WORDS,
    FUSED_QKV_WORDS,
    GROWING,
    HEAD_DIM_WORDS,
    HEADS_WORDS,
    INDEXER,
    INDEXER_HEADS_WORDS,
    INDEXER_KEY_WORDS,
    INDEXER_WORDS,
    KEY_WORDS,
    KV_HEADS_WORDS,
    LATENT_WORDS,
    NO_CACHE,
    OUTPUT_WORDS,
    READ_BLOCKS_WORDS,
    READ_LIMIT_WORDS,
    STATE_WORDS,
    VALUE_WORDS,
)

if TYPE_CHECKING:
    import torch


class AttentionReader:
    """Reads the memory of one layer.

    Args:
        blocks: the layer's modules that take a cache, by name.
        hidden: the model's hidden size.
        config: the layer's own config.
        place: the layer, for errors.
    """

    def __init__(self, blocks: Mapping[str, torch.nn.Module], hidden: int, config: Any, place: str) -> None:
        self.blocks, self.hidden, self.config, self.place = blocks, hidden, config, place

    def refuse(self, reason: str) -> Refused:
        return Refused(f"{self.place}: {reason}")

    def memory(self, kind: str, window: int | None, encoder: bool) -> Memory:
        """What the layer keeps if the library gives it a cache of this kind.

        Raises:
            Refused: a kind whose growth is not known, or projections that do not say what is kept.
        """
        if kind in CONSTANT:
            return self._constant_state(kind)
        if not self.blocks:
            if kind in NO_CACHE or encoder:
                return Memory()
            raise self.refuse(f"the cache has {kind!r} for this layer, but no block of it takes a cache.")
        names = ", ".join(self.blocks)
        if kind in NO_CACHE:
            raise self.refuse(f"{names} takes a cache, but the config gives this layer none.")
        if kind not in GROWING and kind != "shared":
            raise self.refuse(f"what {names} keeps in a cache of kind {kind!r} is not known.")
        label = GROWING.get(kind, "shared")
        total = Memory()
        for name, block in self.blocks.items():
            one = self._block(block, name, label, None if encoder else window)
            if not encoder and _crosses(name, block):
                total = replace(total, cross_kv_elements_per_token=one.kv_elements_per_token)
            else:
                total = self._both(total, one)
        if encoder or label == "shared":
            total = replace(total, caches=())
        return total if total.attention == "latent" else replace(total, attention=label)

    def _both(self, total: Memory, one: Memory) -> Memory:
        """Several attention blocks of a layer as one, if they are alike."""
        if not total.caches:
            return replace(one, cross_kv_elements_per_token=total.cross_kv_elements_per_token)
        alike = [replace(m, caches=(), query_heads=0, cross_kv_elements_per_token=0, blocks=1) for m in (total, one)]
        if alike[0] != alike[1] or len(total.caches) != len(one.caches):
            raise self.refuse(f"attention blocks of different shapes: {', '.join(self.blocks)}.")
        caches = tuple(
            replace(a, elements=a.elements + b.elements, flops_per_pair=a.flops_per_pair + b.flops_per_pair)
            for a, b in zip(total.caches, one.caches, strict=True)
        )
        heads = total.query_heads + one.query_heads
        return replace(total, caches=caches, query_heads=heads, blocks=total.blocks + one.blocks)

    # one block

    def _block(self, block: torch.nn.Module, name: str, label: str, window: int | None) -> Memory:
        projections = {
            n: m for n, m in block.named_modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2
        }
        plain = {n.rpartition(".")[2]: m for n, m in projections.items() if INDEXER not in n and COMPRESSOR not in n}
        holder = _holder(block, plain)
        if (latent := first(plain, LATENT_WORDS)) is not None:
            whole = self._latent(out_features(latent), holder, name)
        elif self._one_for_both(plain, holder):
            whole = self._shared_key_value(plain, holder, name)
        else:
            whole = self._keys_and_values(plain, holder, name)
        main = replace(
            whole.caches[0],
            window=window,
            chunked=label == "chunked",
            flops_per_pair=2 * whole.query_heads * (whole.qk_head_dim + whole.v_head_dim),
        )
        indexer = _module(block, INDEXER)
        if label == "compressed":
            return replace(whole, caches=(main, *self._compressed(block, indexer, main, name)))
        if label == "indexed" or indexer is not None:
            main = replace(main, read_limit=self._read_limit(indexer, holder, name))
        index = () if indexer is None else (self._index(indexer, name),)
        return replace(whole, caches=(main, *index))

    def _latent(self, elements: int, holder: Any, name: str) -> Memory:
        """Multi-head latent attention: one compressed latent for the keys and values of all heads."""
        parts = [attribute((holder,), (word,)) for word in ("qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim")]
        qk = parts[0] if parts[0] is not None else (parts[1] or 0) + (parts[2] or 0)
        value = attribute((holder, self.config), ("v_head_dim",))
        heads = attribute((holder, self.config), HEADS_WORDS)
        if not (qk and value and heads):
            raise self.refuse(f"{name} compresses its KV but does not state its head dimensions.")
        return Memory("latent", (Cache(elements, heads=1),), heads, qk, value, 1)

    def _one_for_both(self, plain: Mapping[str, Any], holder: Any) -> bool:
        """Whether one projection of as many elements as a head (or all KV heads) has makes keys and values alike."""
        fused, heads = first(plain, FUSED_KV_WORDS), attribute((self.config,), KV_HEADS_WORDS)
        head_dim = attribute((holder, self.config), HEAD_DIM_WORDS)
        return fused is not None and None not in (heads, head_dim) and out_features(fused) == heads * head_dim  # type: ignore[operator]

    def _shared_key_value(self, plain: Mapping[str, Any], holder: Any, name: str) -> Memory:
        """Keys that are the values too: each kept once."""
        heads, head_dim = (
            attribute((holder, self.config), HEADS_WORDS),
            attribute((holder, self.config), HEAD_DIM_WORDS),
        )
        elements = out_features(first(plain, FUSED_KV_WORDS))
        if not heads or not head_dim:
            raise self.refuse(f"{name} does not state its heads.")
        kv_heads = elements // head_dim
        return Memory("full", (Cache(elements, heads=kv_heads),), heads, head_dim, head_dim, kv_heads)

    def _keys_and_values(self, plain: Mapping[str, Any], holder: Any, name: str) -> Memory:
        """Keys and values apart, by their projections' sizes."""
        head_dim = self._head_dim(holder, name)
        output = first(plain, OUTPUT_WORDS)
        keys, values = self._key_value_sizes(plain, output, name)
        kv_heads = keys // head_dim
        if not kv_heads or keys % head_dim or values % kv_heads or output is None:
            raise self.refuse(f"{name}: keys of {keys} and values of {values} do not divide into heads of {head_dim}.")
        v_dim, width = values // kv_heads, int(output.weight.shape[1])
        if width % v_dim:
            raise self.refuse(f"{name}: an output projection of {width} has no whole heads of {v_dim}.")
        heads = width // v_dim
        if heads % kv_heads:
            raise self.refuse(f"{name} has {heads} query heads, which do not divide among {kv_heads} KV heads.")
        return Memory("full", (Cache(keys + values, heads=kv_heads),), heads, head_dim, v_dim, kv_heads)

    def _head_dim(self, holder: Any, name: str) -> int:
        head_dim = attribute((holder, self.config), HEAD_DIM_WORDS)
        if head_dim is None:
            heads = attribute((holder, self.config), HEADS_WORDS)
            head_dim = self.hidden // heads if heads else None
        if not head_dim:
            raise self.refuse(f"{name} does not state the dimension of its heads.")
        return head_dim

    def _key_value_sizes(self, plain: Mapping[str, Any], output: Any, name: str) -> tuple[int, int]:
        key, value = first(plain, KEY_WORDS), first(plain, VALUE_WORDS)
        if key is not None:
            return out_features(key), out_features(value if value is not None else key)
        if (both := first(plain, FUSED_KV_WORDS)) is not None:
            return out_features(both) // 2, out_features(both) // 2
        if (fused := first(plain, FUSED_QKV_WORDS)) is not None and output is not None:
            size = (out_features(fused) - int(output.weight.shape[1])) // 2
            return size, size
        raise self.refuse(f"{name} keeps a KV cache, but its key and value projections could not be found.")

    # sparse and compressed attention

    def _index(self, indexer: torch.nn.Module, name: str) -> Cache:
        """The keys by which an indexer chooses, all of which it reads for every query."""
        words = {n.partition(".")[0] for n, _ in indexer.named_parameters()}
        if unknown := sorted(words - INDEXER_WORDS):
            raise self.refuse(f"what the indexer of {name} keeps beside its keys is not known ({', '.join(unknown)}).")
        head_dim, heads = attribute((indexer,), HEAD_DIM_WORDS), attribute((indexer,), INDEXER_HEADS_WORDS)
        key = first(dict(indexer.named_children()), INDEXER_KEY_WORDS)
        if not head_dim or not heads or key is None:
            raise self.refuse(f"the indexer of {name} does not state its heads or has no keys.")
        tokens = attribute((indexer,), COMPRESS_WORDS) or 1
        elements = head_dim if tokens > 1 else out_features(key)
        return Cache(elements, tokens=tokens, heads=1, flops_per_pair=2 * heads * head_dim, index=True)

    def _read_limit(self, indexer: Any, holder: Any, name: str) -> int:
        holders = [h for h in (indexer, holder, self.config) if h is not None]
        if limit := attribute(holders, READ_LIMIT_WORDS):
            return limit
        for blocks, size in READ_BLOCKS_WORDS:
            counts = attribute(holders, (blocks,)), attribute(holders, (size,))
            if counts[0] and counts[1]:
                return counts[0] * counts[1]
        raise self.refuse(f"{name} reads a part of its cache only, but nothing says how much.")

    def _compressed(self, block: torch.nn.Module, indexer: Any, main: Cache, name: str) -> tuple[Cache, ...]:
        """Beside the window: entries that each stand for a run of tokens, chosen by an indexer or read whole."""
        compressor = _module(block, COMPRESSOR)
        tokens = attribute((compressor,), COMPRESS_WORDS)
        elements = attribute((compressor,), HEAD_DIM_WORDS)
        if not tokens or not elements:
            raise self.refuse(f"{name} compresses runs of tokens, but does not say of how many, or to how much.")
        limit = None if indexer is None else self._read_limit(indexer, compressor, name)
        entries = replace(main, elements=elements, tokens=tokens, window=None, read_limit=limit)
        return (entries,) if indexer is None else (entries, self._index(indexer, name))

    # constant state

    def _constant_state(self, kind: str) -> Memory:
        import torch

        conv = recurrent = 0
        for name, block in self.blocks.items():
            for module in block.modules():
                if isinstance(module, torch.nn.Conv1d):
                    conv += module.out_channels * module.kernel_size[0]
            if kind == "conv":
                continue
            for words in STATE_WORDS:
                values = [getattr(block, word, None) for word in words]
                if all(isinstance(v, int) for v in values):
                    recurrent += prod(v for v in values if isinstance(v, int))
                    break
            else:
                raise self.refuse(f"{name} keeps a recurrent state whose dimensions could not be read.")
        if not self.blocks:
            raise self.refuse(f"the cache has {kind!r} for this layer, but no block of it takes a cache.")
        return Memory("linear", recurrent_elements=recurrent, conv_elements=conv)


def _crosses(name: str, block: torch.nn.Module) -> bool:
    """Whether a block attends to an encoder's output."""
    plain = name.lower()
    spelt = (plain, plain.replace("_", "").replace("attention", "attn"))
    return any(word in s for word in CROSS_WORDS for s in spelt) or any(
        "cross" in type(m).__name__.lower() for m in block.modules()
    )


def _module(block: torch.nn.Module, word: str) -> Any:
    """The first module below a block that is called by a word, None if it has none."""
    return next(
        (m for n, m in block.named_modules() if n.rpartition(".")[2] == word and any(True for _ in m.parameters())),
        None,
    )


def _holder(block: torch.nn.Module, projections: Mapping[str, torch.nn.Module]) -> torch.nn.Module:
    """The module that owns the projections: an attention block may be wrapped with its norms."""
    wanted = {id(m) for m in projections.values()}
    return max(block.modules(), key=lambda m: sum(id(c) in wanted for c in m.children()))
