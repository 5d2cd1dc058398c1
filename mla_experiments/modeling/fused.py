"""Phi-3 (Abdin et al. 2024): a Llama whose queries, keys and values are one matrix, and so are the gate and its input.

Rows of all queries, of all keys and of all values stand one after another, and rows of the gate before those of the
input that it gates (transformers' `Phi3Attention`, `Phi3MLP`).
"""

import torch

from .configuration import DecoderConfig

QKV, QUERIES_KEYS_VALUES = "self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP, GATE_AND_UP = "mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")
FUSED = {QKV: QUERIES_KEYS_VALUES, GATE_UP: GATE_AND_UP}
MODELS = ("phi3",)


def fused_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights by the names that Phi-3 has, from those of a Llama."""
    fused = {}
    for name, shape in shapes.items():
        whole = next((whole for whole, parts in FUSED.items() for part in parts if f"{part}." in name), None)
        if whole is None:
            fused[name] = shape
            continue
        place = name.index(whole.split(".")[0])
        joined = f"{name[:place]}{whole}.weight"
        rows = fused.get(joined, (0,))[0]
        fused[joined] = (rows + shape[0], *shape[1:])
    return fused


def taken_apart(weights: dict[str, torch.Tensor], config: DecoderConfig) -> dict[str, torch.Tensor]:
    """Return weights of Phi-3, or some of them, by the names of a Llama.

    Args:
        weights: by name.
        config: of the model as one of ours.
    """
    width, groups = (config.attention_options[name] for name in ("head_dim", "num_key_value_heads"))
    sizes = {
        QKV: [config.num_attention_heads * width, groups * width, groups * width],
        GATE_UP: [config.intermediate_size] * 2,
    }
    apart = {}
    for name, weight in weights.items():
        whole = next((whole for whole in FUSED if f"{whole}." in name), None)
        if whole is None:
            apart[name] = weight
            continue
        for part, rows in zip(FUSED[whole], weight.split(sizes[whole]), strict=True):
            apart[name.replace(whole, part)] = rows.contiguous()
    return apart
