"""A byte-level BPE tokenizer, trained on the training split alone with the `tokenizers` library.

Byte-level BPE (Radford et al. 2019, GPT-2, §2.2) starts from the 256 bytes, so that no text is out of vocabulary and
decoding gives back every character. Pre-tokenisation is GPT-2's.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..errors import UserError, reason_of
from ..every_reader import tokenizer_for_every_reader
from ..manifest import MANIFEST, file_hash, is_current, new_folder, read_manifest, read_whole
from ..next_step import Step
from ..run_files import check_files
from ..vocabulary import AUTO, USUAL
from .corpora import MADE_BY as CORPUS_MADE_BY
from .corpora import load_corpus
from .synthetic.prepared import prepare_vocabulary

MADE_BY = Step("data/hftokenizer.py", "data tokenizer")
END_OF_DOCUMENT = "<|endoftext|>"
SMALLEST_VOCABULARY = 256 + 1  # the bytes and the end of a document
CHARACTERS_AN_ENTRY = 400  # of training text, about 100 tokens: rarer entries are hardly learnt


def prepare_tokenizer(folder: Path, corpus_folder: Path, vocab_size: int | str = USUAL) -> dict:
    """Train a tokenizer on the training split and save it as a folder that `AutoTokenizer` loads.

    A synthetic corpus has a vocabulary of its own.

    Args:
        folder: where to.
        corpus_folder: a prepared corpus.
        vocab_size: entries in all, the bytes and the end-of-document token included; "auto" for as many as the text is
            enough for, and 10,000 at most.

    Raises:
        UserError: no corpus, or a vocabulary smaller than the bytes or larger than the corpus supports.
    """
    corpus = read_manifest(corpus_folder, CORPUS_MADE_BY)
    if "task" in corpus:
        return prepare_vocabulary(folder, corpus)
    request = {"vocab_size": vocab_size, "corpus_hash": corpus["hash"]}
    if is_current(folder, request):
        print(f"{folder} already holds this tokenizer of {corpus['corpus']}; nothing to do.")
        return read_manifest(folder, MADE_BY)
    asked = fitting(corpus["splits"]["train"]["characters"]) if vocab_size == AUTO else int(vocab_size)
    if asked < SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size={vocab_size} is below {SMALLEST_VOCABULARY}, the 256 bytes and the end of a document"
        )
    documents = load_corpus(corpus_folder)["train"]
    texts = tqdm(documents.iter(batch_size=100), "training the tokenizer", -(-len(documents) // 100), unit=" batches")
    tokenizer = train_bpe((batch["text"] for batch in texts), asked)
    if vocab_size != AUTO and tokenizer.get_vocab_size() < asked:
        raise UserError(
            f"vocab_size={vocab_size} is more than the corpus {corpus['corpus']} supports "
            f"({tokenizer.get_vocab_size()} entries); choose vocab_size={tokenizer.get_vocab_size()} or less, or auto"
        )
    with new_folder(folder, request) as (scratch, manifest):
        try:
            as_transformers_tokenizer(tokenizer).save_pretrained(scratch)
            tokenizer_for_every_reader(scratch)
        except Exception as error:
            if type(error) is not Exception:  # which is what tokenizers raises where it cannot write
                raise
            raise OSError(str(error)) from error
        manifest |= {
            "corpus": corpus["corpus"],
            "vocab_size": tokenizer.get_vocab_size(),
            "hash": file_hash(scratch / "tokenizer.json"),
        }
    return manifest


def fitting(characters: int) -> int:
    """Return how many entries a text is enough for."""
    return min(USUAL, max(2 * SMALLEST_VOCABULARY, characters // CHARACTERS_AN_ENTRY))


def train_bpe(texts, vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on an iterator over texts or lists of texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_transformers_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer so that text never turns into the end-of-document token and decoding changes nothing."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_DOCUMENT,
        bos_token=END_OF_DOCUMENT,
        pad_token=END_OF_DOCUMENT,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer saved in a folder: `data/tokenizer`, or a trained model's own.

    Raises:
        UserError: there is none, or it is not what was written there.
    """
    if not (Path(folder) / "tokenizer.json").is_file():
        raise UserError(f"{folder} holds no tokenizer (tokenizer.json); make one with: {MADE_BY}")
    if (Path(folder) / MANIFEST).is_file():
        read_whole(folder, MADE_BY)
    check_files(folder, "tokenizer*")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions
        raise UserError(
            f"the tokenizer in {folder} cannot be read ({reason_of(error)}); make it or copy it again"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer in {folder} is a {type(tokenizer).__name__}, not that of its tokenizer.json")
    return tokenizer


def beginning_of_text(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the token that stands before the first of a text: in our tokenizers the end of the document before.

    Raises:
        UserError: the tokenizer, of a model trained elsewhere, has none.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UserError("the tokenizer has neither bos_token nor eos_token, so nothing to begin a text with; give it one")
