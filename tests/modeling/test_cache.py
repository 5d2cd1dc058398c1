"""The growing cache holds what transformers' own holds, and does not copy it at every token."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache

from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.cache import GrowingLayer, growing

OPERATIONS = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 40)),
    st.tuples(st.just("crop"), st.integers(0, 5)),
    st.tuples(st.just("reorder"), st.integers(0, 5)),
    st.tuples(st.just("repeat"), st.integers(1, 2)),
    st.tuples(st.just("select"), st.integers(0, 3)),
    st.tuples(st.just("reset"), st.just(0)),
    st.tuples(st.just("deepcopy"), st.just(0)),
)


@settings(max_examples=80)
@given(st.lists(OPERATIONS, max_size=12), st.sampled_from([0, 3]))
@torch.no_grad()
def test_it_holds_what_the_library_s_layer_holds(operations, value_width):
    ours, theirs = GrowingLayer(), DynamicLayer()
    batch = 2
    for name, number in operations:
        if name == "update":
            keys, values = torch.randn(batch, 2, number, 4), torch.randn(batch, 2, number, value_width)
            for mine, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
                assert torch.equal(mine, other)
        elif name == "deepcopy":
            ours = copy.deepcopy(ours)
        elif name == "reset":
            ours.reset(), theirs.reset()
        elif ours.get_seq_length() > number:
            for layer in (ours, theirs):
                if name == "crop":
                    layer.crop(-number)
                elif name == "reorder":
                    layer.reorder_cache(torch.arange(batch).flip(0))
                elif name == "repeat":
                    layer.batch_repeat_interleave(number)
                elif name == "select":
                    layer.batch_select_indices(torch.tensor([0, batch - 1]))
            batch = ours.keys.shape[0]
        assert ours.get_seq_length() == theirs.get_seq_length()


@torch.no_grad()
def test_new_tokens_are_written_in_place():
    layer = GrowingLayer()
    places = set()
    for _ in range(1000):
        layer.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
        places.add(layer.keys.data_ptr())
    assert len(places) <= 6  # 64, 128, ... 1024
    assert layer.key_buffer.memory.shape[-2] <= 2 * 1000


def test_empty_dynamic_caches_grow_and_others_stay_as_they_are():
    assert isinstance(growing(DynamicCache()), DynamicCache)
    config = DecoderConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    assert all(type(layer) is GrowingLayer for layer in growing(DynamicCache(config=config)).layers)
    static = StaticCache(config=config, max_cache_len=8)
    assert growing(static) is static and not any(isinstance(layer, GrowingLayer) for layer in static.layers)
    filled = DynamicCache(config=config)
    filled.update(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), 0)
    assert type(growing(filled).layers[0]) is DynamicLayer
    assert isinstance(growing(DynamicCache()), Cache)


def test_training_through_a_cache_has_the_gradients_of_training_without():
    config = DecoderConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    model = DecoderForCausalLM(config).double().train()
    tokens = torch.randint(0, 9, (2, 7))
    gradients = []
    for use_cache in (False, True):
        model.zero_grad()
        if use_cache:
            cache = DynamicCache()
            first = model(tokens[:, :4], past_key_values=cache).logits
            logits = torch.cat([first, model(tokens[:, 4:], past_key_values=cache).logits], dim=1)
        else:
            logits = model(tokens).logits
        logits.pow(2).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-10, rtol=1e-8)
