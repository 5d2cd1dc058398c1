"""Weights in fewer bits: every mechanism decodes as with the matrices that they stand for, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from mla_experiments.errors import UserError
from mla_experiments.kernels import PackedLinear, linear
from mla_experiments.kernels.stored import STORED
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, set_weight_dtype
from mla_experiments.modeling.attention import ATTENTION

SIZE = {
    "vocab_size": 41, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def small(attention, **more):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**SIZE | more, attention=attention)).eval()


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("attention", ATTENTION)
@torch.inference_mode()
def test_a_model_computes_with_what_its_weights_were_rounded_to(attention, kind, monkeypatch):
    """Beside the same model in double precision, its matrices replaced by what the packed ones say they are."""
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: False)  # which would round the prompt's states
    model, ids = small(attention), torch.randint(1, 41, (2, 21))
    exact = model(ids).logits
    set_weight_dtype(model, kind)
    stands_for = copy.deepcopy(model).double()
    for path, module in list(stands_for.named_modules()):
        if isinstance(module, PackedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None).double()
            plain.weight.copy_(model.get_submodule(path).weight)
            stands_for.set_submodule(path, plain)
    assert not any(type(part) is nn.Linear for part in model.model.layers[0].mlp.modules())
    expected = stands_for(ids).logits
    cache = model(ids[:, :20], use_cache=True).cache
    in_c = linear.few_rows_linear
    calls = []
    monkeypatch.setattr(linear, "few_rows_linear", lambda *args: (calls.append(args[1].dtype), in_c(*args))[1])
    step = model(ids[:, 20:], past_key_values=cache).logits[:, -1].double()
    off = 1e-3 if kind == "int8" else 1e-4  # whose states are rounded to 16 bits
    torch.testing.assert_close(step, expected[:, -1], atol=off, rtol=off)
    assert 0 < (expected - exact).abs().max() / exact.std() < 0.3
    assert calls.count(STORED[kind]) > len(calls) / 2 or not calls, "where C is, the step goes through it"


@torch.inference_mode()
def test_a_tied_table_keeps_looking_up_what_it_held():
    model = small("mla", tie_word_embeddings=True)
    table = model.model.embed_tokens.weight.clone()
    set_weight_dtype(model, "int8")
    assert torch.equal(model.model.embed_tokens.weight, table) and isinstance(model.lm_head, PackedLinear)
    assert type(model.model.layers[0].self_attn.kv_b_proj) is nn.Linear, "absorption multiplies with it"


def test_such_a_model_is_neither_trained_nor_saved(tmp_path):
    model, tokens = small("mha"), torch.zeros(1, 4, dtype=torch.long)
    set_weight_dtype(model, "bf16")
    with pytest.raises(RuntimeError, match="does not require grad"):
        model.train()(tokens, labels=tokens).loss.backward()
    with pytest.raises(RuntimeError, match="are for decoding and are not saved"):
        model.save_pretrained(tmp_path)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="weight_dtype=int4 is unknown; choose one of f32, bf16, f16, int8"):
        set_weight_dtype(small("mha"), "int4")
    with pytest.raises(UserError, match="is for models of ours, and Linear is none"):
        set_weight_dtype(nn.Linear(2, 2), "int8")
    model = small("mha")
    model.lm_head = torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    with pytest.raises(UserError, match="needs plain linear maps, but lm_head is a ParametrizedLinear; leave it out"):
        set_weight_dtype(model, "int8")
