"""A tiny config for every causal class that transformers has."""

import dataclasses
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

# Fields by value. Architectures name the same thing differently; a field that a config lacks is left out.
_SMALL = {
    259: "vocab_size encoder_vocab_size decoder_vocab_size vocab_size_per_layer_input",
    32: "hidden_size d_model n_embd dim emb_dim n_embed embedding_size d_embed output_hidden_size hidden_size_global",
    48: "intermediate_size n_inner ffn_dim ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dff d_ff ffn_size dim_ff"
    " moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size feed_forward_size"
    " shared_intermediate_size expert_ffn_hidden_size",
    512: "max_position_embeddings n_positions n_ctx max_seq_len",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts"
    " num_encoder_attention_heads num_decoder_attention_heads num_local_experts n_routed_experts moe_num_experts"
    " qk_rope_head_dim qk_nope_head_dim mamba_n_heads",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers num_blocks"
    " num_decoder_layers num_key_value_heads num_kv_heads num_query_groups num_experts_per_tok moe_topk moe_k"
    " zero_expert_num",
    8: "head_dim kv_lora_rank q_lora_rank v_head_dim state_size rotary_dim attention_head_size sliding_window dim_head"
    " mamba_d_state mamba_chunk_size chunk_size linear_head_dim",
    16: "mamba_d_head",
    1: "n_group topk_group bos_token_id n_groups",
    0: "pad_token_id num_kv_shared_layers",
}
_VALUES: dict[str, Any] = {name: value for value, names in _SMALL.items() for name in names.split()}
_VALUES |= {"eos_token_id": 2, "is_decoder": True, "use_cache": True}
_EQUAL_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
_MULTI_LATENT = {"axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text"}
_MULTI_LATENT |= {"glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"}
# What a config class demands beyond that, by model type.
_OF_TYPE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_MULTI_LATENT, _EQUAL_HEADS),
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": _EQUAL_HEADS,
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": _EQUAL_HEADS | {"head_dim": 4},
    "mamba2": {"head_dim": 16, "expand": 2},
    "moshi": {"audio_vocab_size": 259},
    "reformer": {"axial_pos_shape": [16, 32], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"]},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "attn_layer_period": 1, "attn_layer_offset": 0},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A config with two layers of width 32 for 259 tokens, and everything else that has a size small too."""
    return _tiny(CONFIG_MAPPING[model_type], _OF_TYPE.get(model_type, {}))


def _tiny(config: type[PreTrainedConfig], given: dict[str, Any]) -> PreTrainedConfig:
    names = {field.name for field in dataclasses.fields(config)}
    values = {name: value for name, value in _VALUES.items() if name in names}
    for name, part in _parts(config).items():
        values[name] = _tiny(part, given.get(name, {})).to_dict()
    return config(**values | {name: value for name, value in given.items() if name not in _parts(config)})


def _parts(config: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """The classes of a config's own configs, such as those of a text and a vision model."""
    names = {field.name for field in dataclasses.fields(config)}
    parts = {name: part for name, part in config.sub_configs.items() if part is not AutoConfig}
    for name, part in getattr(config, "sub_configs_defaults", {}).items():
        if getattr(part, "model_type", None):
            parts[name] = CONFIG_MAPPING[part.model_type]
    return {name: part for name, part in parts.items() if name in names}
