"""An MLA of wider latents and rotary keys gives the same logits, in stock transformers; what cannot be is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from mla_experiments.cli import main
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM

SIZE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 96, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


def saved(folder, attention="mla", **more):
    set_seed(1)
    model = DecoderForCausalLM(DecoderConfig(**SIZE, attention=attention, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, max_shard_size="10KB")
    return model


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rope_interleave": True, "tie_word_embeddings": True},
        {"attention_options": {"q_lora_rank": 12, "latent_scale": True}},
        {"rope_parameters": LLAMA3},
    ],
    ids=["plain", "interleaved, tied", "low rank, scaled", "llama3"],
)
def test_wider_latents_give_the_same_logits(tmp_path, capsys, more):
    ours = saved(tmp_path / "run", **more)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--widths", "512", "64"]) == 0
    assert "vLLM" not in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["kv_lora_rank"], config["qk_rope_head_dim"]) == (512, 64)
    tokens = torch.randint(0, 60, (2, 90))
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
        torch.testing.assert_close(theirs, ours(tokens).logits, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("widths", "attention", "more", "said"),
    [
        (("512", "64"), "mha", {}, "widths=512 64 are of latents, which mha has not"),
        (("16", "64"), "mla", {}, "give at least 32 for the latent"),
        (("512", "6"), "mla", {}, "give a multiple of 4 for the rotary key"),
        (("512", "64"), "mla", {"rope_parameters": YARN}, "would change the frequencies of rope_type=yarn; keep 4"),
        (("512",), "mla", {}, "must be two"),
    ],
)
def test_widths_that_cannot_be_are_refused(tmp_path, capsys, widths, attention, more, said):
    saved(tmp_path / "run", attention, **more)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--widths", *widths]) == 2
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["run"]
