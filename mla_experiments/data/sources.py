"""Where documents come from: files and folders here, the offline sample, data sets on the Hugging Face hub.

Every source yields documents as they stand in the original, so that words and bytes can be counted against it.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError, reason_of
from .reading import AS_ARTICLES, Reading, documents_of_rows, read_documents, row_articles
from .tables import ROWS_AT_ONCE, check_type, decoded
from .wiki_sample import wiki_sample

WIKITEXT_HUB_NAMES = {
    "wikitext-2": "hub:Salesforce/wikitext:wikitext-2-raw-v1",
    "wikitext-103": "hub:Salesforce/wikitext:wikitext-103-raw-v1",
}
NAMED = ("auto", *WIKITEXT_HUB_NAMES, "wiki-sample")
SPLITS = ("train", "validation", "test")
HUB_PATIENCE = 12.0  # seconds to wait for the hub's first answer
# builder of `datasets`: what keeps it from making nothing of a text "NA", or lines of a file
AS_IT_STANDS: dict[str, dict] = {
    "csv": {"keep_default_na": False, "na_filter": False},
    "text": {"sample_by": "document"},
}


def open_corpus(corpus: str, text_column: str, reading: Reading) -> dict[str, Iterator[str]]:
    """Return the documents of a corpus for each split that it comes with; "train" alone where it has none.

    Args:
        corpus: "wikitext-2", "wikitext-103", "wiki-sample", "hub:NAME[:CONFIG]", or a path.
        text_column: which column holds the text of tables and hub data sets.
        reading: filled in with how the documents are read, while they are.

    Raises:
        UserError: unknown, absent, unreachable, or of a format that cannot be read.
    """
    if corpus == "wiki-sample":
        return {"train": reading.kept(wiki_sample(), corpus, AS_ARTICLES)}
    if corpus in WIKITEXT_HUB_NAMES or corpus.startswith("hub:"):
        return _hub_documents(corpus, text_column, reading)
    if not Path(corpus).exists():
        known = ", ".join((*NAMED, "hub:NAME[:CONFIG]"))
        raise UserError(f"corpus={corpus} is no file or folder here; give a path, or one of {known}")
    return {"train": read_documents(Path(corpus), text_column, passages=True, reading=reading)}


def name_and_config(corpus: str) -> tuple[str, str | None]:
    """Return name and configuration of "hub:NAME[:CONFIG]"; what does not begin with "hub:" is a name as it stands."""
    if not corpus.startswith("hub:"):
        return corpus, None
    name, _, config = corpus.removeprefix("hub:").partition(":")
    return name, config or None


def hub_is_reachable(patience: float = HUB_PATIENCE) -> bool:
    """Return whether the Hugging Face hub answers within `patience` seconds, even where name look-ups hang."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask():
        with contextlib.suppress(Exception):  # whatever stands in the way, the hub cannot be reached
            answers.append(get_session().head(constants.ENDPOINT, timeout=patience))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(answers)


def give_up_on_an_unreachable_hub() -> None:
    """Work offline where the hub does not answer: a local copy may still serve, and retrying would take minutes."""
    import datasets
    import huggingface_hub

    if not hub_is_reachable():
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True


def _hub_documents(corpus: str, text_column: str, reading: Reading) -> dict[str, Iterator[str]]:
    loaded = _load(WIKITEXT_HUB_NAMES.get(corpus, corpus))
    if "train" not in loaded:
        raise UserError(f"corpus={corpus} has no split named train; it has {', '.join(loaded)}")
    if others := [split for split in loaded if split not in SPLITS]:
        reading.notes.append(f"of {corpus} the splits {', '.join(others)} are not read")

    def documents(split: str) -> Iterator[str]:
        where = f"{corpus}, split {split}"
        check_column(loaded[split].features, text_column, where)

        def rows():
            batches = loaded[split].select_columns([text_column]).with_format("arrow").iter(ROWS_AT_ONCE)
            cells = (cell for batch in batches for cell in batch.column(text_column))
            return (decoded(cell, f"corpus={where}, row {row}") for row, cell in enumerate(cells, start=1))

        if corpus in WIKITEXT_HUB_NAMES:
            unit, texts = AS_ARTICLES, row_articles(rows())
        else:
            unit, texts = documents_of_rows(rows)
        return reading.kept(texts, f"split {split}", unit)

    return {split: documents(split) for split in SPLITS if split in loaded}


def _load(corpus: str):
    """Load a data set of the hub such that texts stay as they stand."""
    import datasets

    name, config = name_and_config(corpus)
    give_up_on_an_unreachable_hub()
    try:
        loaded = datasets.load_dataset(name, config)
        builder = next(iter(loaded.values())).info.builder_name
        return datasets.load_dataset(name, config, **AS_IT_STANDS[builder]) if builder in AS_IT_STANDS else loaded
    except Exception as error:
        raise UserError(
            f"corpus={corpus} cannot be had from the Hugging Face hub ({reason_of(error)}); check the name and the "
            "network, or choose --corpus wiki-sample or a path"
        ) from None


def check_column(features, text_column: str, where: str) -> None:
    """Refuse a column that a data set does not have, or that is no text."""
    if text_column not in features:
        raise UserError(
            f"text_column={text_column} is no column of {where}; it has {', '.join(features)}: choose with "
            "--text-column"
        )
    check_type(features.arrow_schema.field(text_column).type, text_column, where)
