"""MFA-KR against its equations, against MFA with the values that it makes, and at what it costs."""

import pytest
import torch
from contract.references import mfa_kr
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from mla_experiments import DecoderConfig, DecoderForCausalLM, RotaryEmbedding
from mla_experiments.modeling.attention import MFA, MFAKR

WIDTH, HEADS = 24, 3


def layer_of(mechanism, **options):
    torch.manual_seed(0)
    layer = mechanism(WIDTH, HEADS, head_dim=8, rms_norm_eps=1e-5, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def tables_of(layer, start, end):
    """Cosines and sines of new tokens, and of all that are kept where a layer asks for them."""
    rotary = RotaryEmbedding(8)
    new, of_all = (rotary(torch.arange(*span)[None], torch.float64) for span in ((start, end), (0, end)))
    return (new + of_all if layer.turns_when_read else new) if layer.rotary else None


def token_by_token(layer, states):
    cache, parts = DynamicCache(), []
    for start, end in [(0, 2), *((place, place + 1) for place in range(2, states.shape[1]))]:
        parts.append(layer(states[:, start:end], tables_of(layer, start, end), None, cache))
    return torch.cat(parts, dim=1)


@pytest.fixture
def states():
    return torch.randn(2, 9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("rotary", [True, False])
@torch.no_grad()
def test_the_whole_pass_and_decoding_are_the_equations(rotary, interleave, states):
    """Of the steps the first maps all keys, the others what they have read."""
    layer = layer_of(MFAKR, rotary=rotary, rope_interleave=interleave)
    assert layer.maps_before(1, HEADS) and not layer.maps_before(1, HEADS + 1)
    settings = {
        "num_attention_heads": HEADS, "head_dim": 8, "rotary": rotary, "rope_theta": 10_000.0,
        "rope_interleave": interleave, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    expected = mfa_kr(dict(layer.named_parameters()), states, settings)
    torch.testing.assert_close(layer(states, tables_of(layer, 0, 9)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(token_by_token(layer, states), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "common", [{}, {"qk_norm": True}, {"attention_bias": True}, {"output_gate": "element"}], ids=str
)
@torch.no_grad()
def test_it_is_mfa_whose_values_are_made_of_its_keys(common, states):
    """The projection to values is (I + diag(α) N) S^k, its bias that of the keys likewise."""
    layer, mfa = layer_of(MFAKR, **common), layer_of(MFA, **common)
    reused = {name: weight for name, weight in layer.state_dict().items() if not name.startswith("v_")}
    made = torch.eye(8) + layer.v_scale[:, None] * layer.v_proj.weight
    values = {name.replace("k_", "v_"): made @ reused[name] for name in reused if name.startswith("k_proj")}
    mfa.load_state_dict(reused | values)
    expected = mfa(states, tables_of(mfa, 0, 9))
    torch.testing.assert_close(layer(states, tables_of(layer, 0, 9)), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(token_by_token(layer, states), expected, atol=1e-5, rtol=1e-5)


def test_keys_are_values_at_first_and_the_cache_is_half_of_mfas():
    config = DecoderConfig(vocab_size=20, num_hidden_layers=2, attention="mfa_kr")
    layer = DecoderForCausalLM(config).model.layers[0].self_attn
    assert not layer.v_scale.any() and layer.v_proj.weight.std() > 0.01
    assert layer.cache_elements_per_token() == 64 == MFA(512, 16).cache_elements_per_token() // 2


@pytest.mark.parametrize("context", [2, 3, 4, 41])
def test_a_decoding_step_does_what_its_formula_counts(context):
    with torch.device("meta"):
        layer, cache = MFAKR(WIDTH, HEADS, head_dim=8), DynamicCache()
        for start, end in ((0, context - 1), (context - 1, context)):
            tables = tuple(torch.empty(1, length, 4) for length in (end - start, end - start, end, end))
            with FlopCounterMode(display=False) as counter:
                layer(torch.empty(1, end - start, WIDTH), tables, None, cache)
    assert counter.get_total_flops() == layer.decoding_flops(context)
