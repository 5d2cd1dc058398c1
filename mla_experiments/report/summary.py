"""What a study found, as data: `report.json` beside the report, from which the site's atlas is drawn."""

from pathlib import Path

from ..manifest import write_json
from ..study.statistics import Estimate
from ..study.trials import in_words
from . import accuracy, nuisance
from .answer import answer
from .findings import Findings, Row, Speed
from .text import shared_settings

SUMMARY = "report.json"


def write_summary(path: Path, found: Findings) -> Path:
    """Write what a study found and return the path."""
    write_json(path, summary(found))
    return path


def summary(found: Findings) -> dict:
    """Return the study's numbers: a row per variant, a pair per comparison, and under what they were had."""
    content = found.content
    accuracies = accuracy.by_variant(found) if accuracy.is_of_a_task(found) else {}
    return {
        "name": content["name"],
        "measure": found.measure.name,
        "corpus": content["corpus"],
        "machine": content["machine"]["gpu"] or content["machine"]["cpu"],
        "date": content["machine"]["date"],
        "headline": answer(found).headline,
        "turned_by": nuisance.sentences(found),
        "settings": shared_settings(content),
        "rows": [row_of(found, row) | recall_of(accuracies.get(row.name, {})) for row in found.rows],
        "pairs": [
            {"a": c.a, "b": c.b, "difference": c.difference, "interval": c.interval, "is_told": c.is_told}
            for c in found.comparisons
        ],
    }


def row_of(found: Findings, row: Row) -> dict:
    """Return a variant's estimates, costs and recipe."""
    variant = found.variant(row.name)
    stated = found.content["stated"]["settings"] | variant["variant"]["changed"]
    tuned = found.tuned.get(row.name)
    return {
        "name": row.name,
        "attention": variant["variant"]["attention"],
        "parameters": row.parameters,
        "train_tokens": stated["train_tokens"],
        "seeds": row.num_seeds,
        "trials": len(tuned.values) if tuned else 1,
        "recipe": in_words(found.recipe(row.name)),
        "cache_bytes": row.cache_bytes,
        "quality": estimated(row.bits),
        "decode": {str(context): timed(speed) for context, speed in row.decode.items()},
    }


def recall_of(found: accuracy.Accuracies) -> dict:
    """Return the share of answers right under each condition; nothing of a study of text."""
    return {"recall": {name: estimated(one) for name, one in found.items()}} if found else {}


def estimated(value: Estimate) -> dict:
    """Return a mean and the half-width of its interval."""
    return {"mean": value.mean, "half_width": value.half_width}


def timed(speed: Speed) -> dict:
    """Return the median of the turns, the slowest and the fastest."""
    return {"median": speed.median, "low": speed.low, "high": speed.high}
