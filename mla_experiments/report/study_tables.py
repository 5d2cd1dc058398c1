"""The tables of a study's report: rows of text by heading."""

import math

from ..study.record import DECODE_CONTEXTS
from ..study.statistics import Estimate, shown_p
from ..study.trials import in_words
from .findings import Findings, Speed
from .nuisance import of_what, telling, turned

MISSING = "\N{EN DASH}"
Table = list[dict[str, str]]


def results(found: Findings) -> Table:
    """Return a row per variant."""
    perplexities = [row.perplexity.mean for row in found.rows if row.perplexity]
    digits = 0 if max(perplexities, default=0) >= 1000 else 2
    return [
        {
            "variant": row.name,
            "parameters": f"{row.parameters:,}",
            "training MFLOP/token": f"{row.training_flops / 1e6:,.4g}",
            "seeds": str(row.num_seeds),
            found.measure.heading: shown(row.bits, 4, found.measure.ends),
            **({"ppl/word": shown(row.perplexity, digits)} if row.perplexity else {}),
            "cache bytes/token": f"{row.cache_bytes:,}",
        }
        for row in found.rows
    ]


def speeds(found: Findings) -> Table:
    """Return how fast each variant trains and decodes; none where nothing was timed."""
    if not any(row.training_speed or row.decode for row in found.rows):
        return []
    return [
        {"variant": row.name, "training tokens/s": speed(row.training_speed)}
        | {f"decode tokens/s at {context:,}": speed(row.decode.get(context)) for context in DECODE_CONTEXTS}
        for row in found.rows
    ]


def recipes(found: Findings) -> Table:
    """Return the difference of each pair of mechanisms by recipe; none where there is a single recipe.

    A row is of a recipe, or where there are more pairs than recipes of a pair.
    """
    pairs = telling(found)
    is_of_pairs = len(pairs) > len(found.settings)
    rows: dict[str, dict[str, str]] = {}
    for (a, b), of_pair in pairs.items():
        for setting, c in of_pair.items():
            difference = f"{c.difference:+.4f}" + ("" if c.interval is None else f" ({interval(c.interval)})")
            row, column = (f"{b} less {a}", setting) if is_of_pairs else (setting, f"{b} less {a}")
            rows.setdefault(row, {"pair" if is_of_pairs else of_what(found): row})[column] = difference
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [{name: row.get(name, MISSING) for name in names} for row in rows.values()]


def differences(found: Findings) -> Table:
    """Return a row per pair: a verdict and its numbers, differences that are told first.

    Where the recipe decides which of two mechanisms is ahead, neither is called better.
    """
    mechanism = {row.name: row.mechanism for row in found.rows}
    turning = turned(found)

    def verdict(c):
        if frozenset((mechanism[c.a], mechanism[c.b])) in turning:
            return f"{c.b} and {c.a}: depends on the {of_what(found)}"
        return c.verdict

    return [
        {
            "pair": verdict(c),
            f"difference, {found.measure.heading}": f"{c.difference:+.4f}",
            "95 % interval": interval(c.interval),
            "over seeds alone": interval(c.over_seeds),
            "over documents alone": interval(c.over_documents),
            "p, corrected": MISSING if c.p is None else shown_p(c.p).removeprefix("p = ").removeprefix("p "),
        }
        for c in sorted(found.comparisons, key=lambda c: (not c.is_told, c.p is None))
    ]


def settings_tried(found: Findings) -> Table:
    """Return how many settings were tried, which were best, and what trying more than one was worth."""
    rows = []
    for name, tuned in found.tuned.items():
        expected = [mean for mean, _ in tuned.expected_best]
        begun = sum(trial.variant == name and trial.share == found.partial[0].share for trial in found.partial)
        rows.append(
            {
                "variant": name,
                "trials": f"{begun}, {len(tuned.values)} on all tokens" if begun else str(len(tuned.values)),
                "best": in_words(tuned.best),
                f"{found.measure.heading}, validation": f"{min(tuned.values):.4f}",
                "gained by trying": MISSING if begun else f"{expected[0] - expected[-1]:.4f}",
                "fitted optimum": f"{tuned.fit.optimum:.2g}" if tuned.fit and tuned.fit.optimum else MISSING,
                "at the edge": ", ".join(tuned.edges) or MISSING,
            }
        )
    return rows


def tried_on_part(found: Findings) -> Table:
    """Return a row per trial on a part of the tokens: how it came out there."""
    return [
        {
            "variant": trial.variant,
            "trial": in_words(trial.settings),
            "tokens": f"{100 * trial.share:.3g} %",
            f"{found.measure.heading}, validation": f"{trial.value:.4f}",
            "place": f"{trial.place} of {trial.of}",
            "": "has more" if trial.goes_on else "ends here",
        }
        for trial in found.partial
    ]


def shown(value: Estimate, digits: int, ends: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """Return a mean with its interval, where there is one; with its ends where ± would go beyond what can be."""
    mean, reach = f"{value.mean:,.{digits}f}", value.half_width
    if reach is None:
        return mean
    low, high = max(ends[0], value.mean - reach), min(ends[1], value.mean + reach)
    if high - low < 2 * reach * (1 - 1e-9):
        return f"{mean} ({low:,.{digits}f} to {high:,.{digits}f})"
    return f"{mean} ± {reach:,.{digits}f}"


def interval(ends: tuple[float, float] | None) -> str:
    """Return an interval as text."""
    return MISSING if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def speed(value: Speed | None) -> str:
    """Return a rate and its range as text."""
    if value is None:
        return MISSING
    return f"{value.median:,.0f}" + ("" if value.low == value.high else f" ({value.low:,.0f} to {value.high:,.0f})")
