"""From a corpus to packed tokens, in three folders: `corpus/`, `tokenizer/` and `tokens/`, each with its manifest."""

from .corpora import load_corpus, prepare_corpus
from .packing import load_tokens, prepare_tokens
from .sources import read_documents
from .streaming import DocumentStream, open_stream
from .tokenizer import beginning_of_text, load_tokenizer, prepare_tokenizer

__all__ = [
    "DocumentStream", "beginning_of_text", "load_corpus", "load_tokenizer", "load_tokens", "open_stream",
    "prepare_corpus", "prepare_tokenizer", "prepare_tokens", "read_documents",
]  # fmt: skip
