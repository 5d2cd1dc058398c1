"""Evaluate trained models and show them side by side: terminal table, `results.json` and `results.md`."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..data import TEXT_COLUMN, Reading, load_corpus, load_tokenizer, read_documents, whole_text
from ..data.corpora import MADE_BY as CORPUS_MADE_BY
from ..data.corpora import is_prepared
from ..errors import UserError
from ..manifest import file_hash, library_versions, read_manifest, read_record, write_record
from ..markdown import escaped, in_cell, table
from ..modeling import DecoderForCausalLM, device, device_name, load_model
from ..modeling.named import named_folder
from ..next_step import Step
from ..run_files import RUN_FILE, read_run
from ..texts import write_text
from ..training.identity import sources_hash
from .perplexity import PROTOCOL, Score, score_documents
from .scores import ANSWERS, read_scores, texts_hash, write_scores

HELD_OUT = ("validation", "test")
COLUMNS = {  # key of a row and format, by heading
    "model": ("model", "{}"),
    "corpus": ("corpus", "{}"),
    "parameters": ("parameters", "{:,}"),
    "split": ("split", "{}"),
    "ppl/token": ("perplexity_per_token", "{:.2f}"),
    "ppl/word": ("perplexity_per_word", "{:.2f}"),
    "bits/byte": ("bits_per_byte", "{:.4f}"),
    "right": ("accuracy", "{:.2%}"),
    "rows all right": ("rows_right", "{:.2%}"),
    "by chance": ("chance", "{:.2%}"),
    "nats above entropy": ("nats_above_entropy", "{:.4f}"),
    "cache bytes/token": ("cache_bytes_per_token", "{:,.0f}"),
    "training tokens/s": ("train_tokens_per_second", "{:,.0f}"),
}


@dataclass
class Results:
    """One row per model and split, what they were measured with, and which runs now hold their own rows."""

    rows: list[dict]
    context: dict
    run_folders: list[Path]

    def table(self, as_text: Callable[[str], str] = in_cell) -> str:
        """Return the rows as a Markdown table; `as_text` is how text is shown, in files `escaped`.

        Tokens of different tokenizers do not compare: perplexity per token is left out then, and it is said why.
        """
        mixed = len({row.get("tokenizer_sha256") for row in self.rows}) > 1
        shown = table(with_headings(self.rows, but={"corpus", *(["ppl/token"] if mixed else [])}), as_text)
        return shown + ("\n\nTokenizers differ, so perplexities per token would not compare." if mixed else "")

    def save(self, folder: Path) -> list[Path]:
        """Write `results.json` and `results.md`; return the paths of what was written."""
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / "results.json", {**self.context, "results": self.rows})
        facts = ", ".join(f"{name} {value}" for name, value in self.context["versions"].items())
        heading, made = f"# Evaluation on {escaped(self.context['corpus'])}", f"{self.context['device']}; {facts}."
        text = f"{heading}\n\n{self.table(escaped)}\n\n{made}\n"
        return [folder / "results.json", *write_text(folder / "results.md", text)]


def with_headings(rows: list[dict], but: set[str]) -> list[dict[str, str | None]]:
    """Return rows of evaluation as they are shown, by heading, but for some headings; None for what is not known.

    What none of them has, rows of text or of synthetic tasks, has no column.
    """
    chosen = {
        heading: column
        for heading, column in COLUMNS.items()
        if heading not in but and any(row.get(column[0]) is not None for row in rows)
    }
    return [
        {heading: None if row.get(key) is None else form.format(row[key]) for heading, (key, form) in chosen.items()}
        for row in rows
    ]


def evaluate_models(
    models: list[str], corpus: str | None, text_column: str, data_dir: str, weights_dir: str, known: list[dict]
) -> Results:
    """Evaluate models on the prepared validation and test splits, or on any text.

    Args:
        models: folders, or names under `weights_dir`; empty for every model in it.
        corpus: path of a held-out text; None or its name for the prepared corpus.
        text_column: column that holds the text of a table.
        data_dir: holds the prepared corpus.
        weights_dir: holds the trained models.
        known: rows of earlier results; one of the same weights and text, by the same code, is taken over.

    Raises:
        UserError: no models, no text, or a model that cannot be loaded.
    """
    folders = find_models(models, Path(weights_dir))
    if corpus is None or is_prepared(corpus, Path(data_dir) / "corpus"):
        check_held_out(folders, read_manifest(Path(data_dir) / "corpus", CORPUS_MADE_BY))
    name, splits = held_out_texts(corpus, text_column, Path(data_dir))
    earlier = {(row["weights_sha256"], row["text_sha256"]): row for row in known}
    hashes = {split: texts_hash(texts) for split, texts in splits.items()}
    rows, run_folders = [], []
    for folder in tqdm(folders, "evaluating models", unit=" models"):
        names = {"model": shown_name(folder, Path(weights_dir)), "corpus": name}
        own, scored = evaluate_model(folder, names, splits, hashes, earlier)
        if (folder / RUN_FILE).is_file():
            record_in_run(folder, own)
            if scored.keys() == set(HELD_OUT):
                write_scores(folder, scored)
            run_folders.append(folder)
        rows += own
    return Results(rows, {"corpus": name, "device": device_name(), "versions": library_versions()}, run_folders)


def evaluate_model(folder: Path, names: dict, splits: dict, hashes: dict, earlier: dict) -> tuple[list[dict], dict]:
    """Return a row with `names` for each split, and texts and scores of those splits that were not known.

    A row of `earlier`, by hashes of weights and text, is no help to a run that has no scores of these documents, nor
    where other code, versions or another device gave it.
    """
    model, tokenizer = load_with_tokenizer(folder)
    weights, tokenizer_hash = weights_hash(folder), file_hash(folder / "tokenizer.json")
    by = measured_by(model.config.attention)
    scores = {split: part.text_sha256 for split, part in (read_scores(folder) or {}).items() if split in splits}
    unscored = (folder / RUN_FILE).is_file() and splits.keys() == set(HELD_OUT) and scores != hashes
    rows, scored = [], {}
    for split, texts in splits.items():
        row = {} if unscored else earlier.get((weights, hashes[split]), {})
        if by is None or row.get("measured_by") != by:
            score = score_documents(model, tokenizer, texts, description=f"{names['model']} on {split}")
            scored[split] = (texts, score)
            row = {**_row(folder, model, score), "weights_sha256": weights, "text_sha256": hashes[split]}
            row["measured_by"] = by
        rows.append({**row, **names, "split": split, "tokenizer_sha256": tokenizer_hash})
    return rows, scored


def measured_by(attention: str) -> dict | None:
    """Return what decides a score beside weights and text; None where the code of a mechanism stands in no file."""
    try:
        return {"sources": sources_hash(attention), "device": device_name(), "versions": library_versions()}
    except UserError:
        return None


def record_in_run(folder: Path, rows: list[dict]) -> None:
    """Keep rows in the run's own `results.json`, in place of earlier ones on the same text."""
    new = {row["text_sha256"] for row in rows}
    kept = [row for row in known_rows(folder) if row["text_sha256"] not in new]
    write_record(folder / "results.json", {"results": kept + rows})


def known_rows(folder: Path) -> list[dict]:
    """Return the rows of `results.json` in a folder; none where it is absent or not ours."""
    try:
        rows = read_record(folder / "results.json")["results"]
        return [row for row in rows if row.get("protocol") in (PROTOCOL, ANSWERS)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def weights_hash(folder: Path) -> str:
    """Return a hash of a model's weights and config."""
    files = sorted([*folder.glob("model*.safetensors"), folder / "config.json", folder / "tokenizer.json"])
    return hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()


def find_models(names: list[str], weights: Path) -> list[Path]:
    """Return the folders of the models named (see `modeling.named` too), or of all finished ones under `weights`."""
    if names:
        return [find_model(name, weights) for name in names]
    found = sorted(
        path.parent
        for path in weights.rglob("model*.safetensors")
        if not any(part.startswith("checkpoint-") for part in path.parts)
    )
    if not found:
        raise UserError(
            f"weights_dir={weights} holds no trained model; train some with: {Step('train_model.py', 'train')}"
        )
    return list(dict.fromkeys(found))


def find_model(name: str, weights: Path) -> Path:
    """Return the folder of a model: that of its path, else its name under `weights`, else one known by its name."""
    places = (place for place in (Path(name), weights / name) if place.is_dir())
    return next(places, None) or named_folder(name) or Path(name)


def load_with_tokenizer(folder: Path) -> tuple[DecoderForCausalLM, PreTrainedTokenizerFast]:
    """Return the model in a folder, on the accelerator where there is one, and its tokenizer."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    return model.to(device()), tokenizer


def shown_name(folder: Path, weights: Path) -> str:
    """Return a model's name under `weights`, or its whole path where it stands elsewhere."""
    return str(folder.relative_to(weights) if folder.is_relative_to(weights) else folder)


def held_out_texts(corpus: str | None, text_column: str, data_dir: Path) -> tuple[str, dict[str, list[str]]]:
    """Return a corpus's name and its held-out documents by split.

    The corpus that was prepared for training, also when asked for by its name, gives its validation and test splits
    alone; any other gives all its text, and how that is read is printed.

    Raises:
        UserError: it cannot be had, or a column is asked for where no table is read.
    """
    folder = data_dir / "corpus"
    if corpus is not None and not is_prepared(corpus, folder):
        reading = Reading(whole_text(corpus, "corpus"))
        texts = list(read_documents(Path(corpus), text_column, reading=reading))
        print(*reading.sentences(), sep="\n")
        return corpus, {"all": texts}
    manifest = read_manifest(folder, CORPUS_MADE_BY)
    if text_column not in (TEXT_COLUMN, used := manifest["request"].get("text_column")):
        raise UserError(
            f"text_column={text_column} has no effect on {folder}, which was prepared with text_column={used}; leave "
            "it out"
        )
    prepared = load_corpus(folder)
    return manifest["corpus"], {split: list(prepared[split]["text"]) for split in HELD_OUT}


def check_held_out(folders: list[Path], prepared: dict) -> None:
    """Refuse a run on the held-out text of its corpus as that is now, where it was trained on it as it was then.

    Args:
        folders: of models; what none of our runs made is not known to have seen any of it.
        prepared: the manifest of the corpus.

    Raises:
        UserError: there is one.
    """
    for folder in folders:
        run = read_run(folder)
        was = run.get("identity", {}).get("tokens", {}).get("corpus_hash")
        if run.get("corpus") == prepared["corpus"] and was not in (None, prepared["hash"]):
            raise UserError(
                f"model={folder} was trained on corpus={prepared['corpus']} before that was prepared again, and "
                "may have seen what is held out now; train it again, or give other text with --corpus"
            )


def _row(folder: Path, model: DecoderForCausalLM, score: Score) -> dict:
    run = read_run(folder)
    return {
        "protocol": PROTOCOL,
        "attention": model.config.attention,
        "parameters": model.num_parameters(),
        "perplexity_per_token": score.perplexity_per_token,
        "perplexity_per_word": score.perplexity_per_word,
        "bits_per_byte": score.bits_per_byte,
        "nats": score.total("nats"),
        "tokens": int(score.total("tokens")),
        "words": int(score.total("words")),
        "bytes": int(score.total("bytes")),
        "documents": len(score.documents),
        "cache_bytes_per_token": cache_bytes_per_token(model),
        "train_tokens_per_second": run.get("train_tokens_per_second"),
        "trained_on": run.get("corpus"),
    }


@torch.inference_mode()
def cache_bytes_per_token(model: DecoderForCausalLM, num_tokens: int = 16) -> float:
    """Return the bytes that a real forward pass leaves in the cache, per token, over all layers; no window is full."""
    room = [window - 1 for window in model.config.windows() if window]
    num_tokens = min(num_tokens, model.config.max_position_embeddings, *room)
    cache = model(torch.zeros(1, num_tokens, dtype=torch.long, device=model.device), use_cache=True).cache
    held = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    return held / num_tokens
