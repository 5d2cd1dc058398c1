"""From a corpus to packed tokens, in three folders: `corpus/`, `tokenizer/` and `tokens/`, each with its manifest."""

from .corpora import load_corpus, prepare_corpus
from .decoding import whole_text
from .packing import load_tokenizer_of, load_tokens, prepare_tokens
from .reading import TEXT_COLUMN, Reading, read_documents
from .streaming import DocumentStream, open_stream
from .tokenizer import beginning_of_text, load_tokenizer, prepare_tokenizer

__all__ = [
    "TEXT_COLUMN", "DocumentStream", "Reading", "beginning_of_text", "load_corpus", "load_tokenizer",
    "load_tokenizer_of", "load_tokens",
    "open_stream", "prepare_corpus", "prepare_tokenizer", "prepare_tokens", "read_documents", "whole_text",
]  # fmt: skip
