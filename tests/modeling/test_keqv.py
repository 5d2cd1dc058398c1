"""Keys that are values, against Gemma 4's, and where positions do not begin at nought."""

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.models.gemma4 import modeling_gemma4 as gemma4

from mla_experiments import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import KEqV
from mla_experiments.modeling.decoder import positions_kept


def test_it_computes_what_gemma_4_computes():
    """Which keeps keys and values both, and scores without 1 / sqrt(d)."""
    config = gemma4.Gemma4TextConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=1,
        num_global_key_value_heads=2, global_head_dim=8, layer_types=["full_attention"], attention_k_eq_v=True,
        num_kv_shared_layers=0, rms_norm_eps=1e-6,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs, ours = gemma4.Gemma4TextAttention(config, 0), KEqV(32, 4, num_key_value_heads=2, rms_norm_eps=1e-6)
    assert theirs.v_proj is None
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "o_proj"):
            torch.nn.init.normal_(getattr(theirs, name).weight, std=0.3)
            getattr(ours, name).weight.copy_(getattr(theirs, name).weight)
        for name, factor in (("q_norm", 8**0.5), ("k_norm", 1)):
            torch.nn.init.normal_(getattr(theirs, name).weight, mean=1, std=0.3)
            getattr(ours, name).weight.copy_(factor * getattr(theirs, name).weight)
    hidden = torch.randn(2, 9, 32, requires_grad=True)
    angles = torch.arange(9)[None, :, None] * 1e4 ** -(torch.arange(0, 8, 2) / 8)
    cos, sin = (torch.cat((table, table), dim=-1) for table in (angles.cos(), angles.sin()))
    mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    expected, _ = theirs(hidden, (cos, sin), mask, {})
    found = ours(hidden, (angles.cos(), angles.sin()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (wanted,) = torch.autograd.grad(expected.square().sum(), hidden)
    (got,) = torch.autograd.grad(found.square().sum(), hidden)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_positions_that_begin_elsewhere_are_those_of_the_keys_too(static):
    """RoPE's scores know differences alone: all positions may be shifted, in a prompt and in the steps after it."""
    config = DecoderConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, attention="keqv", initializer_range=0.2,
    )  # fmt: skip
    model, tokens = DecoderForCausalLM(config).double().eval(), torch.randint(0, 40, (2, 9))
    whole = model(tokens).logits
    cache = StaticCache(config=config, max_cache_len=12) if static else DynamicCache()
    for past, new in ((0, 4), (4, 5), (5, 8), (8, 9)):
        positions = torch.arange(past, new)[None] + 17
        logits = model(tokens[:, past:new], position_ids=positions, cache=cache).logits
        torch.testing.assert_close(logits, whole[:, past:new], atol=1e-5, rtol=0)


def test_the_positions_of_what_is_kept():
    new = torch.tensor([[3, 4], [0, 1]])  # the second row has three tokens of padding
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 0), 0)
    assert positions_kept(new, 3, cache).tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert positions_kept(new, 0, None) is new
