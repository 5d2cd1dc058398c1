"""The linear map that few rows take in C: what `torch.nn.functional.linear` gives, in the same layout."""

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mla_experiments.kernels import PackedLinear, linear, project
from mla_experiments.kernels.compiling import CannotCompile, compiled, library
from mla_experiments.kernels.linear import FEW_ROWS
from mla_experiments.kernels.stored import STORED

in_c = pytest.mark.skipif(isinstance(library("linear"), CannotCompile), reason=str(library("linear")))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), max_size=2), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.booleans())
def test_it_is_a_linear_map(leading, num_in, num_out, bias, strided):
    layer = nn.Linear(num_in, num_out, bias=bias)
    x = torch.randn(*leading, 2 * num_in)[..., ::2] if strided else torch.randn(*leading, num_in)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.inference_mode():
        output = project(layer, x)
    assert output.shape == expected.shape and output.is_contiguous()
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_gradients_are_those_of_a_linear_map(rows):
    layer, x = nn.Linear(6, 3, bias=False), torch.randn(rows, 6, requires_grad=True)
    project(layer, x).square().sum().backward()
    again = x.detach().clone().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    F.linear(again, weight).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_autocast_is_kept():
    with torch.autocast("cpu", torch.bfloat16):
        assert project(nn.Linear(8, 8, bias=False), torch.randn(1, 8)).dtype == torch.bfloat16


FEWER = [dtype for dtype in STORED.values() if dtype is not torch.float32]


@settings(max_examples=60)
@given(
    st.sampled_from(FEWER),
    st.sampled_from([1, 2, 5, FEW_ROWS + 1]),
    st.integers(1, 70),
    st.integers(1, 20),
    st.booleans(),
)
def test_a_weight_in_fewer_bits_is_rounded_once_a_row_and_multiplied_exactly(dtype, rows, num_in, num_out, bias):
    layer, x = nn.Linear(num_in, num_out, bias=bias), torch.randn(rows, num_in)
    with torch.inference_mode():
        layer.weight[:1] *= 1000  # whose scale is its own
        kept = PackedLinear(layer, dtype)
        output = project(kept, x)
        rounding = (kept.weight.double() - layer.weight.double()).abs() / layer.weight.double().abs().amax(
            1, keepdim=True
        )
    assert rounding.max() <= {torch.int8: 0.5 / 127, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] * 1.001
    rounds_rows = dtype is torch.bfloat16 and rows > FEW_ROWS and linear.multiplies_bf16()
    largest = num_in * (x.abs().amax() * kept.weight.abs().amax()).item()
    expected = F.linear(x.double(), kept.weight.double(), layer.bias.double() if bias else None)
    of_rows = 2**-7 if rounds_rows else 2**-16 if dtype is torch.int8 and rows <= FEW_ROWS else 0
    torch.testing.assert_close(output.double(), expected, atol=largest * (of_rows + 1e-6), rtol=1e-5)


@settings(max_examples=10)
@given(st.integers(1, 70), st.integers(1, 20), st.booleans(), st.booleans())
def test_many_rows_meet_bf16_in_bf16_where_the_processor_has_it(num_in, num_out, bias, has_it):
    layer, x = nn.Linear(num_in, num_out, bias=bias), torch.randn(FEW_ROWS + 1, num_in)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(linear, "multiplies_bf16", lambda: has_it)
        kept = PackedLinear(layer, torch.bfloat16)
        output = kept(x).double()
        expected = F.linear(x.bfloat16().double() if has_it else x.double(), kept.weight.double())
        assert kept(x).dtype is torch.float32
        output -= layer.bias.double() if bias else 0  # which is added to what has been rounded
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=2**-8 if has_it else 1e-5)


def test_weights_in_fewer_bits_are_not_saved():
    with pytest.raises(RuntimeError, match="are not saved; save the model as it was loaded"):
        PackedLinear(nn.Linear(4, 4), torch.int8).state_dict()


@in_c
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of another kind")
def test_processors_with_shorter_vectors_get_the_same_answer(monkeypatch, tmp_path):
    few_rows = compiled("linear", "x86-64-v3", tmp_path).few_rows
    few_rows.argtypes = linear.prototyped().argtypes
    monkeypatch.setattr(linear, "prototyped", lambda: few_rows)
    for rows in (1, 2, 3, 7):
        x, weight = torch.randn(rows, 37), torch.randn(19, 37)
        output = linear.few_rows_linear(x, weight)
        torch.testing.assert_close(output.double(), F.linear(x.double(), weight.double()), atol=1e-5, rtol=1e-5)
        for kept in (PackedLinear(nn.Linear(37, 19, bias=False), dtype) for dtype in FEWER):
            output = linear.few_rows_linear(x, kept.kept)
            off = (output.double() - F.linear(x.double(), kept.weight.double())).abs()
            assert (off <= 1e-5 + (x.abs().amax(1, keepdim=True) * 2**-16 * kept.weight.abs().sum(1))).all()


@in_c
@pytest.mark.parametrize("level", ["native", "x86-64-v3", "x86-64-v4"])
def test_rows_meet_8_bits_in_16_of_the_largest_of_each(monkeypatch, tmp_path, level):
    """However long they are: sums of whole numbers would leave 32 bits; and what is not finite stays so."""
    if level != "native" and platform.machine() != "x86_64":
        pytest.skip("names a processor of another kind")
    if level == "x86-64-v4" and not torch.cpu._is_avx512_supported():
        pytest.skip("this processor lacks the instructions")
    few_rows = compiled("linear", level, tmp_path).few_rows
    few_rows.argtypes, few_rows.restype = linear.prototyped().argtypes, linear.prototyped().restype
    monkeypatch.setattr(linear, "prototyped", lambda: few_rows)
    for num_in in (31, 64, 9001, 20000):
        x, kept = torch.randn(6, num_in), PackedLinear(nn.Linear(num_in, 33, bias=False), torch.int8)
        x[0], x[1], x[2, 5] = 3.0, x[1] * 1e6, 1e3  # sums that grow all the way; scales of their own
        expected = F.linear(x.double(), kept.weight.double())
        off = (linear.few_rows_linear(x, kept.kept).double() - expected).abs()
        assert (off <= 1e-6 * expected.abs() + x.abs().amax(1, keepdim=True) * 2**-16 * kept.weight.abs().sum(1)).all()
        largest = PackedLinear(nn.Linear(num_in, 3, bias=False), torch.int8)
        largest.kept[:, :num_in] = 127
        same = torch.full((1, num_in), 2.0)
        output = linear.few_rows_linear(same, largest.kept)
        torch.testing.assert_close(output.double(), F.linear(same.double(), largest.weight.double()), atol=0, rtol=1e-6)
    x[3, 0], x[4, -1] = float("nan"), float("inf")
    output = linear.few_rows_linear(x, kept.kept)
    assert output[3:5].isnan().all() and output[[0, 1, 2, 5]].isfinite().all()
    assert linear.few_rows_linear(torch.zeros(1, num_in), kept.kept).eq(0).all()


@in_c
def test_a_row_s_result_does_not_depend_on_the_rows_beside_it():
    x, layer = torch.randn(FEW_ROWS, 70), nn.Linear(70, 21, bias=False)
    for weight in (layer.weight.detach(), *(PackedLinear(layer, dtype).kept for dtype in FEWER)):
        together = linear.few_rows_linear(x, weight)
        for row in range(FEW_ROWS):
            assert torch.equal(linear.few_rows_linear(x[row : row + 1], weight), together[row : row + 1])


@in_c
def test_few_rows_go_through_c_and_profilers_see_them(monkeypatch):
    calls, few_rows = [], linear.prototyped()
    monkeypatch.setattr(linear, "prototyped", lambda: lambda *args: (calls.append(args[3]), few_rows(*args))[1])
    layer = nn.Linear(6, 3, bias=False).requires_grad_(False)
    for rows in (1, FEW_ROWS, FEW_ROWS + 1):
        project(layer, torch.randn(rows, 6))
    assert calls == [1, FEW_ROWS]
    with torch.profiler.profile() as profile:
        project(layer, torch.randn(1, 6))
    assert "mla_experiments::few_rows_linear" in {event.name for event in profile.events()}
