"""What a study found: `study.json` and the scores of its runs become rows, comparisons and fits, computed once.

What is not there yet is left out; nothing is estimated in its place.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evaluation.measures import BITS, Measure, measure_of, ratio
from ..evaluation.scores import SplitScores, scores_of
from ..manifest import read_record
from ..study.fields import BUDGET, CORPUS
from ..study.halving import entrants
from ..study.matching import CACHE_CONTEXTS
from ..study.record import STUDY
from ..study.statistics import Comparison, Estimate, compare, estimate, perplexity_per_word
from ..study.trials import in_words
from ..study.tuned import Tuned, tuned
from ..study.tuning import Factor, Settings

Runs = dict[int, Path]  # folders by seed


@dataclass(frozen=True)
class Speed:
    """Tokens per second: the median of some turns, the slowest and the fastest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, recorded: dict | float) -> "Speed":
        """Return what a study recorded; older ones recorded the median alone."""
        return cls(**recorded) if isinstance(recorded, dict) else cls(recorded, recorded, recorded)


@dataclass(frozen=True)
class Row:
    """A variant with the settings that came out best, with its estimates over seeds.

    `setting` is what is swept beside mechanisms and their options, such as `positions=learned`; `decode` holds tokens
    per second by context, where it was measured. `bits` is of the study's measure, bits per byte of text, and
    `perplexity` of text alone. `cache_bytes` is of a token, `budget` what it may be, where there is one;
    `cache_of` is of a sequence, by its length.
    """

    name: str
    setting: str
    runs: Runs
    bits: Estimate
    perplexity: Estimate | None
    parameters: int
    training_flops: float
    cache_bytes: int
    cache_of: dict[int, int]
    cache_dtype: str | None
    budget: int | None
    training_speed: Speed | None
    decode: dict[int, Speed]

    @property
    def mechanism(self) -> str:
        """The name without the setting."""
        return self.name.removesuffix(self.setting).rstrip()

    @property
    def scores(self) -> dict[int, dict[str, SplitScores]]:
        """The scores of its runs by seed and split, with caches kept as this variant keeps them."""
        return {seed: scores_of(run, self.cache_dtype) for seed, run in self.runs.items()}

    @property
    def num_seeds(self) -> int:
        """How many runs the estimates stand on."""
        return len(self.runs)


@dataclass(frozen=True)
class Partial:
    """A trial on a part of the tokens, and how it came out among the others: which place, and whether it got more."""

    variant: str
    settings: Settings
    value: float
    share: float
    place: int
    of: int
    goes_on: bool


@dataclass(frozen=True, eq=False)  # each is itself alone, so that what derives from it can be kept
class Findings:
    """Everything that a report shows of a study; `content` is that of `study.json`, differences are of `measure`."""

    content: dict
    rows: list[Row]
    comparisons: list[Comparison]
    tuned: dict[str, Tuned]
    partial: list[Partial] = field(default_factory=list)
    measure: Measure = BITS

    @property
    def planned(self) -> int:
        """How many runs the study has in all."""
        return sum(sum(self._trials_of(one)) + len(self.content["stated"]["seeds"]) for one in self.content["variants"])

    def _trials_of(self, variant: dict) -> list[int]:
        """How many trials a variant has on each share of the tokens; none where there is nothing to choose."""
        stated = self.content["stated"]
        count = len(stated["designs"][variant["variant"]["attention"]])
        halvings = len((stated.get("space") or {}).get("halving", ()))
        return entrants(count if count > 1 else 0, halvings)

    @property
    def without_settings(self) -> int:
        """How many runs will never be done, since all settings that they could have had failed."""
        failed, never = self.content["failed"], 0
        for one in self.content["variants"]:
            trials = self._trials_of(one)
            listed = [run for run in self.content["runs"] if run["variant"] == one["name"]]
            have_failed = [not run["done"] and Path(run["folder"]).name in failed for run in listed]
            if trials[0] and len(listed) == trials[0] and all(have_failed):
                never += sum(trials[1:]) + len(self.content["stated"]["seeds"])
        return never

    def variant(self, name: str) -> dict:
        """Return what is recorded of a variant."""
        return next(one for one in self.content["variants"] if one["name"] == name)

    def recipe(self, name: str) -> dict:
        """Return the settings of a variant's runs that are compared."""
        runs = self.content["runs"]
        return next(run["settings"] for run in runs if run["variant"] == name and not run["is_tuning"])

    @property
    def failures(self) -> list[str]:
        """A sentence for each run that failed, and would again."""
        failed = self.content["failed"]
        return [
            f"{run['variant']}, {in_words(run['settings'])}, seed {run['seed']}: {failed[folder]}"
            for run in self.content["runs"]
            if not run["done"] and (folder := Path(run["folder"]).name) in failed
        ]

    @property
    def unfinished(self) -> int:
        """How many runs are still to do."""
        done = sum(run["done"] for run in self.content["runs"])
        return self.planned - done - len(self.failures) - self.without_settings

    @property
    def swept(self) -> dict[str, dict]:
        """What each of the `settings` says of the fields that are swept beside mechanisms and options."""
        return {row.setting: self.variant(row.name)["variant"]["changed"] for row in self.rows}

    @property
    def settings(self) -> dict[str, list[Row]]:
        """Rows by what is swept beside mechanisms and options; all under an empty name where nothing is."""
        grouped: dict[str, list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(row.setting, []).append(row)
        return grouped


def read_findings(folder: Path) -> Findings:
    """Compute everything from the `study.json` in a study's folder and the runs that it names.

    Raises:
        UserError: no study there, none of its runs has come to its end, or some were scored on other text.
    """
    path = Path(folder) / STUDY
    if not path.is_file():
        raise UserError(f"study={folder} holds no {STUDY}; make one with: mla-experiments study experiments/NAME.yaml")
    try:
        content = read_record(path)
    except ValueError:
        raise UserError(f"{path} is damaged; the same `mla-experiments study FILE` writes it anew") from None
    as_now(content)
    rows, scores, weights = [], {}, {}
    found: dict[str, Tuned] = {}
    measure, texts = None, dict[str, Path]()
    for variant in content["variants"]:
        name, root = variant["name"], Path(folder).parent
        tries = tried(content, name, root)
        found |= {name: tries} if tries else {}
        if runs := compared_runs(content, name, root):
            kept = cache_dtype_of(variant)
            tests = {seed: own_scores(content, run, kept)["test"] for seed, run in runs.items()}
            check_one_text(texts, {runs[seed]: test for seed, test in tests.items()})
            first = next(iter(tests.values()))
            measure = measure or measure_of(first)
            scores[name] = {seed: measure.amounts(test) for seed, test in tests.items()}
            weights[name] = measure.weights(first)
            rows.append(row_of(content, variant, runs, list(tests.values())))
    if not rows or measure is None:
        raise UserError(f"study={folder} has no finished run yet; go on with: mla-experiments study FILE")
    parts = {variant["name"]: variant["variant"] for variant in content["variants"]}
    # the same where no budget is small enough to make a difference
    of_rows = {row.name: (row.runs, row.cache_dtype) for row in rows}
    compared = compare(
        scores, weights, lambda a, b: one_apart(parts[a], parts[b]) and of_rows[a] != of_rows[b], measure
    )
    partial = [
        Partial(run["variant"], run["settings"], validation_of(content, root / run["folder"]), **run["halved"])
        for run in content["runs"]
        if run.get("halved")
    ]
    return Findings(content, rows, compared, found, partial, measure)


def own_scores(content: dict, run: Path, cache_dtype: str | None = None) -> dict[str, SplitScores]:
    """Return a run's scores by split, on the texts of the study that is recorded.

    Raises:
        UserError: there are none, or they are of other text, on which `eval` may have scored it since.
    """
    scores = scores_of(run, cache_dtype)
    for split, digest in content.get("texts", {}).items():  # which older records do not have
        if split in scores and scores[split].text_sha256 != digest:
            raise UserError(
                f"{run} has been scored on other text since than the study's; the same `mla-experiments study FILE` "
                "scores it anew"
            )
    return scores


def validation_of(content: dict, run: Path) -> float:
    """Return a run's bits per byte on validation, or what else it is measured by."""
    part = own_scores(content, run)["validation"]
    return measure_of(part).of(part)


def check_one_text(texts: dict[str, Path], tests: dict[Path, SplitScores]) -> None:
    """Refuse a run that was scored on other text than those before it; rows that are drawn may differ by variant.

    Args:
        texts: the hash of the text so far, with a run that was scored on it; is filled in.
        tests: the scores of runs on the test split, by folder.

    Raises:
        UserError: there is one.
    """
    for run, test in tests.items():
        if test.words is not None:
            texts.setdefault(test.text_sha256, run)
    if len(texts) > 1:
        one, other, *_ = texts.values()
        raise UserError(
            f"{one} and {other} were scored on different texts, which do not compare; the same `mla-experiments study "
            "FILE` scores those anew that eval scored on others"
        )


def as_now(content: dict) -> None:
    """Turn a record of an older version into one of now, in place.

    The oldest had the first seed try the learning rates and stay in the comparison; here it tries them alone. Caches of
    whole sequences were not recorded: without windows they are those of so many tokens, with windows they stay unknown.
    """
    stated = content["stated"]
    for variant in content["variants"]:
        has_windows = (stated["settings"] | variant["variant"]["changed"]).get("sliding_window")
        of_token = variant["cache_bytes_per_token"]
        of_sequences = {} if has_windows else {length: length * of_token for length in CACHE_CONTEXTS}
        variant.setdefault("cache_bytes", of_sequences)
    if "designs" in stated:
        return
    stated["designs"] = {
        name: [{"learning_rate": rate} for rate in rates] for name, rates in stated.pop("rates").items()
    }
    first, *others = stated["seeds"]
    attention = {variant["name"]: variant["variant"]["attention"] for variant in content["variants"]}
    for run in content["runs"]:
        run["settings"] = {"learning_rate": run.pop("learning_rate")}
        run["is_tuning"] = run["seed"] == first and len(stated["designs"][attention[run["variant"]]]) > 1
    if others and any(run["is_tuning"] for run in content["runs"]):
        stated["seeds"] = others


def tried(content: dict, name: str, root: Path) -> Tuned | None:
    """Return what came of the settings that a variant tried on all tokens, so far; None where nothing has."""
    tuning = [run for run in content["runs"] if run["variant"] == name and run["is_tuning"]]
    done = [run for run in tuning if run["done"] and run.get("share", 1.0) == 1]
    if not done:
        return None
    space = content["stated"].get("space") or {"factors": {}}
    factors = {name: Factor(tuple(part["values"]), part["is_range"]) for name, part in space["factors"].items()}
    values = [(run["settings"], validation_of(content, root / run["folder"])) for run in done]
    return tuned(values, factors, [run["settings"] for run in tuning])


def compared_runs(content: dict, name: str, root: Path) -> Runs:
    """Return the runs of a variant that are compared, by seed."""
    runs = [run for run in content["runs"] if run["done"] and run["variant"] == name and not run["is_tuning"]]
    return {run["seed"]: root / run["folder"] for run in runs}


def bits_of(run_folder: Path, split: str) -> float:
    """Return a run's bits per byte on a split, or what else it is measured by."""
    part = scores_of(run_folder)[split]
    return measure_of(part).of(part)


def row_of(content: dict, variant: dict, runs: Runs, tests: list[SplitScores]) -> Row:
    """Return a variant's line of the table, with the scores of its runs on the test split."""
    name, first, measure = variant["name"], tests[0], measure_of(tests[0])
    amounts = np.array([measure.amounts(test) for test in tests])
    perplexity = None
    if first.words is not None:
        perplexity = estimate(perplexity_per_word(np.array([test.nats for test in tests]), first.words).tolist())
    return Row(
        name=name,
        setting=" ".join(f"{key}={value}" for key, value in variant["variant"]["changed"].items()),
        runs=runs,
        bits=estimate(ratio(amounts, measure.weights(first)).tolist()),
        perplexity=perplexity,
        parameters=variant["parameters"],
        training_flops=variant["training_flops_per_token"],
        cache_bytes=variant["cache_bytes_per_token"],
        cache_of={int(length): taken for length, taken in variant["cache_bytes"].items()},
        cache_dtype=cache_dtype_of(variant),
        budget=variant["variant"]["changed"].get(BUDGET, content["stated"].get(BUDGET)),
        training_speed=Speed.of(content["training"][name]) if name in content["training"] else None,
        decode={int(context): Speed.of(speed) for context, speed in content["decode"].get(name, {}).items()},
    )


def cache_dtype_of(variant: dict) -> str | None:
    """Return in which dtype a recorded variant keeps its caches; older records know the model's own alone."""
    return variant["variant"].get("cache_dtype")


def one_apart(a: dict, b: dict) -> bool:
    """Return whether two variants differ in one thing: the mechanism and its cache, or one of the swept fields.

    What was asked other questions, at another difficulty, does not compare.

    A pair that differs in two says nothing of either, and would only ask more evidence of the others.
    """
    mechanism = any(a.get(part) != b.get(part) for part in ("attention", "options", "cache_dtype"))
    differing = [field for field in a["changed"] if a["changed"][field] != b["changed"][field]]
    return mechanism + len(differing) == 1 and not any(field.startswith(CORPUS) for field in differing)
