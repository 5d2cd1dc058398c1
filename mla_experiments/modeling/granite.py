"""Granite (IBM 2024, Granite 3.0 Language Models): a Llama with four factors, which weights take in as it comes in.

Embeddings are multiplied by e, scores by a in place of 1 / √d_h, what a block adds to the residual stream by r, and
logits are divided by s (transformers' `GraniteModel`). All four stand beside a linear map, and so become part of it:

    e E,   a √d_h W^Q,   r W^O,   r W_down,   W_head / s

A tied output projection is E itself, and so no longer tied unless e = 1 / s.
"""

from pathlib import Path

from transformers import PreTrainedConfig

from .attention.checks import require_number
from .nested import HEAD
from .shards import repeat, rewrite

MODEL = "granite"
FACTORS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
EMBEDDING = "model.embed_tokens.weight"


def is_tied(stock: PreTrainedConfig) -> bool:
    """Return whether the output projection of a Granite is its embedding, and still is once both have their factors.

    Raises:
        UserError: a factor that is not above 0.
    """
    for name in FACTORS:
        require_number(name, getattr(stock, name))
    return stock.tie_word_embeddings and stock.embedding_multiplier * stock.logits_scaling == 1


def factors_of(stock: PreTrainedConfig) -> dict[str, float]:
    """Return by what weights are multiplied, by how their names end."""
    width = getattr(stock, "head_dim", None) or stock.hidden_size // stock.num_attention_heads
    return {
        EMBEDDING: stock.embedding_multiplier,
        "self_attn.q_proj.weight": stock.attention_multiplier * width**0.5,
        "self_attn.o_proj.weight": stock.residual_multiplier,
        "mlp.down_proj.weight": stock.residual_multiplier,
        HEAD: 1 / stock.logits_scaling,
    }


def take_in_factors(copies: list[Path], stock: PreTrainedConfig) -> None:
    """Multiply weights by their factors, in their files; a tied output projection is stored first if it is no longer.

    Args:
        copies: the weight files of a folder, by the names of a Llama.
        stock: the config of the Granite.
    """
    if stock.tie_word_embeddings and not is_tied(stock):
        repeat(copies, EMBEDDING, HEAD)
    factors = factors_of(stock)

    def factor(name: str) -> float:
        return next((value for ending, value in factors.items() if name.endswith(ending)), 1.0)

    for copy in copies:
        rewrite(copy, lambda name: factor(name) != 1, lambda name, weight: weight * factor(name))
