"""Grouped-query attention (Ainslie et al. 2023, GQA, §2.2): MHA whose H query heads share G keys and values.

Head i reads the key and value of group floor(i · G / H). G = H is MHA, G = 1 is MQA. Cached per token:
2 · G · d_h numbers.
"""

from .mha import MHA


class GQA(MHA):
    """Grouped-query attention: G key-value heads, each shared by H / G query heads."""

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        head_dim: int | None = None,
        num_key_value_heads: int | None = None,
    ) -> dict[str, int | None]:
        """`num_key_value_heads` G (default: a quarter of the heads, or the nearest divisor above 1)."""
        if num_key_value_heads is None:
            divisors = [g for g in range(2, num_attention_heads + 1) if num_attention_heads % g == 0] or [1]
            num_key_value_heads = min(divisors, key=lambda g: abs(g - num_attention_heads / 4))
        return cls._resolve_groups(hidden_size, num_attention_heads, rotary, head_dim, num_key_value_heads)
