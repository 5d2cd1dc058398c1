"""Scores against a recomputation in float64, one token at a time, and counts against the original text."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from mla_experiments.data import load_tokenizer
from mla_experiments.errors import UserError
from mla_experiments.evaluation.perplexity import IGNORED, score_documents, windows
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM

CONTEXT = 24


@pytest.fixture
def tokenizer(prepared):
    return load_tokenizer(prepared / "tokenizer")


@pytest.fixture(params=["mha", "mla"])
def model(request):
    config = DecoderConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, attention=request.param, initializer_range=0.5,
    )  # fmt: skip
    return DecoderForCausalLM(config).eval()


def test_scores_equal_a_recomputation_in_float64(model, tokenizer, articles):
    texts = [*articles[:3], "a", "🙂 ünï"]
    score = score_documents(model, tokenizer, texts, batch_tokens=100)
    exact, end = model.double(), tokenizer.eos_token_id
    for text, measured in zip(texts, score.documents, strict=True):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        nats = 0.0
        for place, token in enumerate(tokens):
            start = place // CONTEXT * CONTEXT
            if start + CONTEXT > len(tokens):
                start = max(0, len(tokens) - CONTEXT)  # the last window is as long as the others
            seen = [tokens[start - 1] if start else end, *tokens[start:place]]
            logits = exact(torch.tensor([seen])).logits[0, -1].detach()
            nats += float(torch.logsumexp(logits, 0) - logits[token])
        assert measured.nats == pytest.approx(nats, rel=1e-5)
        assert measured.tokens == len(tokens)
    total = math.fsum(document.nats for document in score.documents)
    num_bytes, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    assert score.bits_per_byte == pytest.approx(total / num_bytes / math.log(2))
    assert score.perplexity_per_word == pytest.approx(math.exp(total / words))
    assert score.perplexity_per_token == pytest.approx(math.exp(total / score.total("tokens")))


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(tokenizer, articles):
    model = DecoderForCausalLM(
        DecoderConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    torch.nn.init.zeros_(model.lm_head.weight)
    assert score_documents(model, tokenizer, articles).perplexity_per_token == pytest.approx(300, rel=1e-6)


@given(length=st.integers(1, 60), context=st.integers(1, 20))
def test_windows_predict_every_token_once_from_the_one_before(length, context):
    tokens = list(range(1, length + 1))
    cut = list(windows(tokens, 0, context))
    assert [label for _, labels in cut for label in labels if label != IGNORED] == tokens
    for inputs, labels in cut:
        assert len(inputs) == len(labels) == min(length, context)
        assert all(label in (token + 1, IGNORED) for token, label in zip(inputs, labels, strict=True))
        assert all(after - before == 1 for before, after in itertools.pairwise(inputs))


def test_batches_change_nothing(model, tokenizer, articles):
    one = score_documents(model, tokenizer, articles, batch_tokens=1)
    many = score_documents(model, tokenizer, articles, batch_tokens=10_000)
    for first, second in zip(one.documents, many.documents, strict=True):
        assert second.nats == pytest.approx(first.nats, rel=1e-5)


def test_what_reads_like_a_special_token_is_text(model, tokenizer):
    text = f"a text that says {tokenizer.eos_token} itself"
    of_text = score_documents(model, tokenizer, [text]).total("tokens")
    tokenizer.split_special_tokens = False  # as tokenizers of other models have it
    assert score_documents(model, tokenizer, [text]).total("tokens") == of_text


def test_a_document_that_turns_into_no_token_is_refused(model, tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(UserError, match=r"makes no token of the document '\\u200b', which so cannot be scored"):
        score_documents(model, tokenizer, ["a text", "\u200b"])


def test_text_without_a_word_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="corpus holds no text"):
        score_documents(model, tokenizer, ["", " \n"])
