"""Layers that see a window, against transformers' Mistral, and what they keep."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from mla_experiments import DecoderConfig, DecoderForCausalLM
from mla_experiments.benchmark.costs import cached_numbers
from mla_experiments.errors import UserError
from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.modeling.export import native_config, stock_config, stock_model

SIZE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
FOLLOWING = [name for name, mechanism in ATTENTION.items() if not mechanism.turns_when_read]
PATTERNS = [None, ["sliding_attention", "full_attention"], ["full_attention", "sliding_attention"]]


def model_of(attention, **windows):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**SIZE, attention=attention, **windows)).double().eval()


@pytest.fixture
def tokens():
    return torch.randint(1, 40, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
def test_with_a_window_in_every_layer_the_decoder_is_a_mistral(attention, tokens):
    ours = DecoderForCausalLM(DecoderConfig(**SIZE, attention=attention, sliding_window=5))
    stock = stock_model(ours)
    assert stock.config.model_type == "mistral"
    for model in (ours, stock):
        model(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(ours(tokens).logits, stock(tokens).logits, atol=1e-5, rtol=1e-5)
    theirs = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4)
    asked = {"max_new_tokens": 9, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    assert ours.eval().generate(tokens, **asked).tolist() == stock.eval().generate(tokens, **asked).tolist()
    assert native_config(stock.config).to_dict() == ours.config.to_dict()


@pytest.mark.parametrize("types", PATTERNS, ids=str)
@pytest.mark.parametrize("attention", FOLLOWING)
@torch.no_grad()
def test_decoding_equals_the_whole_pass_and_a_window_is_all_that_is_kept(attention, types, tokens):
    model = model_of(attention, sliding_window=5, layer_types=types)
    whole = model(tokens).logits
    full = model_of(attention)(tokens).logits
    torch.testing.assert_close(whole[:, :5], full[:, :5], atol=1e-12, rtol=0)
    assert (whole[:, 5:] - full[:, 5:]).abs().max() > 1e-4
    makes = (
        lambda: DynamicCache(config=model.config),
        lambda: StaticCache(config=model.config, max_cache_len=16),
        DynamicCache,
    )
    for make in makes:
        for chunks in ([1] * 13, [3, 4, 1, 5], [9, 1, 1, 1, 1]):
            cache = make()
            logits = torch.cat([model(part, cache=cache).logits for part in tokens.split(chunks, dim=1)], dim=1)
            torch.testing.assert_close(logits, whole, atol=1e-10, rtol=0)
    cache = DynamicCache(config=model.config)
    for place in range(13):
        model(tokens[:, place : place + 1], cache=cache)
        held = sum(part.numel() for layer in cache.layers for part in (layer.keys, layer.values))
        assert held == 2 * cached_numbers(model.config, place + 1)


@pytest.mark.parametrize("attention", FOLLOWING)
def test_unequal_prompts_write_what_each_does_alone(attention, tokens):
    model = model_of(attention, sliding_window=4, layer_types=PATTERNS[1])
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[0, :6], mask[0, :6] = 0, 0
    settings = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}
    for way in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        together = model.generate(padded, attention_mask=mask, **settings, **way)[:, 13:]
        alone = model.generate(tokens[:1, 6:], attention_mask=torch.ones(1, 7).long(), **settings, **way)[0, 7:]
        assert together[0].tolist() == alone.tolist()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sliding_window": 4, "positions": "learned"}, "sliding_window=4 is for RoPE"),
        ({"sliding_window": 4, "attention": "keqv"}, "sliding_window=4 is not followed by attention=keqv"),
        (
            {"sliding_window": 4, "layer_types": ["full_attention"]},
            "layer_types names 1 layers, but num_hidden",
        ),
        (
            {"sliding_window": 4, "layer_types": ["local", "global"]},
            "must be a list of full_attention and sl",
        ),
        ({"layer_types": ["sliding_attention"] * 2}, "asks for windows; give sliding_window"),
        ({"layer_types": [{"a": 1}, []]}, "asks for windows; give sliding_window"),
        ({"sliding_window": 1}, "sliding_window=1 sees no token but itself"),
        ({"sliding_window": 2.5}, "sliding_window=2.5 must be a positive integer"),
    ],
)
def test_windows_that_cannot_be_are_named(given, said):
    with pytest.raises(UserError, match=said):
        DecoderConfig(**SIZE | given)


def test_a_pattern_is_not_exported():
    with pytest.raises(UserError, match="layer_types"):
        stock_config(DecoderConfig(**SIZE, attention="gqa", sliding_window=4, layer_types=PATTERNS[1]))
