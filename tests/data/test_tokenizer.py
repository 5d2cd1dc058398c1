"""Byte-level BPE loses nothing, whatever the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mla_experiments.data import load_tokenizer, prepare_corpus, prepare_tokenizer
from mla_experiments.data.tokenizer import END_OF_DOCUMENT, as_transformers_tokenizer, train_bpe
from mla_experiments.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["the cat sat on the mat, and the dog sat on the cat. " * 20, "größer als 日本 🙂 " * 10]
    return as_transformers_tokenizer(train_bpe(texts, 320))


@given(text=st.text() | st.text(alphabet=st.characters(categories=["Cc", "Zs", "So", "Lo", "Mn"])))
def test_decoding_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize(
    "text",
    [
        "  two spaces , space before comma . don 't",
        "🙂👩‍👩‍👧 日本語 العربية",
        "\0\x01\x1f\x7f\r\n\t",
        "".join(map(chr, range(256))),
        f"a text that says {END_OF_DOCUMENT} itself",
    ],
)
def test_decoding_gives_back_awkward_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids


def test_every_byte_is_a_token(tokenizer):
    assert len(tokenizer) >= 257
    one_each = [tokenizer(chr(byte), add_special_tokens=False)["input_ids"] for byte in range(128)]
    assert all(len(ids) == 1 for ids in one_each) and len({ids[0] for ids in one_each}) == 128


def test_auto_tokenizer_loads_the_folder_with_the_same_behaviour(prepared):
    loaded = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    assert len(loaded) == 300 and loaded.eos_token == END_OF_DOCUMENT
    text = f"the river , {END_OF_DOCUMENT} 🙂"
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert loaded.eos_token_id not in ids and loaded.decode(ids) == text


def test_a_vocabulary_larger_than_the_corpus_supports_is_refused(prepared):
    with pytest.raises(UserError, match=r"vocab_size=50000 is more than .* supports \(\d+ entries\)"):
        prepare_tokenizer(prepared / "other", prepared / "corpus", vocab_size=50_000)
    assert not (prepared / "other").exists()


def test_a_vocabulary_smaller_than_the_bytes_is_refused(prepared):
    with pytest.raises(UserError, match="vocab_size=100 is below 257"):
        prepare_tokenizer(prepared / "other", prepared / "corpus", vocab_size=100)


def test_a_missing_tokenizer_or_corpus_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"hftokenizer\.py"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"download_data\.py"):
        prepare_tokenizer(tmp_path / "tokenizer", tmp_path / "corpus")


def test_auto_takes_as_many_entries_as_the_text_is_enough_for(tmp_path):
    text = " ".join(f"word{number % 997}" for number in range(60_000))
    articles = tmp_path / "articles"
    articles.mkdir()
    for place in range(10):
        (articles / f"{place}.txt").write_text(text[place * 40_000 : (place + 1) * 40_000])
    corpus = prepare_corpus(tmp_path / "corpus", str(articles))
    made = prepare_tokenizer(tmp_path / "tokenizer", tmp_path / "corpus", "auto")
    characters = corpus["splits"]["train"]["characters"]
    assert 514 < characters // 400 < 10_000 and made["request"]["vocab_size"] == "auto"
    assert made["vocab_size"] == len(load_tokenizer(tmp_path / "tokenizer")) == characters // 400


def test_a_tokenizer_of_another_kind_than_its_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: object())
    with pytest.raises(UserError, match="is a object, not that of"):
        load_tokenizer(tmp_path)
