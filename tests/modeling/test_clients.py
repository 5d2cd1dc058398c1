"""What `export` says of clients that do not load a model of its form just so."""

from mla_experiments.modeling import DecoderConfig
from mla_experiments.modeling.export import stock_config
from mla_experiments.modeling.stock.clients import serving

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip


def said_of(attention, **more):
    return serving(stock_config(DecoderConfig(hidden_size=64, num_attention_heads=4, attention=attention, **more)))


def test_of_a_plain_llama_there_is_nothing_to_say():
    assert said_of("gqa") == {}
    assert said_of("mha", rope_parameters={**LLAMA3, "original_max_position_embeddings": 8192}) == {}


def test_latents_of_other_widths_take_a_switch_in_vllm():
    assert "VLLM_MLA_DISABLE=1" in said_of("mla")["vLLM"] and "64 + 8" in said_of("mla")["vLLM"]
    assert "vLLM" not in said_of("mla", attention_options={"kv_lora_rank": 512, "qk_rope_head_dim": 64})


def test_rotations_that_ctranslate2_lacks_or_takes_for_another_are_named():
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    assert "rope_type=yarn" in said_of("mha", rope_parameters=yarn)["CTranslate2"]
    assert (
        "8192, not 64"
        in said_of("mha", rope_parameters={**LLAMA3, "original_max_position_embeddings": 64})["CTranslate2"]
    )


def test_the_tokenizer_of_a_qwen2_takes_a_word_in_transformers_5():
    assert "PreTrainedTokenizerFast" in said_of("mha", attention_bias=True)["transformers 5"]
