"""Values that cannot work are refused when the config is made, naming the field."""

import pytest
import torch

from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig
from mla_experiments.modeling.attention import ATTENTION


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"attention": "linear"}, "attention=linear is unknown; choose one of mha, gqa, mqa, mla"),
        ({"attention": "mha", "hidden_size": 100, "num_attention_heads": 16}, "num_attention_heads=16"),
        ({"attention": "mla", "hidden_size": 100, "num_attention_heads": 16}, "num_attention_heads=16"),
        ({"attention": "mha", "hidden_size": 48, "num_attention_heads": 16}, "head_dim=3"),
        ({"attention": "gqa", "attention_options": {"num_key_value_heads": 3}}, "num_key_value_heads=3"),
        ({"attention": "mqa", "attention_options": {"num_key_value_heads": 2}}, "num_key_value_heads=2"),
        ({"attention": "mla", "attention_options": {"qk_rope_head_dim": 15}}, "qk_rope_head_dim=15"),
        ({"attention": "mla", "attention_options": {"kv_lora_rank": 0}}, "kv_lora_rank=0"),
        ({"positions": "learned", "attention_options": {"qk_rope_head_dim": 8}}, "qk_rope_head_dim=8"),
        ({"attention": "mla", "attention_options": {"window": 8}}, "window, unknown to attention='mla'"),
        ({"positions": "alibi"}, "positions='alibi'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_hidden_layers": 45_045}, "num_hidden_layers=45045 is more than any model has; give at most 1,000"),
        ({"hidden_size": 2**62}, "hidden_size=4611686018427387904 is more than any model has"),
        ({"intermediate_size": 10**5000}, "intermediate_size=a number of thousands of digits is more than any"),
        ({"attention": "mla", "attention_options": {"kv_lora_rank": 10**17}}, "kv_lora_rank=100000000000000000 is"),
        ({"vocab_size": "10k"}, "vocab_size='10k'"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta=1000"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}}, "full_attention="),
        ({"rope_scaling": "linear"}, "rope_scaling='linear'"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_named(arguments, field):
    with pytest.raises(UserError) as error:
        DecoderConfig(**arguments)
    assert field in str(error.value)


def test_the_reference_mla_caches_what_the_design_says():
    options = DecoderConfig(attention="mla").attention_options
    assert options["kv_lora_rank"] == 128 and options["qk_rope_head_dim"] == 16


@pytest.mark.parametrize("attention", ["mha", "mla", "keqv"])
def test_a_rotary_layer_without_cosines_and_sines_is_refused(attention):
    layer = ATTENTION[attention](32, 4)
    with pytest.raises(UserError, match="position_embeddings=None"):
        layer(torch.zeros(1, 3, 32), None)
