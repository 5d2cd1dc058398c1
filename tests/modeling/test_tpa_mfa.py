"""TPA and MFA against their equations, against what they are special cases of, and at what they cost."""

import pytest
import torch
from contract.references import mfa, tpa
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from mla_experiments.errors import UserError
from mla_experiments.kernels import attend, attend_factors
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import GQA, MFA, MHA, MQA, TPA
from mla_experiments.modeling.attention.tpa import expanded, reads_factors

WIDTH, HEADS, THETA = 24, 4, 10_000.0


def layer_of(mechanism, rotary=True, interleave=False, seed=0, **options):
    torch.manual_seed(seed)
    layer = mechanism(WIDTH, HEADS, rotary=rotary, rope_interleave=interleave, rms_norm_eps=1e-5, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def tables_of(layer, length):
    """Cosines and sines in double precision, as the references have them."""
    if not layer.rotary:
        return None
    exponents = torch.arange(0, layer.head_dim, 2, dtype=torch.float64) / layer.head_dim
    angles = torch.arange(length, dtype=torch.float64)[:, None] * THETA**-exponents
    return angles.cos()[None], angles.sin()[None]


def states_of(length, batch=2):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_few_new_tokens_read_factors_and_a_prompt_does_not():
    mask = torch.ones(1, 1, 4, 9, dtype=torch.bool)
    assert reads_factors(1, 1, None) and reads_factors(1, 9, mask[:, :, :1]) and reads_factors(4, 9, mask)
    assert not reads_factors(9, 9, None) and not reads_factors(4, 4, mask[..., :4]) and not reads_factors(5, 9, mask)


def token_by_token(layer, states, tables, prompt=3):
    cache, parts = DynamicCache(), []
    for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, states.shape[1]))]:
        at = None if tables is None else tuple(table[:, start:end] for table in tables)
        parts.append(layer(states[:, start:end], at, None, cache))
    return torch.cat(parts, dim=1)


@settings(max_examples=20)
@given(
    options=st.one_of(
        st.fixed_dictionaries({
            "head_dim": st.sampled_from([2, 6, 8]), "q_rank": st.sampled_from([1, 3, 6]), "kv_rank": st.integers(1, 3),
        }),
        st.fixed_dictionaries({"head_dim": st.sampled_from([2, 6, 12]), "q_lora_rank": st.sampled_from([1, 5, 30])}),
    ),
    rotary=st.booleans(),
    interleave=st.booleans(),
)  # fmt: skip
def test_the_whole_pass_and_decoding_are_the_equations(options, rotary, interleave):
    mechanism, reference = (TPA, tpa) if "kv_rank" in options else (MFA, mfa)
    layer, states = layer_of(mechanism, rotary, interleave, **options), states_of(6)
    described = {
        "num_attention_heads": HEADS, "rotary": rotary, "rope_theta": THETA, "rope_interleave": interleave,
        "rms_norm_eps": 1e-5, **options,
    }  # fmt: skip
    expected = reference({name: weight.detach() for name, weight in layer.state_dict().items()}, states, described)
    tables = tables_of(layer, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(states, tables), expected, atol=1e-11, rtol=1e-9)
        torch.testing.assert_close(token_by_token(layer, states, tables), expected, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rotary", [True, False])
def test_tpa_whose_head_factors_are_masks_of_groups_is_gqa(groups, rotary):
    """§4 of the paper: R_Q = H, R = G, a_r = R · (heads of group r), b_r a projection of its own, as k_g is.

    Factors that are linear in the state are not the same for every state; with a bias, and no weight, they are.
    """
    of_groups = layer_of({1: MQA, 2: GQA, 4: MHA}[groups], rotary, num_key_value_heads=groups)
    layer = layer_of(TPA, rotary, attention_bias=True, head_dim=of_groups.head_dim, q_rank=HEADS, kv_rank=groups)
    with torch.no_grad():
        layer.o_proj.weight.copy_(of_groups.o_proj.weight)
        for name, rank in (("q_proj", HEADS), ("k_proj", groups), ("v_proj", groups)):
            projection = layer.get_submodule(name)
            weights, biases = (one.zero_().unflatten(0, (rank, -1)) for one in (projection.weight, projection.bias))
            weights[:, HEADS:] = of_groups.get_submodule(name).weight.unflatten(0, (rank, -1))
            for r in range(rank):
                biases[r, r * HEADS // rank : (r + 1) * HEADS // rank] = rank
        states, tables = states_of(7), tables_of(layer, 7)
        torch.testing.assert_close(layer(states, tables), of_groups(states, tables), atol=1e-12, rtol=1e-10)
        expected = token_by_token(of_groups, states, tables)
        torch.testing.assert_close(token_by_token(layer, states, tables), expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("rotary", [True, False])
def test_mfa_whose_latent_is_the_state_itself_is_mqa(rotary):
    """S^q the identity, and states that a norm leaves as they are, as behind the norm of a block."""
    mqa = layer_of(MQA, rotary, head_dim=14)
    layer = layer_of(MFA, rotary, head_dim=14, q_lora_rank=WIDTH)
    with torch.no_grad():
        torch.nn.init.eye_(layer.q_a_proj.weight)
        torch.nn.init.ones_(layer.q_a_layernorm.weight)
        layer.q_b_proj.weight.copy_(mqa.q_proj.weight)
        for name in ("k_proj", "v_proj", "o_proj"):
            layer.get_submodule(name).weight.copy_(mqa.get_submodule(name).weight)
        states, tables = states_of(7), tables_of(layer, 7)
        states *= ((1 - layer.rms_norm_eps) / states.square().mean(-1, keepdim=True)) ** 0.5
        torch.testing.assert_close(layer(states, tables), mqa(states, tables), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "num_new"), [(None, 1), ("boolean", 1), ("additive", 1), ("boolean", 4), ("additive", 3)]
)
def test_attention_over_factors_is_attention_over_what_they_expand_to(dtype, kind, num_new):
    torch.manual_seed(0)

    def factors(tokens, rank):  # as they lie in a cache: beside one another
        return torch.randn(2, tokens, rank, 4 + 6).to(dtype).split((4, 6), dim=-1)

    query, key, value = factors(num_new, 3), factors(11, 2), factors(11, 2)
    mask = None if kind is None else torch.rand(2, 1, num_new, 11) > 0.4
    if kind == "additive":
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    whole = tuple(expanded(*(part.double() for part in pair)) for pair in (query, key, value))
    mask_in_double = mask.double() if kind == "additive" else mask
    wanted, got = [], []
    expected = attend(*whole, mask_in_double, 0.4, wanted).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    found = attend_factors(query, key, value, mask, 0.4)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(attend_factors(query, key, value, mask, 0.4, got), found, atol=0, rtol=0)
    torch.testing.assert_close(got[0], wanted[0].to(dtype), atol=tolerance, rtol=tolerance)


def model_of(attention, **options):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, attention=attention, attention_options=options, initializer_range=0.2,
    )).double().eval()  # fmt: skip


@pytest.mark.parametrize(("attention", "options"), [("tpa", {"kv_rank": 3, "q_rank": 5}), ("mfa", {"head_dim": 10})])
def test_probabilities_of_a_decoding_step_are_those_of_the_whole_pass(attention, options):
    model, tokens = model_of(attention, **options), torch.randint(0, 41, (2, 9))
    with torch.no_grad():
        whole = model(tokens, output_attentions=True).attentions
        cache = model(tokens[:, :8], use_cache=True).cache
        step = model(tokens[:, 8:], cache=cache, output_attentions=True).attentions
    for mine, theirs in zip(step, whole, strict=True):
        torch.testing.assert_close(mine, theirs[:, :, 8:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", [{}, {"kv_rank": 4, "q_rank": 1}])
@pytest.mark.parametrize("attention", ["tpa", "mfa"])
def test_a_decoding_step_does_what_its_formula_counts(attention, options):
    """For TPA nothing of the context is expanded: that would be counted."""
    with torch.device("meta"):
        layer = model_of(attention, **(options if attention == "tpa" else {})).model.layers[0].self_attn
        half, cache = layer.head_dim // 2, DynamicCache()
        for length in (40, 1):
            tables = (torch.empty(1, length, half, dtype=torch.float64),) * 2
            with FlopCounterMode(display=False) as counter:
                layer(torch.empty(3, length, 32, dtype=torch.float64), tables, None, cache)
    assert counter.get_total_flops() == 3 * layer.decoding_flops(41)


@torch.no_grad()
def test_a_decoding_step_of_tpa_makes_no_key_or_value_of_a_head():
    """No tensor of a step is as large as the keys of all heads, H · d_h numbers a token of the context."""
    layer, sizes = layer_of(TPA, head_dim=24, q_rank=2, kv_rank=1), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            several = made if isinstance(made, list | tuple) else [made]
            sizes.extend(one.numel() for one in several if torch.is_tensor(one))
            return made

    cache, tables, states = DynamicCache(), tables_of(layer, 200), states_of(200, batch=1)
    layer(states[:, :199], tuple(table[:, :199] for table in tables), None, cache)
    with Watch():
        layer(states[:, 199:], tuple(table[:, 199:] for table in tables), None, cache)
    assert max(sizes) == 200 * (HEADS + 24)  # the cache itself


def test_the_cache_is_as_large_as_the_papers_say():
    assert TPA(512, 16).cache_elements_per_token() == (2 + 2) * (16 + 32)
    assert MFA(512, 16).cache_elements_per_token() == 2 * 64


@pytest.mark.parametrize(
    ("mechanism", "options", "said"),
    [
        (TPA, {"kv_rank": 0}, "kv_rank=0 must be at least 1"),
        (TPA, {"q_rank": -1}, "q_rank=-1 must be at least 1"),
        (TPA, {"head_dim": 5}, "head_dim=5 is the rotary dimension and must be positive and even"),
        (MFA, {"head_dim": 0}, "head_dim=0 is the rotary dimension and must be positive and even"),
        (MFA, {"q_lora_rank": 0}, "q_lora_rank=0 must be at least 1"),
        (MFA, {"q_lora_rank": 1.5}, "q_lora_rank=1.5 must be an integer"),
    ],
)
def test_what_cannot_work_is_refused_by_its_name(mechanism, options, said):
    with pytest.raises(UserError, match=said):
        mechanism(WIDTH, HEADS, **options)
