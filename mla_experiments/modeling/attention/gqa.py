"""Grouped-query attention (Ainslie et al. 2023, GQA, §2.2): MHA whose H query heads share G keys and values.

Head i reads the key and value of group floor(i · G / H). G = H is MHA, G = 1 is MQA. Cached per token:
2 · G · d_h numbers.
"""

from typing import ClassVar

from .mha import MHA


class GQA(MHA):
    """Grouped-query attention: G key-value heads, each shared by H / G query heads."""

    description = "grouped-query attention"
    equation = "o_i = Σ_s softmax_s(q_i · k_g,s / √d_h) v_g,s,  g = ⌊i · G / H⌋"
    cache_option: ClassVar[str | None] = "num_key_value_heads"
    fixed_options: ClassVar = frozenset()

    @classmethod
    def groups(cls, num_attention_heads: int, num_key_value_heads: int | None) -> int:
        """Return G: what was given, or the divisor of the heads, above 1, that is nearest to a quarter of them."""
        if num_key_value_heads is not None:
            return num_key_value_heads
        divisors = [g for g in range(2, num_attention_heads + 1) if num_attention_heads % g == 0] or [1]
        return min(divisors, key=lambda g: abs(g - num_attention_heads / 4))
