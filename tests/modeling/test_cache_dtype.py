"""Caches in fewer bits: every mechanism, whole or token by token; what they take, and what they refuse."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from mla_experiments.errors import UserError
from mla_experiments.kernels import latent
from mla_experiments.kernels.stored import STORED
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, set_cache_dtype
from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.modeling.cache import GrowingLayer, StoredLayer

SIZE = {
    "vocab_size": 41, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1}
LARGEST_ERROR = {"f32": 1e-5, "bf16": 0.1, "f16": 0.02, "int8": 0.2}  # of the logits' deviation


def small(attention, dtype=torch.float32, **more):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**SIZE | more, attention=attention)).to(dtype).eval()


def tokens(length=13):
    return torch.randint(1, 41, (3, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("attention", [*ATTENTION, "mla+mha"])
@torch.no_grad()
def test_token_by_token_equals_chunks_and_the_whole(attention, kind):
    """In double precision, where nothing is rounded to another octet by the order of sums alone."""
    model, ids = small(attention, torch.float64), tokens()
    exact = model(ids).logits
    set_cache_dtype(model, kind)
    whole = model(ids, use_cache=True)
    assert all(type(layer) is StoredLayer and layer.keys.dtype is STORED[kind] for layer in whole.cache.layers)
    cache = DynamicCache()
    parts = [model(part, past_key_values=cache).logits for part in ids.split([6, 3, 1, 1, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole.logits, atol=1e-10, rtol=0)
    error = (whole.logits - exact).abs().max() / exact.std()
    assert 0 < error < LARGEST_ERROR[kind]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    padded = model(ids, attention_mask=mask, use_cache=True).logits[0, 4:]
    torch.testing.assert_close(padded, model(ids[:1, 4:], use_cache=True).logits[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_a_step_in_single_precision_is_that_of_double_precision(attention, kind):
    """The same cache, read by whatever code serves: C, where it is there."""
    ids, steps = tokens(40), []
    for dtype in (torch.float32, torch.float64):
        model, filled = small(attention, dtype), small(attention)
        for one in (model, filled):
            set_cache_dtype(one, kind)
        cache = filled(ids, use_cache=True).cache
        for layer in cache.layers:
            layer.dtype = dtype
        steps.append(model(ids[:, :1], past_key_values=cache).logits.double())
    torch.testing.assert_close(*steps, atol=1e-4 if kind in ("f32", "f16") else 2e-2, rtol=0)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_a_token_takes_its_bytes_and_a_scale_for_each_part(attention, kind):
    model, ids = small(attention), tokens()
    set_cache_dtype(model, kind)
    cache = model(ids, use_cache=True).cache
    for layer, block in zip(cache.layers, model.model.layers, strict=True):
        rows = (layer.keys, layer.values)
        scales = sum(len(parts) * row.shape[1] for parts, row in zip(layer.parts, rows, strict=True))
        held = sum(part.nbytes for part in rows) // ids.numel()
        least = block.self_attn.cache_elements_per_token() * BYTES[kind] + 4 * scales
        before_scales = 3 * sum(row.shape[1] for row in rows)  # bytes, at most
        assert least <= held <= least + (before_scales if kind == "int8" else 0)
        assert (scales > 0) == (kind == "int8")


@torch.no_grad()
def test_generation_of_every_kind_goes_through_it():
    model, ids = small("mla"), tokens()
    set_cache_dtype(model, "int8")
    greedy = written = model.generate(ids, max_new_tokens=8, do_sample=False)
    written = ids
    for _ in range(8):
        written = torch.cat((written, model(written, use_cache=True).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(greedy, written[:, : greedy.shape[1]])
    assert model.generate(ids, max_new_tokens=4, num_beams=3).shape[1] > ids.shape[1]
    assisted = model.generate(ids[:1], max_new_tokens=8, prompt_lookup_num_tokens=3, do_sample=False)
    assert torch.equal(assisted, greedy[:1])
    set_cache_dtype(model, None)
    assert all(type(layer) is GrowingLayer for layer in model(ids, use_cache=True).cache.layers)


@torch.no_grad()
def test_what_it_cannot_be_kept_in_is_refused():
    model, ids = small("mla"), tokens()
    with pytest.raises(UserError, match="cache_dtype=int4 is unknown; choose one of f32, bf16, f16, int8"):
        set_cache_dtype(model, "int4")
    with pytest.raises(UserError, match="is for models of ours, and Linear is none"):
        set_cache_dtype(torch.nn.Linear(2, 2), "int8")
    with pytest.raises(UserError, match="cache_dtype=int8 is not kept by layers with sliding_window=8"):
        set_cache_dtype(small("mha", sliding_window=8), "int8")
    filled = model(ids, use_cache=True).cache
    set_cache_dtype(model, "int8")
    for cache in (filled, StaticCache(config=model.config, max_cache_len=32)):
        with pytest.raises(UserError, match="cache_dtype=int8 is for a DynamicCache that is still empty"):
            model(ids, past_key_values=cache)
    with pytest.raises(UserError, match="the cache holds keys of shape"):
        model(ids[:2], past_key_values=model(ids, use_cache=True).cache)
    with torch.enable_grad(), pytest.raises(UserError, match="has no gradients"):
        model(ids, use_cache=True)


@torch.no_grad()
def test_a_forced_backend_that_cannot_read_it_says_so(monkeypatch):
    model, ids = small("mla"), tokens()
    set_cache_dtype(model, "bf16")
    cache = model(ids, use_cache=True).cache
    monkeypatch.setattr(latent, "_forced", "triton")
    with pytest.raises(UserError, match="backend=triton cannot read a cache that is kept in bfloat16"):
        model(ids[:, :1], past_key_values=cache)
