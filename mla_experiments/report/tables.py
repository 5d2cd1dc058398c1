"""The tables of a study's report as text: headings, and rows of as many cells."""

from dataclasses import dataclass

from ..study.record import DECODE_CONTEXTS
from ..study.statistics import Comparison, Estimate, shown_p
from .findings import Findings

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many cells."""

    headings: list[str]
    rows: list[list[str]]


def results(found: Findings) -> Table:
    """Return the table of all variants."""
    headings = [
        "variant", "parameters", "training MFLOP/token", "seeds", "bits/byte", "ppl/word", "cache bytes/token",
        "training tokens/s", *(f"decode tokens/s at {context:,}" for context in DECODE_CONTEXTS),
    ]  # fmt: skip
    digits = 0 if max(row.perplexity.mean for row in found.rows) >= 1000 else 2
    rows = [
        [
            row.name, f"{row.parameters:,}", f"{row.training_flops / 1e6:,.4g}", str(row.num_seeds),
            shown(row.bits, 4), shown(row.perplexity, digits),
            f"{row.cache_bytes:,}", speed(row.training_speed),
            *(speed(row.decode.get(context)) for context in DECODE_CONTEXTS),
        ]
        for row in found.rows
    ]  # fmt: skip
    return Table(headings, rows)


def differences(comparisons: list[Comparison]) -> Table:
    """Return a row per pair: a verdict and its numbers, differences that are told first."""
    ordered = sorted(comparisons, key=lambda c: (not c.is_told, c.p is None))
    headings = [
        "pair",
        "difference, bits/byte",
        "95 % interval",
        "over seeds alone",
        "over documents alone",
        "p, corrected",
    ]
    rows = [
        [c.verdict, f"{c.difference:+.4f}", interval(c.interval), interval(c.over_seeds),
         interval(c.over_documents),
         MISSING if c.p is None else shown_p(c.p).removeprefix("p = ").removeprefix("p ")]
        for c in ordered
    ]  # fmt: skip
    return Table(headings, rows)


def rates(found: Findings) -> Table:
    """Return which learning rates were tried, and which were best."""
    rows = []
    for name, fit in found.fits.items():
        remark = ""
        if len(fit.rates) == 1:
            remark = "the only one tried"
        elif fit.at_edge:
            remark = "at the edge of the sweep: the optimum may lie beyond"
        optimum = f"{fit.optimum:.2g}" if fit.optimum else MISSING
        rows.append([name, ", ".join(f"{rate:g}" for rate in fit.rates), f"{fit.best:g}", optimum, remark])
    return Table(["variant", "tried", "best", "fitted optimum", "remark"], rows)


def shown(value: Estimate, digits: int) -> str:
    """Return a mean with its interval, where there is one."""
    spread = "" if value.half_width is None else f" ± {value.half_width:,.{digits}f}"
    return f"{value.mean:,.{digits}f}{spread}"


def interval(ends: tuple[float, float] | None) -> str:
    """Return an interval as text."""
    return MISSING if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def speed(value: float | None) -> str:
    """Return a rate as text."""
    return MISSING if value is None else f"{value:,.0f}"
