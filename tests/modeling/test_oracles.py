"""Our decoders against transformers' own Llama and dense DeepSeek-V3, with the weights copied across."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM

COMMON = {"vocab_size": 61, "num_hidden_layers": 2, "max_position_embeddings": 128, "initializer_range": 0.1}


def assert_same_logits_and_gradients(ours, oracle, atol=1e-5):
    oracle.load_state_dict(ours.state_dict(), strict=True)
    tokens = torch.randint(0, COMMON["vocab_size"], (2, 11))
    mine, theirs = ours(tokens, labels=tokens), oracle(tokens, labels=tokens)
    torch.testing.assert_close(mine.logits, theirs.logits, atol=atol, rtol=0)
    torch.testing.assert_close(mine.loss, theirs.loss, atol=atol, rtol=0)
    mine.loss.backward()
    theirs.loss.backward()
    gradients = {name: p.grad for name, p in oracle.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=15)
@given(
    num_heads=st.sampled_from([1, 2, 4, 6]),
    head_dim=st.sampled_from([2, 8, 16]),
    groups=st.sampled_from([1, 2, 3, None]),
    width=st.sampled_from([24, 96]),
    tied=st.booleans(),
)
def test_mha_gqa_mqa_are_llama(num_heads, head_dim, groups, width, tied):
    if groups is not None and num_heads % groups:
        groups = 1
    attention = {None: "mha", 1: "mqa"}.get(groups, "gqa")
    size = {
        "hidden_size": 24,
        "num_attention_heads": num_heads,
        "intermediate_size": width,
        "tie_word_embeddings": tied,
    }
    options = {"head_dim": head_dim} | ({} if groups is None else {"num_key_value_heads": groups})
    ours = DecoderForCausalLM(DecoderConfig(**COMMON, **size, attention=attention, attention_options=options))
    oracle = LlamaForCausalLM(LlamaConfig(**COMMON, **size, head_dim=head_dim, num_key_value_heads=groups or num_heads))
    assert_same_logits_and_gradients(ours, oracle)


@settings(max_examples=20)
@given(
    num_heads=st.sampled_from([1, 2, 4]),
    q_lora_rank=st.sampled_from([None, 5, 16]),
    kv_lora_rank=st.sampled_from([4, 12, 32]),
    nope=st.sampled_from([1, 8, 12]),
    rope=st.sampled_from([2, 6, 8]),
    value=st.sampled_from([1, 8, 24]),
    interleave=st.booleans(),
)
def test_mla_is_dense_deepseek_v3(num_heads, q_lora_rank, kv_lora_rank, nope, rope, value, interleave):
    size = {"hidden_size": 24, "num_attention_heads": num_heads, "intermediate_size": 40}
    options = {
        "q_lora_rank": q_lora_rank,
        "kv_lora_rank": kv_lora_rank,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
    }
    ours = DecoderForCausalLM(
        DecoderConfig(**COMMON, **size, attention="mla", attention_options=options, rope_interleave=interleave)
    )
    oracle = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **COMMON, **size, **options, num_key_value_heads=num_heads, rope_interleave=interleave,
            first_k_dense_replace=COMMON["num_hidden_layers"],
        )
    )  # fmt: skip
    assert_same_logits_and_gradients(ours, oracle)


def test_interleaved_llama_layout_differs_from_half_split():
    """The layout matters: read in the wrong one, the same weights give other logits."""
    config = {**COMMON, "hidden_size": 24, "num_attention_heads": 2, "attention": "mha"}
    split = DecoderForCausalLM(DecoderConfig(**config, rope_interleave=False))
    interleaved = DecoderForCausalLM(DecoderConfig(**config, rope_interleave=True))
    interleaved.load_state_dict(split.state_dict())
    tokens = torch.randint(0, 61, (1, 9))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(split(tokens).logits, interleaved(tokens).logits)
