"""The linear map that is turned round for few rows: what `torch.nn.functional.linear` gives, in the same layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mla_experiments.kernels import Linear
from mla_experiments.kernels.linear import FEW_ROWS


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=2), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.booleans())
def test_it_is_a_linear_map(leading, num_in, num_out, bias, strided):
    layer = Linear(num_in, num_out, bias=bias)
    x = torch.randn(*leading, 2 * num_in)[..., ::2] if strided else torch.randn(*leading, num_in)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    output = layer(x)
    assert output.shape == expected.shape and output.is_contiguous()
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_gradients_are_those_of_a_linear_map(rows):
    layer, x = Linear(6, 3, bias=False), torch.randn(rows, 6, requires_grad=True)
    layer(x).square().sum().backward()
    again = x.detach().clone().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    F.linear(again, weight).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_autocast_is_kept():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 8, bias=False)(torch.randn(1, 8)).dtype == torch.bfloat16
