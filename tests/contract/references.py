"""Mechanisms recomputed from their papers' equations alone, a head and a position at a time, in float64.

Each takes the weights of a layer by their names, hidden states `[B, T, D]`, and settings: the layer's options,
`num_heads`, `rope_theta` (None without RoPE) and `rope_interleave`. Each returns `[B, T, D]` and needs nothing else.
"""

import math

import torch


def tpa(weights: dict[str, torch.Tensor], hidden_states: torch.Tensor, settings: dict) -> torch.Tensor:
    """Tensor product attention: Zhang et al. 2025, arXiv 2501.06425, eq. 3.1-3.6."""
    heads, width = settings["num_heads"], settings["head_dim"]

    def turned(b, position):
        if settings["rope_theta"] is None:
            return b
        b, half = b.clone(), width // 2
        for pair in range(half):
            first, second = (2 * pair, 2 * pair + 1) if settings["rope_interleave"] else (pair, pair + half)
            angle = position * settings["rope_theta"] ** (-2 * pair / width)
            x, y = b[first].item(), b[second].item()
            b[first] = x * math.cos(angle) - y * math.sin(angle)
            b[second] = y * math.cos(angle) + x * math.sin(angle)
        return b

    def matrix_of(which, h, rank, position):
        """1/R Σ_r a_r ⊗ b_r, a head a row; a projection's rows are a_1, b_1, a_2, b_2, ..."""
        flat, total = weights[f"{which}_proj.weight"] @ h, torch.zeros(heads, width, dtype=torch.float64)
        for r in range(rank):
            factors = flat[r * (heads + width) : (r + 1) * (heads + width)]
            a, b = factors[:heads], factors[heads:]
            total += torch.outer(a, b if which == "v" else turned(b, position))
        return total / rank

    output = torch.zeros_like(hidden_states)
    for row, states in enumerate(hidden_states):
        keys = [matrix_of("k", h, settings["kv_rank"], s) for s, h in enumerate(states)]
        values = [matrix_of("v", h, settings["kv_rank"], s) for s, h in enumerate(states)]
        for t, h in enumerate(states):
            query, read = matrix_of("q", h, settings["q_rank"], t), []
            for i in range(heads):
                scores = torch.stack([query[i] @ keys[s][i] / math.sqrt(width) for s in range(t + 1)])
                shares = scores.exp() / scores.exp().sum()
                read.append(sum(shares[s] * values[s][i] for s in range(t + 1)))
            output[row, t] = weights["o_proj.weight"] @ torch.cat(read)
    return output


def mfa(weights: dict[str, torch.Tensor], hidden_states: torch.Tensor, settings: dict) -> torch.Tensor:
    """Multi-matrix factorisation attention: Hu et al. 2024, arXiv 2412.19255, with Step-3's norm of the latent."""
    heads, width = settings["num_heads"], settings["head_dim"]

    def turned(x, position):
        if settings["rope_theta"] is None:
            return x
        x, half = x.clone(), width // 2
        for pair in range(half):
            first, second = (2 * pair, 2 * pair + 1) if settings["rope_interleave"] else (pair, pair + half)
            angle = position * settings["rope_theta"] ** (-2 * pair / width)
            a, b = x[first].item(), x[second].item()
            x[first] = a * math.cos(angle) - b * math.sin(angle)
            x[second] = b * math.cos(angle) + a * math.sin(angle)
        return x

    def latent_of(h):
        latent = weights["q_a_proj.weight"] @ h
        size = math.sqrt(sum(number.item() ** 2 for number in latent) / len(latent) + settings["rms_norm_eps"])
        return weights["q_a_layernorm.weight"] * latent / size

    output = torch.zeros_like(hidden_states)
    for row, states in enumerate(hidden_states):
        keys = [turned(weights["k_proj.weight"] @ h, s) for s, h in enumerate(states)]
        values = [weights["v_proj.weight"] @ h for h in states]
        for t, h in enumerate(states):
            total = torch.zeros(hidden_states.shape[-1], dtype=torch.float64)
            for i in range(heads):
                rows = slice(i * width, (i + 1) * width)
                query = turned(weights["q_b_proj.weight"][rows] @ latent_of(h), t)
                scores = torch.stack([query @ keys[s] / math.sqrt(width) for s in range(t + 1)])
                shares = scores.exp() / scores.exp().sum()
                read = sum(shares[s] * values[s] for s in range(t + 1))
                total += weights["o_proj.weight"][:, rows] @ read
            output[row, t] = total
    return output
