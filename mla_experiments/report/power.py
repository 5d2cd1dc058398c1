"""How many seeds it takes to tell a difference, by how seeds and documents varied in what a study has found so far."""

from pathlib import Path

from ..errors import UserError
from ..study import Study
from ..study.statistics import LEAST_SEEDS, Comparison
from .findings import read_findings

MOST_SEEDS = 200
ENDLESS = 10**9  # seeds, which leave only what documents add


def seeds_needed(study: Study, rows: list[dict], root: Path, difference: float) -> str:
    """Say how many seeds, runs and hours it takes to tell a difference.

    Args:
        study: as stated.
        rows: what `study.study_plan` says that it costs.
        root: folder of studies, with what this one has found so far.
        difference: in what the study measures, bits per byte of text.

    Raises:
        UserError: too little has been run to know how they vary.
    """
    folder = root / study.name
    compared = read_findings(folder).comparisons
    pairs = [pair for pair in compared if pair.both]
    if not pairs:
        lacking = f"; {compared[0].lacks} cannot tell that" if compared else ""
        raise UserError(
            f"difference={difference} needs a pair of variants with three seeds and ten test documents in {folder}, to "
            f"know how these vary{lacking}: run the study with seeds: [0, 1, 2] first, on more text if documents lack"
        )
    needed = []
    for pair in pairs:
        enough = (n for n in range(LEAST_SEEDS, MOST_SEEDS + 1) if is_seen(pair, n, difference))
        if (count := next(enough, None)) is None:
            why = (
                "its seeds vary too much"
                if is_seen(pair, ENDLESS, difference)
                else ("its documents vary too much, however many seeds there are; more text to test on is needed")
            )
            return (
                f"A difference of {difference:g} {pair.unit} between {pair.a} and {pair.b} cannot be told by "
                f"{MOST_SEEDS} seeds: {why}."
            )
        needed.append((count, pair))
    count, pair = max(needed, key=lambda found: found[0])
    total = rows[-1]
    runs = total["runs"] + (count - len(study.seeds)) * sum(row["runs"] > 0 for row in rows[:-1])
    last, hours = [(name, value) for name, value in total.items() if name.startswith("hours")][-1]
    return (
        f"A difference of {difference:g} {pair.unit} is told of every pair, four times in five, by {count} seeds ("
        f"for {pair.b} against {pair.a}; this study has {len(study.seeds)}): {runs} runs, "
        f"{hours * runs / total['runs']:.3g} {last}."
    )


def is_seen(pair: Comparison, seeds: int, difference: float) -> bool:
    """Return whether so many seeds would tell a true difference of a pair four times in five."""
    least = pair.with_seeds(seeds).detectable
    return least is not None and least <= difference
