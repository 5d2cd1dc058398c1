"""GTA, GLA and MLRA: against their papers' equations in float64, and exactly what they are with one part."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from mla_experiments.errors import UserError
from mla_experiments.kernels import latent, shared_keys
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION, GLA, GTA, MLRA, set_decode_mode
from mla_experiments.modeling.attention.rope import RotaryEmbedding
from mla_experiments.modeling.cache import growing

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import references

WIDTH, HEADS, TOKENS = 32, 4, 7
CASES = [
    ("gta", {}), ("gta", {"num_key_value_heads": 1}), ("gta", {"num_key_value_heads": 4, "head_dim": 12}),
    ("gla", {}), ("gla", {"num_latent_groups": 4, "q_lora_rank": 5}), ("gla", {"num_latent_groups": 1}),
    ("gla", {"kv_lora_rank": 6, "qk_nope_head_dim": 3, "qk_rope_head_dim": 4, "v_head_dim": 5}),
    ("mlra", {}), ("mlra", {"num_branches": 4, "q_lora_rank": 5}), ("mlra", {"num_branches": 1}),
    ("mlra", {"num_branches": 3, "kv_lora_rank": 6, "qk_nope_head_dim": 3, "qk_rope_head_dim": 4, "v_head_dim": 5}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _free_choice():
    yield
    latent.force_backend(None)


def layer_of(attention, rotary=True, interleaved=False, **options):
    """One layer in float64 with weights of order one, norms among them."""
    torch.manual_seed(0)
    if not rotary and "qk_rope_head_dim" in options:
        options["qk_rope_head_dim"] = 0
    kind = ATTENTION[attention]
    options = kind.resolve(WIDTH, HEADS, rotary=rotary, **options)
    layer = kind(WIDTH, HEADS, rotary=rotary, rope_interleave=interleaved, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        if parameter.dim() == 1:
            parameter.data += 1
    return layer, options


def tables(layer, options, past, new):
    if not layer.rotary:
        return None
    return RotaryEmbedding(layer.rotary_dim(options)).double()(torch.arange(past, past + new)[None], torch.float64)


def model_of(attention, seed=0, **given):
    torch.manual_seed(seed)
    fields = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2} | given
    config = DecoderConfig(
        vocab_size=37, intermediate_size=48, max_position_embeddings=64, attention=attention, initializer_range=0.2,
        **fields,
    )  # fmt: skip
    return DecoderForCausalLM(config).eval()


@pytest.mark.parametrize("attention, options", CASES)
@pytest.mark.parametrize("positions", ["half-split", "interleaved", "none"])
@torch.no_grad()
def test_it_is_what_its_paper_writes(attention, options, positions):
    layer, options = layer_of(attention, positions != "none", positions == "interleaved", **options)
    hidden_states = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    settings = {"num_attention_heads": HEADS, "rotary": layer.rotary, "rope_theta": 10_000.0}
    settings |= {"rope_interleave": layer.rope_interleave} | options
    expected = getattr(references, attention)(layer.state_dict(), hidden_states, settings)
    cos_sin = tables(layer, options, 0, TOKENS)
    if cos_sin is not None:  # the angles of f32 would be the difference
        exact = torch.arange(TOKENS)[:, None] * 10_000.0 ** -(
            torch.arange(0, layer.rotary_dim(options), 2, dtype=torch.float64) / layer.rotary_dim(options)
        )
        cos_sin = exact.cos()[None], exact.sin()[None]
    whole = layer(hidden_states, cos_sin)
    torch.testing.assert_close(whole, expected, atol=1e-11, rtol=0)
    for mode in layer.decode_modes:
        layer.decode_mode, cache, parts = mode, DynamicCache(), []
        for past, new in ((0, 3), (3, 4), (4, 6), (6, 7)):
            rotation = cos_sin and tuple(table[:, past:new] for table in cos_sin)
            seen = torch.ones(new, new, dtype=torch.bool).tril()[None, None, past:]
            parts.append(layer(hidden_states[:, past:new], rotation, seen, cache))
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("attention, option", [("gla", "num_latent_groups"), ("mlra", "num_branches")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positions", ["rope", "learned"])
@torch.no_grad()
def test_with_one_part_it_is_mla_to_the_last_bit(attention, option, dtype, positions):
    one = model_of(attention, attention_options={option: 1}, positions=positions).to(dtype)
    mla = model_of("mla", seed=1, positions=positions).to(dtype)
    renamed = {
        name.replace("kv_b_proj.0", "kv_b_proj").replace("kv_a_layernorm.0", "kv_a_layernorm"): value
        for name, value in one.state_dict().items()
    }
    mla.load_state_dict(renamed, strict=True)
    tokens = torch.randint(0, 37, (2, 11))
    assert torch.equal(one(tokens).logits, mla(tokens).logits)
    for mode in ("expand", "absorb"):
        set_decode_mode(one, mode)
        set_decode_mode(mla, mode)
        caches = DynamicCache(), DynamicCache()
        for part in tokens.split([4, 1, 3, 1, 2], dim=1):
            ours, theirs = (
                model(part, past_key_values=cache).logits for model, cache in zip((one, mla), caches, strict=True)
            )
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_without_rotation_gta_with_all_groups_is_mha_with_tied_keys_and_values():
    gta = model_of("gta", positions="learned", attention_options={"num_key_value_heads": HEADS}).double()
    mha = model_of("mha", seed=1, positions="learned").double()
    tied = dict(gta.state_dict())
    for name in [name for name in tied if "kv_proj" in name]:
        weight = tied.pop(name)
        tied |= {name.replace("kv_proj", "k_proj"): weight, name.replace("kv_proj", "v_proj"): weight}
    mha.load_state_dict(tied, strict=True)
    tokens = torch.randint(0, 37, (2, 11))
    assert torch.equal(gta(tokens).logits, mha(tokens).logits)
    assert gta.model.layers[0].self_attn.cache_parts() == {"tied states": WIDTH, "rotary key": 0}


@pytest.mark.parametrize("attention", ["gta", "gla", "mlra"])
@torch.no_grad()
def test_in_c_and_in_pytorch_it_decodes_the_same(attention, num_heads=16):
    """In single precision, at sizes that fill vectors, beside whole rows with queries that are zero in part."""
    model = model_of(attention, hidden_size=128, num_attention_heads=num_heads)
    tokens, answers = torch.randint(0, 37, (2, 14)), []
    for backend in (None, "torch"):
        latent.force_backend(backend)
        cache = DynamicCache()
        parts = [model(part, past_key_values=cache).logits for part in tokens.split([9, 1, 3, 1], dim=1)]
        answers.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(*answers, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(answers[0], model(tokens).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["gta", "gla", "mlra"])
@pytest.mark.parametrize("new", [2, 16, 17, 40])
@torch.no_grad()
def test_many_new_tokens_are_read_with_a_past_as_without(attention, new):
    model, tokens = model_of(attention).double(), torch.randint(0, 37, (2, 8 + new))
    whole = model(tokens).logits[:, 8:]
    for mode in model.model.layers[0].self_attn.decode_modes:
        set_decode_mode(model, mode)
        cache = model(tokens[:, :8]).past_key_values
        torch.testing.assert_close(model(tokens[:, 8:], past_key_values=cache).logits, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("attention", ["gta", "gla", "mlra"])
@torch.no_grad()
def test_probabilities_that_are_asked_for_are_those_of_every_softmax(attention):
    model = model_of(attention).double()
    model.set_attn_implementation("eager")
    tokens = torch.randint(0, 37, (2, 9))
    whole = model(tokens, output_attentions=True)
    cache = model(tokens[:, :8]).past_key_values
    step = model(tokens[:, 8:], past_key_values=cache, output_attentions=True)
    torch.testing.assert_close(step.logits, whole.logits[:, 8:], atol=1e-10, rtol=0)
    for seen, last in zip(whole.attentions, step.attentions, strict=True):
        softmaxes = HEADS * (2 if attention == "mlra" else 1)
        assert seen.shape == (2, softmaxes, 9, 9) and last.shape == (2, softmaxes, 1, 9)
        torch.testing.assert_close(seen.sum(-1), torch.ones(2, softmaxes, 9, dtype=torch.float64))
        torch.testing.assert_close(last, seen[:, :, 8:], atol=1e-10, rtol=0)


@pytest.mark.skipif(shared_keys.why_not_here() is not None, reason=f"attention in C: {shared_keys.why_not_here()}")
@pytest.mark.parametrize("attention", ["gta", "gla", "mlra"])
@torch.no_grad()
def test_a_step_does_the_operations_that_it_states_and_copies_no_cache(attention):
    kind, context = ATTENTION[attention], 4000
    options = kind.resolve(512, 64)  # 16 heads a part, which fill vectors: with fewer, whole rows take no longer
    layer, cache = kind(512, 64, **options).eval(), growing(DynamicCache())
    row = torch.randn(2, 1, context - 1, layer.cache_elements_per_token())
    layer.remember(cache, row, row[..., :0])
    token, rotation = torch.randn(2, 1, 512), tables(layer.float(), options, context - 1, 1)
    rotation = tuple(table.float() for table in rotation)
    layer.remember(cache, row[:, :, :1], row[:, :, :1, :0])  # the buffer has been made longer
    cache.crop(-1)
    with FlopCounterMode(display=False) as counter:
        layer(token, rotation, None, cache)
    cache.crop(-1)
    assert counter.get_total_flops() == 2 * layer.decoding_flops(context)
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(token, rotation, None, cache)
    assert max(event.cpu_memory_usage for event in profile.events()) < row.nbytes / 20


def test_what_a_chooser_counts_at_the_reference_shape():
    assert GTA(512, 16, **GTA.resolve(512, 16)).cache_parts() == {"tied states": 128, "rotary key": 16}
    for kind in (GLA, MLRA):
        layer = kind(512, 16, **kind.resolve(512, 16))
        assert layer.cache_parts() == {"latent": 128, "rotary key": 16}
    assert GLA.resolve(512, 16)["num_latent_groups"] == 2 == MLRA.resolve(512, 16)["num_branches"]
    assert GLA.resolve(30, 3)["num_latent_groups"] == 1


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (GTA, {"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
        (GTA, {"head_dim": 6}, "head_dim=6, half of which RoPE turns, must be positive and a multiple of 4"),
        (GLA, {"num_latent_groups": 3}, "num_latent_groups=3 does not divide num_attention_heads=4; choose a divisor"),
        (GLA, {"num_latent_groups": 4, "kv_lora_rank": 6}, "num_latent_groups=4 does not divide kv_lora_rank=6"),
        (GLA, {"kv_lora_rank": 9}, "num_latent_groups=2 does not divide kv_lora_rank=9; choose a divisor of both"),
        (MLRA, {"kv_lora_rank": 9}, "num_branches=2 does not divide kv_lora_rank=9; choose a divisor of the rank"),
        (GLA, {"num_latent_groups": 0}, "num_latent_groups=0 does not divide"),
        (MLRA, {"num_branches": 3}, "num_branches=3 does not divide kv_lora_rank=32; choose a divisor"),
        (MLRA, {"num_branches": -1}, "num_branches=-1 does not divide"),
        (MLRA, {"qk_rope_head_dim": 3}, "qk_rope_head_dim=3 must be positive and even"),
    ],
)
def test_what_cannot_work_is_refused(kind, options, said):
    with pytest.raises(UserError, match=said):
        kind.resolve(WIDTH, HEADS, **options)


@pytest.mark.parametrize("attention", ["gla", "mlra"])
def test_absorption_is_refused_where_the_matrices_are_not_known(attention):
    model = model_of(attention)
    model.model.layers[0].self_attn.kv_b_proj[1].register_forward_hook(lambda *_: None)
    set_decode_mode(model, "absorb")
    with pytest.raises(UserError, match="decode_mode=absorb needs kv_b_proj as a plain matrix"):
        model(torch.zeros(1, 3, dtype=torch.long))
