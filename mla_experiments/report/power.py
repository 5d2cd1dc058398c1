"""How many seeds it takes to tell a difference, by how seeds and documents varied in what a study has found so far."""

from pathlib import Path

from ..errors import UserError
from ..study import Study
from .findings import read_findings

MOST_SEEDS = 200


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
    pairs = [pair for pair in read_findings(folder).comparisons if pair.both]
    if not pairs:
        raise UserError(
            f"difference={difference} needs a pair of variants with three seeds in {folder}, to know how seeds vary; "
            "run the study with seeds: [0, 1, 2] first"
        )
    needed = []
    for pair in pairs:
        told = ((n, pair.with_seeds(n).detectable) for n in range(3, MOST_SEEDS))
        enough = (n for n, least in told if least is not None and least <= difference)
        if (count := next(enough, None)) is None:
            return (
                f"A difference of {difference:g} {pair.unit} between {pair.a} and {pair.b} cannot be told by "
                f"{MOST_SEEDS} seeds: its documents vary too much; more text to test on is needed."
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
