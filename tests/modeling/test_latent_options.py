"""MLA whose latents are scaled, as LongCat-Flash's, or have no norm; and old runs, for which neither option exists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LongcatFlashConfig
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMLA

from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import MLA
from mla_experiments.modeling.attention.compress import latent_rows
from mla_experiments.modeling.conversion import export_checkpoint
from mla_experiments.modeling.export import stock_config, stock_model
from mla_experiments.testing import CHECKS, Case, run_check

SIZE = {
    "vocab_size": 37, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


def model_of(**options):
    torch.manual_seed(0)
    model = DecoderForCausalLM(DecoderConfig(**SIZE, attention="mla", attention_options=options)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def test_options_left_alone_are_not_in_the_configuration():
    """A run's identity is made of it: old runs stay what they are."""
    options = MLA.resolve(512, 16)
    assert options == {
        "q_lora_rank": None, "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    }  # fmt: skip
    assert list(options) == ["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
    assert MLA.resolve(512, 16, latent_scale=False, latent_norm=True) == options
    assert MLA.resolve(512, 16, latent_scale=None, latent_norm=None) == options
    assert MLA.resolve(512, 16, latent_scale=True) == options | {"latent_scale": True}
    assert MLA.resolve(512, 16, latent_norm=False) == options | {"latent_norm": False}


@settings(max_examples=15)
@given(
    num_heads=st.sampled_from([1, 2, 4]),
    q_lora_rank=st.sampled_from([5, 16]),
    kv_lora_rank=st.sampled_from([4, 12, 32]),
    nope=st.sampled_from([2, 8, 12]),
    rope=st.sampled_from([2, 6]),
    value=st.sampled_from([2, 8]),
)
def test_mla_with_scaled_latents_is_that_of_longcat_flash(num_heads, q_lora_rank, kv_lora_rank, nope, rope, value):
    options = {
        "q_lora_rank": q_lora_rank, "kv_lora_rank": kv_lora_rank, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope,
        "v_head_dim": value,
    }  # fmt: skip
    ours = MLA(24, num_heads, rope_interleave=True, latent_scale=True, **options)
    described = LongcatFlashConfig(hidden_size=24, num_attention_heads=num_heads, **options)
    described._attn_implementation = "sdpa"
    oracle = LongcatFlashMLA(described, 0)
    oracle.load_state_dict(ours.state_dict(), strict=True)
    angles = torch.arange(9)[:, None] * 10_000.0 ** (-torch.arange(0, rope, 2) / rope)
    tables = angles.cos()[None], angles.sin()[None]
    mine, theirs = (torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "12")
    output, expected = ours(mine, tables), oracle(theirs, tuple(torch.cat((t, t), dim=-1) for t in tables), None)[0]
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    output.square().sum().backward()
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    pairs = [(mine.grad, theirs.grad), *((p.grad, gradients[name]) for name, p in ours.named_parameters())]
    for found, wanted in pairs:  # which are sums: their rounding grows with the largest
        torch.testing.assert_close(found, wanted, atol=1e-5 * max(1.0, wanted.abs().max().item()), rtol=0)


def test_without_norms_there_are_none_and_the_latent_is_linear():
    layer = MLA(32, 4, q_lora_rank=6, latent_norm=False, rotary=False).double()
    assert not [name for name, _ in layer.named_parameters() if "norm" in name]
    states = torch.randn(2, 5, 32, dtype=torch.float64)
    compressed = states @ layer.kv_a_proj_with_mqa.weight.T
    torch.testing.assert_close(latent_rows(layer, states, None, [None]).squeeze(1), compressed, atol=1e-14, rtol=0)
    scaled = MLA(32, 4, latent_norm=False, latent_scale=True, kv_lora_rank=8, rotary=False).double()
    compressed = states @ scaled.kv_a_proj_with_mqa.weight.T
    torch.testing.assert_close(latent_rows(scaled, states, None, [None]).squeeze(1), 2 * compressed, atol=1e-14, rtol=0)


@pytest.mark.parametrize("options", [{"latent_scale": True}, {"latent_norm": False}], ids=str)
@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("check", sorted(CHECKS.keys() - {"reference", "compilation"}))
def test_it_keeps_the_contract_with_either(check, positions, options):
    run_check(CHECKS[check], Case("mla", {"q_lora_rank": 10, **options}, positions=positions))


@pytest.mark.parametrize("q_lora_rank", [None, 10])
def test_scaled_latents_are_exported_into_their_norms(tmp_path, q_lora_rank):
    model, tokens = model_of(latent_scale=True, q_lora_rank=q_lora_rank), torch.randint(0, 37, (2, 9))
    model.save_pretrained(tmp_path / "ours")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    export_checkpoint(tmp_path / "ours", tmp_path / "stock")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert exported.config.model_type == "deepseek_v3" and not hasattr(exported.config, "latent_scale")
    with torch.no_grad():
        expected = model(tokens).logits
        for stock in (exported, stock_model(model)):
            torch.testing.assert_close(stock.eval()(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)


def test_latents_without_norm_are_not_exported():
    with pytest.raises(UserError, match="latent_norm=False exists in no stock model"):
        stock_config(model_of(latent_norm=False).config)


@pytest.mark.parametrize("option", ["latent_scale", "latent_norm"])
def test_an_option_that_is_no_boolean_is_refused(option):
    with pytest.raises(UserError, match=f"{option}=1 must be True or False"):
        DecoderConfig(**SIZE, attention="mla", attention_options={option: 1})
