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
def gta(weights, hidden_states, settings):
    """Zadouri et al. 2025, Hardware-Efficient Attention for Fast Decoding, GTA: half a key is half of the value."""
    heads, groups, width = (settings[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    tied_width = width // 2 if settings["rotary"] else width
    rows = []
    for now in range(len(hidden_states)):
        outputs = []
        for head in range(heads):
            group = head // (heads // groups)
            own = weights["kv_proj.weight"][group * width : (group + 1) * width]
            values = [own @ hidden_states[place] for place in range(now + 1)]
            keys = [value[:tied_width] for value in values]
            query = weights["q_proj.weight"][head * width : (head + 1) * width] @ hidden_states[now]
            if settings["rotary"]:
                ends = [weights["k_rope_proj.weight"] @ hidden_states[place] for place in range(now + 1)]
                keys = [torch.cat((key, turned(ends[s], s, settings))) for s, key in enumerate(keys)]
                query = torch.cat((query[:tied_width], turned(query[tied_width:], now, settings)))
            outputs.append(mixed(query, keys, values, width**-0.5))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def gla(weights, hidden_states, settings):
    """Zadouri et al. 2025, Hardware-Efficient Attention for Fast Decoding, GLA: a head reads its part of the latent."""
    heads, parts, rank = (settings[name] for name in ("num_attention_heads", "num_latent_groups", "kv_lora_rank"))
    per_part, part_rank = heads // parts, rank // parts
    compressed = [weights["kv_a_proj_with_mqa.weight"] @ state for state in hidden_states]
    rows = []
    for now in range(len(hidden_states)):
        outputs = []
        for head in range(heads):
            part = head // per_part
            norm, up = weights[f"kv_a_layernorm.{part}.weight"], weights[f"kv_b_proj.{part}.weight"]
            latents = [
                normed(both[part * part_rank : (part + 1) * part_rank], norm, 1e-6) for both in compressed[: now + 1]
            ]
            ends = [turned(both[rank:], place, settings) for place, both in enumerate(compressed[: now + 1])]
            outputs.append(
                read_latents(weights, hidden_states, settings, now, head, latents, ends, up, head % per_part)
            )
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def mlra(weights, hidden_states, settings):
    """Liu et al. 2026, Multi-Head Low-Rank Attention: a head reads every branch of the latent, and sums."""
    heads, branches, rank = (settings[name] for name in ("num_attention_heads", "num_branches", "kv_lora_rank"))
    part = rank // branches
    compressed = [weights["kv_a_proj_with_mqa.weight"] @ state for state in hidden_states]
    latents = [normed(both[:rank], weights["kv_a_layernorm.weight"], 1e-6) for both in compressed]
    ends = [turned(both[rank:], place, settings) for place, both in enumerate(compressed)]
    rows = []
    for now in range(len(hidden_states)):
        outputs = []
        for head in range(heads):
            total = 0
            for branch in range(branches):
                seen = [latent[branch * part : (branch + 1) * part] for latent in latents[: now + 1]]
                up = weights[f"kv_b_proj.{branch}.weight"]
                total = total + read_latents(
                    weights, hidden_states, settings, now, head, seen, ends[: now + 1], up, head
                )
            outputs.append(total / math.sqrt(branches))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


def read_latents(weights, hidden_states, settings, now, head, latents, ends, up, place):
    """What MLA's query of a head reads of keys and values that rows `place` of an up-projection make."""
    content, rotary, width = (settings[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    asking, name = hidden_states[now], "q_proj"
    if settings["q_lora_rank"] is not None:
        asking = normed(weights["q_a_proj.weight"] @ asking, weights["q_a_layernorm.weight"], 1e-6)
        name = "q_b_proj"
    query = weights[f"{name}.weight"][head * (content + rotary) : (head + 1) * (content + rotary)] @ asking
    query = torch.cat((query[:content], turned(query[content:], now, settings)))
    up = up[place * (content + width) : (place + 1) * (content + width)]
    keys = [torch.cat((up[:content] @ latent, end)) for latent, end in zip(latents, ends, strict=True)]
    values = [up[content:] @ latent for latent in latents]
    return mixed(query, keys, values, (content + rotary) ** -0.5)


@each_sequence
def tpa(weights, hidden_states, settings):
    """Zhang et al. 2025, Tensor Product Attention, eq. 3.1-3.6; a projection's rows are a_1, b_1, a_2, b_2, ..."""
    heads, width = settings["num_attention_heads"], settings["head_dim"]

    def matrix(name, rank, place):
        factors, total = weights[f"{name}.weight"] @ hidden_states[place], torch.zeros(heads, width).double()
        for r in range(rank):
            a, b = factors[r * (heads + width) : (r + 1) * (heads + width)].split((heads, width))
            total += torch.outer(a, turned(b, place, settings) if settings["rotary"] and name != "v_proj" else b)
        return total / rank

    keys = [matrix("k_proj", settings["kv_rank"], place) for place in range(len(hidden_states))]
    values = [matrix("v_proj", settings["kv_rank"], place) for place in range(len(hidden_states))]
    rows = []
    for now in range(len(hidden_states)):
        query = matrix("q_proj", settings["q_rank"], now)
        outputs = [
            mixed(query[i], [key[i] for key in keys[: now + 1]], [value[i] for value in values[: now + 1]], width**-0.5)
            for i in range(heads)
        ]
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def mfa(weights, hidden_states, settings):
    """Hu et al. 2024, Multi-matrix Factorization Attention, with Step-3's norm of the queries' latent."""
    keys, values = ([weights[f"{of}_proj.weight"] @ h for h in hidden_states] for of in "kv")
    return read_by_low_rank_queries(weights, hidden_states, settings, keys, values)


def read_by_low_rank_queries(weights, hidden_states, settings, keys, values):
    """What MFA and MFA-KR share: one key, which turns here, and one value a position, for all heads."""
    heads, width = settings["num_attention_heads"], settings["head_dim"]

    def at(vector, place):
        return turned(vector, place, settings) if settings["rotary"] else vector

    keys, rows = [at(key, place) for place, key in enumerate(keys)], []
    for now, h in enumerate(hidden_states):
        latent = normed(weights["q_a_proj.weight"] @ h, weights["q_a_layernorm.weight"], settings["rms_norm_eps"])
        outputs = []
        for head in range(heads):
            query = at(weights["q_b_proj.weight"][head * width : (head + 1) * width] @ latent, now)
            outputs.append(mixed(query, keys[: now + 1], values[: now + 1], width**-0.5))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def mfa_kr(weights, hidden_states, settings):
    """Hu et al. 2024, MFA-Key-Reuse: as above, but v = k + α ⊙ N k of the key before it turns."""
    keys = [weights["k_proj.weight"] @ h for h in hidden_states]
    values = [key + weights["v_scale"] * (weights["v_proj.weight"] @ key) for key in keys]
    return read_by_low_rank_queries(weights, hidden_states, settings, keys, values)


@each_sequence
def keqv(weights, hidden_states, settings):
    """Gemma 4: one normed state a group, a value as it is, and a key once it is weighed and turned."""
    heads, groups, width = (settings[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    eps, ones = settings["rms_norm_eps"], torch.ones(width).double()

    def at(vector, place):
        return turned(vector, place, settings) if settings["rotary"] else vector

    rows = []
    for now in range(len(hidden_states)):
        outputs = []
        for head in range(heads):
            group = head // (heads // groups)
            own = weights["k_proj.weight"][group * width : (group + 1) * width]
            values = [normed(own @ h, ones, eps) for h in hidden_states[: now + 1]]
            keys = [at(weights["k_norm.weight"] * value, place) for place, value in enumerate(values)]
            query = weights["q_proj.weight"][head * width : (head + 1) * width] @ hidden_states[now]
            query = at(normed(query, weights["q_norm.weight"], eps), now)
            outputs.append(mixed(query, keys, values, width**-0.5))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


@each_sequence
def diff(weights, hidden_states, settings):
    """Ye et al. 2024, Differential Transformer, eq. 1-3; rows in the order of transformers' DiffLlama."""
    heads, groups, width = (settings[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    first, second = (math.exp(float(weights[f"lambda_q{m}"] @ weights[f"lambda_k{m}"])) for m in (1, 2))
    start = 0.8 - 0.6 * math.exp(-0.3 * settings["layer_idx"])
    rows = []
    for now in range(len(hidden_states)):
        outputs = []
        for head in range(heads):
            group = head // (heads // groups)

            def part(name, place, index):
                vector = weights[f"{name}.weight"][index * width : (index + 1) * width] @ hidden_states[place]
                return turned(vector, place, settings) if settings["rotary"] and name != "v_proj" else vector

            places = range(now + 1)
            values = [torch.cat([part("v_proj", place, m * groups + group) for m in (0, 1)]) for place in places]
            read = []
            for m in (0, 1):
                keys = [part("k_proj", place, m * groups + group) for place in places]
                read.append(mixed(part("q_proj", now, m * heads + head), keys, values, width**-0.5))
            difference = read[0] - (first - second + start) * read[1]
            outputs.append((1 - start) * normed(difference, 1, settings["rms_norm_eps"]))
        rows.append(weights["o_proj.weight"] @ torch.cat(outputs))
    return torch.stack(rows)


REFERENCES = {
    "mha": grouped, "gqa": grouped, "mqa": grouped, "mla": mla, "gta": gta, "gla": gla, "mlra": mlra, "tpa": tpa,
    "mfa": mfa, "mfa_kr": mfa_kr, "keqv": keqv, "diff": diff,
}  # fmt: skip
