"""No token is lost or doubled but the stated remainder."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from mla_experiments.data import load_corpus, load_tokenizer, load_tokens, prepare_tokenizer, prepare_tokens
from mla_experiments.data.packing import pack
from mla_experiments.errors import UserError


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    sequence_length=st.integers(1, 17),
    vocab_size=st.sampled_from([300, 70_000]),
)
def test_rows_hold_the_stream_in_order_with_labels_one_ahead(tmp_path_factory, lengths, sequence_length, vocab_size):
    stream = np.arange(sum(lengths), dtype=np.uint32) % vocab_size
    batches = iter(np.split(stream, np.cumsum(lengths)[:-1]))
    path = tmp_path_factory.mktemp("pack") / "rows.arrow"
    counts = pack(batches, path, sequence_length, vocab_size)
    assert counts["tokens"] == len(stream)
    assert counts["rows"] == max(0, len(stream) - 1) // sequence_length
    if counts["rows"]:
        rows = Dataset.from_file(str(path)).with_format("numpy")
        inputs, labels = (np.concatenate(list(rows[name])) for name in ("input_ids", "labels"))
        np.testing.assert_array_equal(inputs, stream[: len(inputs)])
        np.testing.assert_array_equal(labels, stream[1 : len(labels) + 1])
        assert len(stream) - 1 - len(labels) == counts["remainder"] < sequence_length


def test_documents_are_joined_by_the_end_of_document_token(prepared):
    tokens, manifest = load_tokens(prepared / "tokens", prepared / "tokenizer")
    tokenizer = load_tokenizer(prepared / "tokenizer")
    end = tokenizer.eos_token_id
    for split, documents in load_corpus(prepared / "corpus").items():
        expected = [end]
        for text in documents["text"]:
            expected += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
        counts = manifest["splits"][split]
        assert counts["tokens"] == len(expected)
        if split != "train":  # the training rows are shuffled
            kept = np.concatenate([*tokens[split].with_format("numpy")["input_ids"]])
            np.testing.assert_array_equal(kept, expected[: len(kept)])


def test_training_rows_are_shuffled_by_the_recorded_seed(prepared):
    def rows(seed):
        folder = prepared / f"seed{seed}"
        manifest = prepare_tokens(folder, prepared / "corpus", prepared / "tokenizer", 32, seed)
        assert manifest["seed"] == seed
        return load_tokens(folder, prepared / "tokenizer")[0]["train"]["input_ids"][:]

    first, again, other = rows(0), load_tokens(prepared / "tokens", prepared / "tokenizer")[0]["train"], rows(1)
    assert first == again["input_ids"][:]
    assert first != other and sorted(first) == sorted(other)


def test_tokens_are_memory_mapped(prepared):
    tokens, _ = load_tokens(prepared / "tokens", prepared / "tokenizer")
    assert tokens["train"].cache_files and str(prepared) in tokens["train"].cache_files[0]["filename"]


def test_a_split_shorter_than_one_row_is_refused(prepared):
    with pytest.raises(UserError, match=r"sequence_length=100000 needs 100001 tokens, but split train of .* has \d+"):
        prepare_tokens(prepared / "long", prepared / "corpus", prepared / "tokenizer", 100_000)
    assert not (prepared / "long").exists()


def test_tokens_of_another_tokenizer_are_refused(prepared):
    prepare_tokenizer(prepared / "tokenizer", prepared / "corpus", vocab_size=280)
    with pytest.raises(UserError, match=r"was made by tokenizer \w{12}, but .* holds \w{12}; pack again"):
        load_tokens(prepared / "tokens", prepared / "tokenizer")
