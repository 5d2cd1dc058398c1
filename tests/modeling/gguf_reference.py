"""What llama.cpp computes from a GGUF file, written out in float64: its graphs of llama, qwen2, qwen3 and deepseek2.

Held to the real one by `tests/clients.py`, which is not run every time.
"""

import math

import gguf
import numpy as np


class File:
    """Fields by their names without the architecture, tensors in float64."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.architecture = self.fields["general.architecture"]
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }

    def __call__(self, name, default=None):
        return self.fields.get(f"{self.architecture}.{name}", default)


def norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def factors(file, log_mul):
    """Return the factor on cosines and sines, as the constructor of a context makes it, before `rope_yarn`."""
    growth = 0.1 * math.log(file("rope.scaling.factor", 1.0))
    made = 1.0
    if file("rope.scaling.type") == "yarn":
        made = (1.0 if log_mul else 1 + growth) / (1 + growth)
    return made * file("rope.scaling.attn_factor", 1.0), growth


def turned(x, file, scale):
    """Rotate `[H, T, D]` as `ggml_rope_ext` does: neighbours, or halves in a Qwen."""
    dim, base = x.shape[-1], file("rope.freq_base", 10_000.0)
    angles = np.arange(x.shape[1])[:, None] * base ** (-np.arange(0, dim, 2) / dim)  # [T, D / 2]
    angles = angles / file.tensors.get("rope_freqs.weight", np.ones(dim // 2))
    factor = file("rope.scaling.factor", 1.0)
    if file("rope.scaling.type") == "yarn":
        context = file("rope.scaling.original_context_length")
        ends = [
            dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (file("rope.scaling.yarn_beta_fast", 32.0), file("rope.scaling.yarn_beta_slow", 1.0))
        ]
        low, high = max(0, math.floor(ends[0])), min(dim - 1, math.ceil(ends[1]))
        kept = 1 - np.clip((np.arange(dim // 2) - low) / max(0.001, high - low), 0, 1)
        angles = angles / factor * (1 - kept) + angles * kept
        scale = scale * (1 + 0.1 * math.log(factor))
    else:
        angles = angles / factor
    cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
    halves = file.architecture.startswith("qwen")
    first, second = np.split(x, 2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    pairs = (first * cos - second * sin, first * sin + second * cos)
    return np.concatenate(pairs, -1) if halves else np.stack(pairs, -1).reshape(x.shape)


def attended(query, key, value, scale):
    """Causal attention of `[H, T, D]`; keys and values are shared by neighbouring heads."""
    shared = query.shape[0] // key.shape[0]
    key, value = key.repeat(shared, 0), value.repeat(shared, 0)
    scores = query @ key.swapaxes(1, 2) * scale
    scores = np.where(np.tri(scores.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def heads(flat, count):
    return flat.reshape(flat.shape[0], count, -1).swapaxes(0, 1)


def full_attention(x, file, layer):
    """`build_attn` of llama, qwen2, qwen3."""
    count, groups = file("attention.head_count"), file("attention.head_count_kv")
    q, k, v = (x @ layer[f"attn_{part}.weight"].T + layer.get(f"attn_{part}.bias", 0.0) for part in "qkv")
    q, k, v = heads(q, count), heads(k, groups), heads(v, groups)
    if "attn_q_norm.weight" in layer:
        eps = file("attention.layer_norm_rms_epsilon")
        q, k = norm(q, layer["attn_q_norm.weight"], eps), norm(k, layer["attn_k_norm.weight"], eps)
    scale, _ = factors(file, 0.0)
    q, k = turned(q, file, scale), turned(k, file, scale)
    return attended(q, k, v, file("attention.key_length") ** -0.5)


def latent_attention(x, file, layer):
    """deepseek2, absorbed: one key of latent and rotary part, of which the latent is the value."""
    rank, rotary, count = file("attention.kv_lora_rank"), file("rope.dimension_count"), file("attention.head_count")
    eps, width = file("attention.layer_norm_rms_epsilon"), file("attention.key_length_mla")
    log_mul = file("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    scale, growth = factors(file, log_mul)
    if file("attention.q_lora_rank"):
        q = norm(x @ layer["attn_q_a.weight"].T, layer["attn_q_a_norm.weight"], eps) @ layer["attn_q_b.weight"].T
    else:
        q = x @ layer["attn_q.weight"].T
    q = heads(q, count)
    compressed = x @ layer["attn_kv_a_mqa.weight"].T
    latent = norm(compressed[:, :rank], layer["attn_kv_a_norm.weight"], eps)
    k_rope = turned(compressed[None, :, rank:], file, scale)
    folded = q[..., : width - rotary] @ layer["attn_k_b.weight"].swapaxes(1, 2)  # [H, T, d_c]
    q = np.concatenate((folded, turned(q[..., width - rotary :], file, scale)), -1)
    key = np.concatenate((latent[None], k_rope), -1)
    mscale = scale * (1 + growth) * (1 + growth * log_mul)
    return attended(q, key, latent[None], mscale**2 / width**0.5) @ layer["attn_v_b.weight"].swapaxes(1, 2)


def logits(path, tokens):
    """Return logits `[T, vocabulary]` of tokens `[T]`."""
    file = File(path)
    eps = file("attention.layer_norm_rms_epsilon")
    attention = latent_attention if file.architecture == "deepseek2" else full_attention
    x = file.tensors["token_embd.weight"][tokens]
    for number in range(file("block_count")):
        begin = f"blk.{number}."
        layer = {name.removeprefix(begin): t for name, t in file.tensors.items() if name.startswith(begin)}
        mixed = attention(norm(x, layer["attn_norm.weight"], eps), file, layer)
        x = x + mixed.swapaxes(0, 1).reshape(len(tokens), -1) @ layer["attn_output.weight"].T
        h = norm(x, layer["ffn_norm.weight"], eps)
        gate = h @ layer["ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["ffn_up.weight"].T)) @ layer["ffn_down.weight"].T
    x = norm(x, file.tensors["output_norm.weight"], eps)
    return x @ file.tensors.get("output.weight", file.tensors["token_embd.weight"]).T
