"""What every registered mechanism promises, with both kinds of positions: to register is to be tested."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION

VOCABULARY = 41


@pytest.fixture(params=["rope", "learned"])
def positions(request):
    return request.param


@pytest.fixture(params=list(ATTENTION))
def config(request, positions):
    return DecoderConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, attention=request.param, positions=positions, initializer_range=0.2,
    )  # fmt: skip


@pytest.fixture
def model(config):
    return DecoderForCausalLM(config).double().eval()


@pytest.fixture
def tokens():
    return torch.randint(0, VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(1))


def test_a_later_token_changes_no_earlier_logits(model, tokens):
    changed = tokens.clone()
    changed[:, 8] = (changed[:, 8] + 1) % VOCABULARY
    before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(after[:, :8], before[:, :8], atol=1e-12, rtol=0)
    assert (after[:, 8:] - before[:, 8:]).abs().amax(dim=(0, 2)).min() > 1e-6


@pytest.mark.parametrize("chunks", [[1] * 13, [5, 1, 4, 3], [12, 1], [1, 12]])
def test_decoding_in_chunks_equals_the_full_forward(model, tokens, chunks):
    full = model(tokens).logits
    cache = DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache).logits for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-10, rtol=0)


def test_left_padding_changes_nothing(model, tokens):
    alone = model(tokens).logits
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), tokens], dim=1)
    mask = torch.cat([torch.zeros(3, 4, dtype=torch.long), torch.ones_like(tokens)], dim=1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], alone, atol=1e-10, rtol=0)

    cache = DynamicCache(config=model.config)
    model(padded[:, :9], attention_mask=mask[:, :9], past_key_values=cache)
    step = model(padded[:, 9:10], attention_mask=mask[:, :10], past_key_values=cache).logits
    torch.testing.assert_close(step[:, 0], alone[:, 5], atol=1e-10, rtol=0)


def test_a_batch_of_unequal_prompts_generates_what_each_does_alone(model, tokens):
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    for row, padding in enumerate((0, 3, 7)):
        padded[row, :padding], mask[row, :padding] = 0, 0
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=mask, **settings)[:, tokens.shape[1] :]
    for row, padding in enumerate((0, 3, 7)):
        alone = model.generate(padded[row : row + 1, padding:], **settings)[0, -6:]
        assert together[row].tolist() == alone.tolist()


def test_gradients_reach_every_parameter(model, tokens):
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_bf16_agrees_with_f32_within_its_rounding(config, tokens):
    config.initializer_range = 0.02
    model = DecoderForCausalLM(config).eval()
    exact = torch.log_softmax(model(tokens).logits, dim=-1)
    rounded = torch.log_softmax(model.bfloat16()(tokens).logits.float(), dim=-1)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)


def test_saved_and_loaded_it_is_the_same_model(model, tokens, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = DecoderForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(loaded.eval()(tokens).logits, model(tokens).logits, atol=1e-12, rtol=0)
    assert not list(tmp_path.glob("*.bin"))


def test_the_cache_holds_what_the_formula_says(model, tokens):
    cache = model(tokens).past_key_values
    for block, layer in zip(model.model.layers, cache.layers, strict=True):
        held = layer.keys.numel() + layer.values.numel()
        assert held == tokens.numel() * block.self_attn.cache_elements_per_token()


def test_flops_formula_equals_the_flop_counter(config):
    """On the meta device nothing is fused or padded, so the counter sees the algorithm itself."""
    with torch.device("meta"):
        layer = DecoderForCausalLM(config).model.layers[0].self_attn
        batch, length = 3, 16
        half = ATTENTION[config.attention].rotary_dim(config.attention_options) // 2
        tables = None if half == 0 or not layer.rotary else (torch.empty(1, length, half),) * 2
        with FlopCounterMode(display=False) as counter:
            layer(torch.empty(batch, length, config.hidden_size), tables)
    assert counter.get_total_flops() == batch * layer.flops(length, length)
