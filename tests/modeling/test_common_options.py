"""What is common to mechanisms, or to be set for the decoder around them, against models of transformers.

Biases (Qwen2), norms (Qwen3; OLMo 2, which places its other norms behind too), layers without RoPE (SmolLM3), gates
(Qwen3-Next).
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from mla_experiments import GQA, DecoderConfig, DecoderForCausalLM
from mla_experiments.errors import UserError
from mla_experiments.modeling import load_model
from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.modeling.attention.checks import COMMON
from mla_experiments.modeling.export import native_config, stock_config, stock_model
from mla_experiments.training import RunArguments
from mla_experiments.training.identity import identity_of

SIZE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
STOCK = {  # what a decoder of keys and values has beside a Llama, by what it then is
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
    "olmo2": {"qk_norm": "whole", "norm_placement": "post"},
    "smollm3": {"no_rope_layers": [0, 1]},
}


@pytest.fixture
def tokens():
    return torch.randint(0, 40, (2, 11), generator=torch.Generator().manual_seed(1))


def moved(model):
    """Move what starts at zero or one away from there."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("kind", STOCK)
def test_with_it_the_decoder_is_a_stock_model(attention, kind, tokens):
    ours = moved(DecoderForCausalLM(DecoderConfig(**SIZE, attention=attention, **STOCK[kind])))
    stock = stock_model(ours)
    assert stock.config.model_type == kind and type(stock) is not type(ours)
    for model in (ours, stock):
        model(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(ours(tokens).logits, stock(tokens).logits, atol=1e-5, rtol=1e-5)
    gradients = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4)
    written = [model.eval().generate(tokens, max_new_tokens=6, do_sample=False).tolist() for model in (ours, stock)]
    assert written[0] == written[1]


@pytest.mark.parametrize("kind", STOCK)
def test_a_stock_model_comes_back(kind, tokens):
    ours = DecoderConfig(**SIZE, attention="gqa", **STOCK[kind])
    back = native_config(stock_config(ours))
    assert {name: getattr(back, name) for name in STOCK[kind]} == STOCK[kind]
    assert back.attention == "gqa" and back.attention_options == ours.attention_options
    stock = moved(AutoModelForCausalLM.from_config(stock_config(ours)))
    model = DecoderForCausalLM(back)
    model.load_state_dict(stock.state_dict())
    torch.testing.assert_close(model(tokens).logits, stock(tokens).logits, atol=1e-5, rtol=1e-5)


def without_rope(attention, layers):
    """A decoder with these layers without RoPE, or None where its mechanism refuses that by its field."""
    try:
        return moved(DecoderForCausalLM(DecoderConfig(**SIZE, attention=attention, no_rope_layers=layers))).eval()
    except UserError as error:
        assert "no_rope_layers" in str(error)
        return None


@pytest.mark.parametrize("attention", ATTENTION)
def test_layers_without_rope_know_no_positions_or_are_refused(attention, tokens):
    ours = without_rope(attention, [0, 0])
    assert (ours is None) == (attention in ("mla", "gla", "mlra"))
    if ours is None:
        return
    other = DecoderForCausalLM(DecoderConfig(**SIZE, attention=attention, positions="none")).eval()
    other.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(tokens).logits, other(tokens).logits, atol=1e-6, rtol=1e-6)
    turning = without_rope(attention, [1, 1])
    turning.load_state_dict(ours.state_dict(), strict=False)  # GTA has a rotary half too
    assert (turning(tokens).logits - ours(tokens).logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("attention", "more"),
    [(name, {"norm_placement": "post"}) for name in ATTENTION]
    + [(name, {"no_rope_layers": [0, 1]}) for name in ATTENTION if name not in ("mla", "gla", "mlra")],
)
def test_what_is_decoded_from_the_cache_is_what_is_computed_at_once(attention, more, tokens, tmp_path):
    moved(DecoderForCausalLM(DecoderConfig(**SIZE, attention=attention, **more))).save_pretrained(tmp_path)
    model, found, cache = load_model(tmp_path), [], None
    with torch.inference_mode():
        for token in tokens.split(1, dim=1):
            output = model(token, cache=cache, use_cache=True)
            cache = output.cache
            found.append(output.logits)
        torch.testing.assert_close(torch.cat(found, dim=1), model(tokens).logits, atol=1e-5, rtol=1e-4)


def test_the_gate_is_that_of_qwen3_next():
    """Which keeps a head's gate beside its query, in one projection, and norms with weights about zero."""
    config = qwen3_next.Qwen3NextConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=1,
        layer_types=["full_attention"], rope_parameters={"rope_type": "default", "rope_theta": 1e4}, num_experts=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    stock = qwen3_next.Qwen3NextAttention(config, 0)
    ours = GQA(32, 4, num_key_value_heads=2, output_gate="element", qk_norm=True)
    torch.manual_seed(0)
    both = torch.randn(4, 2, 8, 32) / 5
    with torch.no_grad():
        stock.q_proj.weight.copy_(both.flatten(0, 2))
        ours.q_proj.weight.copy_(both[:, 0].flatten(0, 1))
        ours.gate_proj.weight.copy_(both[:, 1].flatten(0, 1))
        for name in ("k_proj", "v_proj", "o_proj"):
            getattr(ours, name).weight.copy_(getattr(stock, name).weight)
        for name in ("q_norm", "k_norm"):
            getattr(stock, name).weight.normal_(std=0.3)
            getattr(ours, name).weight.copy_(1 + getattr(stock, name).weight)
    hidden = torch.randn(2, 9, 32, requires_grad=True)
    angles = torch.arange(9)[None, :, None] * 1e4 ** -(torch.arange(0, 8, 2) / 8)
    cos, sin = (torch.cat((table, table), dim=-1) for table in (angles.cos(), angles.sin()))
    mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    theirs, _ = stock(hidden, (cos, sin), mask)
    torch.testing.assert_close(ours(hidden, (angles.cos(), angles.sin())), theirs, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad(theirs.square().sum(), hidden)
    (found,) = torch.autograd.grad(ours(hidden, (angles.cos(), angles.sin())).square().sum(), hidden)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_gate_for_each_head_is_one_number_for_all_its_elements():
    wide, narrow = GQA(32, 4, output_gate="element"), GQA(32, 4, output_gate="head")
    state = narrow.state_dict()
    state["gate_proj.weight"] = state["gate_proj.weight"].repeat_interleave(8, dim=0)
    wide.load_state_dict(state)
    hidden, tables = torch.randn(2, 5, 32), (torch.ones(1, 5, 4), torch.zeros(1, 5, 4))
    torch.testing.assert_close(wide(hidden, tables), narrow(hidden, tables))


@pytest.mark.parametrize("attention", ATTENTION)
def test_left_out_it_changes_nothing(attention):
    config = DecoderConfig(**SIZE, attention=attention)
    names = " ".join(DecoderForCausalLM(config).state_dict())
    assert "self_attn.gate_proj" not in names and "bias" not in names
    run, trainer = RunArguments(attention=[attention]), TrainingArguments()
    identity = identity_of(run, trainer, config, {"request": {}}, attention)
    younger = {*COMMON, "initialization", "sliding_window", "layer_types", "attention_source", "norm_placement",
               "no_rope_layers", "layer_options"}  # fmt: skip
    assert not younger & identity.determines["model"].keys()  # so that runs of before stay what they were


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"output_gate": "token"}, "output_gate='token' is unknown; choose one of"),
        ({"qk_norm": "yes"}, "qk_norm='yes' is unknown"),
        ({"attention": "mla", "qk_norm": True}, "qk_norm=True is not followed by MLA"),
        ({"output_gate": []}, "output_gate=.. is unknown"),
        ({"norm_placement": "both"}, "norm_placement='both' is unknown; choose pre or post"),
        ({"norm_placement": "post", "initialization": "zero"}, "initialization='zero' is undone"),
        ({"layer_options": {}}, "layer_options=.. must be a list of dictionaries"),
        ({"layer_options": [{}]}, "layer_options names 1 layers, but num_hidden_layers=2"),
        ({"layer_options": [{}, {"kv_lora_rank": 0}]}, "layer_options of layer 1: kv_lora_rank=0 must be at least 1"),
        ({"layer_options": [{"head_dim": 8}, {}]}, "layer_options of layer 0: attention_options has head_dim"),
        ({"no_rope_layers": [1]}, "no_rope_layers names 1 layers, but num_hidden_layers=2"),
        ({"no_rope_layers": [1, 2]}, "no_rope_layers=.1, 2. must be a list of 1"),
        ({"no_rope_layers": [1, 0], "positions": "none"}, "no_rope_layers is for RoPE, not positions=none"),
        ({"attention": "mla", "no_rope_layers": [1, 0]}, "no_rope_layers leaves layer 1 without RoPE, for which"),
    ],
)
def test_what_cannot_be_is_named(given, said):
    with pytest.raises(UserError, match=said):
        DecoderConfig(**SIZE | given)


@pytest.mark.parametrize(
    "given",
    [
        {"output_gate": "head"},
        {"qk_norm": True, "attention_bias": True},
        {"attention": "mla", "output_gate": "head"},
        {"qk_norm": "whole"},
        {"norm_placement": "post"},
        {"norm_placement": "post", "qk_norm": True},
        {"norm_placement": "post", "attention": "mla"},
        {"layer_options": [{}, {"num_key_value_heads": 1}]},
        {"no_rope_layers": [1, 0], "attention_bias": True},
    ],
)
def test_what_no_stock_model_has_is_not_exported(given):
    with pytest.raises(UserError, match=r"no stock model( do)?; it cannot be exported"):
        stock_config(DecoderConfig(**SIZE | {"attention": "gqa"} | given))
