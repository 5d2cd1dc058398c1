"""What each mechanism computes, from its paper's equations: plain loops over sequences, positions and heads.

Nothing is shared with the package but the names of the weights. Each takes weights by name, hidden states `[B, T, D]`
and the settings that `mla_experiments.testing.check_attention` documents, and returns `[B, T, D]`.
"""

import math

import torch


def turned(x, position, settings):
    """RoFormer, eq. 15: each pair of numbers turns by its own angle."""
    half = len(x) // 2
    result = x.clone()
    for pair in range(half):
        first, second = (2 * pair, 2 * pair + 1) if settings["rope_interleave"] else (pair, pair + half)
        angle = position * settings["rope_theta"] ** (-2 * pair / len(x))
        result[first] = x[first] * math.cos(angle) - x[second] * math.sin(angle)
        result[second] = x[second] * math.cos(angle) + x[first] * math.sin(angle)
    return result


def normed(x, weight, eps):
    """Zhang and Sennrich 2019, RMSNorm, eq. 4."""
    return x / math.sqrt(float((x * x).mean()) + eps) * weight


def mixed(query, keys, values, scale):
    """Scaled dot-product attention of one query."""
    scores = [float(query @ key) * scale for key in keys]
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    total = sum(weights)
    return sum(weight / total * value for weight, value in zip(weights, values, strict=True))


def each_sequence(attend):
    """Turn a function of one sequence `[T, D]` into one of a batch."""

    def attend_batch(weights, hidden_states, settings):
        with torch.no_grad():
            return torch.stack([attend(weights, sequence, settings) for sequence in hidden_states])

    return attend_batch


@each_sequence
def grouped(weights, hidden_states, settings):
    """Ainslie et al. 2023, GQA, §2.2; with as many groups as heads MHA, with one MQA."""
    heads, groups, width = (settings[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    rows = []
    for now in range(len(hidden_states)):
        outputs = []
        for head in range(heads):
            group = head // (heads // groups)

            def part(name, place, index):
                vector = weights[f"{name}.weight"][index * width : (index + 1) * width] @ hidden_states[place]
                return turned(vector, place, settings) if settings["rotary"] and name != "v_proj" else vector

            keys = [part("k_proj", place, group) for place in range(now + 1)]
            values = [part("v_proj", place, group) for place in range(now + 1)]
            outputs.append(mixed(part("q_proj", now, head), keys, values, width**-0.5))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def mla(weights, hidden_states, settings):
    """DeepSeek-V2, §2.1.2-2.1.3, eq. 9-19."""
    heads, rank, content, rotary, width = (
        settings[name]
        for name in ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )

    def turned_end(vector, place):
        return torch.cat((vector[:content], turned(vector[content:], place, settings))) if rotary else vector

    def compressed(place):
        both = weights["kv_a_proj_with_mqa.weight"] @ hidden_states[place]
        latent = normed(both[:rank], weights["kv_a_layernorm.weight"], 1e-6)
        return latent, turned(both[rank:], place, settings)

    cached = [compressed(place) for place in range(len(hidden_states))]
    rows = []
    for now in range(len(hidden_states)):
        outputs = []
        for head in range(heads):
            up = weights["kv_b_proj.weight"][head * (content + width) : (head + 1) * (content + width)]
            query = weights["q_proj.weight"][head * (content + rotary) : (head + 1) * (content + rotary)]
            keys = [torch.cat((up[:content] @ latent, shared)) for latent, shared in cached[: now + 1]]
            values = [up[content:] @ latent for latent, _ in cached[: now + 1]]
            asked = turned_end(query @ hidden_states[now], now)
            outputs.append(mixed(asked, keys, values, (content + rotary) ** -0.5))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def tpa(weights, hidden_states, settings):
    """Zhang et al. 2025, Tensor Product Attention, eq. 3.1-3.5."""
    heads, width = settings["num_attention_heads"], settings["head_dim"]

    def of_heads(name, rank, place):
        """1/R Σ_r a_r ⊗ b_r, a row for each head; a projection gives a_1, b_1, a_2, b_2, ..."""
        total = torch.zeros(heads, width, dtype=hidden_states.dtype)
        for r in range(rank):
            rows = weights[f"{name}.weight"][r * (heads + width) : (r + 1) * (heads + width)]
            a, b = rows[:heads] @ hidden_states[place], rows[heads:] @ hidden_states[place]
            if settings["rotary"] and name != "v_proj":
                b = turned(b, place, settings)
            total += torch.outer(a, b) / rank
        return total

    cached = [
        [of_heads(name, settings["kv_rank"], place) for place in range(len(hidden_states))]
        for name in ("k_proj", "v_proj")
    ]
    rows = []
    for now in range(len(hidden_states)):
        queries, outputs = of_heads("q_proj", settings["q_rank"], now), []
        for head in range(heads):
            keys, values = ([one[head] for one in part[: now + 1]] for part in cached)
            outputs.append(mixed(queries[head], keys, values, width**-0.5))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def mfa(weights, hidden_states, settings):
    """Hu et al. 2024, Multi-matrix Factorization Attention, with Step-3's norm of the latent of the queries."""
    heads, width = settings["num_attention_heads"], settings["head_dim"]

    def placed(vector, place):
        return turned(vector, place, settings) if settings["rotary"] else vector

    keys = [placed(weights["k_proj.weight"] @ state, place) for place, state in enumerate(hidden_states)]
    values = [weights["v_proj.weight"] @ state for state in hidden_states]
    rows = []
    for now, state in enumerate(hidden_states):
        latent = normed(weights["q_a_proj.weight"] @ state, weights["q_a_layernorm.weight"], settings["rms_norm_eps"])
        outputs = []
        for head in range(heads):
            query = placed(weights["q_b_proj.weight"][head * width : (head + 1) * width] @ latent, now)
            outputs.append(mixed(query, keys[: now + 1], values[: now + 1], width**-0.5))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


REFERENCES = {"mha": grouped, "gqa": grouped, "mqa": grouped, "mla": mla, "tpa": tpa, "mfa": mfa}
