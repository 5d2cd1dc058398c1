"""Attention over keys and values against the plain formula in float64, on all its paths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.kernels import attend, sdpa


def formula(query, key, value, scale):
    """One new token a sequence, everything seen, every head by itself."""
    shared = query.shape[1] // key.shape[1]
    key, value = (part.double().repeat_interleave(shared, dim=1) for part in (key, value))
    return (query.double() @ key.mT * scale).softmax(-1) @ value


@settings(max_examples=40)
@given(
    batch_and_groups=st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (2, 2)]),
    shared=st.sampled_from([2, 4]),
    length=st.integers(64, 97),
    threads=st.sampled_from([1, 2, 5, 8]),
    value_width=st.sampled_from([1, 5, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_context_shared_out_over_threads_gives_the_same_answer(
    batch_and_groups, shared, length, threads, value_width, dtype
):
    batch, groups = batch_and_groups
    kept = sdpa.LONG_CONTEXT
    try:
        sdpa.LONG_CONTEXT = 64
        torch.set_num_threads(threads)
        query = torch.randn(batch, groups * shared, 1, 8, dtype=dtype)
        buffer = torch.randn(batch, groups, length + 11, 8, dtype=dtype)  # as a cache with room to grow
        key, value = buffer[:, :, :length], buffer[:, :, :length, :value_width]
        with torch.inference_mode():
            output = attend(query, key, value, None, 0.7)
    finally:
        sdpa.LONG_CONTEXT = kept
        torch.set_num_threads(1)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), formula(query, key, value, 0.7), **close)


@pytest.mark.parametrize("extreme", [-300.0, 300.0])
def test_parts_whose_scores_are_far_apart_do_not_overflow(extreme):
    query, key = torch.ones(1, 2, 1, 4), torch.randn(1, 1, sdpa.LONG_CONTEXT + 1, 4)
    key[:, :, :100] += extreme
    torch.set_num_threads(2)
    with torch.inference_mode():
        output = attend(query, key, key, None, 1.0)
    torch.set_num_threads(1)
    torch.testing.assert_close(output.double(), formula(query, key, key, 1.0), atol=1e-3, rtol=1e-4)


def test_values_wider_than_keys_are_served_where_a_long_context_would_be_shared_out():
    query, key, value = torch.randn(1, 4, 1, 8), torch.randn(1, 1, 8192, 8), torch.randn(1, 1, 8192, 24)
    torch.set_num_threads(2)
    with torch.no_grad():
        output = attend(query, key, value, None, 0.3)
    torch.set_num_threads(1)
    torch.testing.assert_close(output.double(), formula(query, key, value, 0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("widths", [(8, 24), (24, 8)], ids=["wider values", "wider keys"])
def test_a_prompt_is_fused_whichever_is_the_wider(widths):
    """Where widths differ PyTorch says nothing, and keeps all scores in memory."""
    query, key, value = (torch.randn(2, 4, 17, width, dtype=torch.float64) for width in (widths[0], *widths))
    with torch.profiler.profile() as profile:
        output = attend(query, key, value, None, 0.3)
    assert any("flash" in event.name for event in profile.events())
    scores = (query @ key.mT * 0.3).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(output, scores.softmax(-1) @ value)
