"""Intervals and verdicts against scipy by hand, simulation, and cases whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mla_experiments.study import statistics
from mla_experiments.study.statistics import estimate
from mla_experiments.study.tuned import fit_rates, tuned
from mla_experiments.study.tuning import Factor


def compare(nats, num_bytes, *more):
    """Compare variants in bits per byte, by nats of documents."""
    bits = {name: {seed: of / np.log(2) for seed, of in runs.items()} for name, runs in nats.items()}
    return statistics.compare(bits, num_bytes, *more)


def test_an_estimate_is_students_interval():
    values = [1.0, 2.0, 4.0, 4.5]
    found = estimate(values)
    expected = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert found.mean == pytest.approx(2.875) and found.half_width == pytest.approx(expected)


def test_one_seed_gives_no_interval_and_no_verdict():
    assert estimate([3.0]).half_width is None
    (found,) = compare({"a": {0: np.ones(30)}, "b": {0: np.full(30, 2.0)}}, np.full(30, 100))
    assert found.p is None and found.interval is None and found.over_seeds is None and not found.is_told
    assert found.sentence == "b against a: one seed cannot tell (+0.0144 bits per byte)."


def test_two_seeds_or_nine_documents_cannot_tell():
    generator = np.random.default_rng(12)
    for seeds, documents, said in (
        (2, 60, "two seeds"),
        (5, 9, "nine documents"),
        (2, 2, "two seeds and two documents"),
    ):
        scores = {"a": noisy(seeds, documents, 0.0, generator, 0), "b": noisy(seeds, documents, 0.5, generator, 0)}
        (found,) = compare(scores, np.full(documents, 1000))
        assert found.p is None and found.interval is None and found.detectable is None
        assert found.verdict == f"b against a: {said} cannot tell"
        assert (found.over_documents is None) == (documents < 10)


def noisy(seeds, documents, shift, generator, seed_noise=0.02):
    """Nats of documents of 1,000 bytes, with hard and easy ones common to all."""
    hard = np.linspace(1000, 2000, documents)
    nats = (hard + shift * 1000 * np.log(2) + generator.normal(0, 20, (seeds, documents))
            + generator.normal(0, seed_noise * 1000 * np.log(2), (seeds, 1)))  # fmt: skip
    return dict(enumerate(nats))


def test_a_clear_difference_is_told_and_has_its_size():
    generator = np.random.default_rng(0)
    scores = {"a": noisy(5, 60, 0.0, generator, 0.001), "b": noisy(5, 60, 0.05, generator, 0.001)}
    (found,) = compare(scores, np.full(60, 1000))
    assert found.p < 0.05 and found.difference == pytest.approx(0.05, abs=0.01)
    for low, high in (found.over_documents, found.over_seeds, found.interval):
        assert low < found.difference < high
    low, high = found.interval
    assert found.sentence.startswith(f"b is worse than a ({found.difference:+.4f} bits per byte; ")
    assert f"; 95 % interval {low:+.4f} to {high:+.4f}; p < 0.0001)." in found.sentence


def test_seeds_that_disagree_leave_no_verdict_though_documents_agree():
    generator = np.random.default_rng(1)
    scores = {"a": noisy(4, 60, 0.0, generator, 0.1), "b": noisy(4, 60, 0.02, generator, 0.1)}
    (found,) = compare(scores, np.full(60, 1000))
    assert "not told apart" in found.sentence


def test_more_pairs_ask_for_more_evidence():
    generator = np.random.default_rng(3)
    scores = {"a": noisy(4, 40, 0.0, generator, 0.01), "b": noisy(4, 40, 0.03, generator, 0.01)}
    (alone,) = compare(scores, np.full(40, 1000))
    others = {name: noisy(4, 40, 0.0, generator, 0.01) for name in "cdef"}
    among = compare(scores | others, np.full(40, 1000))
    assert next(c for c in among if (c.a, c.b) == ("a", "b")).p >= alone.p


def test_the_numbers_of_a_comparison_are_those_that_textbooks_give():
    generator, size = np.random.default_rng(4), np.arange(500, 560)
    scores = {name: noisy(6, 60, shift, generator, 0.02) for name, shift in (("a", 0), ("b", 0.04), ("c", 0.01))}
    for found in compare(scores, size):
        nats = np.array([scores[found.b][seed] - scores[found.a][seed] for seed in range(6)]) / np.log(2)
        paired = stats.ttest_rel(*(np.array([scores[name][s].sum() for s in range(6)]) for name in (found.b, found.a)))
        assert found.over_seeds == pytest.approx(np.array(paired.confidence_interval(0.95)) / size.sum() / np.log(2))
        mean = nats.sum(1).mean() / size.sum()
        assert found.difference == pytest.approx(mean)
        # a ratio's standard error by linearisation (Cochran 1977, 2.42)
        of_documents = np.sqrt(((nats.mean(0) - mean * size) ** 2).sum() * 60 / 59) / size.sum()
        assert np.ptp(found.over_documents) == pytest.approx(2 * stats.t.ppf(0.975, 59) * of_documents)
        # mean squares by hand (Searle, Casella & McCulloch 1992, table 4.2)
        table = (nats - mean * size) * 60 / size.sum()
        rows, columns = table.mean(1), table.mean(0)
        rest = sum((table[s, d] - rows[s] - columns[d]) ** 2 for s in range(6) for d in range(60)) / (5 * 59)
        of_rows, of_columns = 60 * rows.var(ddof=1), 6 * columns.var(ddof=1)
        assert of_rows > rest and of_columns < rest, "seeds matter, documents do not beyond their pairs with seeds"
        error = np.sqrt(of_rows / 360)
        freedom = of_rows**2 / (of_rows**2 / 5 + rest**2 / 295)  # Satterthwaite 1946, of what is added
        assert found.both.error == pytest.approx(error) and found.both.freedom == pytest.approx(freedom)
        largest = max(stats.t.sf(abs(mean) / e, f) for e, f in (
            (error, freedom), (found.seeds.error, 5), (found.documents.error, 59)))  # fmt: skip
        assert found.p == pytest.approx(min(1.0, 3 * 2 * largest)), "Bonferroni"


def test_intervals_and_verdicts_say_the_same():
    generator, size = np.random.default_rng(13), np.full(40, 1000)
    told = 0
    for _ in range(60):
        scores = {
            name: noisy(3, 40, shift, generator, 0.005) for name, shift in zip("abcd", (0, 0, 0.02, 0.1), strict=True)
        }
        for found in compare(scores, size):
            low, high = found.interval
            assert found.is_told == (not low <= 0 <= high)
            told += found.is_told
    assert 0 < told < 360


def test_seeds_that_agree_by_chance_are_not_taken_for_many():
    """Twelve equal variants at three seeds: of 66 pairs, some three seeds agree within a hundredth of their spread."""
    generator, told = np.random.default_rng(14), 0
    for _ in range(60):
        scores = {str(name): noisy(3, 40, 0.0, generator, 0.02) for name in range(12)}
        told += any(found.is_told for found in compare(scores, np.full(40, 1000)))
    assert told <= 8, "3 of 60 are expected at most, more than 8 once in 300 times; sums of variances alone give 45"


@pytest.mark.parametrize(("seeds", "pairs"), [(5, 1), (3, 15), (5, 66)])
def test_what_a_study_can_see_is_what_it_sees_four_times_in_five(seeds, pairs):
    generator, size = np.random.default_rng(15), np.full(40, 1000)
    zero = {seed: np.zeros(40) for seed in range(seeds)}

    def found(shift):
        nats = generator.normal(0, 10, (seeds, 1)) + generator.normal(0, 10, (seeds, 40)) + shift * 1000 * np.log(2)
        return replace(compare({"a": zero, "b": dict(enumerate(nats))}, size)[0], pairs=pairs)

    true = np.sqrt(np.mean([found(0).detectable ** 2 for _ in range(400)]))
    assert 0.74 < np.mean([found(true).is_told for _ in range(400)]) < 0.88


def test_runs_are_paired_by_their_seed_where_one_is_missing():
    generator = np.random.default_rng(5)
    common = {seed: generator.normal(0, 200, 40) for seed in range(4)}  # what a seed does to both variants
    first = {seed: 1500 + common[seed] for seed in (0, 2, 3)}
    second = {seed: 1520 + common[seed] + generator.normal(0, 1, 40) for seed in range(4)}
    (found,) = compare({"a": first, "b": second}, np.full(40, 1000))
    low, high = found.over_seeds
    assert found.is_told and high - low < 0.01 and found.difference == pytest.approx(20 / 1000 / np.log(2), rel=0.05)
    (apart,) = compare({"a": {0: first[0]}, "b": {1: second[1]}}, np.full(40, 1000))
    assert apart.p is None and "runs without a seed in common cannot tell" in apart.sentence


def test_the_same_weights_are_not_told_apart():
    runs = noisy(3, 30, 0.0, np.random.default_rng(6))
    (found,) = compare({"mqa": runs, "gqa num_key_value_heads=1": dict(runs)}, np.full(30, 1000))
    assert found.p == 1.0 and found.over_seeds == (0.0, 0.0) and "are not told apart" in found.sentence


def test_a_single_document_gives_no_verdict():
    generator = np.random.default_rng(7)
    (found,) = compare({"a": noisy(3, 1, 0.0, generator), "b": noisy(3, 1, 0.5, generator)}, np.full(1, 1000))
    assert found.p is None and found.over_documents is None and "one document cannot tell" in found.sentence


def test_pairs_without_a_test_ask_for_no_correction():
    generator = np.random.default_rng(8)
    scores = {"a": noisy(4, 40, 0.0, generator), "b": noisy(4, 40, 0.03, generator)}
    (alone,) = compare(scores, np.full(40, 1000))
    among = compare(scores | {name: noisy(1, 40, 0.0, generator) for name in "cde"}, np.full(40, 1000))
    assert next(c for c in among if (c.a, c.b) == ("a", "b")).p == alone.p
    only = compare(scores | {"c": noisy(4, 40, 0.0, generator)}, np.full(40, 1000), lambda a, b: (a, b) == ("a", "b"))
    assert [(c.a, c.b, c.p) for c in only] == [("a", "b", alone.p)]


def test_a_parabola_is_found_again():
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    found = fit_rates({rate: 2 + 0.1 * (np.log(rate) - np.log(3e-3)) ** 2 for rate in rates})
    assert found.optimum == pytest.approx(3e-3) and found.best in (2e-3, 4e-3)
    assert found.at(3e-3) == pytest.approx(2.0)
    falling = fit_rates({rate: -rate for rate in rates})
    assert falling.best == 8e-3 and falling.optimum is None and fit_rates({1e-3: 2.0}).optimum is None


def edges_of(best, factors, *others):
    """The fields at the edge where the first of some settings came out best; the last of them may have failed."""
    *done, _ = design = [best, *others]
    return tuned([(one, float(place)) for place, one in enumerate(done)], factors, design).edges


def test_the_outermost_of_the_numbers_that_were_tried_is_at_the_edge_however_they_were_stated():
    rate, choice = (
        {"learning_rate": Factor((1e-3, 1e-2), True)},
        {"attention.kv_lora_rank": Factor((16, 32, 64), False)},
    )
    rates = [{"learning_rate": one} for one in (2e-3, 3e-3, 8e-3, 9.7e-3)]
    for factors in (rate, {}):  # drawn from a range, or listed
        assert edges_of(rates[0], factors, *rates[1:3]) == ["learning_rate"]
        assert edges_of(rates[1], factors, rates[0], rates[2]) == [], "the highest failed, and was tried"
        assert edges_of(rates[0], factors, rates[0]) == [], "one that was not tuned"
    assert edges_of(rates[3], rate, rates[0], {"learning_rate": 9.9e-3}) == ["learning_rate"], "near the end"
    ranks = [{"attention.kv_lora_rank": one} for one in (16, 32, 64)]
    assert edges_of(ranks[2], choice, *ranks[:2]) == ["attention.kv_lora_rank"]
    assert edges_of(ranks[1], choice, ranks[0], ranks[2]) == []
    for switch in (True, "zero"):
        assert edges_of({"x": switch}, {"x": Factor((switch, False), False)}, {"x": False}) == []


def test_more_seeds_see_smaller_differences_as_such_studies_do():
    generator, size = np.random.default_rng(16), np.full(40, 1000)
    zero, seen = {seed: np.zeros(40) for seed in range(12)}, {4: [], 12: []}
    for _ in range(100):
        nats = generator.normal(0, 10, (12, 1)) + generator.normal(0, 40, (1, 40)) + generator.normal(0, 60, (12, 40))
        of = dict(enumerate(nats))
        (few,) = compare({"a": zero, "b": {seed: of[seed] for seed in range(4)}}, size)
        (many,) = compare({"a": zero, "b": of}, size)
        seen[4].append(few.with_seeds(12).detectable)
        seen[12].append(many.detectable)
        assert few.with_seeds(4).detectable == pytest.approx(few.detectable, rel=0.35)
        assert few.with_seeds(12).detectable <= few.with_seeds(5).detectable
    assert np.median(seen[4]) == pytest.approx(np.median(seen[12]), rel=0.15)


def test_a_pair_of_the_same_runs_under_other_names_is_one_test():
    """Mechanisms that meet no budget stand at each of them; their pairs are no further chances to be wrong."""
    generator, size = np.random.default_rng(17), np.full(40, 1000)
    runs = {name: {seed: generator.normal(700, 20, 40) for seed in range(3)} for name in ("mha", "gqa", "mla")}
    once = compare(runs, size)
    again = compare({**runs, "mha at 512": runs["mha"], "gqa at 512": runs["gqa"]}, size, lambda a, b: a[:3] != b[:3])
    assert len(once) == 3 and len(again) == 8
    assert {one.pairs for one in (*once, *again)} == {3}
    intervals = {(one.a, one.b): one.interval for one in once}
    assert all(one.interval == intervals.get((one.a[:3], one.b[:3]), one.interval) for one in again)
