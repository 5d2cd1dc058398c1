"""Differential attention against transformers' DiffLlama, at every layer's λ_init, and at where it must become GQA."""

import pytest
import torch
from transformers import DiffLlamaConfig, DynamicCache
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

from mla_experiments import RotaryEmbedding
from mla_experiments.errors import UserError
from mla_experiments.modeling.attention import GQA, Diff

WIDTH, HEADS, HEAD = 32, 4, 6


def layer_of(mechanism, **options):
    torch.manual_seed(0)
    layer = mechanism(WIDTH, HEADS, rms_norm_eps=1e-5, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def tables(start, end, width=HEAD):
    return RotaryEmbedding(width)(torch.arange(start, end)[None], torch.float64)


@pytest.fixture
def states():
    return torch.randn(2, 9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("layer_idx", [0, 5])
@torch.no_grad()
def test_it_is_diffllama_with_the_same_weights_under_the_same_names(layer_idx, groups, states):
    """Also a few tokens at a time, from what is cached. Theirs takes its softmax in single precision."""
    layer = layer_of(Diff, layer_idx=layer_idx, head_dim=HEAD, num_key_value_heads=groups)
    described = DiffLlamaConfig(
        hidden_size=WIDTH, num_attention_heads=2 * HEADS, num_key_value_heads=2 * groups, head_dim=HEAD,
        rms_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    stock = DiffLlamaAttention(described, layer_idx).double()
    stock.load_state_dict(layer.state_dict())
    ahead = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    turning = tuple(torch.cat((half, half), dim=-1) for half in tables(0, 9))
    expected, _ = stock(states, turning, ahead)
    whole = layer(states, tables(0, 9))
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    cache = DynamicCache()
    for place in range(layer_idx):  # as if the layers below had been
        cache.update(states[:, None, :1], states[:, None, :1], place)
    parts = [
        layer(states[:, start:end], tables(start, end), None, cache)
        for start, end in [(0, 3), *((place, place + 1) for place in range(3, 9))]
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_without_its_second_softmax_it_is_normed_attention_of_the_first(states):
    """λ = 0: what GQA reads with the first queries and keys, and values twice as wide, normed a head."""
    layer = layer_of(Diff, head_dim=HEAD, num_key_value_heads=HEADS, rotary=False)
    layer.share = lambda: torch.zeros((), dtype=torch.float64)
    gqa = layer_of(GQA, head_dim=HEAD, num_key_value_heads=HEADS, rotary=False)
    gqa.q_proj.weight.copy_(layer.q_proj.weight[: HEADS * HEAD])
    gqa.k_proj.weight.copy_(layer.k_proj.weight[: HEADS * HEAD])
    gqa.o_proj = torch.nn.Identity()
    read = []
    for half in layer.v_proj.weight.chunk(2):
        gqa.v_proj.weight.copy_(half)
        read.append(gqa(states, None).unflatten(-1, (HEADS, HEAD)))
    normed = torch.nn.functional.rms_norm(torch.cat(read, dim=-1), (2 * HEAD,), eps=1e-5)
    expected = layer.o_proj((1 - 0.2) * normed.flatten(-2))
    torch.testing.assert_close(layer(states, None), expected, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_lambda_starts_near_its_stated_value_which_grows_with_depth():
    layers = [Diff(512, 8, layer_idx=place) for place in (0, 1, 20)]
    assert [layer.lambda_init for layer in layers] == pytest.approx([0.2, 0.35551, 0.79851], abs=1e-4)
    assert all(0 < abs(layer.share().item() - layer.lambda_init) < 0.5 for layer in layers)


def test_the_cache_is_as_large_as_mhas_at_the_defaults_and_heads_that_cannot_be_halved_are_refused():
    assert Diff(512, 16).cache_elements_per_token() == 1024
    with pytest.raises(UserError, match="hidden_size / num_attention_heads=5 must be even"):
        Diff(20, 4)
    with pytest.raises(UserError, match="head_dim=3 is the rotary dimension"):
        Diff(24, 4)
