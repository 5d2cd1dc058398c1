"""Models of text are asked in words of their own: which words, what is right, and what cannot be asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mla_experiments.cli import main
from mla_experiments.data.synthetic import TASKS, task_named
from mla_experiments.data.tokenizer import as_transformers_tokenizer, train_bpe
from mla_experiments.errors import UserError
from mla_experiments.evaluation.recall import probe, words_of
from mla_experiments.evaluation.scores import SplitScores
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM


@pytest.fixture(scope="module")
def tokenizer():
    letters = "abcdefghijklmnop"
    words = [a + b + c for a in letters[:8] for b in letters for c in letters[:2]]
    return as_transformers_tokenizer(train_bpe([" " + " ".join(words)] * 20, 900))


def a_model(tokenizer, context=128):
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=context, attention="mha",
    )  # fmt: skip
    return DecoderForCausalLM(config).eval()


def test_symbols_become_different_whole_words(tokenizer):
    chosen = words_of(tokenizer, 145)
    assert len(set(chosen.tolist())) == 145 and chosen[0] == tokenizer.eos_token_id
    for number in chosen[1:].tolist():
        text = tokenizer.decode([number])
        assert text[0] == " " and text[1:].isalpha() and tokenizer.encode(text, add_special_tokens=False) == [number]


def test_a_model_that_knows_nothing_is_asked_everything_that_fits_and_is_mostly_wrong(tokenizer):
    found = list(probe(a_model(tokenizer), tokenizer, ["needle", "induction"]))
    names = [condition for task, condition, _ in found if task.name == "needle"]
    assert "as usual" in names and "depth=0.5 length=32" in names and "depth=0.5 length=128" in names
    assert all(scores.wrong.sum() / scores.tokens.sum() > 0.9 for _, _, scores in found)


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].asks_any_model])
def test_a_short_context_is_asked_what_it_holds_or_refused_in_its_own_words(tokenizer, name):
    needed = task_named(name, {}).least_length
    assert next(probe(a_model(tokenizer, needed), tokenizer, [name]))[2].tokens.sum() > 0
    with pytest.raises(UserError, match=f"max_position_embeddings={needed - 1} .* leave {name} out of --tasks"):
        list(probe(a_model(tokenizer, needed - 1), tokenizer, [name]))


def test_a_model_that_looks_back_answers(tokenizer):
    """One that says what followed the last occurrence of a token, as an induction head does."""

    class Induction(torch.nn.Module):
        device, config = torch.device("cpu"), a_model(tokenizer).config

        def __init__(self):
            super().__init__()
            self.lm_head = torch.nn.Identity()

        def model(self, inputs, use_cache):
            states = torch.zeros(*inputs.shape, len(tokenizer))
            for row, tokens in enumerate(inputs.tolist()):
                last = {}
                for place, token in enumerate(tokens):
                    if token in last and last[token] + 1 < place:
                        states[row, place, tokens[last[token] + 1]] = 1
                    last[token] = place
            return (states,)

    for task, condition, scores in probe(Induction(), tokenizer, ["mqar", "induction", "needle"]):
        if task.name != "needle" or "needles=1" in condition:  # of needles the sign repeats, not the key alone
            assert scores.wrong.sum() / scores.tokens.sum() < (0.01 if task.name != "needle" else 0.6)


def test_what_cannot_be_asked_is_named(tokenizer):
    with pytest.raises(UserError, match="tasks=sums is unknown"):
        list(probe(a_model(tokenizer), tokenizer, ["sums"]))
    with pytest.raises(UserError, match="whole words, and the task asks for 99999"):
        words_of(tokenizer, 99_999)
    askable = [name for name in TASKS if TASKS[name].asks_any_model]
    assert askable == ["mqar", "copy", "copy-ngram", "induction", "needle"]
    assert all(np.isfinite(task_named(name, {}).chance) for name in TASKS)


def test_the_command_writes_probes_and_does_not_mix_them_with_the_harness(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a_model(tokenizer).save_pretrained("weights/own")
    tokenizer.save_pretrained("weights/own")
    assert main(["eval", "own", "--tasks", "induction"]) == 0
    rows = json.loads(Path("probes.json").read_text())["results"]
    assert rows[0]["split"] == "as usual" and 0 <= rows[0]["accuracy"] <= 1
    assert "by chance" in capsys.readouterr().out
    assert main(["eval", "own", "--tasks", "induction", "documents"]) == 2
    assert "induction is synthetic and documents is not" in capsys.readouterr().err
    assert main(["eval", "own", "--tasks", "induction", "--limit", "3"]) == 2
    assert "limit=3 has no effect" in capsys.readouterr().err


def test_scores_of_text_have_no_answers():
    scores = SplitScores("", np.ones(2), np.ones(2))
    with pytest.raises(UserError, match="scores of text, which has no answers"):
        _ = scores.wrong_answers
