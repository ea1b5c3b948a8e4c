"""The words that transformers uses across families of models, for modules and config keys: data, no model's name."""

from __future__ import annotations

#: The module that holds the routed experts.
EXPERT_WORDS = {"experts"}
#: The last parts of a router's name; a projection from hidden size to the number of experts is one in any case.
ROUTER_WORDS = {"gate", "router", "expert_bias", "e_score_correction_bias"}
#: Part of the name of experts that every token uses.
SHARED_WORD = "shared"
#: A block that takes one of these arguments keeps state between tokens: attention of some kind.
CACHE_ARGUMENTS = {"past_key_values", "past_key_value", "cache_params", "layer_past"}
#: How modules and configs call the number of routed experts, and how many a token uses.
EXPERTS_WORDS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K_WORDS = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "num_selected_experts",
)
#: How configs call choices of the router that compute nothing.
ZERO_EXPERTS_WORDS = ("zero_expert_num", "num_zero_experts")
#: How configs call the layers of multi-token prediction that a checkpoint has after its last one.
EXTRA_LAYER_WORDS = ("num_nextn_predict_layers", "num_mtp_modules", "num_mtp_layers", "mtp_num_hidden_layers")
#: Config switches that turn a family's experts off.
MOE_FLAGS = ("is_moe", "enable_moe_block")
#: How configs call the dtype of a recurrent state.
STATE_DTYPE_WORDS = ("mamba_ssm_dtype", "mamba_ssm_cache_dtype", "ssm_cache_dtype")
#: More than this share of a model in leftovers is refused, not counted as ``other``.
OTHER_LIMIT = 0.1

#: Projections whose output the KV cache keeps: keys and values apart, both in one, or a compressed latent (MLA).
KEY_WORDS = ("k_proj", "k", "key")
VALUE_WORDS = ("v_proj", "v", "value")
FUSED_QKV_WORDS = ("qkv_proj", "Wqkv", "query_key_value", "c_attn")
FUSED_KV_WORDS = ("kv_proj",)
LATENT_WORDS = ("kv_a_proj_with_mqa",)
#: The module that chooses what sparse attention reads, the projections that make its cached key, and its other words.
INDEXER = "indexer"
INDEXER_KEY_WORDS = ("wk", "k_proj", "kv_proj")
INDEXER_WORDS = {
    *INDEXER_KEY_WORDS,
    "wq_b", "q_proj", "q_b_proj", "k_norm", "q_norm", "kv_norm", "weights_proj", "gate_proj", "position_bias", "scorer",
}  # fmt: skip
INDEXER_HEADS_WORDS = ("n_heads", "num_heads", "index_n_heads")
#: How many entries a query reads: so many, or so many blocks of so many.
READ_LIMIT_WORDS = ("index_topk",)
READ_BLOCKS_WORDS = (("topk_blocks", "block_size"), ("index_topk_blocks", "index_block_size"))
#: The module that turns runs of tokens into one entry, and how it states their length.
COMPRESSOR = "compressor"
COMPRESS_WORDS = ("compress_rate", "compress_ratio")
#: Projections into a latent that all heads share: tensor parallelism keeps them whole on every rank.
SHARED_LATENT_WORDS = {"q_a_proj", "kv_a_proj_with_mqa", INDEXER, COMPRESSOR}
OUTPUT_WORDS = ("o_proj", "out_proj", "o", "dense")
HEADS_WORDS = ("num_heads", "num_attention_heads")
KV_HEADS_WORDS = ("num_key_value_heads", "kv_n_heads")
HEAD_DIM_WORDS = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv")
CROSS_WORDS = ("cross", "encdec", "encoder_attn")
#: Kinds of cache whose growth per token follows from the projections, and what the anatomy calls them.
GROWING = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "indexed_attention": "indexed",
    "compressed_sparse_attention": "compressed",
    "heavily_compressed_attention": "compressed",
    "minimax_m3_sparse": "indexed",
}
CONSTANT = {"linear_attention", "conv"}
NO_CACHE = {"moe", "mlp"}
#: How linear-attention modules call the dimensions of their recurrent state: the first line whose names are all there.
STATE_WORDS = (
    ("num_v_heads", "head_k_dim", "head_v_dim"),
    ("num_heads", "head_k_dim", "head_v_dim"),
    ("num_heads", "head_dim", "ssm_state_size"),
    ("n_heads", "head_dim", "ssm_state_size"),
    ("intermediate_size", "ssm_state_size"),
    ("num_attention_heads", "head_dim", "head_dim"),
    ("num_heads", "head_dim", "head_dim"),
)
