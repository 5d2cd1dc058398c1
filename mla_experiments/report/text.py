"""The words of a study's report: plain text by section, which the page and the Markdown file escape each in its way."""

import json
import shlex
from dataclasses import dataclass

import yaml

from ..evaluation.measures import BITS
from ..study.fields import BUDGET, CORPUS
from ..study.matching import NEAR, SIZES
from ..study.record import PROMPT
from ..study.tuned import too_few
from ..study.tuning import OPTION
from . import accuracy, scaling
from .answer import Answer, answer, joined
from .findings import Findings
from .nuisance import of_what
from .study_tables import Table, differences, recipes, results, settings_tried, speeds, tried_on_part

WORDS = {  # what a reader meets in a report, a line each
    "±": "the 95 % interval over seeds: of 20 such intervals, 19 hold the mean that endless seeds would give",
    "Seed": "a number that draws the initial weights and the order of the data; a model is trained once with each",
    "Told apart": "a difference that counts at 5 % after correction, and for other seeds and other documents too",
    "Interval of a difference": "where the true difference lies, for other seeds and other documents; it leaves out 0 "
    "exactly where the difference is told, and is narrower than the bars where one seed moves both variants alike",
    "Corrected": "of many pairs one looks different by chance, so each has to pass 5 % divided by their number "
    "(Bonferroni)",
}
RECIPE = ("optimizer", "initialization")  # what moves a small model as much as its attention does, beside the rate
BITS_WORD = {"Bits per byte": "what a model needs to tell the next byte of held-out text; less is better"}
HOW_TOLD_APART = (
    "All corrected intervals hold at once, 95 times in 100. The variances of seeds (paired), of documents, and of what "
    "is of both alone are added, with Satterthwaite's degrees of freedom. Fewer than three seeds or ten documents give "
    "no verdict. The intervals of seeds alone and of documents alone are not corrected."
)


@dataclass(frozen=True)
class Text:
    """All words of a report by section; `notice` and `failures` are empty for a study that came to its end."""

    title: str
    notice: str
    failures: list[str]
    answer: Answer
    words: dict[str, str]
    speeds: Table
    results: Table
    scaling: list[str]
    recall: list[str]
    conditions: Table
    measure: str
    setting: str
    recipes: Table
    differences: Table
    tuned: Table
    tuning: list[str]
    partial: Table
    prompt: str
    samples: dict[str, str]
    made: list[str]
    rerun: list[str]
    train: list[str]
    source: str
    settings: str


def text_of(found: Findings) -> Text:
    """Put a study's findings into words."""
    content = found.content
    name, stated = content["name"], content["stated"]
    return Text(
        title=name,
        notice=" ".join(notices(found)),
        failures=found.failures,
        answer=answer(found),
        words=(BITS_WORD if found.measure is BITS else {})
        | WORDS
        | {"Matched": " ".join([matched(found), *left_out(found)])},
        speeds=speeds(found),
        results=results(found),
        scaling=scaling.sentences(laws) if (laws := scaling.curves(found)) else [],
        recall=accuracy.sentences(found) if accuracy.is_of_a_task(found) else [],
        conditions=accuracy.table(found) if accuracy.is_of_a_task(found) else [],
        measure=found.measure.name,
        setting=of_what(found),
        recipes=recipes(found),
        differences=differences(found),
        tuned=settings_tried(found),
        tuning=tuning_said(found),
        partial=tried_on_part(found),
        prompt=PROMPT,
        samples=content["samples"],
        made=made(content),
        rerun=[f"mla-experiments study {name}.yaml", f"mla-experiments report studies/{name}"],
        train=list(dict.fromkeys(training_of(found, row.name) for row in found.rows)),
        source=stated["source"],
        settings=yaml.safe_dump(shared_settings(content), allow_unicode=True),
    )


def training_of(found: Findings, name: str) -> str:
    """Return the command that trains a variant's mechanism, as it was matched and with the recipe that came out best.

    Sizes and data are left to whoever trains: they are seldom those of a study.
    """
    variant, stated = found.variant(name), found.content["stated"]["settings"]
    attention, changed = variant["variant"]["attention"], variant["variant"]["changed"]
    flags = {"attention": attention}
    flags |= {"attention_options": json.dumps({attention: variant["options"]})} if variant["options"] else {}
    flags |= {field: stated[field] for field in RECIPE if field in stated}
    flags |= {field: value for field, value in found.recipe(name).items() if not field.startswith(OPTION)}
    flags |= {field: value for field, value in changed.items() if field != BUDGET and not field.startswith(CORPUS)}
    parts = (f"--{field} {on_command_line(value)}" for field, value in flags.items())
    return " ".join(["mla-experiments train", *parts])


def on_command_line(value: object) -> str:
    """Return a value, or several, as a shell takes it."""
    if isinstance(value, list):
        return " ".join(map(on_command_line, value))
    return shlex.quote(f"{value:.6g}" if isinstance(value, float) else str(value))


def shared_settings(content: dict) -> dict:
    """Return what all variants and trials have in common, presets and defaults included."""
    stated = content["stated"]
    tuned = {field for design in stated["designs"].values() for settings in design for field in settings}
    swept = {"seed"} | tuned | {field for v in content["variants"] for field in v["variant"]["changed"]}
    return {field: value for field, value in (stated["data"] | stated["settings"]).items() if field not in swept}


def notices(found: Findings) -> list[str]:
    """Say what is missing."""
    counts = {
        "Unfinished: {} runs are still to do.": found.unfinished,
        "{} runs are not done, since no settings of their variant worked.": found.without_settings,
        "{} runs failed:": len(found.failures),
    }
    return [said.format(f"{count} of {found.planned}") for said, count in counts.items() if count]


def matched(found: Findings) -> str:
    """Say what was held equal, and how nearly."""
    stated, variants = found.content["stated"], found.content["variants"]
    if stated["match"] == "none":
        return "Nothing was matched: the variants differ in size as the table shows."
    worst = max(abs(variant["residual"]) for variant in variants)
    what = {"parameters": "Parameters", "flops": "Training FLOPs per token", "cache": "Parameters"}[stated["match"]]
    sizes = any(field in variant["variant"]["changed"] for variant in variants for field in SIZES)
    of_each = " within each size" if sizes else ""
    said = f"{what} were matched{of_each} by the width of the MLP, to within {100 * worst:.3f} %."
    if stated["match"] != "cache":
        return said
    budget_of = {variant["name"]: variant["variant"]["changed"].get(BUDGET, stated.get(BUDGET)) for variant in variants}
    budgets = list(dict.fromkeys(budget_of.values()))
    near = {
        budget: how_near([one for one in variants if budget_of[one["name"]] == budget], budget) for budget in budgets
    }
    each = (
        f": {near[budgets[0]]}" if len(near) == 1 else ". " + " ".join(f"At {of:,}: {one}" for of, one in near.items())
    )
    return (
        f"The cache was to be {' or '.join(f'{budget:,}' for budget in budgets)} bytes a token, and is as near as "
        f"groups and latent ranks allow{each} {said}"
    )


def how_near(variants: list[dict], budget: int) -> str:
    """Say how far the variants at a budget of the cache are from it, and who is not at it."""
    residuals = ", ".join(f"{with_solved(one)} {100 * one['cache_residual']:+.1f} %" for one in variants)
    off = [one["name"] for one in variants if abs(one["cache_residual"]) > NEAR]
    said = f"{residuals}." + (f" Not at the budget: {joined(off)}." if off else "")
    return said.replace(f" {BUDGET}={budget}", "")  # which has been said


def tuning_said(found: Findings) -> list[str]:
    """Say what there is to know of how settings were chosen: what was skipped, too little text, an early stop."""
    stated = found.content["stated"]
    skipped: dict[str, list[str]] = {}  # mechanisms by what they lack
    for name in (stated.get("space") or {"factors": {}})["factors"]:
        lacking = [attention for attention, tried in stated["designs"].items() if name not in tried[0]]
        skipped |= {name: lacking} if lacking else {}
    said = [f"{name} is not tuned for {joined(lacking)}, which has no such thing." for name, lacking in skipped.items()]
    if found.tuned:
        scores = next(iter(found.rows[0].scores.values()))
        said.append(too_few(len(scores["validation"].nats)))
    return [sentence for sentence in [*said, halving(found)] if sentence]


def halving(found: Findings) -> str:
    """Say what halving saved; empty where all trials had all tokens."""
    if not found.partial:
        return ""
    stated = found.content["stated"]
    changed = {variant["name"]: variant["variant"]["changed"] for variant in found.content["variants"]}
    tokens = {name: of.get("train_tokens", stated["settings"]["train_tokens"]) for name, of in changed.items()}
    trials = [run for run in found.content["runs"] if run["is_tuning"]]
    spent = sum(run["share"] * tokens[run["variant"]] for run in trials)
    first = min(run["share"] for run in trials)
    whole = sum(tokens[run["variant"]] for run in trials if run["share"] == first)
    shares = joined([f"{100 * share:g} %" for share in stated["space"]["halving"]])
    return (
        f"Every trial trained on {100 * first:g} % of the tokens first, with a whole schedule; after {shares} the "
        f"better half by validation trained anew on more. So trying took {spent:,.0f} tokens in place of {whole:,}; "
        "what the others would have come to on all tokens is not known."
    )


def left_out(found: Findings) -> list[str]:
    """Say which variants were left out since they are the very model of another."""
    return [f"{name} is the same model as {of}." for name, of in found.content.get("same", {}).items()]


def with_solved(variant: dict) -> str:
    """Return a variant's name with the options that were chosen for it."""
    solved = {name: value for name, value in variant["options"].items() if name not in variant["variant"]["options"]}
    return " ".join([variant["name"], *(f"{name}={value}" for name, value in solved.items())])


def made(content: dict) -> list[str]:
    """Say what it was made with."""
    facts, stated = content["machine"], content["stated"]
    cores = f"{facts['cores']} core{'s' if facts['cores'] > 1 else ''}"
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    entries = content.get("vocab_size", stated["data"]["vocab_size"])
    widths = ", ".join(f"{variant['name']} {variant['intermediate_size']:,}" for variant in content["variants"])
    return [
        f"{facts['gpu'] or facts['cpu']}, {cores}, {facts['date']}; {versions}.",
        f"Corpus {content['corpus']} ({content['corpus_hash'][:12]}), tokenizer {content['tokenizer_hash'][:12]} of "
        f"{entries:,} entries, seeds {', '.join(map(str, stated['seeds']))}.",
        "Test and validation documents are scored one by one, each token once. What is tuned is chosen on the "
        "validation split by a seed of its own; all else here is of the test split and of the other seeds.",
        f"Widths of the MLP: {widths}.",
    ]
