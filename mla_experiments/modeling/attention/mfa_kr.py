"""MFA that reuses keys as values (Hu et al. 2024, Multi-matrix Factorization Attention, arXiv 2412.19255: MFA-KR).

As in `mfa.py` all heads read one wide key and value, and queries come through a low rank. But the value is made from
the key, by a matrix N and a number α for each of its rows; as in `keqv.py` keys are kept as they are, and turned when
they are read:

    q_i = RoPE(Q_i RMSNorm(S^q h)),  k = S^k h,  v = (I + diag(α) N) k,      o = Σ_i O_i o_i
    o_i = Σ_s softmax_s(q_i · RoPE(k_s) / sqrt(C)) v_s

Cached per token: k, C numbers, half of MFA's. α starts at 0, so that keys are values at first. The map from one to the
other is linear: a few new tokens read keys in the place of values, and what they have read is mapped. Positions in the
cache must follow one another, padding apart.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, attend_turned, plain, project
from .base import Rotation
from .mfa import MFA
from .remember import remember_state
from .rope import rotate, tables_as_read


class MFAKR(MFA):
    """Multi-matrix factorisation attention, its values made from its keys."""

    description = "multi-matrix factorisation attention whose keys are reused as values"
    equation = "o_i = Σ_s softmax_s(Q_i RMSNorm(S^q h) · RoPE(k_s) / √C) (k_s + a ⊙ N k_s)"
    turns_when_read = True

    def make_values(self) -> None:
        """Make N and α, of which values are made from keys."""
        self.v_proj = nn.Linear(self.head_dim, self.head_dim, bias=False)
        self.v_scale = nn.Parameter(torch.zeros(self.head_dim))

    def values(self, keys: torch.Tensor) -> torch.Tensor:
        """(I + diag(α) N) k, or of sums of keys those of values: `[..., C]` to `[..., C]`."""
        return keys + self.v_scale * project(self.v_proj, keys)

    def maps_before(self, num_new: int, context: int) -> bool:
        """Return whether it costs less to map all keys than what the heads of the new tokens read."""
        return context <= num_new * self.num_heads

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Project, remember, rotate what is read, attend, map, project: see `Attention.forward`."""
        state = project(self.k_proj, hidden_states).unsqueeze(1)  # [B, 1, T, C]
        kept = plain(remember_state(cache, self.layer_idx, state, attention_mask))  # [B, 1, S, C]
        query, key = self.normed(self.queries(hidden_states), kept)  # [B, H, T, C], [B, 1, S, C]
        before, scale = self.maps_before(query.shape[2], kept.shape[2]), self.head_dim**-0.5
        value = self.values(kept) if before else kept  # [B, 1, S, C]
        if self.rotary:
            of_new, of_kept = tables_as_read(position_embeddings, kept.shape[2])
            query, layout = rotate(query, of_new, self.rope_interleave), self.rope_interleave
            attended = attend_turned(query, key, value, attention_mask, scale, of_kept, layout, attentions=attentions)
        else:
            attended = attend(query, key, value, attention_mask, scale, attentions)  # [B, H, T, C]
        return self.output(attended if before else self.values(attended), hidden_states)

    def cache_parts(self) -> dict[str, int]:
        """C: one key for all heads, of which its value is made."""
        return {"keys": self.head_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """MFA's, with the map in the place of the projection to values; see `Attention.flops`."""
        mapped = min(context, num_tokens * self.num_heads) * self.head_dim**2
        return super().flops(num_tokens, context) + 2 * (mapped - num_tokens * self.hidden_size * self.head_dim)
