"""The report of a study: the answer first, then the evidence. `report.md`, figures, and one page that needs no network.

What is not there yet is left out and said so; nothing is estimated in its place.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evaluation.scores import read_scores
from ..manifest import read_record
from ..run_files import METRICS_FILE, check_files, read_metrics
from ..study.record import DECODE_CONTEXTS, STUDY
from ..study.statistics import (
    Comparison,
    Estimate,
    RateFit,
    bits_per_byte,
    compare,
    estimate,
    fit_rates,
    perplexity_per_word,
)
from .charts import Chart, Series, draw
from .page import write_page

CACHE_CONTEXTS = (512, 2048, 8192, 32768, 131072)


@dataclass
class Findings:
    """Everything that a report shows of a study, computed once."""

    content: dict
    chosen: dict[str, list[Path]]
    rows: list[dict]
    comparisons: list[Comparison]
    fits: dict[str, RateFit]
    charts: list[Chart]

    @property
    def unfinished(self) -> int:
        """How many runs are still to do."""
        return sum(not run["done"] for run in self.content["runs"])


def write_report(folder: Path) -> list[Path]:
    """Write `report.md`, `report.html` and `figures/` into a study's folder; return what was written.

    Raises:
        UserError: no study there, or none of its runs has come to its end.
    """
    folder = Path(folder)
    findings = read_findings(folder)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    drawn = [path for chart in findings.charts for path in draw(chart, figures)]
    markdown = folder / "report.md"
    markdown.write_text(to_markdown(findings), encoding="utf-8")
    page = write_page(folder / "report.html", findings.content["name"], sections(findings), findings.charts)
    return [page, markdown, *drawn]


def read_findings(folder: Path) -> Findings:
    """Compute everything from `study.json` and the runs that it names."""
    path = folder / STUDY
    if not path.is_file():
        raise UserError(f"study={folder} holds no {STUDY}; make one with: mla-experiments study experiments/NAME.yaml")
    try:
        content = read_record(path)
    except ValueError:
        raise UserError(f"{path} is damaged; the same `mla-experiments study FILE` writes it anew") from None
    done = [run for run in content["runs"] if run["done"]]
    if not done:
        raise UserError(f"study={folder} has no finished run yet; go on with: mla-experiments study FILE")
    fits, chosen = chosen_runs(content, folder.parent)
    scores = {name: test_nats(folders) for name, folders in chosen.items()}
    num_bytes = read_scores(next(iter(chosen.values()))[0])["test"].bytes
    rows = [row(content, name, chosen[name], fits[name], scores[name]) for name in chosen]
    found = Findings(content, chosen, rows, compare(scores, num_bytes), fits, [])
    found.charts = charts(found)
    return found


def chosen_runs(content: dict, root: Path) -> tuple[dict[str, RateFit], dict[str, list[Path]]]:
    """Return by variant what its learning rates gave with the first seed, and its runs at the best, by seed."""
    fits, chosen = {}, {}
    first_seed = content["stated"]["seeds"][0]
    for variant in content["variants"]:
        done = [run for run in content["runs"] if run["done"] and run["variant"] == variant["name"]]
        by_rate = {run["learning_rate"]: validation_bits(root / run["folder"])
                   for run in done if run["seed"] == first_seed}  # fmt: skip
        if by_rate:
            fits[variant["name"]] = fit = fit_rates(by_rate)
            at_best = {run["seed"]: root / run["folder"] for run in done if run["learning_rate"] == fit.best}
            chosen[variant["name"]] = [at_best[seed] for seed in sorted(at_best)]
    return fits, chosen


def validation_bits(run_folder: Path) -> float:
    """Return a run's bits per byte on the validation split."""
    part = read_scores(run_folder)["validation"]
    return float(bits_per_byte(part.nats, part.bytes))


def test_nats(folders: list[Path]) -> np.ndarray:
    """Return nats `[seeds, documents]` of the test split."""
    return np.array([read_scores(folder)["test"].nats for folder in folders])


def row(content: dict, name: str, folders: list[Path], fit: RateFit, nats: np.ndarray) -> dict:
    """Return a variant's line of the table."""
    (variant,) = (v for v in content["variants"] if v["name"] == name)
    test = read_scores(folders[0])["test"]
    return {
        "variant": name,
        "parameters": variant["parameters"],
        "residual": variant["residual"],
        "learning_rate": fit.best,
        "seeds": len(folders),
        "perplexity_per_word": estimate(perplexity_per_word(nats, test.words).tolist()),
        "bits_per_byte": estimate(bits_per_byte(nats, test.bytes).tolist()),
        "cache_bytes_per_token": variant["cache_bytes_per_token"],
        "training_flops_per_token": variant["training_flops_per_token"],
        "training_tokens_per_second": content["training"].get(name),
        "decode": content["decode"].get(name, {}),
    }


def charts(found: Findings) -> list[Chart]:
    """Return all charts of a report."""
    style = {row["variant"]: index for index, row in enumerate(found.rows)}
    drawn = [fronts(found, style, "cache_bytes_per_token", "cache bytes per token")]
    if all(row["decode"] for row in found.rows):
        drawn.append(fronts(found, style, "decode", f"tokens per second, decoding at {DECODE_CONTEXTS[-1]:,} tokens"))
    for key, label in (("tokens", "training tokens"), ("flops", "training FLOPs"), ("seconds", "training seconds")):
        chart = Chart(f"loss-{key}", f"Validation loss against {label}", label, "nats per token")
        for entry in found.rows:
            curve = loss_curve(found.chosen[entry["variant"]], entry, key)
            if curve:
                chart.series.append(Series(entry["variant"], *curve, style=style[entry["variant"]]))
        drawn.append(chart)
    if any(len(fit.rates) > 1 for fit in found.fits.values()):
        chart = Chart("rates", "Learning rates, first seed", "learning rate", "bits per byte, validation", log_x=True)
        for name, fit in found.fits.items():
            chart.series.append(Series(name, list(fit.rates), list(fit.values), style=style[name]))
        drawn.append(chart)
    cache = Chart("cache", "Cache of one sequence", "context, tokens", "MiB", log_x=True, log_y=True)
    for entry in found.rows:
        mib = [context * entry["cache_bytes_per_token"] / 2**20 for context in CACHE_CONTEXTS]
        cache.series.append(Series(entry["variant"], list(CACHE_CONTEXTS), mib, style=style[entry["variant"]]))
    return [*drawn, cache]


def fronts(found: Findings, style: dict[str, int], key: str, label: str) -> Chart:
    """Return quality against a cost, a point a variant, and the front of those that nothing beats in both."""
    name = "front-decode" if key == "decode" else "front-cache"
    chart = Chart(name, f"Quality against {label}", label, "bits per byte, test", log_x=key != "decode", points=True)
    points = []
    for entry in found.rows:
        cost = entry[key] if key != "decode" else entry["decode"][str(DECODE_CONTEXTS[-1])]
        quality: Estimate = entry["bits_per_byte"]
        spread = [quality.half_width] if quality.half_width is not None else None
        chart.series.append(Series(entry["variant"], [cost], [quality.mean], spread, style[entry["variant"]]))
        points.append((cost if key != "decode" else -cost, quality.mean))
    best = [
        (abs(cost), quality)
        for cost, quality in sorted(points)
        if not any(c <= cost and q <= quality and (c, q) != (cost, quality) for c, q in points)
    ]
    chart.series.append(Series("front", *(list(part) for part in zip(*best, strict=True)), style=5))
    return chart


def loss_curve(folders: list[Path], entry: dict, key: str):
    """Return x, mean loss over seeds and the half-width of its interval; None where the runs logged none."""
    curves = []
    for folder in folders:
        check_files(folder, METRICS_FILE)
        curves.append({point["tokens"]: point["eval_loss"] for point in read_metrics(folder) if "eval_loss" in point})
    tokens = sorted(set.intersection(*map(set, curves)))
    if not tokens or (key == "seconds" and not entry["training_tokens_per_second"]):
        return None
    estimates = [estimate([curve[at] for curve in curves]) for at in tokens]
    scale = {
        "tokens": 1.0,
        "flops": entry["training_flops_per_token"],
        "seconds": 1 / (entry["training_tokens_per_second"] or 1),
    }[key]
    band = [part.half_width for part in estimates] if len(folders) > 1 else None
    return [at * scale for at in tokens], [part.mean for part in estimates], band


HOW_TOLD_APART = (
    "A difference counts when it is there over documents (bootstrap) and over seeds (paired t), at 5 % after Holm's "
    "correction for the number of pairs."
)
HEADINGS = (
    "variant", "parameters", "learning rate", "seeds", "ppl/word", "bits/byte", "cache bytes/token",
    "training tokens/s", *(f"decode tokens/s at {context:,}" for context in DECODE_CONTEXTS),
)  # fmt: skip


def cells(entry: dict) -> list[str]:
    """Return a row of the table as text."""
    speeds = [entry["decode"].get(str(context)) for context in DECODE_CONTEXTS]
    return [
        entry["variant"],
        f"{entry['parameters']:,}",
        f"{entry['learning_rate']:g}",
        str(entry["seeds"]),
        shown(entry["perplexity_per_word"], 1),
        shown(entry["bits_per_byte"], 4),
        f"{entry['cache_bytes_per_token']:,}",
        f"{entry['training_tokens_per_second']:,.0f}" if entry["training_tokens_per_second"] else "",
        *(f"{speed:.1f}" if speed else "" for speed in speeds),
    ]


def shown(value: Estimate, digits: int) -> str:
    """Return a mean with its interval, where there is one."""
    spread = "" if value.half_width is None else f" ± {value.half_width:,.{digits}f}"
    return f"{value.mean:,.{digits}f}{spread}"


def answer(found: Findings) -> list[str]:
    """Say in plain words what came out."""
    content, ranked = found.content, sorted(found.rows, key=lambda entry: entry["bits_per_byte"].mean)
    said = []
    if found.unfinished:
        said.append(f"**Unfinished: {found.unfinished} of {len(content['runs'])} runs are still to do.**")
    best = ranked[0]
    rivals = [c for c in found.comparisons if best["variant"] in (c.a, c.b)]
    tied = [c.a if c.b == best["variant"] else c.b for c in rivals if c.p >= 0.05]
    worse = [c.a if c.b == best["variant"] else c.b for c in rivals if c.p < 0.05]
    if min(entry["seeds"] for entry in found.rows) < 2:
        said.append(f"{best['variant']} came out lowest, with one seed: that is no verdict, and no interval is given.")
    elif worse:
        said.append(
            f"{best['variant']} is better than {', '.join(worse)}"
            + (f"; not told apart from {', '.join(tied)}." if tied else ".")
        )
    else:
        said.append(f"No variant is told apart from {best['variant']}, which came out lowest.")
    small = min(found.rows, key=lambda entry: entry["cache_bytes_per_token"])
    large = max(found.rows, key=lambda entry: entry["cache_bytes_per_token"])
    if small is not large:
        times = large["cache_bytes_per_token"] / small["cache_bytes_per_token"]
        said.append(
            f"The smallest cache is that of {small['variant']} ({small['cache_bytes_per_token']:,} bytes per token), "
            f"{times:.1f} times smaller than that of {large['variant']}."
        )
    said.append(
        f"This holds for {content['corpus']}, {content['stated']['settings']['train_tokens']:,} training tokens and "
        f"models of {found.rows[0]['parameters']:,} parameters; larger ones may differ."
    )
    return said


def matched_sentence(found: Findings) -> str:
    """Say what was held equal, and how nearly."""
    match = found.content["stated"]["match"]
    if match == "none":
        return "Nothing was matched: the variants differ in size as the table shows."
    worst = max(abs(entry["residual"]) for entry in found.rows)
    what = {"parameters": "Parameters", "flops": "Training FLOPs per token", "cache": "Cache, then parameters,"}[match]
    return f"{what} were matched by the width of the MLP, to within {100 * worst:.3f} %."


def rate_sentences(found: Findings) -> list[str]:
    """Say which learning rates were best."""
    said = []
    for name, fit in found.fits.items():
        if len(fit.rates) == 1:
            said.append(f"{name}: {fit.best:g}, the only one tried.")
        elif fit.at_edge:
            said.append(f"{name}: {fit.best:g}, **at the edge of the sweep**; the optimum may lie beyond.")
        else:
            fitted = f"; the parabola's optimum is {fit.optimum:.2g}" if fit.optimum else ""
            said.append(f"{name}: {fit.best:g}{fitted}.")
    return said


def made(found: Findings) -> list[str]:
    """Say how it was made, so that it can be made again."""
    content = found.content
    facts, stated = content["machine"], content["stated"]
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return [
        f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores, {facts['date']}; {versions}.",
        f"Corpus {content['corpus']} ({content['corpus_hash'][:12]}), tokenizer {content['tokenizer_hash'][:12]}, "
        f"seeds {', '.join(map(str, stated['seeds']))}. Test and validation documents are scored one by one.",
        f"Rerun: mla-experiments study experiments/{content['name']}.yaml; "
        f"mla-experiments report studies/{content['name']}",
    ]


def sections(found: Findings) -> dict:
    """Return the report's texts by section, unescaped."""
    return {
        "answer": answer(found),
        "headings": list(HEADINGS),
        "rows": [cells(entry) for entry in found.rows],
        "matched": matched_sentence(found),
        "how_told_apart": HOW_TOLD_APART,
        "comparisons": [comparison.sentence for comparison in found.comparisons],
        "rates": rate_sentences(found),
        "samples": found.content["samples"],
        "made": made(found),
    }


def to_markdown(found: Findings) -> str:
    """Return `report.md`."""
    parts = sections(found)
    lines = [f"# {found.content['name']}", "", " ".join(map(escaped, parts["answer"])), ""]
    lines += ["| " + " | ".join(parts["headings"]) + " |", "|---" + "|--:" * (len(parts["headings"]) - 1) + "|"]
    lines += ["| " + " | ".join(entry) + " |" for entry in parts["rows"]]
    lines += ["", f"± is the 95 % interval over seeds. {parts['matched']}", "", "## Differences", ""]
    lines += [f"- {sentence}" for sentence in parts["comparisons"]]
    lines += [
        "",
        HOW_TOLD_APART,
        "",
    ]
    lines += [f"![{chart.title}](figures/{chart.key}.png)" for chart in found.charts]
    lines += ["", "## Learning rates", "", *(f"- {sentence}" for sentence in parts["rates"])]
    lines += [
        "",
        "## Samples",
        "",
        *(f"**{name}**\n\n    {indented(text)}\n" for name, text in parts["samples"].items()),
    ]
    lines += ["## How it was made", "", *(f"- {escaped(sentence)}" for sentence in parts["made"])]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Escape what names of corpora may hold, for Markdown that is shown as HTML."""
    return escape(text, quote=False)


def indented(text: str) -> str:
    """Return generated text as a code block, in which nothing is markup."""
    return " ".join(text.split())
