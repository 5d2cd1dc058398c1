"""What a cache or weights in fewer bits cost, by the command: the same text scored token by token, with such ones."""

import json
import math

import pytest
import torch
from transformers import DynamicCache

from mla_experiments.cli import main
from mla_experiments.data import beginning_of_text
from mla_experiments.evaluation.results import load_with_tokenizer
from mla_experiments.modeling import set_cache_dtype, set_weight_dtype

TEXTS = [f"the river sees the house number {number} . the king finds the ship ." for number in range(12)]


@torch.inference_mode()
def nats_by_decoding(folder, keep, dtype):
    """Sum the losses of all tokens, each computed in a step of its own that reads cache and weights."""
    model, tokenizer = load_with_tokenizer(folder)
    keep(model, dtype)
    total = 0.0
    for text in TEXTS:
        cache, previous = DynamicCache(), beginning_of_text(tokenizer)
        for token in tokenizer(text)["input_ids"]:
            logits = model(torch.tensor([[previous]]), past_key_values=cache).logits[0, -1]
            total -= logits.double().log_softmax(-1)[token].item()
            previous = token
    return total


@pytest.mark.parametrize(
    ("what", "keep", "file", "size"),
    [
        ("cache_dtype", set_cache_dtype, "cache.json", "cache bytes/token"),
        ("weight_dtype", set_weight_dtype, "weights.json", "bytes of weights"),
    ],
)
def test_eval_says_what_decoding_so_costs(train, tmp_path, capsys, what, keep, file, size):
    assert train("mla", train_tokens=2560) == 0
    corpus = tmp_path / "texts"
    corpus.mkdir()
    for number, text in enumerate(TEXTS):
        (corpus / f"{number:02}.txt").write_text(text)
    capsys.readouterr()
    asked = ["eval", "mla", f"--{what}", "int8", "--corpus", str(corpus), "--output_dir", str(tmp_path / "out")]
    assert main(asked) == 0
    assert "| with int8 |" in " ".join(capsys.readouterr().out.split())
    (row,) = json.loads((tmp_path / "out" / file).read_text())["results"]
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    exact, kept = (nats_by_decoding(tmp_path / "weights" / "mla", keep, dtype) for dtype in (None, "int8"))
    assert math.isclose(row["difference"], (kept - exact) / num_bytes / math.log(2), abs_tol=2e-5)
    assert math.isclose(row["with int8"], kept / num_bytes / math.log(2), rel_tol=1e-4)
    assert row["95 % from"] <= row["difference"] <= row["to"] and row["difference"] != 0
    assert row["in int8"] < 0.6 * row[size]
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("what", ["cache_dtype", "weight_dtype"])
def test_generate_takes_a_dtype(train, capsys, what):
    assert train("gqa") == 0
    capsys.readouterr()
    asked = ["generate", "gqa", "--prompt", "the river", "--max_new_tokens", "4", "--temperature", "0"]
    for dtype in ("f32", "int8"):
        assert main([*asked, f"--{what}", dtype]) == 0
        assert capsys.readouterr().out.startswith("the river")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["eval", "mha", "--cache_dtype", "int4"], "cache_dtype=int4 is unknown; choose one of f32, bf16, f16, int8"),
        (["generate", "mha", "--cache_dtype", "int4"], "cache_dtype=int4 is unknown"),
        (["eval", "mha", "--cache_dtype", "int8", "--tasks", "documents"], "and not with tasks=documents; leave one"),
        (["eval", "mha", "--weight_dtype", "int4"], "weight_dtype=int4 is unknown; choose one of f32, bf16, f16, int8"),
        (["eval", "mha", "--weight_dtype", "int8", "--cache_dtype", "int8"], "and not with weight_dtype=int8"),
    ],
)
def test_what_cannot_be_is_refused(train, capsys, argv, said):
    assert train("mha") == 0
    capsys.readouterr()
    assert main(argv) == 2
    assert said in capsys.readouterr().err
