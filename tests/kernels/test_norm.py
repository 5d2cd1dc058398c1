"""The norm that few rows take in C: what `nn.RMSNorm` gives, and the module itself wherever something stands around."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mla_experiments.kernels import norm, normalise
from mla_experiments.kernels.compiling import CannotCompile, library

in_c = pytest.mark.skipif(isinstance(library("norm"), CannotCompile), reason=str(library("norm")))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), max_size=2), st.integers(1, 70), st.booleans(), st.sampled_from([1e-6, 1.0, None]))
def test_it_is_the_root_mean_square_norm(leading, width, strided, eps):
    layer = nn.RMSNorm(width, eps=eps)
    nn.init.normal_(layer.weight)
    x = torch.randn(*leading, 2 * width)[..., ::2] if strided else torch.randn(*leading, width)
    mean = x.double().square().mean(-1, keepdim=True)
    expected = x.double() / (mean + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt() * layer.weight.double()
    with torch.inference_mode():
        output = normalise(layer, x)
    assert output.shape == x.shape
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)


def test_gradients_and_autocast_are_those_of_the_module():
    layer, x = nn.RMSNorm(6), torch.randn(2, 6, requires_grad=True)
    normalise(layer, x).square().sum().backward()
    again = x.detach().clone().requires_grad_()
    nn.RMSNorm(6)(again).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert normalise(layer, x).dtype == layer(x).dtype


@in_c
@torch.no_grad()
def test_few_numbers_go_through_c_and_profilers_see_them(monkeypatch):
    calls, rms_norm = [], norm.prototyped()
    monkeypatch.setattr(norm, "prototyped", lambda: lambda *args: (calls.append(args[3]), rms_norm(*args)))
    layer = nn.RMSNorm(norm.FEW_NUMBERS // 4, eps=1e-6)
    for rows in (1, 4, 5):
        normalise(layer, torch.randn(rows, layer.normalized_shape[0]))
    assert calls == [1, 4]
    with torch.profiler.profile() as profile:
        normalise(layer, torch.randn(1, layer.normalized_shape[0]))
    assert "mla_experiments::rms_norm" in {event.name for event in profile.events()}


@torch.no_grad()
def test_whatever_stands_around_the_module_is_called():
    x = torch.randn(2, 6)
    for change in (
        lambda layer: layer.register_forward_hook(lambda *_: torch.zeros(2, 6)),
        lambda layer: setattr(layer, "forward", lambda _: torch.zeros(2, 6)),
        lambda layer: torch.nn.utils.parametrize.register_parametrization(layer, "weight", Nothing()),
    ):
        layer = nn.RMSNorm(6)
        change(layer)
        assert normalise(layer, x).eq(0).all()


class Nothing(nn.Module):
    def forward(self, weight):
        return torch.zeros_like(weight)
