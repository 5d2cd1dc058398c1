"""The tables of a study's report: rows of text by heading."""

from ..study.record import DECODE_CONTEXTS
from ..study.statistics import Comparison, Estimate, shown_p
from .findings import Findings

MISSING = "\N{EN DASH}"
Table = list[dict[str, str]]


def results(found: Findings) -> Table:
    """Return a row per variant."""
    digits = 0 if max(row.perplexity.mean for row in found.rows) >= 1000 else 2
    return [
        {
            "variant": row.name,
            "parameters": f"{row.parameters:,}",
            "training MFLOP/token": f"{row.training_flops / 1e6:,.4g}",
            "seeds": str(row.num_seeds),
            "bits/byte": shown(row.bits, 4),
            "ppl/word": shown(row.perplexity, digits),
            "cache bytes/token": f"{row.cache_bytes:,}",
            "training tokens/s": speed(row.training_speed),
            **{f"decode tokens/s at {context:,}": speed(row.decode.get(context)) for context in DECODE_CONTEXTS},
        }
        for row in found.rows
    ]


def differences(comparisons: list[Comparison]) -> Table:
    """Return a row per pair: a verdict and its numbers, differences that are told first."""
    return [
        {
            "pair": c.verdict,
            "difference, bits/byte": f"{c.difference:+.4f}",
            "95 % interval": interval(c.interval),
            "over seeds alone": interval(c.over_seeds),
            "over documents alone": interval(c.over_documents),
            "p, corrected": MISSING if c.p is None else shown_p(c.p).removeprefix("p = ").removeprefix("p "),
        }
        for c in sorted(comparisons, key=lambda c: (not c.is_told, c.p is None))
    ]


def rates(found: Findings) -> Table:
    """Return which learning rates were tried, and which were best."""
    rows = []
    for name, fit in found.fits.items():
        edge = "at the edge of the sweep: the optimum may lie beyond" if fit.at_edge else ""
        rows.append(
            {
                "variant": name,
                "tried": ", ".join(f"{rate:g}" for rate in fit.rates),
                "best": f"{fit.best:g}",
                "fitted optimum": f"{fit.optimum:.2g}" if fit.optimum else MISSING,
                "remark": "the only one tried" if len(fit.rates) == 1 else edge,
            }
        )
    return rows


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
