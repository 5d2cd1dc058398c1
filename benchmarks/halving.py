"""Which trials would successive halving keep? `python benchmarks/halving.py studies/rates studies/rates-50 ...`.

The first study has tried all its settings on all its tokens; the others are the same file with part of `train_tokens`
and `warmup_tokens`. In each: does the best of all settings lead there, is it among the better half, and how much
worse in the end is whoever leads? Once where trials are trainings of their own, as `tuning.halving` has it, and once
where the whole training is looked at under way, at the same share of its tokens, as many tools have it: its learning
rate is still high there. Reads what the studies recorded; seconds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_experiments.manifest import read_record
from mla_experiments.markdown import table
from mla_experiments.report.findings import bits_of
from mla_experiments.run_files import read_metrics
from mla_experiments.study.halving import entrants

Trials = dict[str, dict[str, Path]]  # folders of runs by variant and settings


def trials_of(study: Path) -> Trials:
    """Return the trials of a study.

    Raises:
        SystemExit: it has none, or has not come to its end.
    """
    content = read_record(study / "study.json")
    found: Trials = {}
    for run in content["runs"]:
        if run["is_tuning"]:
            found.setdefault(run["variant"], {})[str(run["settings"])] = study.parent / run["folder"]
    if not found or not content["complete"]:
        sys.exit(f"{study} has no trials, or not all of them")
    return found


def by_scores(trials: dict[str, Path]) -> np.ndarray:
    """Return the bits per byte of all validation, by trial."""
    return np.array([bits_of(folder, "validation") for folder in trials.values()])


def under_way(trials: dict[str, Path], share: float) -> np.ndarray:
    """Return the validation loss that was logged at the first validation from a share of the steps on, by trial."""
    found = []
    for folder in trials.values():
        losses = {line["step"]: line["eval_loss"] for line in read_metrics(folder) if "eval_loss" in line}
        found.append(next(losses[step] for step in sorted(losses) if step >= share * max(losses)))
    return np.array(found)


def tokens_of(study: Path) -> int:
    """Return how many tokens its runs train on."""
    return read_record(study / "study.json")["stated"]["settings"]["train_tokens"]


def row(looked_at: str, there: list[np.ndarray], ends: list[np.ndarray], tokens: int) -> dict:
    """Return how the order of trials that is seen early agrees with that in the end; a list has a part per variant.

    Args:
        looked_at: what.
        there: by trial, where they are looked at.
        ends: bits per byte of validation by trial in the end.
        tokens: that the trials of a variant had taken by then.
    """
    best = [early.argsort().tolist().index(end.argmin()) for early, end in zip(there, ends, strict=True)]
    cost = [end[early.argmin()] - end.min() for early, end in zip(there, ends, strict=True)]
    return {
        "looked at": looked_at,
        "tokens a variant": f"{tokens:,}",
        "the best leads": f"in {best.count(0)} of {len(best)}",
        "is in the better half": f"in {sum(place < entrants(len(ends[0]), 1)[1] for place in best)}",
        "who leads ends worse by, bits/byte": f"{np.mean(cost):.4f}",
        "at most": f"{max(cost):.4f}",
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whole", type=Path, help="folder of the study whose trials have all tokens")
    parser.add_argument("parts", nargs="+", type=Path, help="folders of the same study on fewer tokens")
    given = parser.parse_args()
    whole, all_tokens = trials_of(given.whole), tokens_of(given.whole)
    ends = list(map(by_scores, whole.values()))
    rows, count = [], len(ends[0])
    for part in given.parts:
        trials, tokens = trials_of(part), tokens_of(part)
        if {name: set(tried) for name, tried in trials.items()} != {name: set(tried) for name, tried in whole.items()}:
            sys.exit(f"{part} tried other settings than {given.whole}")
        share = tokens / all_tokens
        same_order = [{settings: trials[name][settings] for settings in tried} for name, tried in whole.items()]
        rows.append(row(f"{share:.0%}, whole schedules", list(map(by_scores, same_order)), ends, count * tokens))
        early = [under_way(tried, share) for tried in whole.values()]
        rows.append(row(f"{share:.0%}, under way", early, ends, count * tokens))
    print(table(rows))
    print(f"\nBest to worst trial in the end: {np.mean([end.max() - end.min() for end in ends]):.4f} bits a byte.")


if __name__ == "__main__":
    main()
