"""Attention over a cached row in parts, where they lie and as whole rows, against the dense formula in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.benchmark.measure import flops_of
from mla_experiments.kernels import attend_parts, latent, shared_keys


@pytest.fixture(autouse=True)
def _free_choice():
    yield
    latent.force_backend(None)


def dense(query, rows, value_width, mask, scale):
    """The formula, one part at a time."""
    num_parts, width = query.shape[1], query.shape[-1]
    tail = rows.shape[-1] - num_parts * value_width
    outputs = []
    for p in range(num_parts):
        value = rows[..., p * value_width : (p + 1) * value_width].double()
        key = torch.cat((value[..., : width - tail], rows[..., num_parts * value_width :].double()), dim=-1)
        scores = (query[:, p].double() @ key.mT.unsqueeze(1) * scale).masked_fill(~mask, -torch.inf)
        outputs.append(scores.softmax(-1).nan_to_num() @ value.unsqueeze(1))
    return torch.stack(outputs, dim=1)


@settings(max_examples=80)
@given(
    batch=st.integers(1, 3), num_parts=st.integers(1, 4), heads=st.sampled_from([1, 4, 16]), new=st.integers(1, 3),
    past=st.integers(0, 150), value_width=st.sampled_from([4, 16, 33]), tied=st.sampled_from([1, 2]),
    tail=st.sampled_from([0, 2, 16]), padded=st.booleans(), backend=st.sampled_from([None, "torch"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_it_equals_the_dense_formula(
    batch, num_parts, heads, new, past, value_width, tied, tail, padded, backend, dtype
):
    total, width = past + new, value_width // tied
    latent.force_backend(backend)
    query = torch.randn(batch, num_parts, heads, new, width + tail, dtype=dtype)
    rows = torch.randn(batch, total + 5, num_parts * value_width + tail, dtype=dtype)[:, :total]
    mask = torch.ones(new, total, dtype=torch.bool).tril(past)[None, None].repeat(batch, 1, 1, 1)
    if padded:
        mask[-1, ..., : total // 2] = False
    scale = (width + tail) ** -0.5
    expected = dense(query, rows, value_width, mask, scale)
    tolerance = 1e-11 if dtype is torch.float64 else 2e-5
    for given_mask in [mask] + ([None] if not padded and new in (1, total) else []):
        output = attend_parts(query, rows, value_width, given_mask, scale)
        torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(shared_keys.why_not_here() is not None, reason=f"attention in C: {shared_keys.why_not_here()}")
@pytest.mark.parametrize("parts, heads", [(2, 16), (4, 16), (1, 16), (4, 4), (2, 8)])
def test_parts_are_read_where_they_lie_if_vectors_are_full(parts, heads):
    query, rows = torch.randn(1, parts, heads, 1, 16), torch.randn(1, 300, parts * 16 + 8)
    counted = flops_of(lambda: attend_parts(query, rows, 16, None, 1.0))
    least = 2 * parts * heads * 300 * (16 + 16)
    assert counted == least if heads == 16 else least <= counted < 2 * parts * least


def test_gradients_flow_to_queries_and_rows():
    query = torch.randn(1, 2, 3, 1, 6, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(1, 5, 2 * 4 + 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, r: attend_parts(q, r, 4, None, 0.5), (query, rows))
