"""How often the statistics of a study are right, where the truth is known: `python benchmarks/coverage.py`.

Draws studies from a model in which the difference of two variants varies with the seed, with the document, and with
both together, with normal or heavy tails, and counts how often the interval of a pair holds its true difference, how
often a study of equal variants tells any of them apart, and how often a true difference of the size that the study says
it can see is seen. Writes a table with the date; minutes on one core.
"""

import argparse
import datetime
import itertools
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_experiments.markdown import table
from mla_experiments.study.statistics import compare, compared

MIXES = {  # standard deviations of seeds, of documents and of their pairs, the last two for the mean of all documents
    "seeds": (1.0, 0.0, 0.3), "documents": (0.0, 1.0, 0.3), "pairs": (0.0, 0.0, 1.0),
    "seeds and pairs": (0.5, 0.0, 1.0), "documents and pairs": (0.0, 1.0, 1.0),
    "seeds and documents": (1.0, 1.0, 0.3), "all": (1.0, 1.0, 1.0),
}  # fmt: skip
SIZE = 1000  # bits of a document of 1,000 bytes that are one bit a byte
UNIT = 0.01  # bits a byte


def noise(generator: np.random.Generator, tails: str, *shape: int) -> np.ndarray:
    """Return numbers of mean 0 and variance 1."""
    if tails == "heavy":
        return generator.standard_t(3, shape) / math.sqrt(3)
    return generator.standard_normal(shape)


def drawn(generator, tails: str, mix: tuple, seeds: int, documents: int, difference: float = 0.0) -> np.ndarray:
    """Return bits `[seeds, documents]` of one variant above another."""
    of_seeds, of_documents, of_pairs = (UNIT * part for part in mix)
    bits = (
        difference
        + of_seeds * noise(generator, tails, seeds, 1)
        + of_documents * math.sqrt(documents) * noise(generator, tails, 1, documents)
        + of_pairs * math.sqrt(documents) * noise(generator, tails, seeds, documents)
    )
    return bits * SIZE


def scores_of(bits: np.ndarray) -> dict[int, np.ndarray]:
    """Return them by seed."""
    return dict(enumerate(bits))


def coverage(generator, tails: str, mix: tuple, seeds: int, documents: int, studies: int) -> dict[str, float]:
    """Return how often the interval holds the truth, and how often a difference of the detectable size is told."""
    size, zero = np.full(documents, 1000), scores_of(np.zeros((seeds, documents)))
    held, reach = 0, []
    for _ in range(studies):
        found = compared("a", "b", zero, scores_of(drawn(generator, tails, mix, seeds, documents)), size)
        held += found.interval[0] <= 0 <= found.interval[1]
        reach.append(found.detectable)
    true = math.sqrt(np.mean(np.square(reach)))
    told = 0
    for _ in range(studies):
        bits = drawn(generator, tails, mix, seeds, documents, true)
        told += compared("a", "b", zero, scores_of(bits), size).is_told
    return {"coverage, %": 100 * held / studies, "power, %": 100 * told / studies}


def family_errors(generator, tails: str, mix: tuple, seeds: int, documents: int, variants: int, studies: int) -> float:
    """Return in how many of a hundred studies of equal variants some pair is told apart."""
    size, told = np.full(documents, 1000), 0
    for _ in range(studies):
        # each variant's own noise; a pair's is then sqrt 2 times that of `coverage`
        scores = {str(number): scores_of(drawn(generator, tails, mix, seeds, documents)) for number in range(variants)}
        told += any(comparison.is_told for comparison in compare(scores, size))
    return 100 * told / studies


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=2000, help="drawn for each cell")
    parser.add_argument("--families", type=int, default=400, help="studies of several variants drawn for each cell")
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    error = 100 * 1.96 * math.sqrt(0.05 * 0.95 / given.studies)
    print(f"{datetime.date.today()}, {given.studies:,} studies a cell: ± {error:.1f} around 95 %\n")
    rows = []
    for tails, (name, mix), seeds in itertools.product(("normal", "heavy"), MIXES.items(), (2, 3, 5, 8)):
        row = {"tails": tails, "what varies": name, "seeds": seeds}
        for documents in (20, 60, 200):
            if seeds == 2:
                row |= {f"{documents} documents": "no verdict"}
                continue
            found = coverage(generator, tails, mix, seeds, documents, given.studies)
            row |= {f"{documents} documents": " / ".join(f"{value:.1f}" for value in found.values())}
        rows.append(row)
    print("Intervals of a pair that hold the truth / differences of the detectable size that are told, of a hundred:\n")
    print(table(rows))
    rows = []
    for tails, (name, mix), variants in itertools.product(("normal", "heavy"), MIXES.items(), (2, 6, 12)):
        row = {"tails": tails, "what varies": name, "variants": variants}
        for seeds in (3, 5, 8):
            many = given.families if variants > 2 else given.studies
            row |= {f"{seeds} seeds": f"{family_errors(generator, tails, mix, seeds, 40, variants, many):.1f}"}
        rows.append(row)
    print("\nStudies of equal variants (40 documents) that tell any pair apart, of a hundred:\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
