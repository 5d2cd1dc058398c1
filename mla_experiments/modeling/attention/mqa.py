"""Multi-query attention (Shazeer 2019, Fast Transformer Decoding, §3): GQA with one group.

All H query heads read the same key and value. Cached per token: 2 · d_h numbers, the least of any mechanism that
keeps whole keys and values.
"""

from typing import ClassVar

from .checks import require
from .gqa import GQA


class MQA(GQA):
    """Multi-query attention: one key-value head for all query heads."""

    description = "multi-query attention"
    equation = "o_i = Σ_s softmax_s(q_i · k_s / √d_h) v_s"
    cache_option = None
    fixed_options: ClassVar = frozenset({"num_key_value_heads"})

    @classmethod
    def groups(cls, num_attention_heads: int, num_key_value_heads: int | None) -> int:
        """Return 1, and refuse another number."""
        require(
            num_key_value_heads in (None, 1),
            f'num_key_value_heads={num_key_value_heads} is not 1; for more groups choose attention="gqa".',
        )
        return 1
