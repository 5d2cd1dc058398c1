"""Attention among factors, in C and in PyTorch, against keys and values made whole in double precision."""

import platform

import pytest
import torch

from mla_experiments.kernels import attend_factors, factors_c
from mla_experiments.kernels.compiling import CannotCompile, compiled, library

pytestmark = pytest.mark.skipif(isinstance(library("factors"), CannotCompile), reason=str(library("factors")))


def factors(rank, heads, width, tokens):
    """As a cache has them: each rank's a, then its b, of more tokens than are read."""
    rows = torch.randn(2, tokens + 7, rank, heads + width)[:, :tokens]
    return rows.split((heads, width), dim=-1)


def whole(a, b):
    """Σ_r a_r ⊗ b_r, `[B, H, T, D]`."""
    return torch.einsum("btrh,btrd->bhtd", a.double(), b.double())


@pytest.mark.parametrize("heads, width", [(16, 32), (8, 24), (5, 16), (40, 20)])
@pytest.mark.parametrize("num_new, rank, threads", [(1, 2, 1), (3, 1, 3), (2, 3, 2)])
def test_c_equals_whole_keys_and_values(heads, width, num_new, rank, threads):
    torch.set_num_threads(threads)
    query = factors(4, heads, width, num_new)
    key, value = factors(rank, heads, width, 301), factors(rank, heads, width, 301)
    mask = torch.rand(2, 1, num_new, 301) < 0.5
    mask[0, 0, 0] = False  # sees nothing
    for given in (mask, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf), *([None] if num_new == 1 else [])):
        scores = whole(*query) @ whole(*key).mT * 0.3
        scores = scores if given is None else scores.masked_fill(~mask, -torch.inf)
        expected = scores.softmax(-1).nan_to_num() @ whole(*value)
        queries = whole(*query).float().transpose(1, 2)
        assert factors_c.why_not(query, key, value, given) is None
        found = factors_c.attend(queries, key, value, given, 0.3)
        torch.testing.assert_close(found.double(), expected, atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(attend_factors(query, key, value, given, 0.3), found, atol=5e-5, rtol=1e-4)
    torch.set_num_threads(1)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of another kind")
def test_processors_with_shorter_vectors_get_the_same_answer(monkeypatch, tmp_path):
    key, value, query = factors(2, 12, 20, 99), factors(2, 12, 20, 99), torch.randn(2, 1, 12, 20)
    found = factors_c.attend(query, key, value, None, 0.3)
    shorter = compiled("factors", "x86-64-v3", tmp_path)
    monkeypatch.setattr(factors_c, "loaded", lambda _: shorter)
    assert shorter.lanes() == 8
    torch.testing.assert_close(factors_c.attend(query, key, value, None, 0.3), found, atol=1e-5, rtol=1e-5)


def test_what_it_cannot_serve_is_left_to_pytorch():
    query, key, value = factors(3, 5, 8, 1), factors(2, 5, 8, 20), factors(2, 5, 8, 20)
    lanes = library("factors").lanes()
    assert factors_c.why_not(query, key, value, None) == (
        f"5 heads fill no vectors of {lanes}, and 8 numbers behind them are too few" if lanes > 8 else None
    )
    apart = tuple(part.contiguous() for part in key)
    assert factors_c.why_not(query, apart, value, None) == "the factors of a rank do not lie side by side"
    assert factors_c.why_not(tuple(part.double() for part in query), key, value, None) == "it runs on CPUs, in f32"
    assert "none with gradients" in factors_c.why_not(
        tuple(part.clone().requires_grad_() for part in query), key, value, None
    )
