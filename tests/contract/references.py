"""Attention as its papers write it, in loops over heads and positions: what a mechanism is held to.

Each takes `(weights, hidden_states [B, T, D], settings)` and returns `[B, T, D]`, in the precision of what it is given.
`weights` are by their names in a layer; `settings` hold `num_heads`, the mechanism's options, `rotary`, `interleaved`
and `theta`. They share no code with the package.
"""

import torch


def gta(weights: dict, hidden_states: torch.Tensor, settings: dict) -> torch.Tensor:
    """Grouped-tied attention (Zadouri et al. 2025, 2505.21487)."""
    heads, groups, width = (settings[name] for name in ("num_heads", "num_key_value_heads", "head_dim"))
    half = width // 2 if settings["rotary"] else 0
    output = torch.zeros_like(hidden_states)
    for b, h in enumerate(hidden_states):
        tied = (h @ weights["kv_proj.weight"].T).reshape(-1, groups, width)
        for t in range(len(h)):
            read = []
            for i in range(heads):
                g = i * groups // heads
                query = weights["q_proj.weight"][i * width : (i + 1) * width] @ h[t]
                query = torch.cat([query[: width - half], turned(query[width - half :], t, settings)])
                scores = []
                for s in range(t + 1):
                    key = tied[s, g, : width - half]
                    if half:
                        key = torch.cat([key, turned(weights["k_rope_proj.weight"] @ h[s], s, settings)])
                    scores.append(query @ key / width**0.5)
                read.append(torch.softmax(torch.stack(scores), dim=0) @ tied[: t + 1, g])
            output[b, t] = weights["o_proj.weight"] @ torch.cat(read)
    return output


def gla(weights: dict, hidden_states: torch.Tensor, settings: dict) -> torch.Tensor:
    """Grouped latent attention (Zadouri et al. 2025, 2505.21487): head i reads part i // (H / n) of the latent."""
    parts = settings["num_latent_groups"]
    heads_of_part, part_rank = settings["num_heads"] // parts, settings["kv_lora_rank"] // parts
    nope, value = settings["qk_nope_head_dim"], settings["v_head_dim"]
    output = torch.zeros_like(hidden_states)
    for b, h in enumerate(hidden_states):
        compressed = h @ weights["kv_a_proj_with_mqa.weight"].T
        rotary_keys = [turned(compressed[s, settings["kv_lora_rank"] :], s, settings) for s in range(len(h))]
        for t in range(len(h)):
            read = []
            for i in range(settings["num_heads"]):
                g, place = i // heads_of_part, i % heads_of_part
                up = weights[f"kv_b_proj.{g}.weight"][place * (nope + value) : (place + 1) * (nope + value)]
                scores, values = [], []
                for s in range(t + 1):
                    latent = compressed[s, g * part_rank : (g + 1) * part_rank]
                    latent = latent / (latent.square().mean() + 1e-6).sqrt() * weights[f"kv_a_layernorm.{g}.weight"]
                    key = torch.cat([up[:nope] @ latent, rotary_keys[s]])
                    scores.append(latent_query(weights, h[t], i, t, settings) @ key / len(key) ** 0.5)
                    values.append(up[nope:] @ latent)
                read.append(torch.softmax(torch.stack(scores), dim=0) @ torch.stack(values))
            output[b, t] = weights["o_proj.weight"] @ torch.cat(read)
    return output


def mlra(weights: dict, hidden_states: torch.Tensor, settings: dict) -> torch.Tensor:
    """Multi-head low-rank attention (2603.02188): every head reads each branch of the latent, and sums."""
    branches, rank = settings["num_branches"], settings["kv_lora_rank"]
    nope, value, part = settings["qk_nope_head_dim"], settings["v_head_dim"], rank // branches
    output = torch.zeros_like(hidden_states)
    for b, h in enumerate(hidden_states):
        compressed = h @ weights["kv_a_proj_with_mqa.weight"].T
        latents = compressed[:, :rank]
        latents = latents / (latents.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["kv_a_layernorm.weight"]
        rotary_keys = [turned(compressed[s, rank:], s, settings) for s in range(len(h))]
        for t in range(len(h)):
            read = []
            for i in range(settings["num_heads"]):
                query, total = latent_query(weights, h[t], i, t, settings), torch.zeros(value, dtype=h.dtype)
                for j in range(branches):
                    up = weights[f"kv_b_proj.{j}.weight"][i * (nope + value) : (i + 1) * (nope + value)]
                    branch = latents[:, j * part : (j + 1) * part]
                    keys = [torch.cat([up[:nope] @ branch[s], rotary_keys[s]]) for s in range(t + 1)]
                    scores = torch.stack([query @ key / len(key) ** 0.5 for key in keys])
                    values = torch.stack([up[nope:] @ branch[s] for s in range(t + 1)])
                    total = total + torch.softmax(scores, dim=0) @ values
                read.append(total / branches**0.5)
            output[b, t] = weights["o_proj.weight"] @ torch.cat(read)
    return output


def latent_query(weights: dict, h: torch.Tensor, head: int, position: int, settings: dict) -> torch.Tensor:
    """MLA's query of one head at one position: content, then the part that is turned."""
    nope = settings["qk_nope_head_dim"]
    width = nope + settings["qk_rope_head_dim"]
    rows = slice(head * width, (head + 1) * width)
    if settings["q_lora_rank"] is None:
        query = weights["q_proj.weight"][rows] @ h
    else:
        latent = weights["q_a_proj.weight"] @ h
        latent = latent / (latent.square().mean() + 1e-6).sqrt() * weights["q_a_layernorm.weight"]
        query = weights["q_b_proj.weight"][rows] @ latent
    return torch.cat([query[:nope], turned(query[nope:], position, settings)])


def turned(x: torch.Tensor, position: int, settings: dict) -> torch.Tensor:
    """RoPE: pair i turns by position · theta^(-2i / d); which two numbers are pair i is a matter of layout."""
    pairs = len(x) // 2
    result = x.clone()
    for i in range(pairs):
        one, two = (2 * i, 2 * i + 1) if settings["interleaved"] else (i, i + pairs)
        angle = torch.tensor(position * settings["theta"] ** (-2 * i / len(x)), dtype=torch.float64)
        result[one] = x[one] * angle.cos() - x[two] * angle.sin()
        result[two] = x[two] * angle.cos() + x[one] * angle.sin()
    return result
