"""Every cache of transformers, under every mechanism, and under one whose keys and values differ in heads."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, QuantizedCache, StaticCache

from mla_experiments.kernels import attend
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.modeling.attention.base import Attention
from mla_experiments.modeling.attention.heads import merge_heads, split_heads
from mla_experiments.modeling.attention.rope import rotate
from mla_experiments.testing.contract import Unrounded

WIDTH = 8


class TwoKeysOneValue(Attention):
    """Two heads of keys, and one wider head of values for all."""

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        self.q_proj = nn.Linear(hidden_size, self.num_heads * WIDTH, bias=False)
        self.k_proj = nn.Linear(hidden_size, 2 * WIDTH, bias=False)
        self.v_proj = nn.Linear(hidden_size, 3 * WIDTH, bias=False)
        self.o_proj = nn.Linear(self.num_heads * 3 * WIDTH, hidden_size, bias=False)

    @classmethod
    def resolve(cls, hidden_size: int, num_attention_heads: int, *, rotary: bool = True) -> dict:
        return {}

    @classmethod
    def rotary_dim(cls, options):
        return WIDTH

    def forward(self, hidden_states, position_embeddings, attention_mask=None, cache=None, attentions=None):
        query, key = (split_heads(layer(hidden_states), WIDTH) for layer in (self.q_proj, self.k_proj))
        query, key = (rotate(x, position_embeddings, self.rope_interleave) for x in (query, key))
        key, value = self.remember(cache, key, split_heads(self.v_proj(hidden_states), 3 * WIDTH))
        assert key.shape[1] == 2 and value.shape[1] == 1
        value = value.expand(-1, 2, -1, -1)
        return self.o_proj(merge_heads(attend(query, key, value, attention_mask, WIDTH**-0.5, attentions)))

    def cache_parts(self) -> dict[str, int]:
        return {"keys": 2 * WIDTH, "values": 3 * WIDTH}

    def flops(self, num_tokens: int, context: int) -> int:
        raise NotImplementedError


@pytest.fixture(params=[*ATTENTION, "two-keys-one-value"])
def model(request, monkeypatch):
    monkeypatch.setitem(ATTENTION, "two-keys-one-value", TwoKeysOneValue)
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, attention=request.param, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    return DecoderForCausalLM(config).eval()


@pytest.fixture
def tokens():
    return torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))


class InPlain(QuantizedCache):
    """The library's quantised cache with a quantiser that leaves numbers as they are, and refuses to have none."""

    def __init__(self, config, residual_length):
        super().__init__("quanto", config, residual_length=residual_length)


@pytest.fixture
def plain_quantiser(monkeypatch):
    from transformers import cache_utils

    monkeypatch.setattr(cache_utils, "QuantoQuantizedLayer", Unrounded)


def caches(config):
    yield DynamicCache(config=config)
    yield DynamicCache()
    yield StaticCache(config=config, max_cache_len=16)
    yield InPlain(config, residual_length=128)
    yield InPlain(config, residual_length=3)


@torch.no_grad()
def test_each_cache_gives_what_the_whole_pass_gives(model, tokens, plain_quantiser):
    whole = model(tokens, use_cache=False).logits
    for cache in caches(model.config):
        for past, new in ((0, 5), (5, 6), (6, 7), (7, 9)):
            output = model(tokens[:, past:new], cache=cache)
            assert cache.get_seq_length() == new
            torch.testing.assert_close(output.logits, whole[:, past:new], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_beams_are_reordered_and_tokens_taken_back_in_each_cache(model, tokens, plain_quantiser):
    whole = model(tokens.flip(0), use_cache=False).logits
    for cache in caches(model.config):
        if isinstance(cache, InPlain):
            continue  # versions before 5.24 do not reorder what they have quantised
        model(tokens[:, :6], cache=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        step = model(tokens.flip(0)[:, 6:7], cache=cache).logits
        torch.testing.assert_close(step, whole[:, 6:7], atol=1e-4, rtol=1e-4)
        if type(cache) is DynamicCache:
            cache.crop(-3)
            step = model(tokens.flip(0)[:, 4:6], cache=cache).logits
            torch.testing.assert_close(step, whole[:, 4:6], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_writes_the_same_with_each_kind_of_cache(model, tokens, beams):
    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    expected = model.generate(tokens, use_cache=False, **settings).tolist()
    for kind in ("dynamic", "static", *(("offloaded", "offloaded_static") if torch.cuda.is_available() else ())):
        assert model.generate(tokens, cache_implementation=kind, **settings).tolist() == expected


@pytest.mark.parametrize("backend, package", [("quanto", "optimum"), ("hqq", "hqq")])
def test_the_library_s_quantisers_serve_it(model, tokens, backend, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    described = {"backend": backend, "nbits": 4, "q_group_size": 4, "residual_length": 3}
    written = model.generate(
        tokens, max_new_tokens=6, do_sample=False, cache_implementation="quantized", cache_config=described
    )
    assert written.shape == (2, 15)
