"""Attention over latents against the dense formula in float64, whatever the shapes, masks and blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.kernels import attend_latents, latent


def dense(query, latents, value_width, mask, scale):
    """The formula, one query at a time."""
    batch, heads, new, _ = query.shape
    output = torch.zeros(batch, heads, new, value_width, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(new):
                scores = latents[b].double() @ query[b, h, t].double() * scale
                seen = mask[b if mask.shape[0] > 1 else 0, 0, t]
                if seen.any():
                    weights = torch.softmax(scores[seen], dim=0)
                    output[b, h, t] = weights @ latents[b, seen, :value_width].double()
    return output


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.sampled_from([1, 2, 5]), new=st.integers(1, 4), past=st.integers(0, 40),
    rank=st.sampled_from([1, 8, 12]), rotary=st.sampled_from([0, 2, 6]), at_once=st.sampled_from([1, 37, 1 << 20]),
    padded=st.booleans(), dtype=st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_equals_the_dense_formula(batch, heads, new, past, rank, rotary, at_once, padded, dtype):
    total = past + new
    query = torch.randn(batch, heads, new, rank + rotary, dtype=dtype) * 3
    buffer = torch.randn(batch, total + 5, rank + rotary, dtype=dtype)  # a view of a longer buffer, as a cache gives
    mask = torch.ones(new, total, dtype=torch.bool).tril(past)[None, None].repeat(batch, 1, 1, 1)
    if padded:  # of unequal lengths, up to rows that see nothing
        for row in range(batch):
            mask[row, ..., : (row * total) // 2] = False
    expected = dense(query, buffer[:, :total], rank, mask, 0.3)
    size, latent.SCORES_AT_ONCE = latent.SCORES_AT_ONCE, at_once
    try:
        given_masks = [mask, torch.where(mask, 0.0, float("-inf")).to(dtype)] + (
            [None] if not padded and new in (1, total) else []
        )
        for given_mask in given_masks:
            output = attend_latents(query, buffer[:, :total], rank, given_mask, 0.3)
            tolerance = 1e-11 if dtype is torch.float64 else 2e-5
            torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
    finally:
        latent.SCORES_AT_ONCE = size


def test_scores_of_a_long_context_are_never_in_memory_whole(monkeypatch):
    largest = 0
    exp = torch.Tensor.exp_

    def watched(scores):
        nonlocal largest
        largest = max(largest, scores.numel())
        return exp(scores)

    monkeypatch.setattr(torch.Tensor, "exp_", watched)
    attend_latents(
        torch.randn(1, 16, 4, 24), torch.randn(1, 65_536, 24), 16, torch.ones(1, 1, 4, 65_536, dtype=torch.bool), 0.2
    )
    assert 0 < largest <= latent.SCORES_AT_ONCE < 16 * 4 * 65_536


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_scores_do_not_overflow(size):
    query, latents = torch.full((1, 1, 1, 4), size), torch.randn(1, 9, 4)
    assert attend_latents(query, latents, 4, None, 1.0).isfinite().all()
