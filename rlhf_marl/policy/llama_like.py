"""What the straight-line decoders know of Llama-like models: which they are, and where their linear layers lie."""

from typing import Any

from torch import Tensor, nn

from rlhf_marl.policy.adapters import StackedLinear
from rlhf_marl.policy.prefix_cache import sees_all

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")


def is_llama_like(model: Any) -> bool:
    """Whether every layer is pre-norm, with full causal attention and a gated SiLU MLP."""
    return type(model).__name__ in _ARCHITECTURES and model.config.hidden_act == "silu" and sees_all(model)


def groups_of(layer: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """A layer's linear layers, those together that read the same input: query key value, output, gate up, down."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    )


def norms_of(layer: Any) -> tuple[Tensor, Tensor]:
    """The weights of the norms before a layer's attention and before its MLP."""
    return layer.input_layernorm.weight, layer.post_attention_layernorm.weight


def linears_of(model: Any) -> list[nn.Module]:
    """The linear layers of all groups, without adapters."""
    return [base_of(part) for layer in model.model.layers for group in groups_of(layer) for part in group]


def base_of(layer: nn.Module) -> Any:
    """The layer without adapters."""
    return layer.base if isinstance(layer, StackedLinear) else layer


def head_size(model: Any) -> int:
    config = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
