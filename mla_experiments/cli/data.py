"""Prepare data: `data` runs all three stages, `data download|tokenizer|tokens` one of them."""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..next_step import Step
from ..presets import PRESETS
from ..vocabulary import vocabulary_of
from .parsing import LARGEST_SEED, parse
from .saying import wrote

EXAMPLES = """examples:
  mla-experiments data                                      WikiText-103 from the hub, or the offline sample
  mla-experiments data --corpus notes/ --vocab_size auto    your own text, all of a folder
  mla-experiments data --corpus synthetic:mqar:pairs=8      rows with known answers (docs/recall.md)"""


@dataclass
class DataArguments:
    """From a corpus to packed tokens."""

    corpus: str = field(
        default="auto",
        metadata={
            "help": "auto (WikiText-103, or wiki-sample offline), wikitext-2, wikitext-103, wiki-sample, "
            "hub:NAME[:CONFIG], the path of a text, Markdown, JSON, CSV, TSV, parquet or Arrow file, compressed or "
            "not, or of a folder of them; or synthetic:NAME[:FIELD=VALUE,...], rows with known answers that are drawn "
            "while training (mqar, copy, copy-ngram, induction, needle, hops, sums, grammar)"
        },
    )
    text_column: str = field(default="text", metadata={"help": "column that holds the text of a table"})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "store a sample of hub:NAME[:CONFIG] or a folder of parquet files alone, and train from the "
            "rest where it is (train_model.py --streaming)"
        },
    )
    sample_characters: int = field(
        default=100_000_000,
        metadata={"help": "with --streaming: store so many, held-out text and what trains the tokenizer", "minimum": 1},
    )
    vocab_size: str = field(
        default="10000",
        metadata={
            "help": "entries of the tokenizer, all included; auto takes what the text is enough for, up to 10000"
        },
    )
    sequence_length: int = field(default=1024, metadata={"help": "tokens in a packed row", "minimum": 1})
    shuffle_seed: int = field(
        default=0, metadata={"help": "of the order of training rows", "minimum": 0, "maximum": LARGEST_SEED}
    )
    data_dir: str = field(default="data", metadata={"help": "folder for corpus/, tokenizer/ and tokens/"})


def run(argv: list[str]) -> None:
    """Run it."""
    stages = ("download", "tokenizer", "tokens")
    chosen = stages
    if argv and not argv[0].startswith("-"):
        stage, *argv = argv
        if stage not in stages:
            raise UserError(f"data stage {stage} is unknown; choose {', '.join(stages)}, or none for all")
        chosen = (stage,)
    command = f"data {chosen[0] if len(chosen) == 1 else ''}".strip()
    (given,) = parse([DataArguments], argv, command, __doc__, examples=EXAMPLES)
    entries = vocabulary_of(given["vocab_size"])
    from ..data import prepare_corpus, prepare_tokenizer, prepare_tokens

    check_drawn(given)
    folder, there = Path(given["data_dir"]), {"data_dir": given["data_dir"]}
    corpus, tokenizer, tokens = (folder / name for name in ("corpus", "tokenizer", "tokens"))
    if "download" in chosen:
        sample = given["sample_characters"] if given["streaming"] else None
        counts = prepare_corpus(corpus, given["corpus"], given["text_column"], sample)["splits"]
        sizes = ", ".join(f"{split} {c['documents']} documents / {c['words']:,} words" for split, c in counts.items())
        sizes = sizes or "a description; its rows are drawn while training"
        wrote(corpus, sizes, Step("hftokenizer.py", "data tokenizer").with_folders(**there), len(chosen) == 1)
    if "tokenizer" in chosen:
        manifest = prepare_tokenizer(tokenizer, corpus, entries)
        wrote(
            tokenizer,
            f"{manifest['vocab_size']:,} entries",
            Step("construct_dataset.py", "data tokens").with_folders(**there),
            len(chosen) == 1,
        )
    if "tokens" in chosen:
        manifest = prepare_tokens(tokens, corpus, tokenizer, given["sequence_length"], given["shuffle_seed"])
        rows = ", ".join(f"{split} {counts['rows']:,}" for split, counts in manifest["splits"].items())
        flags = (" --streaming" if "stream" in manifest else "") + shorter_rows(given)
        following = Step("train_model.py", "train").with_flags(flags).with_folders(**there)
        said = f"rows of {manifest['sequence_length']} tokens: {rows}" if rows else "nothing to pack"
        wrote(tokens, said, following)


def shorter_rows(given: dict) -> str:
    """Return what `train` must be told of rows that the sequences of a preset do not divide."""
    length = given["sequence_length"]
    fits = all(length % preset["sequence_length"] == 0 for preset in PRESETS.values())
    return "" if fits else f" --sequence_length {length}"


def check_drawn(given: dict) -> None:
    """Refuse what has no effect on a synthetic corpus, which has its own vocabulary and packs nothing.

    Raises:
        UserError: something of that is given.
    """
    from ..data.synthetic import is_synthetic

    usual = DataArguments()
    for name in ("vocab_size", "sequence_length", "shuffle_seed"):
        if is_synthetic(given["corpus"]) and given[name] != getattr(usual, name):
            raise UserError(
                f"{name}={given[name]} has no effect on corpus={given['corpus']}, which has its own vocabulary and is "
                "drawn while training; leave it out"
            )
