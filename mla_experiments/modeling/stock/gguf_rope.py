"""How a GGUF file says what transformers' `rope_parameters` say, so that llama.cpp turns by the same angles.

llama.cpp makes its own factors (`src/llama-context.cpp`, constructor; `ggml_rope_yarn`; `src/models/deepseek2.cpp`):

- where YaRN stretches by s, cosines and sines are multiplied by a · m(s) with m(s) = 1 + ln(s) / 10, a what the file
  says; but by a alone where the file also gives a `log_mul` l;
- a DeepSeek multiplies its scores by (b · (1 + l · ln(s) / 10))², where b is the factor on cosines and sines for YaRN
  and m(s) for linear scaling.

transformers has one factor A on cosines and sines, and DeepSeek one S on scores. a and l follow.
"""

import math

import torch
from transformers import PreTrainedConfig

from ..attention.checks import require
from ..attention.rope import RotaryEmbedding, score_factor
from ..configuration import DecoderConfig

HELD = ("default", "linear", "yarn", "llama3")
WHY_NOT = {
    "dynamic": "llama.cpp knows no angles that follow the length of the text",
    "longrope": "llama.cpp chooses its factors by the room for a text, and not by the text's length",
}


def rope_fields(stock: PreTrainedConfig) -> dict[str, object]:
    """Return the fields of rotation, by the ends of the names of `GGUFWriter`'s methods.

    Raises:
        UserError: a rotation that llama.cpp does not compute, by its field.
    """
    import gguf

    rope, latent = stock.rope_parameters, stock.model_type == "deepseek_v3"
    kind = rope["rope_type"]
    require(
        kind in HELD, f"rope_type={kind}: {WHY_NOT.get(kind, 'GGUF knows no such type')}; it cannot be written as GGUF"
    )
    fields: dict[str, object] = {"freq_base": rope["rope_theta"]}
    if kind == "llama3":
        require(
            stock.model_type == "llama",
            f"rope_type=llama3: llama.cpp has its factors for a Llama alone, not for a {stock.model_type}; it cannot "
            "be written as GGUF",
        )
    if kind not in ("linear", "yarn"):
        return fields
    factor, growth = rope["factor"], math.log(rope["factor"]) / 10
    fields |= {"scaling_type": gguf.RopeScalingType[kind.upper()], "scaling_factor": factor}
    on_tables = 1.0
    if kind == "yarn":
        require(
            rope.get("truncate", True),
            "truncate=False: llama.cpp rounds the bounds of YaRN; it cannot be written as GGUF",
        )
        dim = stock.qk_rope_head_dim if latent else stock.head_dim
        on_tables = RotaryEmbedding(dim, rope, stock.max_position_embeddings).attention_factor
        fields["scaling_orig_ctx_len"] = rope["original_max_position_embeddings"]
        fields["scaling_yarn_beta_fast"] = float(rope.get("beta_fast") or 32)
        fields["scaling_yarn_beta_slow"] = float(rope.get("beta_slow") or 1)
    on_scores = math.sqrt(score_factor(rope)) if latent else None
    return fields | factors_of(kind, growth, on_tables, on_scores)


def factors_of(kind: str, growth: float, on_tables: float, on_scores: float | None) -> dict[str, float]:
    """Return a as `scaling_attn_factors` and l as `scaling_yarn_log_mul`, see the top.

    Args:
        kind: "linear" or "yarn".
        growth: ln(s) / 10.
        on_tables: A.
        on_scores: √S of a DeepSeek, None for other models.
    """
    by_itself = 1 + growth  # m(s)
    if on_scores is None or growth == 0:
        return {} if kind == "linear" or growth == 0 else {"scaling_attn_factors": on_tables / by_itself}
    wanted = on_scores / (on_tables if kind == "yarn" else by_itself)
    log_mul = (wanted - 1) / growth
    if log_mul == 0:
        return {"scaling_attn_factors": on_tables / by_itself}
    return {
        "scaling_attn_factors": on_tables,
        "scaling_yarn_log_mul": log_mul / 10,
    }  # which its reader multiplies by 10


def rope_tensor(config: DecoderConfig, stock: PreTrainedConfig) -> torch.Tensor | None:
    """Return by what a Llama 3 divides the rotary frequencies, `[d_h / 2]`; None for other types."""
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return RotaryEmbedding(stock.head_dim, plain).inv_freq / RotaryEmbedding(stock.head_dim, rope).inv_freq
