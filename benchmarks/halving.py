"""What successive halving would have cost studies that halved nothing: `python benchmarks/halving.py studies/NAME ...`.

Halving (`tuning.halving`) ends trials in the middle of their schedule, where a high learning rate looks worse than it
will. Here every trial was trained to its end, so that what halving would have kept can be held against what was best.
For each mechanism and share of training: does the best of all trials lead there, is it among the better half, and how
much worse is the best of those that halving keeps? Reads the `metrics.jsonl` of finished trials; seconds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_experiments.manifest import read_record
from mla_experiments.markdown import table
from mla_experiments.run_files import read_metrics
from mla_experiments.study.halving import entrants

SHARES = (0.25, 0.5, 0.75)


def curves_of(study: Path) -> dict[str, list[dict[int, float]]]:
    """Return the validation losses by step of every trial, by variant.

    Raises:
        SystemExit: the study halved some, or tried nothing.
    """
    found: dict[str, list[dict[int, float]]] = {}
    for run in read_record(study / "study.json")["runs"]:
        if not run["is_tuning"]:
            continue
        if run.get("halved"):
            sys.exit(f"{study} halves its trials, so that what came of those that stopped is not known")
        if run["done"]:
            metrics = read_metrics(study.parent / run["folder"])
            losses = {line["step"]: line["eval_loss"] for line in metrics if "eval_loss" in line}
            found.setdefault(run["variant"], []).append(losses)
    return {name: curves for name, curves in found.items() if len(curves) > 1} or sys.exit(f"{study} has no trials")


def cost(curves: list[dict[int, float]], share: float, count: int) -> float:
    """Return the nats a token by which the best of those that lead there is worse than the best of all, in the end.

    Args:
        curves: validation losses by step of every trial.
        share: of the training after which trials are compared.
        count: how many then go on.
    """
    last = max(curves[0])
    step = next(step for step in sorted(curves[0]) if step >= share * last)
    kept = sorted(curves, key=lambda losses: losses[step])[:count]
    return min(losses[last] for losses in kept) - min(losses[last] for losses in curves)


def main() -> None:
    """Print a table of all studies given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="folders of studies with trials, none of them halved")
    rows = []
    for study in parser.parse_args().studies:
        curves = curves_of(study)
        apart = [max(ends) - min(ends) for ends in ([losses[max(losses)] for losses in one] for one in curves.values())]
        for share in SHARES:
            costs = np.array([cost(one, share, entrants(len(one), 1)[1]) for one in curves.values()])
            leads = np.array([cost(one, share, 1) for one in curves.values()])
            rows.append({
                "study": study.name, "mechanisms": len(curves), "trials each": min(map(len, curves.values())),
                "at": f"{share:.0%}", "best leads": f"{(leads == 0).sum()} of {len(leads)}",
                "best is kept": f"{(costs == 0).sum()} of {len(costs)}", "cost, nats a token": f"{costs.mean():.4f}",
                "at most": f"{costs.max():.4f}", "of the leader alone": f"{leads.mean():.4f}",
                "best to worst trial": f"{np.mean(apart):.4f}",
            })  # fmt: skip
    print(table(rows))


if __name__ == "__main__":
    main()
